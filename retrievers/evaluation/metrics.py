"""Retrieval metrics of all queries of a run at once, on columns.

The names are the exact ones. What M-BEIR's papers (UniIR 2311.17136, section 5) call *Recall@k* is
``success@k``: 1 if any relevant candidate is among the first k. ``recall@k`` is the share of the
relevant candidates that are, ``precision@k`` the relevant ones among k however many were found,
``mrr`` 1 / rank of the first relevant one, ``map`` the mean precision at the ranks of all relevant
ones, found or not, and ``ndcg`` has gain = grade (at least 0) and discount = log2(rank + 1). With
more relevant candidates than k, ``map@k`` (trec_eval's ``map_cut``) cannot reach 1;
``map_capped@k`` divides by min(k, relevant) and can (CIRCO 2303.15247, equation 7). All others
equal trec_eval 9, which ranks by score in single precision and ties by id in descending order; the
tests have them as plain loops over one ranking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from augment.records import Run
from retrievers.evaluation.judgements import Found, Grades, Judgements
from retrievers.evaluation.run import RunTable

_MEASURE = re.compile(r"(success|recall|precision|mrr|ndcg|map_capped|map)(?:@([1-9][0-9]{0,6}))?")
#: Without a cut-off these look at the whole ranking; the others need one.
_UNCUT = ("mrr", "ndcg", "map")


class Measure(NamedTuple):
    """A metric and its cut-off; ``k`` is None for the whole ranking."""

    name: str
    k: int | None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """From ``success@5``, ``recall@10``, ``precision@5``, ``mrr``, ``ndcg@10``, ``map`` ...

        Raises:
            ValueError: if there is no such metric; lists them.
        """
        match = _MEASURE.fullmatch(text)
        if match is None or (match[2] is None and match[1] not in _UNCUT):
            raise ValueError(
                f"metric {text!r} is none of success@k, recall@k, precision@k, mrr, mrr@k, ndcg, "
                "ndcg@k, map, map@k, map_capped@k with k from 1"
            )
        return cls(match[1], int(match[2]) if match[2] else None)


@dataclass(frozen=True)
class QueryScores:
    """Scores of every judged query.

    Attributes:
        qids: the queries.
        values: metric -> score of each query.
        missing: judged queries that the run lacks; they count 0.
        unjudged: queries of the run that are not judged; they do not count.
    """

    qids: Sequence[str]
    values: Mapping[str, Float64[np.ndarray, " queries"]]
    missing: Sequence[str]
    unjudged: Sequence[str]

    def means(self) -> dict[str, float]:
        """Mean of each metric over the queries; 0 where there is none."""
        return {
            name: float(values.mean()) if len(values) else 0.0
            for name, values in self.values.items()
        }

    def of(self, metric: str) -> dict[str, float]:
        """Query id -> score."""
        return dict(zip(self.qids, self.values[metric].tolist(), strict=True))


def score_run(
    run: Run | RunTable, grades: Grades | Judgements, measures: Iterable[str]
) -> QueryScores:
    """Metrics of every judged query.

    A query that the run lacks counts 0 for every metric (trec_eval leaves it out without ``-c``).

    Make :class:`Judgements` once to score many runs.

    Raises:
        ValueError: if a metric is unknown.
        DataError: if the run repeats a candidate or has a score that is not finite.
    """
    judged = grades if isinstance(grades, Judgements) else Judgements(grades)
    table = run if isinstance(run, RunTable) else RunTable.from_run(run)
    parsed = {text: Measure.parse(text) for text in measures}
    cuts = [measure.k for measure in parsed.values()]
    deepest = None if None in cuts else max((k for k in cuts if k is not None), default=0)
    found = judged.found(table, deepest)
    values = {
        text: _SCORERS[measure.name](
            found if measure.k is None else found.where(found.rank <= measure.k), judged, measure.k
        )
        for text, measure in parsed.items()
    }
    return QueryScores(judged.qids, values, judged.missing(table), judged.unjudged(table))


def _relevant(found: Found, judged: Judgements) -> Found:
    return found.where(found.grade >= judged.level)


def _count(found: Found, judged: Judgements) -> np.ndarray:
    return np.bincount(_relevant(found, judged).query, minlength=len(judged.qids))


def _mrr(found: Found, judged: Judgements) -> np.ndarray:
    relevant = _relevant(found, judged)
    query, first = np.unique(relevant.query, return_index=True)
    values = np.zeros(len(judged.qids))
    values[query] = 1.0 / relevant.rank[first]
    return values


def _map(found: Found, judged: Judgements) -> np.ndarray:
    relevant = _relevant(found, judged)
    starts = np.searchsorted(relevant.query, relevant.query)
    precision = (np.arange(1, len(starts) + 1) - starts) / relevant.rank
    total = np.bincount(relevant.query, precision, minlength=len(judged.qids))
    return np.asarray(total / np.maximum(judged.total, 1))


def _ndcg(found: Found, judged: Judgements, k: int | None) -> np.ndarray:
    ideal = judged.ideal if k is None else judged.ideal.where(judged.ideal.rank <= k)
    best = _gain(ideal, judged)
    gain = _gain(found, judged)
    return np.asarray(np.divide(gain, best, out=np.zeros_like(gain), where=best > 0))


def _gain(found: Found, judged: Judgements) -> np.ndarray:
    gains = np.maximum(found.grade, 0) / np.log2(found.rank + 1.0)
    return np.bincount(found.query, gains, minlength=len(judged.qids)).astype(np.float64)


#: Name -> scores of the hits within the cut-off, all judgements and the cut-off.
_SCORERS: Mapping[str, Callable[[Found, Judgements, Any], np.ndarray]] = {
    "success": lambda found, judged, k: (_count(found, judged) > 0).astype(np.float64),
    "recall": lambda found, judged, k: _count(found, judged) / np.maximum(judged.total, 1),
    "precision": lambda found, judged, k: _count(found, judged) / float(k),
    "mrr": lambda found, judged, k: _mrr(found, judged),
    "map": lambda found, judged, k: _map(found, judged),
    "map_capped": lambda found, judged, k: (
        _map(found, judged) * judged.total / np.maximum(np.minimum(judged.total, k), 1)
    ),
    "ndcg": _ndcg,
}

#: What is told where nothing else is asked for.
STANDARD = (
    *(f"{name}@{k}" for name in ("success", "recall") for k in (1, 5, 10)),
    *(f"{name}@10" for name in ("mrr", "ndcg", "map")),
)
