"""How fast the store of generated text writes and re-opens, and what memory that takes.

The peer is a JSON Lines file, flushed a line at a time, that is read back into a dict, which is
what most tools do to resume. Only the store syncs what it writes: a power cut may take lines that
were flushed. Each step in a fresh process; at full size some four minutes of a free core.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from augment.files import digest
from augment.records import Enrichment, Sampling
from augment.store import Scope, Store
from augment.store.keys import Recipe
from benchmarks.speed.harness import MIB, Cost, Page, apart, cost

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


def open_store(folder: Path) -> bool:
    """Open, and do what a second run does: look a key up."""
    store = Store(folder)
    return digest(0) in store and bool(store.link_of(RECIPE.id, "1:0"))


def write_lines(folder: Path, rows: int) -> None:
    """One JSON Lines file, flushed a line at a time and never synced."""
    folder.mkdir()
    with (folder / "all.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps(asdict(text(number))) + "\n")
            file.flush()


def open_lines(folder: Path) -> bool:
    """Read the file into a dict by key, and look a key up."""
    with (folder / "all.jsonl").open(encoding="utf-8") as file:
        return digest(0) in {record["key"]: record for record in map(json.loads, file)}


#: How texts are kept: written, and opened.
WAYS = {"store": (write_store, open_store), "JSON Lines": (write_lines, open_lines)}


def _cost(work: Callable[..., Any], *arguments: Any) -> Cost:
    return cost(lambda: work(*arguments))


def measure(rows: int = 1_000_000) -> Page:
    """Write and open in both ways.

    Args:
        rows: texts.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, (write, reopen) in WAYS.items():
            place = Path(temporary) / name.partition(" ")[0]
            written = apart(_cost, write, place, rows)
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            opened = apart(_cost, reopen, place)
            if not opened.result:
                raise SystemExit(f"{name} has lost a text")
            found.append(
                {
                    "": name,
                    "write, rows/s": rows / written.cpu,
                    "on the disk, MiB": size / MIB,
                    "open, s": opened.cpu,
                    "open, MiB": opened.private / MIB,
                    "opening, times ours": opened.cpu / found[0]["open, s"] if found else 1.0,
                }
            )
    return Page(
        "The store of generated text",
        f"{rows:,} texts of 500 characters of random words and, in the store, the links of their "
        "items. Times are CPU time of the process; memory is what only it holds, added by the "
        "step. Opening ends with the first key found. Only the store syncs what it writes.",
        {"": found},
    )
