"""The metrics on one ranking: the definitions, written to be read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from augment.records import Hit


def ranked(hits: Iterable[Hit]) -> list[str]:
    """Candidate ids, best first: by single-precision score, ties by id in descending order."""
    by_id = sorted(hits, key=lambda hit: hit.did, reverse=True)
    return [hit.did for hit in sorted(by_id, key=lambda hit: -np.float32(hit.score))]


def success_at_k(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 if any relevant candidate is among the first ``k``, else 0; M-BEIR's papers' "Recall@k"."""
    return float(any(did in relevant for did in ranking[:k]))


def recall_at_k(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant candidates among the first ``k``; 0 if there are none."""
    found = sum(did in relevant for did in ranking[:k])
    return found / len(relevant) if relevant else 0.0


def precision_at_k(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Relevant candidates among the first ``k``, divided by ``k`` however many were found."""
    return sum(did in relevant for did in ranking[:k]) / k


def mrr(ranking: Sequence[str], relevant: Collection[str], k: int | None = None) -> float:
    """1 / rank of the first relevant candidate, 0 if it is not among the first ``k`` (all)."""
    for rank, did in enumerate(ranking[:k], start=1):
        if did in relevant:
            return 1.0 / rank
    return 0.0


def average_precision(
    ranking: Sequence[str], relevant: Collection[str], k: int | None = None
) -> float:
    """Mean, over all relevant candidates, of the precision at their ranks; 0 if not found.

    trec_eval's ``map`` (``map_cut`` with ``k``): the divisor counts relevant candidates that were
    not found.
    """
    found, total = 0, 0.0
    for rank, did in enumerate(ranking[:k], start=1):
        if did in relevant:
            found += 1
            total += found / rank
    return total / len(relevant) if relevant else 0.0


def ndcg_at_k(ranking: Sequence[str], grades: Mapping[str, int], k: int | None = None) -> float:
    """Normalised discounted cumulative gain: gain = grade, discount = log2(rank + 1).

    Linear gain and clipping of negative grades at 0 follow trec_eval's ``ndcg_cut``.
    """
    gains = [max(grades.get(did, 0), 0) for did in ranking[:k]]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k]
    best = _dcg(ideal)
    return _dcg(gains) / best if best else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
