"""From finished steps to one JSON: scores by arm, comparisons, effects, curves, texts and cost.

The file holds no path of this machine but folders below ``OUT``, and all that tables, plots and
notebooks show. Layout: see ``docs/formats.md``.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import pandas as pd

from augment.files import read_json
from benchmarks.experiments.build import Builder, unavailable
from benchmarks.experiments.effects import CELLS, CONTRASTS, crossing, effect
from benchmarks.experiments.graph import CachedStep, in_order, record
from benchmarks.experiments.texts import names_of
from benchmarks.experiments.writing import routes_json, writing_json
from benchmarks.report.gallery import Gallery
from benchmarks.report.runs import moves, open_run, pick
from retrievers.evaluation.compare import (
    Comparison,
    compare_scores,
    holm,
    scores_from_run,
    tasks_of,
)
from retrievers.evaluation.protocol import task_titles
from retrievers.evaluation.versions import source_commit, versions

#: Shares of the whole gain that curves look for.
_SHARES = {"break_even": 0.0, "keep_95": 0.95}


@final
@dataclass(frozen=True)
class ArmReader:
    """Reads what the steps of an experiment left.

    Attributes:
        builder: gives the steps.
        out: folder of the steps.
        metric: per-query score.
        pool: local or union.
    """

    builder: Builder
    out: Path
    metric: str
    pool: str = "local"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the trainings."""
        return self.builder.setup.seeds

    def steps(self) -> list[CachedStep]:
        """The tests of all arms with all seeds; a seed that moves nothing counts once."""
        steps = [self.builder.arm(name, seed) for seed in self.seeds for name in self.builder.names]
        return list({step.fingerprint: step for step in steps}.values())

    def folders(self, arm: str) -> list[Path]:
        """Test folders of an arm, a seed each."""
        return [self.builder.arm(arm, seed).folder(self.out) for seed in self.seeds]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Score of every query (rows: task, query id) in every arm with every seed (columns)."""
        columns: dict[tuple[str, int], pd.Series[float]] = {
            (name, seed): pd.Series(self._read(folder))
            for name in self.builder.names
            for seed, folder in zip(self.seeds, self.folders(name), strict=True)
        }
        return cast("pd.DataFrame", pd.DataFrame(columns).rename_axis(columns=["arm", "seed"]))

    @cached_property
    def means(self) -> pd.DataFrame:
        """The same averaged over seeds: an arm a column."""
        return cast("pd.DataFrame", self.scores.T.groupby(level="arm", sort=False).mean().T)

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """Mean score of every task (rows) and, last, of their plain ``mean``; columns as scores."""
        tasks: pd.DataFrame = self.scores.groupby(level=0, sort=False).mean()
        tasks.loc["mean"] = tasks.mean()
        return tasks

    def _read(self, folder: Path) -> dict[tuple[str, str], float]:
        return {
            (title, qid): score
            for name, title in task_titles(tasks_of(folder, self.pool)).items()
            for qid, score in scores_from_run(
                folder / f"{name}.{self.pool}.trec", folder / f"{name}.qrels", self.metric
            ).items()
        }

    def compare(self, first: str, second: str) -> Comparison:
        """Two arms, scores being means over seeds."""
        pairs = {
            str(task): (rows[first].droplevel(0).to_dict(), rows[second].droplevel(0).to_dict())
            for task, rows in self.means.groupby(level=0, sort=False)
        }
        return compare_scores(pairs, metric=self.metric, pool=self.pool, names=(first, second),
                              seed=self.seeds[0])  # fmt: skip


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of one seed."""
    return statistics.stdev(values) if len(values) > 1 else None


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {"score": statistics.fmean(values), "seeds": list(values), "sd": _spread(values)}


def arm_json(reader: ArmReader, name: str) -> dict[str, Any]:
    """Scores of an arm by task, over seeds; its folders; what it took."""
    arm, seeds = reader.builder.experiment.arms[name], reader.tasks[name]
    queries = reader.scores.groupby(level=0, sort=False).size()
    value = {key: given for key, given in asdict(arm).items() if key not in ("train", "show")}
    shown = {"train": arm.train, "show": arm.show}
    return {
        **value,
        **{key: None if one is None else {"query": str(one.query), "corpus": str(one.corpus)}
           for key, one in shown.items()},
        "tasks": {task: {"queries": int(queries[task]), **_over_seeds(seeds.loc[task].tolist())}
                  for task in queries.index},
        "mean": _over_seeds(seeds.loc["mean"].tolist()),
        "folders": [str(path.relative_to(reader.out)) for path in reader.folders(name)],
        "cost": _cost(reader, name),
        "queries_per_second": _pace(reader.folders(name)),
        "union": union_json(reader, name),
        "writing": writing_json(reader, name),
        "not_read": _not_read(reader.folders(name)[0]),
    }  # fmt: skip


def union_json(reader: ArmReader, name: str) -> dict[str, Any] | None:
    """An arm in the union of all pools, success@1, means over tasks and seeds; its local mean.

    The shares of :class:`~retrievers.evaluation.results.ModalityScores`, and their counts in all.
    None where the union was not searched.
    """
    if not reader.builder.experiment.union:
        return None
    tests = [read_json(folder / "metrics.json") for folder in reader.folders(name)]
    seen = [row["modality"] for test in tests for row in test["rows"] if row["pool"] == "union"]
    found: dict[str, Counter[str]] = {}
    for asked, counts in (pair for one in seen for pair in one["found"].items()):
        found.setdefault(asked, Counter()).update(counts)
    arm, steps = reader.builder.experiment.arms[name], reader.builder.setup.steps
    return {
        "steps": round(steps * arm.effort) if steps and arm.train else None,
        "local": statistics.fmean(test["mean"]["local"]["success@1"] for test in tests),
        **{key: statistics.fmean(one[key] for one in seen) for key in seen[0] if key != "found"},
        "found": found,
    }


def _cost(reader: ArmReader, name: str) -> dict[str, float]:
    """Seconds of an arm with its texts and training, by kind of step; means over seeds."""
    total: dict[str, float] = {}
    for seed in reader.seeds:
        for step in in_order([reader.builder.arm(name, seed)]):
            done = record(step, reader.out)
            for key in ("cpu_seconds", "gpu_seconds"):
                place = f"{step.kind} {key}"
                total[place] = total.get(place, 0.0) + done[key] / len(reader.seeds)
    return {key: round(value, 2) for key, value in total.items() if value}


def _pace(folders: Sequence[Path]) -> float | None:
    """Queries that were embedded in a second of a test; None of what embeds none."""
    costs = [read_json(folder / "metrics.json").get("cost", {}) for folder in folders]
    told = [cost["queries_per_second"] for cost in costs if cost.get("queries_per_second")]
    return statistics.fmean(told) if told else None


def _not_read(folder: Path) -> float | None:
    """Share of the candidates' tokens behind the context; None where nothing counted them."""
    metrics = read_json(folder / "metrics.json")
    cut = metrics.get("settings", {}).get("data", {}).get("cut_text") or {}
    rows = [row for row in cut.get("rows", ()) if row["side"] == "corpus"]
    tokens = sum(row["tokens"] for row in rows)
    return sum(row["lost"] for row in rows) / tokens if tokens else None


def comparison_json(reader: ArmReader, first: str, second: str) -> dict[str, Any]:
    """Rows of a comparison with the difference of every seed."""
    comparison = asdict(reader.compare(first, second))
    for row in comparison["rows"]:
        seeds = (reader.tasks[second] - reader.tasks[first]).loc[row["name"]].tolist()
        row["difference"] = dict(zip(("mean", "low", "high"), row["difference"], strict=True))
        row["seeds"], row["sd"] = seeds, _spread(seeds)
    keys = ("names", "metric", "pool", "rows", "seed")
    return {key: comparison[key] for key in keys}


def against_json(reader: ArmReader, first: str) -> dict[str, Any] | None:
    """The mean of every arm against one; p-values corrected for all of them (Holm)."""
    if first not in reader.builder.names:
        return None
    others = [name for name in reader.builder.names if name != first]
    rows = [{**comparison_json(reader, first, name)["rows"][-1], "name": name} for name in others]
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = p
    return {"arm": first, "rows": rows}


def effects_json(reader: ArmReader) -> list[dict[str, Any]]:
    """The contrasts of the grid, by task and for the mean; none where a cell is not an arm."""
    if not set(CELLS.values()) <= set(reader.builder.names):
        return []
    effects = []
    for contrast in CONTRASTS:
        weights = {CELLS[cell]: weight for cell, weight in contrast.weights.items()}
        macro = [reader.tasks[name].loc["mean"] * weight for name, weight in weights.items()]
        seeds = sum(macro[1:], macro[0]).tolist()
        rows = effect(weights, reader.means, reader.seeds[0])
        effects.append(
            {
                "name": contrast.name,
                "formula": contrast.formula,
                "rows": {task: interval._asdict() for task, interval in rows.items()},
                "seeds": seeds,
                "sd": _spread(seeds),
            }
        )
    return effects


def curves_json(reader: ArmReader) -> list[dict[str, Any]]:
    """Gains along each axis and the place that is looked for."""
    curves = []
    for name, curve in reader.builder.experiment.curves.items():
        if not {*curve.arms, curve.base, curve.full} <= set(reader.builder.names):
            continue
        rows = [reader.compare(curve.base, arm).rows[-1] for arm in curve.arms]
        at = crossing(curve.x, curve.arms, curve.base, curve.full, reader.means,
                      _SHARES[curve.find])  # fmt: skip
        curves.append(
            {
                "name": name,
                "find": curve.find,
                "base": curve.base,
                "full": curve.full,
                "points": [
                    {"x": x, "arm": arm, "gain": row.difference._asdict()}
                    for x, arm, row in zip(curve.x, curve.arms, rows, strict=True)
                ],
                # JSON has no infinity: null is "not within the measured range".
                "at": {key: value if math.isfinite(value) else None
                       for key, value in at._asdict().items()},
            }
        )  # fmt: skip
    return curves


def texts_json(reader: ArmReader) -> dict[str, Any]:
    """Tokens, lengths and truth of every text in use."""
    builder = reader.builder
    here = builder.setup.asked is None  # or the texts of the trainings are about other data
    arms = [builder.experiment.arms[name] for name in builder.names]
    used = [name for arm in arms for views in (here and arm.train, arm.show)
            if views for name in views.texts]  # fmt: skip
    texts = {}
    for name in names_of(used, builder.experiment.texts):
        step = builder.text(name)
        value = read_json(step.folder(reader.out) / "texts.json")
        done = record(step, reader.out)
        text = builder.experiment.texts[name]
        texts[name] = {
            "kind": text.kind, "of": text.of, "settings": text.settings,
            "sides": value["sides"], "cpu_seconds": done["cpu_seconds"],
            "gpu_seconds": done["gpu_seconds"],
        }  # fmt: skip
    return texts


def moves_json(reader: ArmReader, first: str, second: str, most: int = 8) -> dict[str, Any]:
    """How queries moved from one arm to another, with the first seed.

    Returns:
        ``changes``: rows of task, query, rank of the first relevant candidate in the first arm, and
        in the second; null where it is not found. ``examples``: queries that won and lost most,
        with the texts and pictures that tell why.
    """
    folders = [reader.folders(name)[0] for name in (first, second)]
    runs = (open_run(folders[0]), open_run(folders[1]))
    tasks, moved = moves(runs, reader.pool)
    gallery = Gallery(reader.builder.setup.root, runs, 1)
    return {
        "changes": {"arms": [first, second],
                    "rows": [[one.task, one.qid, one.first, one.second] for one in moved]},
        "examples": {
            kind: [gallery.card(one, tasks[one.task]).plain() for one in pick(moved, better, most)]
            for kind, better in (("wins", True), ("losses", False))
        },
    }  # fmt: skip


def collect(reader: ArmReader) -> dict[str, Any]:
    """Everything about an experiment, JSON-serialisable."""
    experiment, setup, names = reader.builder.experiment, reader.builder.setup, reader.builder.names
    pairs = [pair for pair in experiment.compare if all(name in names for name in pair)]
    return {
        "experiment": experiment.name,
        "question": experiment.question,
        "prediction": experiment.prediction,
        "setup": setup.describe(),
        "metric": reader.metric,
        "pool": reader.pool,
        "seeds": list(setup.seeds),
        "arms": {name: arm_json(reader, name) for name in names},
        "left_out": {name: unavailable(name, experiment, setup)
                     for name in experiment.arms if name not in names},
        "comparisons": [comparison_json(reader, *pair) for pair in pairs],
        "against": against_json(reader, experiment.against),
        "effects": effects_json(reader),
        "curves": curves_json(reader),
        "routes": [routes_json(reader, *pair) for pair in experiment.routes],
        "texts": texts_json(reader),
        **(moves_json(reader, *pairs[0]) if pairs else {"changes": None, "examples": None}),
        "commit": source_commit(),
        "versions": versions(),
    }  # fmt: skip
