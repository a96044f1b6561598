"""Who wrote before the vectors of queries, how much, whether those who had to, and who should."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.files import markdown, read_ids, read_json
from benchmarks.experiments import noise
from benchmarks.flagland.language import parse
from benchmarks.flagland.oracle import has_truth, true_texts
from retrievers.data.writings import WRITTEN, Writing, auc, read_writings, spent
from retrievers.evaluation.compare import tasks_of
from retrievers.evaluation.protocol import task_titles

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.experiments.results import ArmReader

#: Shares of the queries that write.
_SHARES = tuple(share / 20 for share in range(21))


def writing_json(reader: ArmReader, name: str) -> dict[str, Any] | None:
    """By task what was written, means over seeds; None where the arm writes nothing.

    The numbers of :func:`retrievers.data.writings.spent`; and ``auc``, where a Flagland knows which
    of a task's questions name the country: the chance that one that does not has a less likely mark
    than one that does; and ``right``, there, too, the share of what was written whose facts are
    those of the oracle's text, all and no others. Of several tasks a last row is of all queries
    together; its ``auc`` is of those that need a chain by ``truth/reasoning.txt``.
    """
    folders = reader.folders(name)
    tests = [read_json(folder / "metrics.json").get("writing") for folder in folders]
    if not all(tests):
        return None
    root = reader.builder.setup.root
    hard, easy = _needs(root)
    true = true_texts(root, "query") if has_truth(root) else {}
    told = [{**test, "auc": _aucs(folder, hard, easy), "right": _right(folder, true)}
            for test, folder in zip(tests, folders, strict=True)]  # fmt: skip
    found = {}
    for task, title in task_titles(tests[0]).items():
        row: dict[str, float | None] = {
            key: statistics.fmean(one[task][key] for one in told) for key in tests[0][task]
        }
        for name in ("auc", "right"):
            each = [one[name][task] for one in told if task in one[name]]
            row[name] = statistics.fmean(each) if each else None
        found[title] = row
    if len(found) > 1:
        needy = root / "truth" / "reasoning.txt"
        every = [_together(folder, needy) for folder in folders]
        whole = {key: statistics.fmean(one[key] for one in every) for key in every[0]}
        known = None if math.isnan(whole["auc"]) else whole["auc"]
        found["all"] = {**whole, "auc": known, "right": None}
    return found


def _together(folder: Path, needy: Path) -> dict[str, float]:
    written = read_writings(folder / WRITTEN)
    ids = read_ids(needy) if needy.is_file() else ()
    hard, easy = ([one for qid, one in written.items() if (qid in ids) == wanted]
                  for wanted in (True, False))  # fmt: skip
    return {**spent(written.values()), "auc": auc(hard, easy)}


def _needs(root: Path) -> tuple[set[str], set[str]]:
    """Ids of questions that point at a flag, and of those that name the country."""
    path = root / "truth" / "queries.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    asked = [row for row in rows if row["kind"] == "question"]
    easy = {row["qid"] for row in asked if row.get("named")}
    return {row["qid"] for row in asked} - easy, easy


def _tasks(folder: Path) -> Iterator[tuple[str, dict[str, Writing]]]:
    """Task, and query -> what it wrote."""
    written = read_writings(folder / WRITTEN)
    for task in tasks_of(folder, "local"):
        lines = (folder / f"{task}.qrels").read_text().splitlines()
        own = {line.split()[0] for line in lines}
        yield task, {qid: one for qid, one in written.items() if qid in own}


def _aucs(folder: Path, hard: set[str], easy: set[str]) -> dict[str, float]:
    found = {task: [[own[qid] for qid in own.keys() & some] for some in (hard, easy)]
             for task, own in _tasks(folder)}  # fmt: skip
    return {task: auc(*sides) for task, sides in found.items() if all(sides)}


def _right(folder: Path, true: Mapping[str, str]) -> dict[str, float]:
    found = {task: [parse(one.text) == parse(true[qid]) for qid, one in own.items()
                    if one.ending != "direct" and qid in true]
             for task, own in _tasks(folder)}  # fmt: skip
    return {task: statistics.fmean(each) for task, each in found.items() if each}


def routes_json(reader: ArmReader, silent: str, writing: str) -> dict[str, Any]:
    """What is found if so many queries write, by who is let write first; means over seeds.

    Args:
        reader: of the experiment.
        silent: arm of a model that never writes.
        writing: arm of the same model that always writes.

    Returns:
        ``orders``: by the mark (the model's own: least likely mark first), by the margin (smallest
        distance of the first two hits of the silent arm first), by chance: points with ``share``
        of the queries, ``tokens`` a query and ``score``, which weighs each task the same.
        ``roc``: by task with queries of known need, shares of those that need nothing and of those
        in need that write, threshold by threshold.
    """
    places: dict[str, list[list[tuple[float, float]]]] = {}
    roc: dict[str, list[list[tuple[float, float]]]] = {}
    folders = zip(reader.folders(silent), reader.folders(writing), strict=True)
    hard, easy = _needs(reader.builder.setup.root)
    for seed, (direct, written) in zip(reader.seeds, folders, strict=True):
        wrote, margins = read_writings(written / WRITTEN), noise.margins(direct)
        scores = reader.scores[[(silent, seed), (writing, seed)]]
        found = scores.set_axis(["silent", "writing"], axis=1).rename_axis(["task", "qid"])
        qids = found.index.get_level_values("qid")
        found["tokens"] = [wrote[qid].tokens for qid in qids]
        found["mark"] = [wrote[qid].mark for qid in qids]
        found["margin"] = [margins.get(qid, math.inf) for qid in qids]
        found["chance"] = np.random.default_rng(seed).permutation(len(found))
        for order in ("mark", "margin", "chance"):
            ranked = found.sort_values(order, kind="stable")
            points = [_routed(ranked, round(share * len(ranked))) for share in _SHARES]
            places.setdefault(order, []).append(points)
        for task, rows in found.groupby(level="task", sort=False):
            own = rows.droplevel("task")["mark"]
            needy, plain = (own[own.index.isin(some)] for some in (hard, easy))
            if len(needy) and len(plain):
                at = np.quantile(own, _SHARES)
                roc.setdefault(str(task), []).append(
                    [(float((plain <= t).mean()), float((needy <= t).mean())) for t in at]
                )
    return {
        "names": [silent, writing],
        "orders": {
            order: [{"share": share, "tokens": float(tokens), "score": float(score)}
                    for share, (tokens, score) in zip(_SHARES, np.mean(seeds, 0), strict=True)]
            for order, seeds in places.items()
        },
        "roc": {task: np.mean(seeds, 0).tolist() for task, seeds in roc.items()},
    }  # fmt: skip


def _routed(ranked: pd.DataFrame, writes: int) -> tuple[float, float]:
    """Tokens a query and score if the first rows write."""
    who = np.arange(len(ranked)) < writes
    score = ranked["silent"].where(~who, ranked["writing"])
    mean = score.groupby(level="task").mean().mean()
    return float((ranked["tokens"] * who).sum() / len(ranked)), float(mean)


def routes_table(value: Mapping[str, Any]) -> str:
    """A row a share of queries that write, a column a rule."""
    orders = value["orders"]
    rows = [
        [f"{100 * points[0]['share']:.0f}",
         *(f"{100 * one['score']:.1f} ({one['tokens']:.1f})" for one in points)]
        for points in zip(*orders.values(), strict=True)
    ]  # fmt: skip
    told = {"mark": "least likely mark first", "margin": "smallest margin first"}
    head = [f"of all queries write, % ({' to '.join(value['names'])})"]
    return markdown([*head, *(f"{told.get(name, name)} (tokens a query)" for name in orders)], rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def writing_table(arms: Mapping[str, Any]) -> str:
    """A row an arm and task that wrote; empty where none did."""
    rows = [
        [name, task.partition(":")[0], f"{100 * row['wrote']:.1f}", f"{row['tokens']:.1f}",
         f"{row['p95']:.0f}", f"{100 * row['forced']:.1f}",
         "-" if row["auc"] is None else f"{row['auc']:.3f}",
         *([_percent(row["right"])] if "right" in row else [])]
        for name, arm in arms.items() for task, row in (arm.get("writing") or {}).items()
    ]  # fmt: skip
    head = ["written before the vector", "task", "wrote, %", "tokens a query", "p95", "cut off, %",
            "AUC of the mark", "all facts right, %"]  # fmt: skip
    return markdown(head[: len(rows[0])], rows) if rows else ""  # older ones lack the last
