"""Who wrote before the vectors of queries, how much, and whether those who had to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.files import markdown, read_json
from retrievers.data.writings import WRITTEN, auc, read_writings
from retrievers.evaluation.compare import tasks_of
from retrievers.evaluation.protocol import task_titles

if TYPE_CHECKING:
    from benchmarks.experiments.results import ArmReader


def writing_json(reader: ArmReader, name: str) -> dict[str, Any] | None:
    """By task what was written, means over seeds; None where the arm writes nothing.

    The numbers of :func:`retrievers.data.writings.spent`; and ``auc``, where a Flagland knows which
    of a task's questions name the country: the chance that one that does not has a less likely mark
    than one that does.
    """
    folders = reader.folders(name)
    tests = [read_json(folder / "metrics.json").get("writing") for folder in folders]
    if not all(tests):
        return None
    hard, easy = _needs(reader.builder.setup.root)
    told = [{**test, "auc": _aucs(folder, hard, easy)}
            for test, folder in zip(tests, folders, strict=True)]  # fmt: skip
    found = {}
    for task, title in task_titles(tests[0]).items():
        row: dict[str, float | None] = {
            key: statistics.fmean(one[task][key] for one in told) for key in tests[0][task]
        }
        aucs = [one["auc"][task] for one in told if task in one["auc"]]
        row["auc"] = statistics.fmean(aucs) if aucs else None
        found[title] = row
    return found


def _needs(root: Path) -> tuple[set[str], set[str]]:
    """Ids of questions that point at a flag, and of those that name the country."""
    path = root / "truth" / "queries.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    asked = [row for row in rows if row["kind"] == "question"]
    easy = {row["qid"] for row in asked if row.get("named")}
    return {row["qid"] for row in asked} - easy, easy


def _aucs(folder: Path, hard: set[str], easy: set[str]) -> dict[str, float]:
    written = read_writings(folder / WRITTEN)

    def tasks() -> Iterator[tuple[str, float]]:
        for task in tasks_of(folder, "local"):
            lines = (folder / f"{task}.qrels").read_text().splitlines()
            own = {line.split()[0] for line in lines} & written.keys()
            if own & hard and own & easy:
                yield task, auc(*([written[qid] for qid in own & some] for some in (hard, easy)))

    return dict(tasks())


def writing_table(arms: Mapping[str, Any]) -> str:
    """A row an arm and task that wrote; empty where none did."""
    rows = [
        [name, task.partition(":")[0], f"{100 * row['wrote']:.1f}", f"{row['tokens']:.1f}",
         f"{row['p95']:.0f}", f"{100 * row['forced']:.1f}",
         "-" if row["auc"] is None else f"{row['auc']:.3f}"]
        for name, arm in arms.items() for task, row in (arm.get("writing") or {}).items()
    ]  # fmt: skip
    head = ["written before the vector", "task", "wrote, %", "tokens a query", "p95", "cut off, %",
            "AUC of the mark"]  # fmt: skip
    return markdown(head, rows) if rows else ""
