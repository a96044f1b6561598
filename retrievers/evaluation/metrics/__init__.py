"""Retrieval metrics: the definitions on one ranking, and all queries of a run at once.

The names are the exact ones. What M-BEIR's papers (UniIR 2311.17136, section 5) call *Recall@k* is
:func:`success_at_k`; :func:`recall_at_k` is the share of relevant candidates found.

The functions on one ranking are the definitions. :func:`score_run` computes the same on columns,
50,000 queries with 50 hits each in a fraction of a second. Both equal trec_eval 9, which ranks by
score in single precision and ties by id in descending order.
"""

from retrievers.evaluation.metrics.definitions import (
    average_precision,
    mrr,
    ndcg_at_k,
    precision_at_k,
    ranked,
    recall_at_k,
    success_at_k,
)
from retrievers.evaluation.metrics.judgements import Found, Grades, Judgements, grades_of
from retrievers.evaluation.metrics.scores import (
    Measure,
    QueryScores,
    means,
    per_query,
    score_run,
    standard_measures,
)

__all__ = [
    "Found",
    "Grades",
    "Judgements",
    "Measure",
    "QueryScores",
    "average_precision",
    "grades_of",
    "means",
    "mrr",
    "ndcg_at_k",
    "per_query",
    "precision_at_k",
    "ranked",
    "recall_at_k",
    "score_run",
    "standard_measures",
    "success_at_k",
]
