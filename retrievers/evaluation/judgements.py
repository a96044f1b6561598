"""Relevance judgements of many queries, in columns, and which hits of a run they are about."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import chain, compress
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from retrievers.evaluation.run import RunTable, strings

#: query id -> candidate id -> grade; only grades of at least the level (1) are relevant.
Grades = Mapping[str, Mapping[str, int]]


@final
class Judgements:
    """Relevance judgements of many queries, in columns.

    Args:
        grades: query id -> candidate id -> grade.
        level: the least grade that counts as relevant (trec_eval's ``-l``).
        empty: what becomes of queries without any relevant candidate: left out (no ranking can
            find what does not exist), or counted 0 as trec_eval does.

    Attributes:
        qids: judged queries, in order.
        total: relevant candidates of each query.
    """

    def __init__(
        self, grades: Grades, level: int = 1, empty: Literal["leave out", "zero"] = "leave out"
    ) -> None:
        self.level = level
        lists = list(grades.values())
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        size = int(sizes.sum())
        grade = chain.from_iterable(judged.values() for judged in lists)
        self._grade = np.fromiter(grade, np.int64, size)
        self._query = np.repeat(np.arange(len(lists)), sizes)
        self.total = np.bincount(self._query[self._grade >= level], minlength=len(lists))
        dids = strings(list(chain.from_iterable(lists)))
        self.qids = list(grades)
        if empty == "leave out" and not self.total.all():
            dids = dids.filter(pa.array(self._keep(self.total > 0)))
        self._qids = strings(self.qids)
        self._last: tuple[Any, Int64[np.ndarray, " queries"]] | None = None
        encoded = dids.dictionary_encode()
        self._dids = encoded.dictionary
        keys = self._query * max(len(self._dids), 1) + encoded.indices.to_numpy()
        self._order = np.argsort(keys, kind="stable")  # mostly sorted, which this one notices
        self._keys = keys[self._order]

    def _keep(self, kept: Bool[np.ndarray, " queries"]) -> Bool[np.ndarray, " judged"]:
        """Leave some queries out; which judgements stay."""
        stays = kept[self._query]
        self._query = (np.cumsum(kept) - 1)[self._query[stays]]
        self._grade = self._grade[stays]
        self.total = self.total[kept]
        self.qids = list(compress(self.qids, kept.tolist()))
        return stays

    def found(self, run: RunTable, depth: int | None = None) -> Found:
        """The hits of a run that are judged, best first within each query."""
        queries = self._queries(run)
        codes = places(run.ids, self._dids)
        query, rank, code = queries[run.query], run.rank, codes[run.rows]
        near = True if depth is None else rank <= depth
        known = np.flatnonzero((code >= 0) & (query >= 0) & near)
        query, rank = query[known], rank[known]
        keys = query * max(len(self._dids), 1) + code[known]
        at = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        judged = self._keys[at] == keys
        query, rank, grade = query[judged], rank[judged], self._grade[self._order[at[judged]]]
        order = np.argsort(query, kind="stable")
        return Found(query[order], rank[order], grade[order])

    def missing(self, run: RunTable) -> list[str]:
        """Judged queries that a run lacks."""
        seen = np.zeros(len(self.qids) + 1, dtype=bool)
        seen[self._queries(run)] = True  # the last one stands for queries that are not judged
        return list(compress(self.qids, (~seen[:-1]).tolist()))

    def unjudged(self, run: RunTable) -> list[str]:
        """Queries of a run that are not judged."""
        return cast("list[str]", run.qids.filter(pa.array(self._queries(run) < 0)).to_pylist())

    def _queries(self, run: RunTable) -> Int64[np.ndarray, " queries"]:
        """Place of each of a run's queries here, -1 for one that is not judged."""
        if self._last is None or self._last[0] is not run.qids:
            self._last = run.qids, places(run.qids, self._qids)
        return self._last[1]

    @cached_property
    def ideal(self) -> Found:
        """The judged candidates, highest grade first within each query."""
        order = np.lexsort((-self._grade, self._query))
        query = self._query[order]
        starts = np.searchsorted(query, np.arange(len(self.qids)))
        return Found(query, np.arange(1, len(query) + 1) - starts[query], self._grade[order])


class Found(NamedTuple):
    """Judged candidates of a ranking: place of the query, rank from 1, grade."""

    query: Int64[np.ndarray, " judged"]
    rank: Int64[np.ndarray, " judged"]
    grade: Int64[np.ndarray, " judged"]

    def where(self, keep: np.ndarray) -> Found:
        """Some of them."""
        return Found(self.query[keep], self.rank[keep], self.grade[keep])


def places(ids: Any, known: Any) -> Int64[np.ndarray, " ids"]:
    """Place of each id among the known ones, -1 where it is not."""
    return np.asarray(pc.fill_null(pc.index_in(ids, value_set=known), -1)).astype(np.int64)
