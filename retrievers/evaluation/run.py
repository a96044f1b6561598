"""Runs: hits of many queries in columns.

Ranking rule, everywhere in this package: by score in single precision, ties by id in descending
order. It is trec_eval's rule (its ``sim`` is a C float), so trec_eval ranks a run file as we do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64, Shaped
from numpy.typing import ArrayLike

from augment.errors import DataError
from augment.records import Hit, Run

#: Decimals of a score: runs and indexes round to them before ties are settled by id.
DECIMALS = 6


@final
class RunTable:
    """Hits of many queries, best first, in columns: 2.5 million hits take some 30 MB.

    Args:
        qids: query ids, unique; queries without a hit may stand here.
        ids: candidate ids, unique; a whole pool or only those that were found.
        query: of each hit, its query's place in ``qids``.
        rows: of each hit, its candidate's place in ``ids``.
        scores: of each hit; finite in single precision.

    Raises:
        DataError: if an id repeats, a score is not finite, or a candidate stands twice under one
            query; names it.

    Attributes:
        qids: query ids, a ``pyarrow`` array of strings.
        ids: candidate ids, a ``pyarrow`` array of strings.
        starts: hits of query ``n`` are those from ``starts[n]`` to ``starts[n + 1]``.
        rows: candidates, places in ``ids``.
        scores: single precision.
    """

    def __init__(
        self, qids: Any, ids: Any, query: ArrayLike, rows: ArrayLike, scores: ArrayLike
    ) -> None:
        queries = np.asarray(query, dtype=np.int64)
        places, values = np.asarray(rows, dtype=np.int64), _single(scores)
        if not len(queries) == len(places) == len(values):
            raise ValueError("columns of different length")
        if bool(np.any(queries[1:] < queries[:-1])):
            order = np.argsort(queries, kind="stable")
            queries, places, values = queries[order], places[order], values[order]
        counts = np.bincount(queries, minlength=len(qids))
        self._set(_unique(qids, "query"), _unique(ids, "candidate"), counts, places, values)

    def _set(
        self, qids: Any, ids: Any, counts: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> None:
        """Take columns whose hits stand query after query; check them, order each query's."""
        self.qids, self.ids = qids, ids
        self.rows: Int64[np.ndarray, " hits"] = rows
        self.scores: Float32[np.ndarray, " hits"] = scores
        self.starts: Int64[np.ndarray, " bounds"] = np.zeros(len(qids) + 1, dtype=np.int64)
        np.cumsum(counts, out=self.starts[1:])
        self._refuse_infinite()
        self._refuse_repeats()
        self._order()

    def _refuse_infinite(self) -> None:
        if np.isfinite(self.scores).all():
            return
        bad = np.flatnonzero(~np.isfinite(self.scores))
        raise DataError(
            f"{len(bad)} scores are not finite in single precision, the first for candidate "
            f"{self.ids[self.rows[bad[0]]]}; search again, or drop these hits",
            f"query {self.qids[int(self.query[bad[0]])]}",
        )

    def _refuse_repeats(self) -> None:
        keys = np.sort(self.query * max(len(self.ids), 1) + self.rows)
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            query, row = divmod(int(keys[twice[0]]), len(self.ids))
            raise DataError(
                f"candidate {self.ids[row]} stands twice; keep its best score only",
                f"query {self.qids[query]}",
            )

    def _order(self) -> None:
        """Sort by score and id within each query; what a search returns is sorted already."""
        wrong = self.scores[1:] > self.scores[:-1]
        equal = self.scores[1:] == self.scores[:-1]
        bounds = self.starts[1:-1] - 1  # the next hit is another query's
        bounds = bounds[(bounds >= 0) & (bounds < len(wrong))]
        wrong[bounds] = equal[bounds] = False
        ties = np.flatnonzero(equal)
        upper, lower = (self.ids.take(pa.array(self.rows[ties + n])) for n in (0, 1))
        wrong[ties] = np.asarray(pc.less(upper, lower))
        if not wrong.any():
            return
        order = np.lexsort((descending(self.ids)[self.rows], -self.scores, self.query))
        self.rows, self.scores = self.rows[order], self.scores[order]

    @classmethod
    def from_run(cls, run: Run) -> RunTable:
        """A table of hits that stand in any order."""
        places: dict[str, int] = {}
        query, rows, scores = [], [], []
        for number, hits in enumerate(run.values()):
            for hit in hits:
                query.append(number)
                rows.append(places.setdefault(hit.did, len(places)))
                scores.append(hit.score)
        return cls(list(run), list(places), query, rows, np.array(scores, dtype=np.float64))

    @classmethod
    def from_search(
        cls,
        qids: Any,
        ids: Any,
        rows: Shaped[np.ndarray, "queries k"],
        scores: Shaped[np.ndarray, "queries k"],
        *,
        unique: bool = False,
    ) -> RunTable:
        """A table of a search's result.

        Args:
            qids: query ids.
            ids: of the whole pool; only those that were found are kept if they are few.
            rows: ``k`` places in ``ids`` for every query; -1 where fewer were found.
            scores: of each.
            unique: ``ids`` are known to be, as those of an index are, and not looked at again.
        """
        found = rows >= 0
        places, values = rows.ravel(), _single(scores).ravel()
        counts = np.full(len(rows), rows.shape[1])
        if not found.all():
            places, values, counts = rows[found], values[found.ravel()], found.sum(1)
        if len(ids) > len(places):  # of a smaller pool most are found
            used = np.zeros(len(ids), dtype=bool)
            used[places] = True
            ids = strings(ids).filter(pa.array(used))
            places = (np.cumsum(used) - 1)[places]
        table = cls.__new__(cls)
        queries = _unique(qids, "query")
        candidates = strings(ids) if unique else _unique(ids, "candidate")
        if len(queries) != len(rows):
            raise ValueError(f"{len(queries)} query ids for {len(rows)} rows")
        table._set(queries, candidates, counts, places.astype(np.int64, copy=False), values)
        return table

    def to_run(self) -> dict[str, list[Hit]]:
        """Query id -> hits, best first."""
        dids = self.ids.take(pa.array(self.rows)).to_pylist()
        hits = list(map(Hit, dids, self.scores.tolist()))
        bounds = self.starts.tolist()
        return {
            qid: hits[start:stop]
            for qid, start, stop in zip(self.qids.to_pylist(), bounds[:-1], bounds[1:], strict=True)
        }

    def __len__(self) -> int:
        return len(self.qids)

    @property
    def query(self) -> Int64[np.ndarray, " hits"]:
        """Of each hit, its query's place in ``qids``."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def rank(self) -> Int64[np.ndarray, " hits"]:
        """Of each hit, its rank from 1."""
        before = np.repeat(self.starts[:-1], np.diff(self.starts))
        return np.asarray(np.arange(1, len(self.rows) + 1) - before)

    @property
    def depth(self) -> int:
        """Hits of the query that has most."""
        return int(np.diff(self.starts).max(initial=0))

    def cut(self, depth: int) -> RunTable:
        """The best ``depth`` hits of each query (trec_eval's ``-M``)."""
        return self.where(self.rank <= depth)

    def without(self, left_out: Mapping[str, Collection[str]]) -> RunTable:
        """The run less some candidates of each query, such as those of its own picture.

        Args:
            left_out: query id -> candidate ids; see :attr:`retrievers.data.plan.EvalTask.own`.
                Search so many hits deeper, and :meth:`cut` afterwards.
        """
        return self.where(~self._among(left_out))

    def only(self, lists: Mapping[str, Collection[str]]) -> RunTable:
        """The run restricted to a list of candidates of each query; without a list to nothing."""
        return self.where(self._among(lists))

    def _among(self, lists: Mapping[str, Collection[str]]) -> Bool[np.ndarray, " hits"]:
        """Whether the candidate of each hit stands in its query's list."""
        named = [list(lists.get(qid, ())) for qid in self.qids.to_pylist()]
        query = np.repeat(np.arange(len(named)), [len(own) for own in named])
        dids = pa.array([did for own in named for did in own], pa.string())
        rows = np.asarray(pc.fill_null(pc.index_in(dids, value_set=self.ids), -1), np.int64)
        wanted = (query * max(len(self.ids), 1) + rows)[rows >= 0]
        return np.isin(self.query * max(len(self.ids), 1) + self.rows, wanted)

    def where(self, keep: Bool[np.ndarray, " hits"]) -> RunTable:
        """Some of the hits."""
        return RunTable(self.qids, self.ids, self.query[keep], self.rows[keep], self.scores[keep])


def check_depth(table: RunTable, k: int, pool: int | None = None) -> None:
    """Refuse a cut-off beyond what was retrieved, which would understate every score.

    Raises:
        DataError: if no query has ``k`` hits although the pool has more than the run shows.
    """
    if k <= table.depth or (pool is not None and pool <= table.depth):
        return
    raise DataError(
        f"the run holds at most {table.depth} hits a query, a metric at {k} needs {k}; search "
        f"again with a depth of {k}, or ask for metrics up to @{table.depth}"
    )


def check_candidates(table: RunTable, pool: Iterable[str], name: str = "the pool") -> None:
    """Refuse hits that are not in a pool: a run of other data, or of another pool.

    Raises:
        DataError: with the first such hit and how many there are.
    """
    known = pc.is_in(table.ids, value_set=pa.array(pool, pa.string()))
    foreign = ~np.asarray(known.to_numpy(zero_copy_only=False), dtype=bool)[table.rows]
    if foreign.any():
        first = int(np.flatnonzero(foreign)[0])
        raise DataError(
            f"{int(foreign.sum())} of {len(table.rows)} hits are not in {name}, the first is "
            f"{table.ids[table.rows[first]]}; name the pool that was searched",
            f"query {table.qids[table.query[first]]}",
        )
    most = len(pa.array(pool, pa.string()))
    if table.depth > most:
        raise DataError(f"a query has {table.depth} hits, {name} only {most} candidates")


def _single(scores: ArrayLike) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(scores).astype(np.float32, copy=False)


def strings(texts: Any) -> Any:
    """Texts as a ``pyarrow`` array of strings."""
    if isinstance(texts, pa.Array):
        return texts.cast(pa.string())
    return pa.array(texts, pa.string())


def _unique(ids: Any, kind: str) -> Any:
    array = strings(ids)
    twice = repeated(array)
    if twice is not None:
        raise DataError(f"stands twice in the list of {kind} ids; keep one", twice)
    return array


def repeated(ids: Any) -> str | None:
    """An id that stands twice in an Arrow array; None if there is none."""
    if len(ids.unique()) == len(ids):  # takes a third of the time of Arrow's `count_distinct`
        return None
    counts = pc.value_counts(ids)
    return str(counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"])


def descending(ids: Any) -> Int64[np.ndarray, " ids"]:
    """Rank of each id in descending order of its UTF-8 bytes."""
    order = pc.array_sort_indices(ids, order="descending").to_numpy()
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
