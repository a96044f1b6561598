"""Retrieval metrics on lists of ids: pure functions, one query at a time, and their means.

The names are the exact ones. What M-BEIR's papers (UniIR 2311.17136, section 5) call *Recall@k* is
:func:`success_at_k`; :func:`recall_at_k` is the share of relevant candidates found.

Ranking rule, everywhere in this package: by score, ties by id in descending string order. It is
trec_eval's rule, so trec_eval gives the same numbers on the run files written here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from augment.records import Hit, Qrel, Run

#: query id -> candidate id -> grade; only grades above 0 are relevant.
Grades = Mapping[str, Mapping[str, int]]


def ranked(hits: Iterable[Hit]) -> list[str]:
    """Candidate ids, best first: by score, ties by id in descending order (trec_eval's rule)."""
    by_id = sorted(hits, key=lambda hit: hit.did, reverse=True)
    return [hit.did for hit in sorted(by_id, key=lambda hit: -hit.score)]


def success_at_k(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 if any relevant candidate is among the first ``k``, else 0; M-BEIR's papers' "Recall@k"."""
    return float(any(did in relevant for did in ranking[:k]))


def recall_at_k(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant candidates among the first ``k``; 0 if there are none."""
    found = sum(did in relevant for did in ranking[:k])
    return found / len(relevant) if relevant else 0.0


def mrr(ranking: Sequence[str], relevant: Collection[str], k: int | None = None) -> float:
    """1 / rank of the first relevant candidate, 0 if it is not among the first ``k`` (all)."""
    for rank, did in enumerate(ranking[:k], start=1):
        if did in relevant:
            return 1.0 / rank
    return 0.0


def ndcg_at_k(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain: gain = grade, discount = log2(rank + 1).

    Linear gain and clipping of negative grades at 0 follow trec_eval's ``ndcg_cut``.
    """
    gains = [max(grades.get(did, 0), 0) for did in ranking[:k]]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k]
    best = _dcg(ideal)
    return _dcg(gains) / best if best else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def grades_of(qrels: Iterable[Qrel]) -> dict[str, dict[str, int]]:
    """Judgements grouped by query, in the order of first appearance."""
    grades: dict[str, dict[str, int]] = {}
    for qrel in qrels:
        grades.setdefault(qrel.qid, {})[qrel.did] = qrel.relevance
    return grades


def per_query(
    run: Run, grades: Grades, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """Metric name -> query id -> value, for every judged query.

    A query that the run lacks counts 0 for every metric (trec_eval leaves it out without ``-c``).
    Queries that are not judged, or have nothing relevant, are left out.

    Returns:
        ``success@k`` and ``recall@k`` for every k, ``mrr@K`` and ``ndcg@K`` for the largest.
    """
    last = max(ks)
    names = [*(f"success@{k}" for k in ks), *(f"recall@{k}" for k in ks), f"mrr@{last}"]
    scores: dict[str, dict[str, float]] = {name: {} for name in (*names, f"ndcg@{last}")}
    for qid, judged in grades.items():
        relevant = {did for did, grade in judged.items() if grade > 0}
        if not relevant:
            continue
        ranking = ranked(run.get(qid, ()))
        for k in ks:
            scores[f"success@{k}"][qid] = success_at_k(ranking, relevant, k)
            scores[f"recall@{k}"][qid] = recall_at_k(ranking, relevant, k)
        scores[f"mrr@{last}"][qid] = mrr(ranking, relevant, last)
        scores[f"ndcg@{last}"][qid] = ndcg_at_k(ranking, judged, last)
    return scores


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over its queries; 0 where there is no query."""
    return {
        name: math.fsum(values.values()) / len(values) if values else 0.0
        for name, values in scores.items()
    }
