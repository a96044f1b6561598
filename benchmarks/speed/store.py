"""How fast the store of generated text writes and re-opens, and what memory that takes.

Stores of 10 thousand, 100 thousand and a million texts with their links are written, each in a
fresh process, and opened again in another (8 minutes of a free core at the default sizes, most of
it writing). Beside it, in the same run: a single JSON Lines file read back into a dict, which is
what most tools do to resume, and SQLite.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from augment.files import digest
from augment.records import Enrichment, Sampling
from augment.store import Scope, Store
from augment.store.keys import Recipe
from benchmarks.speed.harness import MIB, Cost, Page, Row, apart, cost

LOOKUPS = 10_000
RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})


def _halves(count: int) -> list[str]:
    source = Random(count)
    words = ["".join(source.choices("abcdefghij", k=source.randint(2, 9))) for _ in range(5_000)]
    return [" ".join(source.choices(words, k=38)) for _ in range(count)]


#: Halves of texts. Their numbers have no common factor, so that no text comes twice, and a half
#: comes again too late for a compressor.
FIRST, SECOND = _halves(4_999), _halves(5_003)


def text(number: int) -> Enrichment:
    """A text of about 500 characters, each another one."""
    words = f"{FIRST[number % len(FIRST)]} {SECOND[number % len(SECOND)]}"
    return Enrichment(
        digest(number), f"1:{number}", f"{number} {words}", "p@1", "m", "r", output_tokens=120
    )


def write_store(folder: Path, rows: int) -> None:
    """Append texts and links one by one, as a run does."""
    with Store(folder) as store:
        store.finish(store.begin(RECIPE, Scope()), {})
        for number in range(rows):
            made = text(number)
            store.append(made)
            store.link(RECIPE.id, made.item_id, made.key, "picture")


def open_store(folder: Path) -> Store:
    """Open, and do what a second run does: look keys up."""
    store = Store(folder)
    if digest(0) not in store or not store.link_of(RECIPE.id, "1:0"):
        raise SystemExit("the store has lost a text")
    return store


def write_lines(folder: Path, rows: int) -> None:
    """One JSON Lines file, flushed a line at a time and never synced."""
    folder.mkdir()
    with (folder / "all.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps(asdict(text(number))) + "\n")
            file.flush()


def open_lines(folder: Path) -> dict[str, Any]:
    """Read the file into a dict by key."""
    with (folder / "all.jsonl").open(encoding="utf-8") as file:
        return {record["key"]: record for record in map(json.loads, file)}


def write_sqlite(folder: Path, rows: int) -> None:
    """SQLite with a write-ahead log, a commit a row; unfit for shared file systems."""
    folder.mkdir()
    base = sqlite3.connect(folder / "all.db", isolation_level=None)
    base.execute("pragma journal_mode=wal")
    base.execute("pragma synchronous=normal")
    base.execute("create table texts (key text primary key, record text)")
    for number in range(rows):
        made = text(number)
        base.execute("insert into texts values (?, ?)", (made.key, json.dumps(asdict(made))))
    base.close()


_FIND = "select 1 from texts where key = ?"


def open_sqlite(folder: Path) -> sqlite3.Connection:
    """Open the database and look a key up."""
    base = sqlite3.connect(folder / "all.db")
    base.execute(_FIND, (digest(0),)).fetchone()
    return base


class Way(NamedTuple):
    """How texts are kept: written, opened, and a key found."""

    write: Callable[[Path, int], None]
    open: Callable[[Path], Any]
    find: Callable[[Any, str], object]


WAYS = {
    "store": Way(write_store, open_store, lambda store, key: key in store),
    "JSON Lines and a dict": Way(write_lines, open_lines, lambda found, key: key in found),
    "SQLite": Way(
        write_sqlite, open_sqlite, lambda base, key: base.execute(_FIND, (key,)).fetchone()
    ),
}


def _write(name: str, folder: Path, rows: int) -> Cost:
    return cost(lambda: WAYS[name].write(folder, rows))


def _open(name: str, folder: Path, rows: int) -> tuple[Cost, float, float | str]:
    """What opening costs; microseconds to find a key, and to read a text of the store."""
    opening = cost(lambda: WAYS[name].open(folder))
    opened, numbers = opening.result, [n * 7919 % rows for n in range(LOOKUPS)]
    keys = [digest(n) for n in numbers]
    find = _each(lambda key: WAYS[name].find(opened, key), keys)
    read: float | str = ""
    if isinstance(opened, Store):
        texts = opened.texts("corpus")
        next(iter(texts.values()))  # makes the memory-mapped copy, once
        read = _each(lambda item: texts[item], [f"1:{n}" for n in numbers])
    return opening._replace(result=None), find, read


def _each(work: Callable[[str], object], names: list[str]) -> float:
    start = time.process_time()
    for name in names:
        work(name)
    return (time.process_time() - start) / len(names) * 1e6


def measure(rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)) -> Page:
    """Write and open in every way.

    Args:
        rows: texts of each size.
    """
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in rows:
            for name in WAYS:
                place = Path(temporary) / f"{number}-{name.replace(' ', '-')}"
                written = apart(_write, name, place, number)
                size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
                opened, find, read = apart(_open, name, place, number)
                found.append(
                    {
                        "rows": number,
                        "": name,
                        "write, rows/s": number / written.cpu,
                        "writing, MiB": written.private / MIB,
                        "on the disk, MiB": size / MIB,
                        "open, s": opened.cpu,
                        "open, MiB": opened.private / MIB,
                        "find a key, us": find,
                        "read a text, us": read,
                    }
                )
                shutil.rmtree(place)
    return Page(
        "The store of generated text",
        "A row is a text of 500 characters of random words and, in the store, the link of its "
        "item. Times are CPU time of the process; memory is what only it holds, added by the step. "
        "Opening ends with the first key found; a text is read through the memory-mapped copy, "
        "whose making is not counted. Only the store syncs what it writes.",
        {"": found},
    )
