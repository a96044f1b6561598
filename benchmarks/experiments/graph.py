"""Steps that are done once: each has a folder named by a fingerprint of all that goes into it.

::

    OUT/<kind>/<fingerprint>/...         what the step made
    OUT/<kind>/<fingerprint>/done.json   written last: settings, needs, seconds; the step is done

A step without ``done.json`` is run (again); what it left when it was cut short lies in its folder,
and is its own to use. Two processes may work on one folder: a step is locked while it runs.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

from filelock import FileLock

from augment.files import digest, read_json, write_json
from retrievers.evaluation.versions import source_commit

#: Part of every fingerprint; raised when a step's work changes what it makes.
FORMAT = 1

#: Seconds per unit of size (see :attr:`CachedStep.size`) before any step of a kind was timed: two
#: cores, the packaged models, a Flagland of 600 countries.
RATES: Mapping[str, float] = {
    "world": 0.03, "texts": 0.01, "derived": 5.0, "train": 1.05, "test": 9.0, "lexical": 3.0,
    "fused": 2.0, "mine": 20.0,
}  # fmt: skip


@final
@dataclass(frozen=True)
class CachedStep:
    """One piece of work.

    Attributes:
        kind: folder of its kind.
        title: for people.
        settings: all that changes its result besides ``needs``; JSON-serialisable.
        needs: steps whose results it reads.
        work: makes it; gets its own folder and those of ``needs`` in order.
        size: how much work it is, in units of its kind (a training: its optimiser steps).
    """

    kind: str
    title: str
    settings: Mapping[str, Any]
    needs: tuple[CachedStep, ...]
    work: Callable[[Path, Sequence[Path]], None]
    size: float = 1.0

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over kind, settings and the fingerprints of ``needs``."""
        parts = {
            "format": FORMAT,
            "kind": self.kind,
            "settings": self.settings,
            "needs": [step.fingerprint for step in self.needs],
        }
        return digest(parts)[:16]

    def folder(self, out: Path) -> Path:
        """Where its results lie."""
        return out / self.kind / self.fingerprint

    def done(self, out: Path) -> bool:
        """Whether its results are complete."""
        return (self.folder(out) / "done.json").is_file()


@final
class PlannedStep(NamedTuple):
    """A step of a plan: whether it is done, and how many seconds it takes or took."""

    step: CachedStep
    done: bool
    seconds: float


def in_order(steps: Iterable[CachedStep]) -> Iterator[CachedStep]:
    """All steps and what they need, each once, needs first."""
    seen: set[str] = set()

    def visit(step: CachedStep) -> Iterator[CachedStep]:
        if step.fingerprint in seen:
            return
        seen.add(step.fingerprint)
        for need in step.needs:
            yield from visit(need)
        yield step

    for step in steps:
        yield from visit(step)


def record(step: CachedStep, out: Path) -> dict[str, Any]:
    """What ``done.json`` says.

    Raises:
        DataError: if the step is not done.
    """
    return dict(read_json(step.folder(out) / "done.json"))


def plan(steps: Iterable[CachedStep], out: Path) -> list[PlannedStep]:
    """What there is to do: seconds measured of steps that are done, estimated of the others.

    An estimate is the mean of this folder's steps of the same kind per unit of size, or else the
    table's (:data:`RATES`).
    """
    rates = _measured(out)
    return [
        PlannedStep(step, True, float(record(step, out)["seconds"]))
        if step.done(out)
        else PlannedStep(step, False, step.size * rates.get(step.kind, RATES.get(step.kind, 1.0)))
        for step in in_order(steps)
    ]


def _measured(out: Path) -> dict[str, float]:
    rates = {}
    for kind in RATES:
        found = [read_json(path) for path in out.glob(f"{kind}/*/done.json")]
        size = sum(one["size"] for one in found)
        if size:
            rates[kind] = sum(one["seconds"] for one in found) / size
    return rates


def describe(planned: Sequence[PlannedStep]) -> str:
    """The plan in words, a line a step and a line of totals."""
    lines = [
        f"{'cached' if one.done else 'to run':7} {one.seconds:7.0f} s  {one.step.kind:8} "
        f"{one.step.fingerprint}  {one.step.title}"
        for one in planned
    ]
    left = [one for one in planned if not one.done]
    lines.append(
        f"{len(planned)} steps, {len(planned) - len(left)} of them cached; "
        f"about {sum(one.seconds for one in left) / 60:.0f} minutes to run"
    )
    return "\n".join(lines)


def run(steps: Iterable[CachedStep], out: Path) -> None:
    """Do what is not done, with progress.

    Raises:
        ToolkitError: if a step fails; what was done before stays.
        SystemExit: likewise, where a command of the toolkit has printed why.
    """
    planned = plan(steps, out)
    todo = [one for one in planned if not one.done]
    left = sum(one.seconds for one in todo)
    for number, one in enumerate(todo, start=1):
        print(
            f"== {number}/{len(todo)} {one.step.title}  (about {left / 60:.0f} min to go)",
            flush=True,
        )
        left -= one.seconds
        _do(one.step, out)


def _do(step: CachedStep, out: Path) -> None:
    folder = step.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if step.done(out):  # by another process, in the meantime
            return
        wall, cpu = time.monotonic(), _cpu_seconds()
        step.work(folder, [need.folder(out) for need in step.needs])
        seconds = time.monotonic() - wall
        done = {
            "kind": step.kind,
            "title": step.title,
            "settings": step.settings,
            "needs": [need.fingerprint for need in step.needs],
            "size": step.size,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(_cpu_seconds() - cpu, 2),
            "gpu_seconds": round(seconds * _gpus_used(), 2),
            "commit": source_commit(),
        }
        write_json(folder / "done.json", done)
    gc.collect()  # a trainer and its model hold each other


def _cpu_seconds() -> float:
    """Of this process with all its threads and the children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _gpus_used() -> int:
    """GPUs on which this process holds memory."""
    import torch

    if not torch.cuda.is_available():
        return 0
    return sum(torch.cuda.memory_reserved(n) > 0 for n in range(torch.cuda.device_count()))
