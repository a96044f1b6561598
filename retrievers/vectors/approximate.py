"""Approximate search: what an index of another library finds, scored exactly, and what it loses."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from augment.files import say
from retrievers.vectors.exact import MatrixIndex
from retrievers.vectors.held import Vectors
from retrievers.vectors.index import Index, Nearest

#: Candidates fetched per wanted one, and beyond k at least.
_REFINE, _SPARE = 4, 16
#: Queries that measure the recall.
_SAMPLE = 256


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


#: Rows that the best k of some queries are among, best first, -1 where fewer are found.
Fetch = Callable[[Tensor, int], Int64[np.ndarray, "queries k"]]


@final
class ApproximateIndex(Index[Vectors]):
    """What another library finds, several candidates for each wanted one, scored again here.

    A score is therefore always exact; what may be missing are candidates. At the first search of
    each depth the true recall is measured against exact search and printed.

    Args:
        name: for people.
        make: makes what fetches candidates from vectors and a digest of what they belong to.
        made_by: see :class:`~retrievers.vectors.index.Index`.
        most: hits of a query that can be fetched.

    Attributes:
        recall: depth -> what the search was found to lose.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[Vectors, str], Fetch],
        made_by: str | None = None,
        most: int = sys.maxsize,
    ) -> None:
        super().__init__(Vectors(), made_by)
        self._name, self._make, self._most = name.strip(), make, most
        self.recall: dict[int, Recall] = {}
        self._fetch: Fetch | None = None

    def build(self) -> None:
        """Put the vectors where they are searched now, rather than at the first search."""
        if self._fetch is None:
            belongs = f"{self.made_by} {self.held.dim} {self._digest()}"
            self._fetch = self._make(self.held, hashlib.sha256(belongs.encode()).hexdigest())

    def _find(self, queries: Tensor, k: int) -> Nearest:
        self.build()
        assert self._fetch is not None  # noqa: S101 - it was built
        if k not in self.recall:
            self.recall[k] = Recall("", k, 0, 0, 0, 0)  # the measurement itself searches
            self.recall[k] = measure_recall(self, queries, k, self._name)
            say(self.recall[k], sys.stderr)
        wide = min(max(_REFINE * k, k + _SPARE), len(self), max(k, self._most))
        rows = self._fetch(queries, wide)
        found = self._rank(rows, self.held.rescore(queries, rows))
        return Nearest(found.rows[:, :k], found.scores[:, :k])

    def _changed(self) -> None:
        self.recall, self._fetch = {}, None


def measure_recall(
    index: Index[Vectors], vectors: Float32[Tensor, "queries dim"], k: int, name: str
) -> Recall:
    """Compare an index with exact search over the same vectors."""
    chosen = vectors[:: max(1, -(-len(vectors) // _SAMPLE))]
    exact = MatrixIndex(index.made_by)
    exact.add(index.ids, index.held, index.made_by or "")
    true = exact.search(chosen, k).rows
    found = index.search(chosen, k).rows
    shares = [np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]
    mean, worst = float(np.mean(shares)), float(np.min(shares))
    return Recall(name, k, mean, worst, len(chosen), len(index))
