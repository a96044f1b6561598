"""How fast a large pool opens, and what it costs in private memory.

``python -m benchmarks.data_open --rows 1000000`` writes a pool of that size to a temporary
folder and compares the memory-mapped table with JSON read into dicts, each in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa

from augment.columnar import open_candidates
from augment.mbeir import write_candidates
from augment.records import Item

MIB = 1 << 20
LOOKUPS = 10_000


class Cost(NamedTuple):
    """What opening costs.

    Attributes:
        wall: seconds on the clock, which depend on what else the machine does.
        cpu: seconds of this process's own work, which hardly do.
        private: bytes that only this process holds, added by opening.
        lookup: microseconds of own work to find one record by its id and read it.
    """

    wall: float
    cpu: float
    private: int
    lookup: float


def write_pool(path: Path, rows: int) -> None:
    """A pool of about 430 bytes a row, the mean of M-BEIR's union pool, ids shuffled."""
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghij", k=source.randint(2, 9))) for _ in range(2_000)]
    texts = [" ".join(source.choices(words, k=38)) for _ in range(5_000)]
    numbers = list(range(1, rows + 1))
    source.shuffle(numbers)
    write_candidates(
        path,
        (
            Item(
                f"{number % 10}:{number}",
                texts[number % len(texts)],
                f"mbeir_images/x_images/{number}.jpg",
                "image,text",
                f'{{"n": {number}}}',
            )
            for number in numbers
        ),
    )


def _dicts(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as stream:
        return {record["did"]: record for record in map(json.loads, stream)}


def _table(path: Path) -> Any:
    return open_candidates(path)


def _measure(name: str, path: Path, rows: int) -> Cost:
    opener: Callable[[Path], Any] = _dicts if name == "dicts" else _table
    process = psutil.Process()
    before = process.memory_full_info().uss
    wall, cpu = time.perf_counter(), time.process_time()
    opened = opener(path)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    private = process.memory_full_info().uss - before
    numbers = random.Random(1).choices(range(1, rows + 1), k=LOOKUPS)
    start = time.process_time()
    for number in numbers:
        key = f"{number % 10}:{number}"
        record = opened[key] if name == "dicts" else opened[opened.row(key)]
        if (record["did"] if name == "dicts" else record.id) != key:
            raise ValueError(f"{key} came back as another record")
    return Cost(wall, cpu, private, (time.process_time() - start) / LOOKUPS * 1e6)


def measure(name: str, path: Path, rows: int) -> Cost:
    """One measurement in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as worker:
        return worker.apply(_measure, (name, path, rows))


def table(rows: int, size: int, costs: dict[str, Cost]) -> str:
    """The outcome as Markdown."""
    base = costs["dicts"]
    lines = [
        f"{rows:,} candidates, {size / MIB:,.0f} MiB of JSONL; each line in a fresh process.",
        "",
        "| | CPU s | against dicts | private MiB | against dicts | find + read, us | clock s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, label in (
        ("dicts", "JSON into dicts"),
        ("build", "table, first time (built)"),
        ("table", "table, opened"),
    ):
        cost = costs[name]
        lines.append(
            f"| {label} | {cost.cpu:,.4f} | {cost.cpu / base.cpu:.4f} | "
            f"{cost.private / MIB:,.1f} | {cost.private / base.private:.4f} | "
            f"{cost.lookup:.1f} | {cost.wall:,.2f} |"
        )
    lines += [
        "",
        "Private memory is the growth of the unique set size while opening. `find + read` is the "
        f"mean over {LOOKUPS:,} random ids. CPU seconds are the process's own work.",
        f"Python {platform.python_version()}, pyarrow {pa.__version__}, {os.cpu_count()} cores.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the pool, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_open", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mbeir_big_task2_cand_pool.jsonl"
        write_pool(path, rows)
        costs = {
            "build": measure("build", path, rows),
            "table": measure("table", path, rows),
            "dicts": measure("dicts", path, rows),
        }
        print(table(rows, path.stat().st_size, costs))


if __name__ == "__main__":
    main()
