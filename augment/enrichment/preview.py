"""A few items before and after, on the terminal. They are saved like those of any other run."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from augment.enrichment.jobs import Job
from augment.records import Enrichment
from augment.store.page import visible

_WIDTH = 100


def choose(jobs: Iterable[Job], number: int, seed: int = 0) -> list[Job]:
    """A uniform sample of the jobs that have a prompt, in their order; an id counts once."""
    dice = random.Random(seed)  # noqa: S311 - a sample, not a secret
    chosen: list[tuple[int, Job]] = []
    seen: set[int] = set()
    for place, job in enumerate(jobs):
        if job.prompt is None or (mark := hash(job.item.id)) in seen:
            continue
        seen.add(mark)
        if len(chosen) < number:
            chosen.append((place, job))
        elif (at := dice.randrange(len(seen))) < number:
            chosen[at] = (place, job)
    return [job for _, job in sorted(chosen, key=lambda pair: pair[0])]


def show(jobs: Sequence[Job], texts: Mapping[str, Enrichment]) -> str:
    """Picture, published text and generated text of every job, one below the other."""
    return "\n\n".join(_one(job, texts.get(job.item.id)) for job in jobs)


def _one(job: Job, text: Enrichment | None) -> str:
    item = job.item
    head = f"{item.id}  {item.image}" if item.image else item.id
    rows = [visible(head), _field("published", item.text or "-")]
    if text is None:
        return "\n".join([*rows, _field("failed", "see below")])
    rows.append(_field("generated", text.text or "-"))
    if text.rejected:
        rows.append(_field("refused", text.rejected))
    return "\n".join(rows)


def _field(name: str, value: str) -> str:
    lines = textwrap.wrap(visible(value), _WIDTH - 13) or [""]
    return "\n".join(f"  {name if n == 0 else '':<11}{line}" for n, line in enumerate(lines))
