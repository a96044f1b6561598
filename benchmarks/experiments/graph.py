"""Steps that are done once: each has a folder named by a fingerprint of all that goes into it.

::

    OUT/<kind>/<fingerprint>/...         what the step made
    OUT/<kind>/<fingerprint>/done.json   written last: settings, needs, seconds; the step is done

A step without ``done.json`` is run (again); what it left when it was cut short lies in its folder,
and is its own to use. Several processes may work on one folder: a step is locked while it runs, and
the others do what can be done meanwhile, so that the same command started N times is N workers.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from augment.files import digest, read_json, say, write_json
from retrievers.evaluation.versions import source_commit

#: Part of every fingerprint; raised when a step's work changes what it makes.
FORMAT = 1


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
    """

    kind: str
    title: str
    settings: Mapping[str, Any]
    needs: tuple[CachedStep, ...]
    work: Callable[[Path, Sequence[Path]], None]

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


def describe(steps: Iterable[CachedStep], out: Path) -> str:
    """What there is to do, a line a step and a line of totals."""
    planned = [(step.done(out), step) for step in in_order(steps)]
    lines = [
        f"{'cached' if done else 'to run':7} {step.kind:8} {step.fingerprint}  {step.title}"
        for done, step in planned
    ]
    cached = sum(done for done, _ in planned)
    return "\n".join([*lines, f"{len(planned)} steps, {cached} of them cached"])


def run(steps: Iterable[CachedStep], out: Path) -> None:
    """Do what is not done, with progress.

    Raises:
        ToolkitError: if a step fails; what was done before stays.
        SystemExit: likewise, where an enrichment has printed why.
    """
    todo = [step for step in in_order(steps) if not step.done(out)]
    count = len(todo)
    while todo:
        before = len(todo)
        for step in tuple(todo):
            if _tried(step, out, f"{count - len(todo) + 1}/{count}"):
                todo.remove(step)
        if len(todo) == before:  # others are at what is ready
            time.sleep(1.0)


def _tried(step: CachedStep, out: Path, place: str) -> bool:
    """Do a step if that can be done now; whether it is done."""
    folder = step.folder(out)
    if step.done(out) or not all(need.done(out) for need in step.needs):
        return step.done(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    try:
        if not step.done(out):  # by another process, in the meantime
            say(f"== {place} {step.title}")
            _do(step, out)
    finally:
        lock.release()
    return True


def _do(step: CachedStep, out: Path) -> None:
    wall, cpu = time.monotonic(), _cpu_seconds()
    step.work(step.folder(out), [need.folder(out) for need in step.needs])
    seconds = time.monotonic() - wall
    done = {
        "kind": step.kind,
        "title": step.title,
        "settings": step.settings,
        "needs": [need.fingerprint for need in step.needs],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(_cpu_seconds() - cpu, 2),
        "gpu_seconds": round(seconds * _gpus_used(), 2),
        "commit": source_commit(),
    }
    write_json(step.folder(out) / "done.json", done)
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
