"""From finished steps to one JSON: scores by arm, comparisons, effects, curves, texts and cost.

The file holds no path of this machine but folders below ``OUT``, and all that tables, plots and
notebooks show. Layout: see ``docs/formats.md``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from augment.files import write_text
from benchmarks.experiments.build import Builder, available, describe
from benchmarks.experiments.effects import CELLS, CONTRASTS, Cell, TaskScores, crossing, effect
from benchmarks.experiments.graph import Step, in_order, record
from benchmarks.experiments.spec import Arm, grid_name
from benchmarks.experiments.texts import names_of
from benchmarks.report.gallery import Gallery, Moved, pick
from benchmarks.report.runs import first_ranks, open_run, relevant
from retrievers.evaluation.compare import Comparison, compare_scores, scores_from_run, tasks_of
from retrievers.evaluation.protocol import task_title
from retrievers.training.provenance import source_commit, versions

#: Shares of the whole gain that curves look for.
_SHARES = {"break_even": 0.0, "keep_95": 0.95}


@final
@dataclass(frozen=True)
class Reader:
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

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Arms that can be run on this root."""
        experiment, setup = self.builder.experiment, self.builder.setup
        return {name: arm for name, arm in experiment.arms.items()
                if not available(arm, experiment, setup)}  # fmt: skip

    def steps(self) -> list[Step]:
        """The tests of all arms with all seeds; a seed that moves nothing counts once."""
        setup = self.builder.setup
        found = [self.builder.arm(arm, seed) for seed in setup.seeds for arm in self.arms.values()]
        return list({step.fingerprint: step for step in found}.values())

    def folders(self, arm: str) -> list[Path]:
        """Test folders of an arm, a seed each."""
        setup = self.builder.setup
        steps = [self.builder.arm(self.arms[arm], seed) for seed in setup.seeds]
        return [step.folder(self.out) for step in steps]

    @cached_property
    def _scores(self) -> dict[str, list[dict[str, dict[str, float]]]]:
        return {name: [self._read(folder) for folder in self.folders(name)] for name in self.arms}

    def _read(self, folder: Path) -> dict[str, dict[str, float]]:
        names = tasks_of(folder, self.pool)
        several = len({name.rpartition("_task")[0] for name in names}) > 1
        return {
            task_title(name, several): scores_from_run(
                folder / f"{name}.{self.pool}.trec", folder / f"{name}.qrels", self.metric
            )
            for name in names
        }

    def by_seed(self, arm: str) -> list[dict[str, dict[str, float]]]:
        """Seed by seed: task -> query -> score."""
        return self._scores[arm]

    def scores(self, arm: str) -> dict[str, dict[str, float]]:
        """Task -> query -> score, the mean over seeds."""
        return self._means[arm]

    @cached_property
    def _means(self) -> dict[str, dict[str, dict[str, float]]]:
        return {
            arm: {
                task: {qid: statistics.fmean(one[task][qid] for one in seeds) for qid in queries}
                for task, queries in seeds[0].items()
            }
            for arm, seeds in self._scores.items()
        }

    def compare(self, first: str, second: str) -> Comparison:
        """Two arms, scores being means over seeds."""
        a, b = self.scores(first), self.scores(second)
        return compare_scores(
            {task: (a[task], b[task]) for task in a},
            metric=self.metric, pool=self.pool, names=(first, second),
            seed=self.builder.setup.seeds[0],
        )  # fmt: skip


def _mean(scores: Mapping[str, float]) -> float:
    return statistics.fmean(scores.values())


def _macro(scores: TaskScores) -> float:
    return statistics.fmean(_mean(queries) for queries in scores.values())


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of one seed."""
    return statistics.stdev(values) if len(values) > 1 else None


def arm_json(reader: Reader, name: str) -> dict[str, Any]:
    """Scores of an arm by task, over seeds; its folders; what it took."""
    arm, seeds = reader.arms[name], reader.by_seed(name)
    tasks = {
        task: {"queries": len(queries), **_over_seeds([_mean(one[task]) for one in seeds])}
        for task, queries in seeds[0].items()
    }
    shown = {"train": arm.train, "show": arm.show}
    return {
        "kind": arm.kind,
        **{key: None if one is None else {"query": str(one.query), "corpus": str(one.corpus)}
           for key, one in shown.items()},
        "effort": arm.effort,
        "of": list(arm.of),
        "test": list(arm.test),
        "tasks": tasks,
        "mean": _over_seeds([_macro(one) for one in seeds]),
        "folders": [str(path.relative_to(reader.out)) for path in reader.folders(name)],
        "cost": _cost(reader, name),
    }  # fmt: skip


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {"score": statistics.fmean(values), "seeds": list(values), "sd": _spread(values)}


def _cost(reader: Reader, name: str) -> dict[str, float]:
    """Seconds of an arm with its texts and training, by kind of step; means over seeds."""
    setup = reader.builder.setup
    total: dict[str, float] = {}
    for seed in setup.seeds:
        for step in in_order([reader.builder.arm(reader.arms[name], seed)]):
            done = record(step, reader.out)
            for key in ("cpu_seconds", "gpu_seconds"):
                place = f"{step.kind} {key}"
                total[place] = total.get(place, 0.0) + done[key] / len(setup.seeds)
    return {key: round(value, 2) for key, value in total.items() if value}


def comparison_json(reader: Reader, first: str, second: str) -> dict[str, Any]:
    """Rows of a comparison with the difference of every seed."""
    found = reader.compare(first, second).to_json()
    both = list(zip(reader.by_seed(first), reader.by_seed(second), strict=True))
    for row in found["rows"]:
        per_seed = [
            _macro(b) - _macro(a) if row["name"] == "mean"
            else _mean(b[row["name"]]) - _mean(a[row["name"]])
            for a, b in both
        ]  # fmt: skip
        row["difference"] = dict(zip(("mean", "low", "high"), row["difference"], strict=True))
        row["seeds"], row["sd"] = per_seed, _spread(per_seed)
    keys = ("names", "metric", "pool", "rows", "seed")
    return {key: found[key] for key in keys}


def effects_json(reader: Reader) -> list[dict[str, Any]]:
    """The contrasts of the grid, by task and for the mean."""
    words = ("raw", "enriched")
    names = {cell: grid_name(*(words[n] for n in cell)) for cell in CELLS}
    cells: dict[Cell, TaskScores] = {cell: reader.scores(name) for cell, name in names.items()}
    per_seed: list[dict[Cell, TaskScores]] = [
        {cell: reader.by_seed(name)[n] for cell, name in names.items()}
        for n in range(len(reader.builder.setup.seeds))
    ]
    found = []
    for contrast in CONTRASTS:
        seeds = [
            sum(weight * _macro(one[cell]) for cell, weight in contrast.weights.items())
            for one in per_seed
        ]
        rows = effect(contrast, cells, reader.builder.setup.seeds[0])
        found.append(
            {
                "name": contrast.name,
                "formula": contrast.formula,
                "rows": {task: interval._asdict() for task, interval in rows.items()},
                "seeds": seeds,
                "sd": _spread(seeds),
            }
        )
    return found


def curves_json(reader: Reader) -> list[dict[str, Any]]:
    """Gains along each axis and the place that is looked for."""
    found = []
    for curve in reader.builder.experiment.curves:
        if any(name not in reader.arms for name in (*curve.arms, curve.base, curve.full)):
            continue
        rows = [reader.compare(curve.base, arm).rows[-1] for arm in curve.arms]
        at = crossing(
            curve.x, [reader.scores(arm) for arm in curve.arms], reader.scores(curve.base),
            reader.scores(curve.full), _SHARES[curve.find],
        )  # fmt: skip
        found.append(
            {
                "name": curve.name,
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
    return found


def texts_json(reader: Reader) -> dict[str, Any]:
    """Tokens, lengths and truth of every text in use."""
    builder = reader.builder
    here = builder.setup.asked is None  # or the texts of the trainings are about other data
    used = [name for arm in reader.arms.values() for shown in (here and arm.train, arm.show)
            if shown for name in shown.texts]  # fmt: skip
    found = {}
    for name in names_of(used, builder.experiment.texts):
        step = builder.text(name)
        value = json.loads((step.folder(reader.out) / "texts.json").read_text("utf-8"))
        done = record(step, reader.out)
        text = builder.experiment.texts[name]
        found[name] = {
            "kind": text.kind, "of": text.of, "settings": dict(text.settings),
            "sides": value["sides"], "cpu_seconds": done["cpu_seconds"],
            "gpu_seconds": done["gpu_seconds"],
        }  # fmt: skip
    return found


def changes_json(reader: Reader, first: str, second: str) -> list[list[Any]]:
    """Rank of the first relevant candidate in both arms, with the first seed.

    Returns:
        Rows of task, query, rank in the first arm, rank in the second; null where it is not found.
    """
    folders = [reader.folders(name)[0] for name in (first, second)]
    rows: list[list[Any]] = []
    for name in tasks_of(folders[0], reader.pool):
        wanted = relevant(folders[0], name)
        ranks = [first_ranks(open_run(folder).hits(name, reader.pool), wanted)
                 for folder in folders]  # fmt: skip
        rows += [[name, qid, rank, ranks[1].get(qid)] for qid, rank in ranks[0].items()]
    return rows


def examples_json(reader: Reader, first: str, second: str, most: int = 8) -> dict[str, Any]:
    """Queries that won and lost most, with the texts and pictures that tell why (first seed)."""
    folders = [reader.folders(name)[0] for name in (first, second)]
    gallery = Gallery(reader.builder.setup.root, (open_run(folders[0]), open_run(folders[1])), 1)
    moved = []
    hits, wanted = {}, {}
    for name in tasks_of(folders[0], reader.pool):
        wanted[name] = relevant(folders[0], name)
        hits[name] = [run.hits(name, reader.pool) for run in gallery.runs]
        ranks = [first_ranks(one, wanted[name]) for one in hits[name]]
        moved += [Moved(name, task_title(name, False), qid, ranks[0][qid], ranks[1][qid])
                  for qid in wanted[name]]  # fmt: skip
    return {
        kind: [gallery.row(one, hits[one.task], wanted[one.task][one.qid])
               for one in pick(moved, wins, most)]
        for kind, wins in (("wins", True), ("losses", False))
    }  # fmt: skip


def collect(reader: Reader) -> dict[str, Any]:
    """Everything about an experiment, JSON-serialisable.

    Args:
        reader: of finished steps.
    """
    experiment, setup = reader.builder.experiment, reader.builder.setup
    pairs = [pair for pair in experiment.compare if all(name in reader.arms for name in pair)]
    left_out = {
        name: why for name, arm in experiment.arms.items()
        if (why := available(arm, experiment, setup))
    }  # fmt: skip
    return {
        "experiment": experiment.name,
        "question": experiment.question,
        "prediction": experiment.prediction,
        "setup": describe(setup),
        "metric": reader.metric,
        "pool": reader.pool,
        "seeds": list(setup.seeds),
        "arms": {name: arm_json(reader, name) for name in reader.arms},
        "left_out": left_out,
        "comparisons": [comparison_json(reader, *pair) for pair in pairs],
        "effects": effects_json(reader) if experiment.grid else [],
        "curves": curves_json(reader),
        "texts": texts_json(reader),
        "changes": {"arms": list(pairs[0]), "rows": changes_json(reader, *pairs[0])}
        if pairs else None,
        "examples": examples_json(reader, *pairs[0]) if pairs else None,
        "commit": source_commit(),
        "versions": versions(),
    }  # fmt: skip


def save(value: Mapping[str, Any], path: Path) -> None:
    """Write the JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
