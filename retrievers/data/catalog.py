"""Candidates of several pools, each id once, as numbers into memory-mapped tables.

Texts, paths and ids stay in the pools' files. A candidate takes 6 bytes, and 8 more in each pool it
stands in: M-BEIR's 5.6 million, in local pools and in the union, take 124 MB.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64, UInt16

from augment.data.columnar import CandidateTable, open_candidates
from augment.errors import DataError
from augment.records import Item

#: Records read, or compared, at a time.
_BLOCK = 4096
#: What makes two candidates of one id the same.
_FIELDS = ("text", "image", "modality", "source")


class _Pool(NamedTuple):
    """A pool's table, which of its places are held (None: all), and the row of each of these."""

    table: CandidateTable
    places: Int64[np.ndarray, " held"] | None
    rows: Int64[np.ndarray, " held"]

    def rows_of(self, places: np.ndarray) -> Int64[np.ndarray, " places"]:
        """Rows of some places, -1 where they are not held."""
        if self.places is None:
            return np.asarray(self.rows[places])
        if not len(self.places):
            return np.full(len(places), -1)
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        return np.where(self.places[at] == places, self.rows[at], -1)


@final
class Catalog:
    """Candidates by row; rows are given in order of first appearance."""

    def __init__(self) -> None:
        self._pools: list[_Pool] = []
        self._source: UInt16[np.ndarray, " n"] = np.empty(0, np.uint16)
        self._place: Int32[np.ndarray, " n"] = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def nbytes(self) -> int:
        """Private memory of the columns."""
        pools = [pool.rows.nbytes + getattr(pool.places, "nbytes", 0) for pool in self._pools]
        return self._source.nbytes + self._place.nbytes + sum(pools)

    def add(
        self, path: Path, keep: Collection[str] | None = None, check: bool = True
    ) -> Int64[np.ndarray, " pool"]:
        """Add a pool file.

        Args:
            path: of the pool.
            keep: only these ids; those that the pool lacks are passed over.
            check: whether a candidate that is there already must be the same.

        Returns:
            The rows of its candidates, in the pool's order.

        Raises:
            DataError: if an id already stands for something else.
        """
        table = open_candidates(path)
        places = None if keep is None else _places(table, keep)
        rows = np.full(len(table) if places is None else len(places), -1)
        for pool in self._pools:
            self._find_known(table, places, rows, pool)
        if check:
            self._compare(table, places, rows)
        new = np.flatnonzero(rows < 0)
        rows[new] = np.arange(len(self), len(self) + len(new))
        where = new if places is None else places[new]
        self._place = np.concatenate([self._place, where.astype(np.int32)])
        source = np.full(len(new), len(self._pools), np.uint16)
        self._source = np.concatenate([self._source, source])
        self._pools.append(_Pool(table, places, rows))
        return rows

    def item(self, row: int) -> Item:
        """The candidate in a row."""
        pool = self._pools[int(self._source[row])]
        return pool.table[int(self._place[row])]

    def items(self, rows: Int64[np.ndarray, " n"] | None = None) -> Iterator[Item]:
        """The candidates of some rows or of all, a block at a time."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), _BLOCK):
            yield from self._take(rows[start : start + _BLOCK])

    def _take(self, rows: np.ndarray) -> list[Item]:
        found: list[Any] = [None] * len(rows)
        for number in np.unique(self._source[rows]).tolist():
            mine = np.flatnonzero(self._source[rows] == number)
            taken = self._pools[number].table.take(self._place[rows[mine]])
            for place, item in zip(mine.tolist(), taken, strict=True):
                found[place] = item
        return found

    def find(self, did: str) -> Item | None:
        """The candidate with an id, or None."""
        row = int(self.find_all([did])[0])
        return None if row < 0 else self.item(row)

    def find_all(self, dids: Sequence[str]) -> Int64[np.ndarray, " dids"]:
        """The row of each id, -1 where there is none."""
        rows = np.full(len(dids), -1)
        keys = pa.array(dids, pa.large_string())
        for pool in self._pools:
            asked = np.flatnonzero(rows < 0)
            places = pool.table.rows_of(keys.take(pa.array(asked)))
            there = places >= 0
            rows[asked[there]] = pool.rows_of(places[there])
        return rows

    def names(self, rows: Int64[np.ndarray, " n"]) -> Any:
        """Ids of some rows as an Arrow array of strings."""
        source = self._source[rows]
        order = None if (source[1:] >= source[:-1]).all() else np.argsort(source, kind="stable")
        sorted_rows = rows if order is None else rows[order]
        bounds = np.searchsorted(self._source[sorted_rows], np.arange(len(self._pools) + 1))
        columns = [pa.array([], pa.large_string())]
        for pool, start, stop in zip(self._pools, bounds[:-1], bounds[1:], strict=True):
            places = self._place[sorted_rows[start:stop]]
            column = pool.table.ids
            whole = len(places) == len(column) and bool((places == np.arange(len(places))).all())
            part = column if whole else column.take(pa.array(places))
            columns += [c.cast(pa.large_string()) for c in getattr(part, "chunks", [part])]
        ids = pa.concat_arrays(columns)
        if order is None:
            return ids
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return ids.take(pa.array(back))

    def _find_known(
        self, table: CandidateTable, places: np.ndarray | None, rows: np.ndarray, pool: _Pool
    ) -> None:
        """Fill in the rows of those of the places that an earlier pool holds."""
        new, old = _shared(table, pool.table)
        known = pool.rows_of(old)
        new, known = new[known >= 0], known[known >= 0]
        if places is not None:
            at = np.searchsorted(places, new)
            inside = at < len(places)
            inside[inside] = places[at[inside]] == new[inside]
            new, known = at[inside], known[inside]
        unset = rows[new] < 0
        rows[new[unset]] = known[unset]

    def _compare(self, table: CandidateTable, places: np.ndarray | None, rows: np.ndarray) -> None:
        known = np.flatnonzero(rows >= 0)
        known = known[np.argsort(rows[known], kind="stable")]
        for start in range(0, len(known), _BLOCK):
            some = known[start : start + _BLOCK]
            here = some if places is None else places[some]
            for number in np.unique(self._source[rows[some]]).tolist():
                mine = self._source[rows[some]] == number
                other, there = self._pools[number].table, self._place[rows[some[mine]]]
                differs = _differ(table, here[mine], other, there)
                if len(differs):
                    did = table.ids[int(here[mine][differs[0]])]
                    raise DataError(
                        "stands for another candidate than in an earlier pool",
                        f"{table.path}: {did}",
                    )


def _places(table: CandidateTable, ids: Collection[str]) -> Int64[np.ndarray, " held"]:
    found = [place for place in table.find_all(list(ids)) if place is not None]
    return np.unique(np.array(found, np.int64))


def _shared(
    new: CandidateTable, old: CandidateTable
) -> tuple[Int64[np.ndarray, " shared"], Int64[np.ndarray, " shared"]]:
    """Places of the same ids in two tables.

    Pools of two data sets share no range of ids, and a union holds a local pool as a whole: both
    are seen in the sorted ids without hashing one of them.
    """
    if not len(new) or not len(old):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    (ids, rows), (other_ids, other_rows) = new.by_id, old.by_id
    left, right = _within(ids, other_ids), _within(other_ids, ids)
    ids, rows = ids[left], rows[left].to_numpy()
    other_ids, other_rows = other_ids[right], other_rows[right].to_numpy()
    if ids.equals(other_ids):
        return rows, other_rows
    found = pc.index_in(ids, value_set=other_ids)
    known = np.flatnonzero(np.asarray(pc.is_valid(found)))
    return rows[known], other_rows[np.asarray(found.drop_null())]


def _within(ids: Any, others: Any) -> slice:
    """The part of sorted ids that lies between the first and last of others."""

    def key(place: int) -> bytes:
        found: bytes = ids[place].as_buffer().to_pybytes()
        return found

    first, last = (others[place].as_buffer().to_pybytes() for place in (0, -1))
    places = range(len(ids))
    return slice(bisect_left(places, first, key=key), bisect_right(places, last, key=key))


def _differ(
    one: CandidateTable, places: np.ndarray, other: CandidateTable, others: np.ndarray
) -> Int64[np.ndarray, " differing"]:
    """Which of some places of two tables hold different candidates."""
    differs = np.zeros(len(places), dtype=bool)
    for name in _FIELDS:
        left = one.column(name).take(pa.array(places)).combine_chunks()
        right = other.column(name).take(pa.array(others)).combine_chunks()
        same = pc.fill_null(pc.equal(left, right), fill_value=False)
        both = pc.and_(pc.is_null(left), pc.is_null(right))
        differs |= ~np.asarray(pc.or_(same, both))
    return np.flatnonzero(differs)
