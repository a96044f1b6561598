"""Approximate search: what an index of another library finds, scored exactly, and what it loses."""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from retrievers.vectors.exact import MatrixIndex
from retrievers.vectors.held import Vectors
from retrievers.vectors.index import Index, Nearest

#: Candidates fetched beyond k.
_SPARE = 16


class Recall(NamedTuple):
    """True recall@k of an index: the share of the exact top k that it finds.

    Attributes:
        name: of the index.
        k: depth.
        mean: over the queries.
        worst: of the worst query.
        queries: in the sample.
        candidates: in the index.
    """

    name: str
    k: int
    mean: float
    worst: float
    queries: int
    candidates: int

    def __str__(self) -> str:
        return (
            f"{self.name} is approximate: true recall@{self.k} against exact search "
            f"{self.mean:.4f} (worst query {self.worst:.4f}), {self.queries} queries, "
            f"{self.candidates:,} candidates"
        )


class ApproximateIndex(Index[Vectors]):
    """Fetches ``refine * k`` candidates and scores those again from the vectors themselves.

    A score is therefore always exact; what may be missing are candidates. At the first search of
    each depth the true recall is measured against exact search and printed.

    Args:
        name: for people.
        made_by: see :class:`~retrievers.vectors.index.Index`.
        refine: candidates fetched per wanted one.
        sample: queries that measure the recall.

    Attributes:
        recall: depth -> what the search was found to lose.
    """

    #: Hits of a query that can be fetched.
    most = sys.maxsize

    def __init__(self, name: str, made_by: str | None, refine: int, sample: int) -> None:
        super().__init__(Vectors(), made_by)
        if refine < 1 or sample < 1:
            raise ValueError(f"refine and sample must be at least 1, got {refine} and {sample}")
        self._name, self._refine, self._sample = name.strip(), refine, sample
        self.recall: dict[int, Recall] = {}

    @abstractmethod
    def _fetch(self, queries: Tensor, k: int) -> Int64[np.ndarray, "queries k"]:
        """Rows that the built index finds, -1 where it finds fewer."""

    def _find(self, queries: Tensor, k: int) -> Nearest:
        self.build()
        if k not in self.recall:
            self.recall[k] = Recall("", k, 0, 0, 0, 0)  # the measurement itself searches
            self.recall[k] = measure_recall(self, queries, k, self._name, self._sample)
            sys.stderr.write(f"{self.recall[k]}\n")
        wide = min(max(self._refine * k, k + _SPARE), len(self), max(k, self.most))
        rows = self._fetch(queries, wide)
        found = self._rank(rows, self.held.rescore(queries, rows))
        return Nearest(found.rows[:, :k], found.scores[:, :k])

    def _changed(self) -> None:
        self.recall = {}


def measure_recall(
    index: Index[Vectors],
    vectors: Float32[Tensor, "queries dim"],
    k: int,
    name: str = "",
    sample: int = 256,
    device: str = "cpu",
) -> Recall:
    """Compare an index with exact search over the same vectors.

    Args:
        index: what is measured.
        vectors: queries; at most ``sample`` of them, evenly spaced, are searched.
        k: depth, at most the size of the index.
        name: of the index, for people.
        sample: at least 1.
        device: where the exact search runs.
    """
    chosen = vectors[:: max(1, -(-len(vectors) // sample))]
    exact = MatrixIndex(index.made_by, device)
    exact.add(index.ids, index.held, index.made_by or "")
    true = exact.search(chosen, k).rows
    found = index.search(chosen, k).rows
    shares = [np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]
    return Recall(
        name or type(index).__name__,
        k,
        float(np.mean(shares)),
        float(np.min(shares)),
        len(chosen),
        len(index),
    )
