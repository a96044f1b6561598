"""What was measured, at which commit, and whether the code has changed since.

``python -m benchmarks.results`` prints a line for every file of ``benchmarks/results`` that its
``index.json`` describes: results that are older than the code they measure are no fault, but a
reader should know. ``--fill`` writes tables of JSON results into the marked places of documents::

    <!-- filled from demo.json -->
    ...
    <!-- end -->
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from augment.enrichment.command import entry
from augment.errors import DataError
from augment.files import aligned, markdown, read_json, say, write_text

FOLDER = Path(__file__).with_name("results")
ROOT = FOLDER.parent.parent
#: Documents with places to be filled.
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "your-data.md", FOLDER / "gpu.md")
_PLACE = re.compile(r"(<!-- filled from (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@final
@dataclass(frozen=True)
class Measured:
    """One result, or a folder of them.

    Attributes:
        name: below ``benchmarks/results``.
        command: that made it.
        commit: of the code that was measured.
        measures: files and folders whose changes make it old.
        machine: where it was measured; empty where nobody wrote it down.
        versions: of what it was measured with; empty likewise.
    """

    name: str
    command: str
    commit: str
    measures: Sequence[str]
    machine: str = ""
    versions: str = ""


def index() -> list[Measured]:
    """What ``index.json`` says.

    Raises:
        DataError: if it cannot be read.
    """
    return [Measured(name, **about) for name, about in read_json(FOLDER / "index.json").items()]


def newer(result: Measured) -> list[str] | None:
    """Dates and subjects of commits on the measured code since then, newest first.

    Returns:
        None where the history is not here: no checkout, or a shallow one.
    """
    git = ["git", "-C", str(ROOT), "log", "--no-merges", "--format=%as %s"]
    git += [f"{result.commit}..HEAD", "--", *result.measures]
    try:
        log = subprocess.run(git, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return log.stdout.splitlines()


def ages(results: Sequence[Measured]) -> str:
    """A table: result, commit, how many commits have changed its code since, the latest of them."""
    rows = []
    for result in results:
        changes = newer(result)
        told = ["?", "history not here"] if changes is None else [str(len(changes)), *changes[:1]]
        rows.append([result.name, result.commit[:8], *told, *[""] * (2 - len(told))])
    return aligned(rows, 4, ["result", "measured at", "changes since", "the latest"])


def demo_table(value: Mapping[str, Any]) -> str:
    """The trained arms in both pools, if both were searched, and the first comparison."""
    from benchmarks.experiments.tables import compared_cells

    both = [[name, *(f"{100 * arm['union'][pool]:.1f}" for pool in ("local", "success"))]
            for name, arm in value["arms"].items()
            if arm.get("union") and arm["train"]]  # fmt: skip
    head = ["success@1, mean of the tasks", "local pools", "union of all pools"]
    above = f"{markdown(head, both)}\n\n" if both else ""
    comparison, rows = value["comparisons"][0], []
    for row in comparison["rows"]:
        difference, _, *rest = compared_cells(row)
        scores = [f"{100 * row[key]:.1f}" for key in ("first", "second")]
        rows.append([row["name"], row["queries"], *scores, difference, *rest])
    first = f"task ({comparison['pool']} pool, {comparison['metric']})"
    last = ("difference, 95 % interval", "p (Holm)", "wins", "losses")
    head = [first, "queries", *comparison["names"], *last]
    return f"{above}{markdown(head, rows)}"


def gpu_table(value: Mapping[str, Any]) -> str:
    """What :mod:`benchmarks.gpu` measured, a row a figure."""
    rows = [[part, name, f"{figure:.4g}"] for part, figures in value["parts"].items()
            for name, figure in figures.items() if name != "seconds"]  # fmt: skip
    told = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    table = markdown(["part", "figure", value["chip"]], rows)
    return f"{table}\n\nCUDA {value['cuda']}, {told}. Command: `{value['command']}`."


def with_minutes(table: str, kinds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table of kinds of data; of those measured, the third column is minutes of a processor."""

    def filled(row: re.Match[str]) -> str:
        if row[2] not in kinds:
            return row[0]
        return f"{row[1]}{sum(step['cpu'] for step in kinds[row[2]].values()) / 60:.1f}{row[3]}"

    return re.sub(r"^(\| `(\w+)` \| [^|]* \| )[^|]*( \|)", filled, table, flags=re.MULTILINE)


def fill(document: Path) -> None:
    """Write the tables of the JSON results that a document's marks name.

    Raises:
        DataError: if there is no such result.
    """

    def table(place: re.Match[str]) -> str:
        path = FOLDER / place[2]
        if not path.is_file():
            raise DataError(f"no result {place[2]}; the mark names a file below {FOLDER}",
                            str(document))  # fmt: skip
        value = read_json(path)
        if "kinds" in value:
            return f"{place[1]}{with_minutes(place[3], value['kinds'])}{place[4]}"
        shown = gpu_table(value) if "parts" in value else demo_table(value)
        return f"{place[1]}{shown}\n{place[4]}"

    write_text(document, _PLACE.sub(table, document.read_text(encoding="utf-8")))


@entry
def main(arguments: Sequence[str]) -> int:
    """Run the command; old results are no failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__)
    parser.add_argument("--fill", action="store_true", help="fill documents from JSON results")
    args = parser.parse_args(arguments)
    if args.fill:
        for document in DOCUMENTS:
            fill(document)
    say(ages(index()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
