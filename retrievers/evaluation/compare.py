"""Two tested retrievers side by side: a row a task, paired intervals, slices, wins and losses.

Is a difference real? Paired percentile bootstrap over queries and the paired randomisation
(sign-flip) test, as in Smucker, Allan and Carterette, "A comparison of statistical significance
tests for information retrieval evaluation" (CIKM 2007), sections 3.3 and 3.4; Holm's correction ("A
simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979).
A resampled mean depends only on how often each distinct difference is drawn. Counts are therefore
drawn (multinomial, binomial) instead of queries: the same distribution, and 50,000 queries cost no
more than 50 where scores are hits or misses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from augment.data import grades_of, read_qrels
from augment.errors import DataError
from augment.files import PACKED_ENDINGS, markdown, packed
from augment.prompts.route import classify
from augment.records import Query
from retrievers.evaluation.metrics import Measure, score_run
from retrievers.evaluation.protocol import task_titles
from retrievers.evaluation.run import RunTable, check_depth
from retrievers.evaluation.run_files import read_table

#: Resamples handled at once; bounds memory at distinct differences x this many bytes x 8.
_BLOCK = 256
#: Upper bounds of the number of words, and the name of what is longer.
_LENGTHS = ((5, "1 to 5 words"), (15, "6 to 15 words"), (40, "16 to 40 words"))
Pool = Literal["local", "union"]
#: One task's scores: query id -> score, of both systems, over the same queries.
Scores = tuple[Mapping[str, float], Mapping[str, float]]


class Interval(NamedTuple):
    """A mean difference ``b - a`` with its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * part for part in self))


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
        head = [title, "queries", first, second, "difference, 95 % interval", "p", "p (Holm)"]
        cells = [
            [
                row.name,
                row.queries,
                f"{100 * row.first:.1f}",
                f"{100 * row.second:.1f}",
                row.difference,
                shown_p(row.p),
                shown_p(row.holm),
                row.wins,
                row.losses,
            ]
            for row in rows
        ]
        return markdown([*head, "wins", "losses"], cells)

    def note(self) -> str:
        """How the numbers were made, in a sentence."""
        return (
            "Intervals: paired bootstrap over queries, 10,000 resamples; p: paired randomisation "
            "test, 10,000 flips, two-sided; Holm: corrected for the rows above the mean; "
            f"seed {self.seed}. Queries that a run lacks count 0."
        )


def shown_p(p: float) -> str:
    """A p-value for tables."""
    return "< .001" if p < 0.001 else f"{p:.3f}"


def tasks_of(folder: Path, pool: str) -> list[str]:
    """Names of the tasks whose runs lie in a folder.

    Raises:
        DataError: if there is none.
    """
    tails = [f".{pool}.trec{ending}" for ending in PACKED_ENDINGS]
    # What begins with a dot is what a kill left of one.
    names = {p.name.removesuffix(tail) for tail in tails for p in folder.glob(f"[!.]*{tail}")}
    if not names:
        raise DataError(
            f"holds no *{tails[0]}; name a folder that `test` wrote, another --pool, or two run "
            "files and --qrels",
            str(folder),
        )
    return sorted(names)


def has_runs(folder: Path, pool: str) -> bool:
    """Whether :func:`tasks_of` finds any."""
    return any(folder.glob(f"[!.]*.{pool}.trec*"))


def files_of(folder: Path, task: str, pool: str) -> tuple[Path, Path]:
    """Run and judgements of a task in such a folder, packed or not."""
    return packed(folder / f"{task}.{pool}.trec"), packed(folder / f"{task}.qrels")


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
    qrels: Path | None = None,
) -> Comparison:
    """Compare two test folders, or two run files.

    Args:
        first: folder with run files and qrels of the first system, or a run file.
        second: the same of the second.
        tasks: names of the rows, as the files are called; None takes all, which must be the same.
        metric: per-query score, see :func:`scores_from_run`.
        pool: ``local`` or ``union``.
        names: of the two systems.
        seed: of the resampling.
        queries: what was asked; gives the slices.
        qrels: judgements, if run files are compared.

    Raises:
        ValueError: if the two do not judge the same queries.
        DataError: if a file is missing or malformed, or the folders hold different tasks.
    """
    if not (first.is_dir() and second.is_dir()):
        if qrels is None:
            raise DataError("two run files need --qrels; two folders that `test` wrote do not")
        one, other = (scores_from_run(run, qrels, metric, short=False) for run in (first, second))
        scores = {qrels.stem: (one, other)}
    else:
        if tasks is None:
            tasks, others = tasks_of(first, pool), tasks_of(second, pool)
            if tasks != others:
                lacking = sorted(set(tasks) ^ set(others))
                raise DataError(
                    f"only one of {first} and {second} has {', '.join(lacking[:3])}; test both on "
                    "the same tasks"
                )
        scores = {
            title: (
                scores_from_run(*files_of(first, task, pool), metric),
                scores_from_run(*files_of(second, task, pool), metric),
            )
            for task, title in task_titles(tasks).items()
        }
    return compare_scores(scores, metric=metric, pool=pool, names=names, seed=seed, queries=queries)


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

    Raises:
        ValueError: if there is no task, or the systems do not score the same queries.
    """
    lists = {task: paired(*both) for task, both in scores.items()}
    rows = _corrected([_pair(task, [both], seed) for task, both in lists.items()])
    rows.append(_pair("mean", list(lists.values()), seed))
    each = [
        Change(task, qid, a, b)
        for task, (first, _) in scores.items()
        for qid, a, b in zip(first, *lists[task], strict=True)
    ]
    changes = [change for change in each if change.first != change.second]
    changes.sort(key=lambda change: change.first - change.second)
    flat = {change.qid: (change.first, change.second) for change in each}
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


def macro_bootstrap(
    tasks: Sequence[tuple[ArrayLike, ArrayLike]], *, seed: int = 0, n: int = 10_000
) -> Interval:
    """95 % percentile bootstrap interval of the plain mean over tasks of the mean of ``b - a``.

    Queries are resampled within each task.

    Raises:
        ValueError: if there is no task, or scores are not paired, empty or not finite.
    """
    if not tasks:
        raise ValueError("no task to compare")
    random = np.random.default_rng(seed)
    differences = [_difference(a, b) for a, b in tasks]
    draws = np.mean([_resampled(difference, random, n) for difference in differences], axis=0)
    low, high = np.quantile(draws, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    mean = np.mean([difference.mean() for difference in differences])
    return Interval(float(mean), float(low), float(high))


def _resampled(
    difference: np.ndarray, random: np.random.Generator, n: int
) -> Float64[np.ndarray, " n"]:
    values, counts = np.unique(difference, return_counts=True)
    shares = counts / len(difference)
    draws = [
        random.multinomial(len(difference), shares, min(_BLOCK, n - start)) @ values
        for start in range(0, n, _BLOCK)
    ]
    return np.asarray(np.concatenate(draws) / len(difference))


def macro_randomisation(
    tasks: Sequence[tuple[ArrayLike, ArrayLike]], *, seed: int = 0, n: int = 10_000
) -> float:
    """Two-sided p-value of the paired randomisation test of equal means over tasks.

    Signs of the paired differences are flipped at random ``n`` times; the observed assignment
    counts once, so that p is never 0: (extreme + 1) / (n + 1). A query weighs 1 / (tasks x its
    task's queries).

    Raises:
        ValueError: if there is no task, or scores are not paired, empty or not finite.
    """
    if not tasks:
        raise ValueError("no task to compare")
    random = np.random.default_rng(seed)
    observed, flipped = 0.0, np.zeros(n)
    for a, b in tasks:
        difference = _difference(a, b)
        weight = 1 / (len(tasks) * len(difference))
        sizes, counts = np.unique(np.abs(difference), return_counts=True)
        observed += weight * difference.sum()
        for start in range(0, n, _BLOCK):
            drawn = random.binomial(counts, 0.5, (min(_BLOCK, n - start), len(counts)))
            flipped[start : start + _BLOCK] += weight * ((2 * drawn - counts) @ sizes)
    # Ties with the observed value count as extreme, whatever the order of summation.
    extreme = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())
    return (extreme + 1) / (n + 1)


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for having made all these tests (Holm 1979), in the given order.

    Raises:
        ValueError: if a value is no probability.
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1, got {list(p)}")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(steps) else steps
    return [float(value) for value in adjusted]


def _difference(a: ArrayLike, b: ArrayLike) -> Float64[np.ndarray, " queries"]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"need two equally long lists of scores, got {first.shape}, {second.shape}"
        )
    difference = second - first
    if not np.isfinite(difference).all():
        raise ValueError("scores must be finite")
    return difference


def scores_from_run(
    run: str | Path, qrels: str | Path, metric: str = "success@5", *, short: bool = True
) -> dict[str, float]:
    """Per-query scores of a TREC run file; a judged query that the run lacks scores 0.

    ``short``: the run may hold fewer hits than the metric looks at, as it does where the pool is
    that small.

    Raises:
        ValueError: if the metric is unknown.
        DataError: if a file is malformed, or no query of the run is judged.
    """
    measure = Measure.parse(metric)
    table = read_table(run, empty=short)
    if not short:
        check_depth(table, measure.k or 1)
    grades = grades_of(read_qrels(Path(qrels)))
    check_queries(table, grades, str(run), str(qrels))
    return score_run(table, grades, [metric]).of(metric)


def check_queries(table: RunTable, grades: Mapping[str, object], run: str, qrels: str) -> list[str]:
    """Refuse a run that is not about the judged queries.

    Returns:
        Queries of the run that are not judged.

    Raises:
        DataError: if the judgements are empty or know none of the run's queries.
    """
    if not grades:
        raise DataError("holds no judgement; name the qrels of the run's data set", qrels)
    qids = table.qids.to_pylist()
    unjudged = [qid for qid in qids if qid not in grades]
    if qids and len(unjudged) == len(qids):
        raise DataError(
            f"none of its {len(qids)} queries (the first is {qids[0]}) is judged in {qrels}, whose "
            f"first is {next(iter(grades))}; run and qrels are of different data",
            run,
        )
    return unjudged


def paired(
    first: Mapping[str, float], second: Mapping[str, float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Scores of two systems in the same order of queries.

    Raises:
        ValueError: if they are not about the same queries.
    """
    if first.keys() != second.keys():
        lacking = sorted(first.keys() ^ second.keys())[:3]
        raise ValueError(f"the runs judge different queries, for example {', '.join(lacking)}")
    return list(first.values()), [second[qid] for qid in first]


def length_of(query: Query) -> str:
    """Class of the length of a query's published text."""
    words = len((query.item.text or "").split())
    if not words:
        return "no text"
    return next((name for most, name in _LENGTHS if words <= most), "over 40 words")


def slices_of(queries: Iterable[Query], wanted: Collection[str]) -> dict[str, list[str]]:
    """Name of a slice -> ids of its queries, in order of first appearance within each kind."""
    kinds: tuple[dict[str, dict[str, None]], ...] = ({}, {}, {})
    for query in queries:
        if query.item.id not in wanted:
            continue
        names = (
            f"modality: {query.item.modality}",
            f"text: {length_of(query)}",
            f"type: {classify(query).form}",
        )
        for found, name in zip(kinds, names, strict=True):
            found.setdefault(name, {})[query.item.id] = None
    return {name: list(qids) for found in kinds for name, qids in found.items()}
