"""How fast a large pool opens, and what it costs in private memory.

``python -m benchmarks.speed.data --rows 1000000`` writes a pool of that size to a temporary
folder and compares the memory-mapped table with JSON read into dicts, each in a fresh process: to
open it, to find records one by one and a thousand at a time, and what two forked workers that read
every row come to hold for themselves. ``--rows 5600000`` is M-BEIR's union pool; its dicts need
some 7 GB of memory (``--no-dicts`` leaves them out). A million rows take some two minutes and 2 GB
of memory, 5.6 million some twelve; the pool's file has 130 bytes a row, its table as many.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from augment.data import write_candidates
from augment.data.pools import open_candidates
from augment.records import Item
from benchmarks.speed.machine import machine

MIB = 1 << 20
LOOKUPS = 10_000
BATCHED = 1_000
WORKERS = 2


class Cost(NamedTuple):
    """What opening costs.

    Attributes:
        wall: seconds on the clock, which depend on what else the machine does.
        cpu: seconds of this process's own work, which hardly do.
        private: bytes that only this process holds, added by opening.
        lookup: microseconds of own work to find one record by its id and read it.
        batched: the same for each of a thousand records at a time.
        worker: bytes that a forked worker comes to hold by reading every row, the most of two.
    """

    wall: float
    cpu: float
    private: int
    lookup: float
    batched: float
    worker: int


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
                (f"mbeir_images/x_images/{number}.jpg",),
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
    lookup = (time.process_time() - start) / LOOKUPS * 1e6
    keys = [f"{number % 10}:{number}" for number in numbers]
    if name != "dicts":
        opened.take(opened.find_all(keys[:1]))  # pyarrow imports pandas once, about a second
    start = time.process_time()
    for first in range(0, LOOKUPS, BATCHED):
        some = keys[first : first + BATCHED]
        if name == "dicts":
            found = [opened[key]["did"] for key in some]
        else:
            found = [item.id for item in opened.take(opened.find_all(some))]
        if found != some:
            raise ValueError("a batch came back as other records")
    batched = (time.process_time() - start) / LOOKUPS * 1e6
    with multiprocessing.get_context("fork").Pool(WORKERS, _hold, (opened,)) as pool:
        worker = max(pool.map(_read_all, range(WORKERS), chunksize=1))
    return Cost(wall, cpu, private, lookup, batched, worker)


_held: Any = None


def _hold(opened: Any) -> None:
    global _held
    _held = opened


def _read_all(_: int) -> int:
    """Growth of this process's private memory by reading every row."""
    process = psutil.Process()
    before = process.memory_full_info().uss
    records = _held.values() if isinstance(_held, dict) else _held
    read = sum(1 for record in records if record is not None)
    if read != len(_held):
        raise ValueError(f"read {read} rows of {len(_held)}")
    return int(process.memory_full_info().uss - before)


def measure(name: str, path: Path, rows: int) -> Cost:
    """One measurement in a process of its own."""
    # A worker of a pool may have no children; an executor's may.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as worker:
        return worker.submit(_measure, name, path, rows).result()


def table(rows: int, size: int, costs: dict[str, Cost]) -> str:
    """The outcome as Markdown."""
    against = "dicts" if "dicts" in costs else "build"
    base = costs.get("dicts", costs["build"])
    lines = [
        f"{rows:,} candidates, {size / MIB:,.0f} MiB of JSONL; each line in a fresh process.",
        "",
        f"| | CPU s | against {against} | private MiB | against {against} | find + read, us "
        f"| {BATCHED:,} at a time, us | worker MiB | clock s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, label in (
        ("dicts", "JSON into dicts"),
        ("build", "table, first time (built)"),
        ("table", "table, opened"),
    ):
        if name not in costs:
            continue
        cost = costs[name]
        lines.append(
            f"| {label} | {cost.cpu:,.4f} | {cost.cpu / base.cpu:.4f} | "
            f"{cost.private / MIB:,.1f} | {cost.private / base.private:.4f} | "
            f"{cost.lookup:.1f} | {cost.batched:.1f} | {cost.worker / MIB:,.1f} | "
            f"{cost.wall:,.2f} |"
        )
    lines += [
        "",
        "Private memory is the growth of the unique set size while opening. `find + read` is the "
        f"mean over {LOOKUPS:,} random ids. `worker` is the growth of a forked process that reads "
        "every row. CPU seconds are the process's own work.",
        "",
        machine("data_open", 0),
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the pool, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.data", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--no-dicts", action="store_true", help="leave JSON into dicts out")
    parser.add_argument("--out", type=Path, help="also write the table there")
    args = parser.parse_args()
    rows = args.rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mbeir_big_task2_cand_pool.jsonl"
        sys.stderr.write(f"writing {rows:,} rows ...\n")
        write_pool(path, rows)
        sys.stderr.write("build ...\n")
        costs = {
            "build": measure("build", path, rows),
        }
        others = ["table"] if args.no_dicts else ["table", "dicts"]
        for name in others:
            sys.stderr.write(f"{name} ...\n")
            costs[name] = measure(name, path, rows)
        text = table(rows, path.stat().st_size, costs)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(f"# Opening a pool\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
