"""How fast a large pool opens, and what it costs in private memory.

A pool of that many rows is written to a temporary folder; the memory-mapped table is compared with
JSON read into dicts, each in a fresh process: to open it, to find records one by one and a thousand
at a time, and what two forked workers that read every row come to hold for themselves.
``--rows=5600000`` is M-BEIR's union pool; its dicts need some 7 GB of memory (``--dicts=false``
leaves them out). A million rows take some two minutes and 2 GB of memory, 5.6 million some twelve;
the pool's file has 130 bytes a row, its table as many.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from augment.data import write_candidates
from augment.data.pools import open_candidates
from augment.records import Item
from benchmarks.speed.harness import MIB, Page, Row, apart, cost

LOOKUPS, BATCHED, WORKERS = 10_000, 1_000, 2


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


def _dicts(path: Path) -> dict[str, dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return {record["did"]: record for record in map(json.loads, stream)}


WAYS: dict[str, Callable[[Path], Any]] = {
    "table, first time (built)": open_candidates,
    "table, opened": open_candidates,
    "JSON into dicts": _dicts,
}


def _found(opened: Any, keys: Sequence[str]) -> list[str]:
    """Ids of the records under ``keys``."""
    if isinstance(opened, dict):
        return [opened[key]["did"] for key in keys]
    if len(keys) == 1:
        return [opened[opened.row(keys[0])].id]
    return [item.id for item in opened.take(opened.find_all(keys))]


def _measure(name: str, path: Path, rows: int) -> Row:
    opening = cost(lambda: WAYS[name](path))
    opened = opening.result
    numbers = random.Random(1).choices(range(1, rows + 1), k=LOOKUPS)
    keys = [f"{number % 10}:{number}" for number in numbers]
    _found(opened, keys[:2])  # what is loaded at the first look-up is no part of it
    lookup = _each(opened, [keys[n : n + 1] for n in range(LOOKUPS)])
    batched = _each(opened, [keys[n : n + BATCHED] for n in range(0, LOOKUPS, BATCHED)])
    with multiprocessing.get_context("fork").Pool(WORKERS, _hold, (opened,)) as pool:
        worker = max(pool.map(_grown, range(WORKERS), chunksize=1))
    return {
        "": name,
        "CPU s": opening.cpu,
        "seconds": opening.seconds,
        "private MiB": opening.private / MIB,
        "find + read, us": lookup,
        f"{BATCHED:,} at a time, us": batched,
        "worker MiB": worker / MIB,
    }


def _each(opened: Any, parts: Sequence[list[str]]) -> float:
    start = time.process_time()
    for keys in parts:
        if _found(opened, keys) != keys:
            raise ValueError(f"{keys[:3]} came back as other records")
    return (time.process_time() - start) / LOOKUPS * 1e6


_held: Any = None


def _hold(opened: Any) -> None:
    global _held
    _held = opened


def _grown(_: int) -> int:
    """Growth of this process's private memory by reading every row."""
    records = _held.values() if isinstance(_held, dict) else _held
    reading = cost(lambda: sum(1 for record in records if record is not None))
    if reading.result != len(_held):
        raise ValueError(f"read {reading.result} rows of {len(_held)}")
    return reading.private


def measure(rows: int = 1_000_000, dicts: bool = True) -> Page:
    """Write the pool, open it in three ways.

    Args:
        rows: of the pool.
        dicts: whether JSON is read into dicts, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mbeir_big_task2_cand_pool.jsonl"
        write_pool(path, rows)
        names = [name for name in WAYS if dicts or "dicts" not in name]
        found = [apart(_measure, name, path, rows) for name in names]
        size = path.stat().st_size
    return Page(
        "Opening a pool",
        f"{rows:,} candidates, {size / MIB:,.0f} MiB of JSONL; each line in a fresh process. "
        "Private memory is the growth of the unique set size while opening. `find + read` is the "
        f"mean over {LOOKUPS:,} random ids. `worker` is the growth of a forked process that reads "
        "every row. CPU seconds are the process's own work.",
        {"": found},
    )
