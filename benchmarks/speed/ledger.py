"""How fast the store of generated text writes and re-opens, and what memory that takes.

``python -m benchmarks.speed.ledger`` writes stores of 10 thousand, 100 thousand and a million texts with
their links, each in a fresh process, and opens them again in another (8 minutes of a free core at
the default sizes, most of it writing). Beside it, in the same run: a single JSON Lines file read
back into a dict, which is what most tools do to resume, and SQLite.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from augment.files import digest
from augment.records import Enrichment, Sampling
from augment.store import Scope, Store
from augment.store.keys import Recipe
from benchmarks.speed.machine import machine

MIB = 1 << 20
LOOKUPS = 10_000
RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})
WORDS = " ".join(f"word{n % 97}" for n in range(90))


class Cost(NamedTuple):
    """What one step costs.

    Attributes:
        wall: seconds on the clock.
        cpu: seconds of this process's own work, which other processes hardly change.
        memory: bytes that only this process holds, added by the step.
        lookup: microseconds to find whether a key is there.
        read: microseconds to read the text of an item; 0 where it was not measured.
    """

    wall: float
    cpu: float
    memory: int
    lookup: float = 0.0
    read: float = 0.0


def text(number: int) -> Enrichment:
    """A text of about 500 characters, each another one."""
    return Enrichment(
        digest(number), f"1:{number}", f"{number} {WORDS}", "p@1", "m", "r", output_tokens=120
    )


def write_store(folder: Path, rows: int) -> Cost:
    """Append texts and links one by one, as a run does."""

    def work() -> None:
        with Store(folder) as store:
            store.finish(store.begin(RECIPE, Scope()), {})
            for number in range(rows):
                made = text(number)
                store.append(made)
                store.link(RECIPE.id, made.item_id, made.key, "picture")

    return _measured(work)


def open_store(folder: Path, rows: int) -> Cost:
    """Open, and do what a second run does: look keys up; then what training does: read texts."""
    kept: list[Store] = []

    def work() -> None:
        store = Store(folder)
        if digest(0) not in store or not store.key_of(RECIPE.id, "1:0"):
            raise SystemExit("the store has lost a text")
        kept.append(store)

    cost = _measured(work)
    keys = [digest(n * 7919 % rows) for n in range(LOOKUPS)]
    lookup = _each(lambda key: key in kept[0], keys)
    texts = kept[0].texts("corpus")
    next(iter(texts.values()))  # makes the memory-mapped copy, once
    read = _each(lambda item: texts[item], [f"1:{n * 7919 % rows}" for n in range(LOOKUPS)])
    return cost._replace(lookup=lookup, read=read)


def write_lines(folder: Path, rows: int) -> Cost:
    """One JSON Lines file, flushed a line at a time and synced once a second."""

    def work() -> None:
        with (folder / "all.jsonl").open("w", encoding="utf-8") as file:
            for number in range(rows):
                file.write(json.dumps(asdict(text(number))) + "\n")
                file.flush()

    folder.mkdir()
    return _measured(work)


def open_lines(folder: Path, rows: int) -> Cost:
    """Read the file into a dict by key."""
    kept: dict[str, Any] = {}

    def work() -> None:
        with (folder / "all.jsonl").open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                kept[record["key"]] = record

    cost = _measured(work)
    keys = [digest(n * 7919 % rows) for n in range(LOOKUPS)]
    return cost._replace(lookup=_each(lambda key: key in kept, keys))


def write_sqlite(folder: Path, rows: int) -> Cost:
    """SQLite with a write-ahead log, a commit a row; unfit for shared file systems."""

    def work() -> None:
        base = sqlite3.connect(folder / "all.db", isolation_level=None)
        base.execute("pragma journal_mode=wal")
        base.execute("pragma synchronous=normal")
        base.execute("create table texts (key text primary key, record text)")
        for number in range(rows):
            made = text(number)
            base.execute("insert into texts values (?, ?)", (made.key, json.dumps(asdict(made))))
        base.close()

    folder.mkdir()
    return _measured(work)


def open_sqlite(folder: Path, rows: int) -> Cost:
    """Open the database and look keys up."""
    kept: list[sqlite3.Connection] = []

    def work() -> None:
        kept.append(sqlite3.connect(folder / "all.db"))
        kept[0].execute("select 1 from texts where key = ?", (digest(0),)).fetchone()

    cost = _measured(work)
    query = "select 1 from texts where key = ?"
    keys = [digest(n * 7919 % rows) for n in range(LOOKUPS)]
    return cost._replace(lookup=_each(lambda key: kept[0].execute(query, (key,)).fetchone(), keys))


CONTENDERS: dict[str, tuple[Callable[[Path, int], Cost], Callable[[Path, int], Cost]]] = {
    "store": (write_store, open_store),
    "JSON Lines and a dict": (write_lines, open_lines),
    "SQLite": (write_sqlite, open_sqlite),
}


def _measured(work: Callable[[], None]) -> Cost:
    process = psutil.Process()
    before, wall, cpu = process.memory_full_info().uss, time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall, cpu, process.memory_full_info().uss - before)


def _each(work: Callable[[str], object], names: list[str]) -> float:
    start = time.process_time()
    for name in names:
        work(name)
    return (time.process_time() - start) / len(names) * 1e6


def _in_process(work: Callable[[Path, int], Cost], folder: Path, rows: int) -> Cost:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (folder, rows))


def table(rows: list[int], folder: Path) -> str:
    """Measure everything; a Markdown table."""
    lines = [
        "| rows | | write, rows/s | memory | on the disk | open, s | memory | find a key, µs"
        " | read a text, µs |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for number in rows:
        for name, (write, open_) in CONTENDERS.items():
            place = folder / f"{number}-{name.replace(' ', '-')}"
            written = _in_process(write, place, number)
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            opened = _in_process(open_, place, number)
            read = f"{opened.read:.0f}" if opened.read else ""
            lines.append(
                f"| {number:,} | {name} | {number / written.cpu:,.0f} | {written.memory / MIB:.0f}"
                f" MiB | {size / MIB:.0f} MiB | {opened.cpu:.2f} | {opened.memory / MIB:.0f} MiB |"
                f" {opened.lookup:.1f} | {read} |"
            )
            print(lines[-1], flush=True)
            shutil.rmtree(place)
    return "\n".join(lines)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.ledger", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ledger.md"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = table(given.rows, Path(folder))
    given.out.write_text(
        "# The store of generated text\n\nA row is a text of 500 characters and, in the store, the"
        " link of its item. Times are CPU time of the process; memory is what only it holds, added"
        " by the step. Opening ends with the first key found; a text is read through the"
        " memory-mapped copy, whose making is not counted.\n\n"
        f"{found}\n\n{machine('ledger', 0)}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
