"""Is the difference between two runs real? Paired intervals and tests on per-query scores.

Methods: paired percentile bootstrap over queries and the paired randomisation (sign-flip) test, as
in Smucker, Allan and Carterette, "A comparison of statistical significance tests for information
retrieval evaluation" (CIKM 2007), sections 3.3 and 3.4; Holm's correction ("A simple sequentially
rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979).

A resampled mean depends only on how often each distinct difference is drawn. Counts are therefore
drawn (multinomial, binomial) instead of queries: the same distribution, and 50,000 queries cost no
more than 50 where scores are hits or misses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from augment.data import read_qrels
from augment.errors import DataError
from retrievers.evaluation.metrics import Measure, grades_of, score_run
from retrievers.evaluation.run import RunTable, check_depth, read_table

#: Resamples handled at once; bounds memory at distinct differences x this many bytes x 8.
_BLOCK = 256


class Interval(NamedTuple):
    """A mean difference ``b - a`` with its interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, n: int = 10_000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean of ``b - a`` over paired queries.

    Args:
        a: scores of the first system, one per query.
        b: scores of the second, in the same order.
        seed: of the resampling.
        n: number of resamples.
        level: coverage.

    Raises:
        ValueError: if the scores are not paired, empty or not finite.
    """
    return macro_bootstrap([(a, b)], seed=seed, n=n, level=level)


def macro_bootstrap(
    tasks: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    seed: int = 0,
    n: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The same for the plain mean over tasks; queries are resampled within each task.

    Args:
        tasks: scores of both systems on each task's queries.
        seed: of the resampling.
        n: number of resamples.
        level: coverage.

    Raises:
        ValueError: if there is no task, or scores are not paired, empty or not finite.
    """
    if not tasks:
        raise ValueError("no task to compare")
    random = np.random.default_rng(seed)
    differences = [_difference(a, b) for a, b in tasks]
    draws = np.mean([_resampled(difference, random, n) for difference in differences], axis=0)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
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


def randomisation_test(a: ArrayLike, b: ArrayLike, *, seed: int = 0, n: int = 10_000) -> float:
    """Two-sided p-value of the paired randomisation test of equal means.

    Signs of the paired differences are flipped at random ``n`` times; the observed assignment
    counts once, so that p is never 0: (extreme + 1) / (n + 1).

    Args:
        a: scores of the first system, one per query.
        b: scores of the second, in the same order.
        seed: of the flips.
        n: number of flips.

    Raises:
        ValueError: if the scores are not paired, empty or not finite.
    """
    return macro_randomisation([(a, b)], seed=seed, n=n)


def macro_randomisation(
    tasks: Sequence[tuple[ArrayLike, ArrayLike]], *, seed: int = 0, n: int = 10_000
) -> float:
    """The same for the plain mean over tasks: a query weighs 1 / (tasks x its task's queries).

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

    Args:
        run: six-column run file (or UniIR's seven).
        qrels: judgements, four or five columns.
        metric: see :meth:`retrievers.evaluation.metrics.Measure.parse`.
        short: whether the run may hold fewer hits than the metric looks at, as it does where the
            pool is that small.

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

    Args:
        table: the run.
        grades: judgements by query.
        run: its name, for the message.
        qrels: their name, for the message.

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
