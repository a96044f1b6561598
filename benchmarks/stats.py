"""Is the difference between two runs real? Paired intervals and tests on per-query scores.

Methods: paired percentile bootstrap over queries and the paired randomisation (sign-flip) test, as
in Smucker, Allan and Carterette, "A comparison of statistical significance tests for information
retrieval evaluation" (CIKM 2007), sections 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from augment.mbeir import read_qrels
from retrievers.metrics import grades_of, per_query
from retrievers.run import read_run

#: Resamples handled at once; bounds memory at n queries x this many bytes x 8.
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
    difference = _difference(a, b)
    random = np.random.default_rng(seed)
    size = len(difference)
    draws = [
        difference[random.integers(0, size, (min(_BLOCK, n - start), size))].mean(axis=1)
        for start in range(0, n, _BLOCK)
    ]
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


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
    difference = _difference(a, b)
    random = np.random.default_rng(seed)
    # Ties with the observed value count as extreme, whatever the order of summation.
    observed = abs(difference.sum()) - 1e-9
    extreme = 0
    for start in range(0, n, _BLOCK):
        flips = random.integers(0, 2, (min(_BLOCK, n - start), len(difference))) * 2 - 1
        extreme += int((np.abs(flips @ difference) >= observed).sum())
    return (extreme + 1) / (n + 1)


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
    run: str | Path, qrels: str | Path, metric: str = "success@5"
) -> dict[str, float]:
    """Per-query scores of a TREC run file; a judged query that the run lacks scores 0.

    Args:
        run: six-column run file.
        qrels: judgements, four or five columns.
        metric: ``success@k``, ``recall@k``, ``mrr@k`` or ``ndcg@k``.

    Raises:
        ValueError: if the metric is unknown.
        DataError: if a file is malformed.
    """
    name, _, cut = metric.partition("@")
    if name not in ("success", "recall", "mrr", "ndcg") or not cut.isdigit() or int(cut) < 1:
        raise ValueError(f"metric {metric!r} is none of success@k, recall@k, mrr@k, ndcg@k")
    grades = grades_of(read_qrels(Path(qrels)))
    return per_query(read_run(run), grades, ks=(int(cut),))[metric]


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
