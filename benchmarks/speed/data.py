"""How fast a large pool opens, and what it costs in private memory, against JSON read into dicts.

Each way in a fresh process: to open it, and to find records one by one. ``--rows=5600000`` is
M-BEIR's union pool, whose dicts need some 7 GB of memory. A million rows take some two minutes and
2 GB of memory; the pool's file has 130 bytes a row, its table as many.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from augment.data import write_candidates
from augment.data.pools import open_candidates
from augment.records import Item
from benchmarks.speed.harness import MIB, Page, Row, apart, cost

LOOKUPS = 10_000


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


def _measure(name: str, path: Path, rows: int) -> dict[str, Any]:
    import datasets  # noqa: F401 - loading the library is no part of opening

    opening = cost(lambda: WAYS[name](path))
    opened = opening.result
    numbers = random.Random(1).choices(range(1, rows + 1), k=LOOKUPS)
    start = time.process_time()
    for key in [f"{number % 10}:{number}" for number in numbers]:
        found = opened[key]["did"] if name == "JSON into dicts" else opened[opened.row(key)].id
        if found != key:
            raise ValueError(f"{key} came back as {found}")
    lookup = (time.process_time() - start) / LOOKUPS * 1e6
    return {
        "": name,
        "CPU s": opening.cpu,
        "private MiB": opening.private / MIB,
        "find + read, us": lookup,
    }


def measure(rows: int = 1_000_000) -> Page:
    """Write the pool, open it both ways.

    Args:
        rows: of the pool.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mbeir_big_task2_cand_pool.jsonl"
        write_pool(path, rows)
        found = [apart(_measure, name, path, rows) for name in WAYS]
        size = path.stat().st_size
    table: list[Row] = [{**row, "of dicts": row["CPU s"] / found[-1]["CPU s"]} for row in found]
    return Page(
        "Opening a pool",
        f"{rows:,} candidates, {size / MIB:,.0f} MiB of JSONL; each line in a fresh process. "
        "Private memory is the growth of the unique set size while opening. `find + read` is the "
        f"mean over {LOOKUPS:,} random ids. CPU seconds are the process's own work; `of dicts` is "
        "their share of what dicts take.",
        {"": table},
    )
