"""What every measurement shares: ways that take turns, costs, tables, the machine.

A stage does one thing our way and another's, in one run, and returns a :class:`Page`;
``python -m benchmarks.speed STAGE`` writes it as a page of ``benchmarks/results``.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

from augment.files import markdown, read_json, write_json, write_text
from retrievers.evaluation.versions import source_commit

RESULTS = Path(__file__).parent.parent / "results"

_PACKAGES = ("numpy", "torch", "transformers", "pyarrow", "faiss-cpu")
_T = TypeVar("_T")


class Cost(NamedTuple):
    """What a piece of work costs.

    Attributes:
        seconds: on the clock, which depend on what else the machine does.
        cpu: seconds of processors, this process's and its children's, which hardly do.
        result: what the work returned.
    """

    seconds: float
    cpu: float
    result: Any


def cost(work: Callable[[], Any]) -> Cost:
    """Do the work once."""
    cpu, start = _processors(), time.perf_counter()
    result = work()
    return Cost(time.perf_counter() - start, _processors() - cpu, result)


def _processors() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def apart(work: Callable[..., _T], *arguments: Any) -> _T:
    """What the work returns in a fresh process, which may have children of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        return worker.submit(work, *arguments).result()


class Turns(NamedTuple):
    """What a way cost in its rounds.

    Attributes:
        seconds: on the clock, the median of the rounds.
        cpu: seconds of processors, the median.
        ratio: median over the rounds of this way's seconds to the first one's: above 1, the first
            one is quicker. ``ratio_cpu`` is the same of the seconds of processors.
        result: of the last round.
    """

    seconds: float
    cpu: float
    ratio: float
    ratio_cpu: float
    result: Any


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Turns]:
    """Measure ways to do one thing; in turns, so that a drift of the machine meets them all.

    Args:
        ways: name -> work; the first is ours, with which the others are compared.
        rounds: that are counted; one that is not goes before.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name, work in ways.items():
            spent = cost(work)
            if number >= 0:
                costs[name].append(spent)
                sys.stderr.write(f"{name}: {spent.seconds:.3f} s\n")
    first = next(iter(costs.values()))
    return {name: _summary(own, first) for name, own in costs.items()}


def _summary(own: Sequence[Cost], first: Sequence[Cost]) -> Turns:
    pairs = list(zip(own, first, strict=True))
    return Turns(
        statistics.median(one.seconds for one in own),
        statistics.median(one.cpu for one in own),
        statistics.median(one.seconds / base.seconds for one, base in pairs),
        statistics.median(one.cpu / max(base.cpu, 1e-9) for one, base in pairs),
        own[-1].result,
    )


Row = Mapping[str, object]


def rows_of(turns: Mapping[str, Turns], items: int, unit: str = "items") -> list[Row]:
    """The usual table of ways that each handle so many items."""
    return [
        {
            "": name,
            f"{unit}/s": items / own.seconds,
            "seconds": own.seconds,
            "CPU s": own.cpu,
            "times as long as ours": own.ratio,
            "by CPU": own.ratio_cpu,
        }
        for name, own in turns.items()
    ]


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    digits = next((n for n, least in enumerate((100, 10, 1, 0.01)) if abs(value) >= least), 4)
    return f"{value:,.{digits}f}"


def _table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(names, [[_cell(row.get(name, "")) for name in names] for row in rows])


@dataclass
class Page:
    """What a stage found: tables under their headings."""

    title: str
    about: str
    tables: Mapping[str, Sequence[Row]]

    def write(self, path: Path, command: Sequence[str]) -> str:
        """Write the page; among the results, also note in their index how it was made.

        Returns:
            The page.
        """
        where = {
            "command": f"python -m {shlex.join(command)}",
            "commit": source_commit() or "unknown",
            "machine": ", ".join(_machine()),
            "versions": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        }
        parts = [f"# {self.title}", self.about]
        for heading, rows in self.tables.items():
            parts += [heading, _table(rows)]
        made = "Command: `{command}`; commit {commit}. {machine}. {versions}.".format(**where)
        text = "\n\n".join(part for part in [*parts, made] if part) + "\n"
        write_text(path, text)
        if path.parent.resolve() == RESULTS.resolve():
            index = read_json(RESULTS / "index.json")
            before = index.get(path.name, {"measures": ["augment", "retrievers"]})
            clean = where["commit"].removesuffix("-dirty")
            index[path.name] = {**before, **where, "commit": clean}
            write_json(RESULTS / "index.json", index)
        return text


def _machine() -> list[str]:
    lines = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)", lines.read_text() if lines.exists() else "", re.M)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        found[1] if found else platform.machine(),
        f"{cores} of {os.cpu_count()} cores",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        platform.system(),
        f"Python {platform.python_version()}",
        f"{torch.get_num_threads()} threads of torch",
    ]
