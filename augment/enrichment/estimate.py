"""What a run would do and take, before it is started, and what its texts look like.

Every item is looked at as a run would look at it, pictures included, so that what is counted here
is what will happen. Nothing is written. The sample's texts are thrown away; ``--preview`` keeps
what it generates.
"""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from operator import itemgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple, final

from augment.data.sampling import Reservoir
from augment.engines import Ask, Engine
from augment.enrichment.jobs import Group, Job
from augment.enrichment.plan import Planner
from augment.errors import printable
from augment.records import Enrichment, Item, Reply
from augment.store import Store, reason_class
from augment.store.keys import Recipe
from augment.store.page import visible
from augment.store.runs import Prices
from augment.store.segments import Seen
from augment.store.upkeep import duration, listing

#: Batches that the sample fills: the first ones of a run are no slower than the later ones.
SAMPLE_BATCHES = 2

#: 0.975 quantile of the normal distribution: the interval of a mean holds it 95 times in 100.
_NORMAL = 1.96

#: Characters of a line of a preview.
_WIDTH = 100


@final
@dataclass
class Survey:
    """What a run would find.

    Attributes:
        items: items read.
        skipped: reason -> items left alone.
        cached: items whose text is known.
        failing: reason -> items that would fail before a model is asked.
        asked: items that need a text.
        requests: requests that this takes; items that send the very same share one.
        pictures: different pictures among these.
        sample: a uniform sample of the requests.
    """

    items: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    cached: int = 0
    failing: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    requests: int = 0
    pictures: int = 0
    sample: list[Group] = field(default_factory=list)


class Timing(NamedTuple):
    """A timed sample: seconds until the first answer, and for all replies, failed ones included."""

    loading: float
    seconds: float
    replies: Sequence[Reply]


def survey(
    jobs: Iterable[Job],
    engine: Engine,
    store: Store,
    recipe: Recipe,
    root: Path,
    *,
    sample: int,
    seed: int = 0,
) -> Survey:
    """Look at every job as a run would, asking no model."""
    found, drawn = Survey(), Reservoir[Group](sample, seed)
    ids, keys, pictures = Seen(), Seen(), Seen()
    plan = Planner(jobs, engine, recipe, root, store)

    try:
        for job, group, failure, _ in plan:
            found.items += 1
            if job.prompt is None:
                found.skipped[job.reason] += 1
                continue
            if ids.add(job.item.id) is not None:
                found.skipped["listed again"] += 1
                continue
            if failure is not None:
                found.failing[reason_class(failure.reason)] += 1
            if group is None:
                continue
            if group.key in store:
                found.cached += 1
                continue
            found.asked += 1
            keys.add(group.key)
            if group.image_hash is not None:
                pictures.add(group.image_hash)
            drawn.offer(group)
    finally:
        plan.close()
    found.requests, found.pictures = len(keys), len(pictures)
    found.sample = list({one.key: one for one in drawn.kept}.values())
    return found


def measure(engine: Engine, sample: Sequence[Group]) -> Timing:
    """Answer a sample of requests by the clock."""
    if not sample:
        return Timing(0.0, 0.0, ())
    asks = [Ask(one.request, one.sampling) for one in sample]
    start = time.monotonic()
    list(engine.batches(asks[:1]))
    loaded = time.monotonic()
    replies = [reply for batch in engine.batches(asks) for _, reply in batch]
    return Timing(loaded - start, time.monotonic() - loaded, replies)


def describe(found: Survey, timing: Timing, prices: Prices) -> str:
    """The estimate for people."""
    rows = [
        "dry run: nothing was written",
        f"{found.items:>11,} items",
        f"{found.cached:>11,} cached",
        f"{found.skipped.total():>11,} left alone{listing(found.skipped, ': ')}",
        f"{found.failing.total():>11,} would fail{listing(found.failing, ': ')}",
        f"{found.asked:>11,} need a text: {found.requests:,} requests,"
        f" {found.pictures:,} different pictures",
    ]
    if not timing.replies:
        return "\n".join([*rows, "nothing to generate"])
    return "\n".join([*rows, *_cost(found.requests, timing, prices)])


def _cost(requests: int, timing: Timing, prices: Prices) -> Iterator[str]:
    number = len(timing.replies)
    failed = sum(reply.finish == "error" for reply in timing.replies)
    cut = sum(reply.finish == "length" for reply in timing.replies)
    yield (
        f"sample: {number:,} requests in {timing.seconds:.1f} s ({number / timing.seconds:.3g}/s)"
        f" after {timing.loading:.1f} s of loading; {failed} failed, {cut} reached the token limit"
    )
    read, _ = _total([reply.prompt_tokens for reply in timing.replies], requests)
    written, spread = _total([reply.output_tokens for reply in timing.replies], requests)
    yield f"tokens: {read:,.0f} read, {written:,.0f} written (95 %: ± {spread:,.0f})"
    hours = requests * timing.seconds / number / 3600
    yield f"time:   {duration(3600 * hours)} on this machine, {hours:.3g} hours of its device"
    costs = {"tokens": prices.tokens(read, written), "device": prices.hours(hours)}
    named = [f"{cost:,.2f} for {name}" for name, cost in costs.items() if cost is not None]
    if named:
        yield f"cost:   {', '.join(named)}, at the prices given"


def _total(values: Sequence[int], requests: int) -> tuple[float, float]:
    """All requests together, and half of the 95 % interval that the sample leaves."""
    spread = stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return requests * fmean(values), requests * _NORMAL * spread


def choose(jobs: Iterable[Job], number: int, seed: int = 0) -> list[Job]:
    """A uniform sample of the jobs that have a prompt, in their order; an id counts once."""
    chosen, seen = Reservoir[tuple[int, Job]](number, seed), Seen()
    for place, job in enumerate(jobs):
        if job.prompt is not None and seen.add(job.item.id) is None:
            chosen.offer((place, job))
    return [job for _, job in sorted(chosen.kept, key=itemgetter(0))]


def show(jobs: Sequence[Job], texts: Mapping[str, Enrichment]) -> str:
    """Picture, published text and generated text of every job, one below the other."""
    return "\n\n".join(_one(job.item, texts.get(job.item.id)) for job in jobs)


def _one(item: Item, text: Enrichment | None) -> str:
    head = f"{item.id}  {item.image}" if item.image else item.id
    rows = {"published": item.text or "-"}
    rows |= {"generated": text.text or "-"} if text else {"failed": "see below"}
    rows |= {"refused": text.rejected} if text and text.rejected else {}
    return "\n".join([printable(head), *(_field(*row) for row in rows.items())])


def _field(name: str, value: str) -> str:
    lines = textwrap.wrap(visible(value), _WIDTH - 13) or [""]
    return "\n".join(f"  {name if n == 0 else '':<11}{line}" for n, line in enumerate(lines))
