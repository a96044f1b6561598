"""Two tested retrievers side by side: a row a task, paired intervals, slices, wins and losses.

``python -m retrievers compare RUN_A RUN_B`` for two folders that ``test`` wrote, or for two run
files with ``--qrels``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from augment.errors import DataError
from augment.records import Query
from retrievers.evaluation.slices import slices_of
from retrievers.evaluation.stats import (
    Interval,
    holm,
    macro_bootstrap,
    macro_randomisation,
    paired,
    scores_from_run,
)

#: M-BEIR task code -> what goes in and what is wanted.
TASK_NAMES = {
    0: "text → image", 1: "text → text", 2: "text → image+text", 3: "image → text",
    4: "image → image", 6: "image+text → text", 7: "image+text → image",
    8: "image+text → image+text",
}  # fmt: skip
#: One task's scores: query id -> score, of both systems, over the same queries.
Scores = tuple[Mapping[str, float], Mapping[str, float]]


@dataclass(frozen=True)
class Pair:
    """Means of two systems on the same queries, and the interval of the difference.

    Attributes:
        name: of the row.
        queries: how many.
        first: mean score of the first system, a share of 1.
        second: the same of the second.
        difference: second less first, 95 % paired bootstrap interval over queries.
        p: paired randomisation test, two-sided, uncorrected.
        wins: queries on which the second scores higher.
        losses: queries on which the first scores higher.
        holm: ``p`` corrected for all rows of its table (Holm); that of the overall mean is one
            test, and not corrected.
    """

    name: str
    queries: int
    first: float
    second: float
    difference: Interval
    p: float
    wins: int
    losses: int
    holm: float


@dataclass(frozen=True)
class Change:
    """A query whose score differs between the systems."""

    task: str
    qid: str
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """Rows of :class:`Pair`; the last one is over all queries, each task weighing the same.

    Attributes:
        metric: per-query score.
        pool: what was searched.
        names: of the two systems.
        rows: a task each, and the mean of the tasks.
        slices: the same over parts of the queries, each query weighing the same; empty where the
            queries are not at hand.
        changes: every query with another score, greatest gain first.
        seed: of the resampling.
    """

    metric: str
    pool: str
    names: tuple[str, str]
    rows: Sequence[Pair]
    slices: Sequence[Pair] = field(default_factory=tuple)
    changes: Sequence[Change] = field(default_factory=tuple)
    seed: int = 0

    def table(self) -> str:
        """Markdown of the tasks, scores in per cent."""
        return self._table(f"task ({self.pool} pool, {self.metric})", self.rows)

    def slice_table(self) -> str:
        """Markdown of the slices; empty without."""
        return self._table(f"slice ({self.metric})", self.slices) if self.slices else ""

    def _table(self, title: str, rows: Sequence[Pair]) -> str:
        first, second = self.names
        lines = [
            f"| {title} | queries | {first} | {second} | difference, 95 % interval | p | p (Holm) "
            "| wins | losses |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            d = row.difference
            lines.append(
                f"| {row.name} | {row.queries} | {100 * row.first:.1f} | {100 * row.second:.1f} "
                f"| {100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] "
                f"| {_p(row.p)} | {_p(row.holm)} | {row.wins} | {row.losses} |"
            )
        return "\n".join(lines)

    def note(self) -> str:
        """How the numbers were made, in a sentence."""
        return (
            "Intervals: paired bootstrap over queries, 10,000 resamples; p: paired randomisation "
            "test, 10,000 flips, two-sided; Holm: corrected for the rows above the mean; "
            f"seed {self.seed}. Queries that a run lacks count 0."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-serialisable."""
        return asdict(self)


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}"


def tasks_of(folder: Path, pool: str) -> list[str]:
    """Names of the tasks whose runs lie in a folder.

    Raises:
        DataError: if there is none.
    """
    tail = f".{pool}.trec"
    names = sorted(path.name.removesuffix(tail) for path in folder.glob(f"*{tail}"))
    if not names:
        raise DataError(
            f"holds no *{tail}; name a folder that `test` wrote, another --pool, or two run files "
            "and --qrels",
            str(folder),
        )
    return names


def task_title(name: str, several: bool) -> str:
    """A task as rows of tables call it.

    Args:
        name: as its files are called, ``flagland_task0``.
        several: whether there is more than one data set.
    """
    dataset, marker, code = name.rpartition("_task")
    if not marker or not code.isdigit():
        return name
    task = f"{code}: {TASK_NAMES.get(int(code), name)}"
    return f"{dataset} {task}" if several else task


def compare(
    first: Path,
    second: Path,
    tasks: Sequence[str] | None = None,
    *,
    metric: str = "success@5",
    pool: str = "local",
    names: tuple[str, str] = ("raw", "enriched"),
    seed: int = 0,
    queries: Iterable[Query] = (),
) -> Comparison:
    """Compare two test folders.

    Args:
        first: folder with run files and qrels of the first system.
        second: the same of the second.
        tasks: names of the rows, as the files are called; None takes all, which must be the same.
        metric: per-query score, see :func:`retrievers.evaluation.stats.scores_from_run`.
        pool: ``local`` or ``union``.
        names: of the two systems.
        seed: of the resampling.
        queries: what was asked; gives the slices.

    Raises:
        ValueError: if the two folders do not judge the same queries.
        DataError: if a file is missing or malformed, or the folders hold different tasks.
    """
    if tasks is None:
        tasks, other = tasks_of(first, pool), tasks_of(second, pool)
        if tasks != other:
            lacking = sorted(set(tasks) ^ set(other))
            raise DataError(
                f"only one of {first} and {second} has {', '.join(lacking[:3])}; test both on the "
                "same tasks"
            )
    several = len({task.rpartition("_task")[0] for task in tasks}) > 1
    scores = {
        task_title(task, several): (_of(first, task, pool, metric), _of(second, task, pool, metric))
        for task in tasks
    }
    return compare_scores(scores, metric=metric, pool=pool, names=names, seed=seed, queries=queries)


def _of(folder: Path, name: str, pool: str, metric: str) -> dict[str, float]:
    return scores_from_run(folder / f"{name}.{pool}.trec", folder / f"{name}.qrels", metric)


def compare_scores(
    scores: Mapping[str, Scores],
    *,
    metric: str = "success@5",
    pool: str = "local",
    names: tuple[str, str] = ("raw", "enriched"),
    seed: int = 0,
    queries: Iterable[Query] = (),
) -> Comparison:
    """Compare per-query scores.

    Args:
        scores: name of a task -> scores of both systems.
        metric: what the scores are.
        pool: what was searched.
        names: of the two systems.
        seed: of the resampling.
        queries: what was asked; gives the slices.

    Raises:
        ValueError: if there is no task, or the systems do not score the same queries.
    """
    lists = {task: paired(*both) for task, both in scores.items()}
    rows = _corrected([_pair(task, [both], seed) for task, both in lists.items()])
    rows.append(_pair("mean", list(lists.values()), seed))
    changes = [
        Change(task, qid, a, b)
        for task, (first, _) in scores.items()
        for qid, a, b in zip(first, *lists[task], strict=True)
        if a != b
    ]
    changes.sort(key=lambda change: change.first - change.second)
    flat = {
        qid: (a, b)
        for task, (first, _) in scores.items()
        for qid, a, b in zip(first, *lists[task], strict=True)
    }
    slices = _corrected(
        [
            _pair(name, [tuple(zip(*(flat[qid] for qid in qids), strict=True))], seed)  # type: ignore[list-item]
            for name, qids in slices_of(queries, flat).items()
        ]
    )
    return Comparison(metric, pool, names, rows, slices, changes, seed)


def _pair(name: str, tasks: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int) -> Pair:
    """A row; of several tasks, their plain mean, as in M-BEIR's tables."""
    p = macro_randomisation(tasks, seed=seed)
    return Pair(
        name,
        sum(len(a) for a, _ in tasks),
        sum(sum(a) / len(a) for a, _ in tasks) / len(tasks),
        sum(sum(b) / len(b) for _, b in tasks) / len(tasks),
        macro_bootstrap(tasks, seed=seed),
        p,
        sum(y > x for a, b in tasks for x, y in zip(a, b, strict=True)),
        sum(y < x for a, b in tasks for x, y in zip(a, b, strict=True)),
        p,
    )


def _corrected(rows: Sequence[Pair]) -> list[Pair]:
    adjusted = holm([row.p for row in rows])
    return [replace(row, holm=p) for row, p in zip(rows, adjusted, strict=True)]
