"""``python -m augment verify --store STORE``: check a store from end to end.

Exit code 0 if all is well, 3 if something is damaged; what that costs and what to do is said.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq
from jsonargparse import ArgumentParser

from augment.enrichment import pipeline as cli
from augment.errors import StoreError
from augment.records import Side
from augment.store import Store, runs
from augment.store.keys import Recipe
from augment.store.rows import Rows
from augment.store.segments import FOLDERS, SCHEMAS, Kind, as_codes, checksum, code, enrichment

SIDES: tuple[Side, ...] = ("corpus", "query")

_REMEDIES: Mapping[str, str] = {
    "damaged segment": "restore it from a copy, or delete it: its texts are generated again",
    "damaged line": "its text is generated again by the next run",
    "wrong code": "the segment was written by something else; delete it",
    "malformed text": "the segment was written by something else; delete it",
    "link without a text": "the next run of its recipe generates the text",
    "recipe": "restore the file from a copy; it must not be edited",
}


@final
@dataclass
class Report:
    """What a check found.

    Attributes:
        texts: keys with a text.
        linked: recipe -> items with a text.
        copies: rows that repeat a key, of writers that worked on the same items or of a crash
            while sealing; harmless, one of them counts for every reader.
        problems: kind of problem -> where.
    """

    texts: int = 0
    linked: dict[str, int] = field(default_factory=dict)
    copies: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(where)

    def __str__(self) -> str:
        rows = [f"{self.texts:>9,} texts, {self.copies:,} harmless copies"]
        rows += [f"{number:>9,} items by {recipe}" for recipe, number in self.linked.items()]
        for kind, places in self.problems.items():
            rows.append(f"{len(places):>9,} {kind}: {_REMEDIES[kind]}")
            rows += [f"          {place}" for place in places[:10]]
        return "\n".join(rows if self.problems else [*rows, "all is well"])


def verify(store: Path) -> Report:
    """Check lines, segments, codes, texts, links and recipes.

    Raises:
        StoreError: if there is no store, or it cannot be read.
    """
    if not (store / "store.json").is_file():
        raise StoreError(f"{store}: no store here")
    report = Report()
    for kind in FOLDERS:
        for path in sorted((store / FOLDERS[kind]).rglob("*.parquet")):
            _check_segment(kind, path, report)
    if report.problems:
        return report  # what follows would read the damaged files
    opened = Store(store)
    for where in opened.damaged:
        report.add("damaged line", where)
    texts = opened.rows("text")
    report.texts = len(texts)
    sealed = sum(pq.read_metadata(path).num_rows for path in texts.segments)
    report.copies = sealed + len(texts.tail) - report.texts
    for side, recipe in _recipes(opened, report):
        links = opened.rows("link", recipe.id)
        report.linked[f"{side} recipe {recipe.id}"] = len(links)
        _check_links(opened, links, recipe, report)
    return report


def _recipes(store: Store, report: Report) -> list[tuple[Side, Recipe]]:
    found = []
    for side in SIDES:
        for name in runs.recipe_ids(store.folder, side):
            try:
                found.append((side, runs.load_recipe(store.folder, side, name)))
            except StoreError as error:  # noqa: PERF203 - each is reported
                report.add("recipe", str(error))
    return found


def _check_links(store: Store, links: Rows, recipe: Recipe, report: Report) -> None:
    for link in links.scan("item", "key"):
        if link["key"] not in store:
            report.add("link without a text", f"{link['item']} under {recipe.id}")


def _check_segment(kind: Kind, path: Path, report: Report) -> None:
    """Compute the checksum and every code again."""
    try:
        if checksum(path) != path.name.split(".")[-2]:
            report.add("damaged segment", f"{path}: its checksum is not the one in its name")
            return
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if not set(SCHEMAS[kind].names[:3]) <= set(file.schema_arrow.names):
            report.add("wrong code", str(path))
            return
        for part in file.iter_batches():
            problem = _problem(kind, part)
            if problem:
                report.add(problem, str(path))
                return
    except (OSError, pa.ArrowException) as error:
        report.add("damaged segment", f"{path}: {str(error).splitlines()[0]}")


def _problem(kind: Kind, part: Any) -> str:
    """What is wrong with some rows; empty if nothing is."""
    if kind == "picture":  # the names are not kept
        return ""
    names = part.column("key" if kind == "text" else "item").to_pylist()
    if b"".join(map(code, names)) != as_codes(part.column("code")).tobytes():
        return "wrong code"
    if kind == "text":
        try:
            for row in part.to_pylist():
                enrichment(row)
        except (KeyError, TypeError, ValueError):
            return "malformed text"
    return ""


def command(arguments: Sequence[str] | None) -> int:
    """Parse, check, print; the exit code."""
    parser = ArgumentParser(prog="python -m augment verify", description="Check a store.")
    parser.add_argument("--store", type=str, required=True, metavar="DIR", help="What to check.")
    report = verify(Path(parser.parse_args(arguments).store))
    sys.stdout.write(f"{report}\n")
    return 3 if report.problems else 0


if __name__ == "__main__":
    cli.main(command)
