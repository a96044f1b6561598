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
from benchmarks.speed.harness import MIB, Report, Row, apart, cost

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


class _Dicts:
    """What most tools hold: every line as a dict, by its id."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8") as stream:
            self._by_id = {record["did"]: record for record in map(json.loads, stream)}

    def __len__(self) -> int:
        return len(self._by_id)

    def ids(self, keys: Sequence[str]) -> list[str]:
        """Ids of the records found under ``keys``."""
        return [self._by_id[key]["did"] for key in keys]

    def read_all(self) -> int:
        """How many records there are, each touched."""
        return sum(1 for record in self._by_id.values() if record is not None)


class _Table:
    """The memory-mapped table."""

    def __init__(self, path: Path) -> None:
        self._table = open_candidates(path)

    def __len__(self) -> int:
        return len(self._table)

    def ids(self, keys: Sequence[str]) -> list[str]:
        """Ids of the records found under ``keys``."""
        if len(keys) == 1:
            return [self._table[self._table.row(keys[0])].id]
        rows = self._table.find_all(keys)
        return [item.id for item in self._table.take([row for row in rows if row is not None])]

    def read_all(self) -> int:
        """How many records there are, each read."""
        return sum(1 for _ in self._table)


WAYS: dict[str, Callable[[Path], Any]] = {
    "table, first time (built)": _Table,
    "table, opened": _Table,
    "JSON into dicts": _Dicts,
}


def _measure(name: str, path: Path, rows: int) -> Row:
    opening = cost(lambda: WAYS[name](path))
    opened = opening.result
    numbers = random.Random(1).choices(range(1, rows + 1), k=LOOKUPS)
    keys = [f"{number % 10}:{number}" for number in numbers]
    opened.ids(keys[:2])  # what is loaded at the first look-up is no part of it
    lookup = _each([keys[n : n + 1] for n in range(LOOKUPS)], opened.ids)
    batched = _each([keys[n : n + BATCHED] for n in range(0, LOOKUPS, BATCHED)], opened.ids)
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


def _each(parts: Sequence[list[str]], ids: Callable[[Sequence[str]], list[str]]) -> float:
    start = time.process_time()
    for keys in parts:
        if ids(keys) != keys:
            raise ValueError(f"{keys[:3]} came back as other records")
    return (time.process_time() - start) / LOOKUPS * 1e6


_held: Any = None


def _hold(opened: Any) -> None:
    global _held
    _held = opened


def _grown(_: int) -> int:
    """Growth of this process's private memory by reading every row."""
    reading = cost(_held.read_all)
    if reading.result != len(_held):
        raise ValueError(f"read {reading.result} rows of {len(_held)}")
    return reading.private


def measure(rows: int = 1_000_000, dicts: bool = True) -> Report:
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
    return Report(
        "Opening a pool",
        f"{rows:,} candidates, {size / MIB:,.0f} MiB of JSONL; each line in a fresh process. "
        "Private memory is the growth of the unique set size while opening. `find + read` is the "
        f"mean over {LOOKUPS:,} random ids. `worker` is the growth of a forked process that reads "
        "every row. CPU seconds are the process's own work.",
        {"": found},
    )
