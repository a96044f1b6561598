"""Pools and queries by row and by id, without holding their records.

A million rows open in milliseconds and cost next to no private memory; worker processes share the
pages. See :mod:`augment.data.arrow` for where the tables lie and when they are rebuilt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64, UInt16

from augment.data.arrow import CANDIDATES, QUERIES, Entry, Kind, cached
from augment.errors import DataError
from augment.records import Item, Query, one_picture

#: Records read, or compared, at a time.
_BLOCK = 4096
#: What makes two candidates of one id the same.
_FIELDS = ["text", "image", "modality", "source"]

_Record = TypeVar("_Record", Item, Query)


class Table(Sequence[_Record], ABC, Generic[_Record]):
    """Rows of one JSONL file in file order, found by number or by id.

    Pickles as its path: a worker process maps the same files again.

    Raises:
        DataError: with ``file:line`` while building: a line that cannot be used, an id given to
            two different records.
    """

    _kind: ClassVar[Kind]

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._map(cached(self._kind, self.path))
        except FileNotFoundError:  # replaced by another process between looking and opening
            self._map(cached(self._kind, self.path))

    def _map(self, entry: Entry) -> None:
        from datasets import Dataset

        self._data = Dataset.from_file(str(entry.rows)).with_format("arrow")
        self._ids = np.load(entry.ids, mmap_mode="r", allow_pickle=False)
        self._order = np.load(entry.order, mmap_mode="r", allow_pickle=False)

    @abstractmethod
    def _records(self, columns: Sequence[list[Any]]) -> Iterator[_Record]:
        """Records from values by column, in the schema's order."""

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> _Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[_Record]: ...
    def __getitem__(self, place: int | slice) -> _Record | list[_Record]:
        if isinstance(place, slice):
            return self.take(range(*place.indices(len(self))))
        row = place + len(self) if place < 0 else place
        return self.take([row])[0]

    def take(self, rows: Sequence[int]) -> list[_Record]:
        """Records of some rows, in the order given; several times faster than one by one.

        Args:
            rows: 0 to the number of rows less one.
        """
        return self._listed(self.columns(rows)) if len(rows) else []

    def columns(self, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> Any:
        """The values of some rows as a ``pyarrow.Table``.

        Raises:
            IndexError: if there is no such row.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.min() < 0 or wanted.max() >= len(self):
            bad = wanted.min() if wanted.min() < 0 else wanted.max()
            raise IndexError(f"row {bad} of {len(self)} in {self.path}")
        return self._data.data.fast_gather(wanted)

    def _listed(self, table: Any) -> list[_Record]:
        return list(self._records([column.to_pylist() for column in table.columns[:-1]]))

    def __iter__(self) -> Iterator[_Record]:
        for start in range(0, len(self), _BLOCK):
            yield from self._listed(self._data[start : start + _BLOCK])

    @property
    def ids(self) -> Any:
        """Ids in row order, a ``pyarrow.ChunkedArray`` of strings."""
        return self.column("id")

    def column(self, name: str) -> Any:
        """A whole column as a ``pyarrow.ChunkedArray``, without copying.

        Raises:
            DataError: if there is no such column; lists them.
        """
        if name not in self._data.column_names:
            names = ", ".join(self._data.column_names)
            raise DataError(f"no column {name!r}; there are {names}", str(self.path))
        return self._data.data.column(name)

    def find(self, id: str) -> int | None:  # noqa: A002 - the word of the format
        """The row with this id, the first of them where equal queries repeat, or None."""
        row = int(self.rows_of([id])[0])
        return None if row < 0 else row

    def rows_of(self, ids: Sequence[str]) -> Int64[np.ndarray, " ids"]:
        """The row of each id as :meth:`find` gives it, but -1 for None, all in one search."""
        width = self._ids.dtype.itemsize
        names = ids.to_pylist() if isinstance(ids, pa.Array | pa.ChunkedArray) else ids
        keys = [name.encode("utf-8", "surrogatepass") for name in names]
        # NumPy sees no difference between an id and the same with NULs behind it
        fit = np.array([len(key) <= width and not key.endswith(b"\0") for key in keys], bool)
        found = _look_up(np.array(keys, f"S{width}"), self._ids, self._order)
        return np.where(fit, found, -1)

    def row(self, id: str) -> int:  # noqa: A002 - the word of the format
        """The row with this id.

        Raises:
            DataError: if no row has it.
        """
        row = self.find(id)
        if row is None:
            raise DataError(f"no record has the id {id!r}", str(self.path))
        return row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)


def _look_up(keys: np.ndarray, known: np.ndarray, rows: np.ndarray) -> Int64[np.ndarray, " keys"]:
    """The row of each key among those known, which ascend; -1 where it is not there."""
    if not len(known):
        return np.full(len(keys), -1)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, rows[place], -1)


def _items(columns: Sequence[list[Any]]) -> Iterator[Item]:
    ids, texts, images, modalities, sources = columns[:5]
    return map(Item, ids, texts, map(one_picture, images), modalities, sources)


@final
class CandidateTable(Table[Item]):
    """A candidate pool: a sequence of :class:`~augment.records.Item`, whose ids differ."""

    _kind = CANDIDATES

    def _records(self, columns: Sequence[list[Any]]) -> Iterator[Item]:
        return _items(columns)


@final
class QueryTable(Table[Query]):
    """Queries with their relevance lists: a sequence of :class:`~augment.records.Query`.

    Equal records may repeat, as they do in M-BEIR's upsampled training file.
    """

    _kind = QUERIES

    def _records(self, columns: Sequence[list[Any]]) -> Iterator[Query]:
        positives, negatives = (map(tuple, column) for column in columns[6:8])
        return map(Query, _items(columns), columns[5], positives, negatives)


#: Opens a file, building its table first if the file is new or has changed.
open_candidates, open_queries = CandidateTable, QueryTable


class _Pool(NamedTuple):
    """A pool's table, which of its places are held (None: all), and the row of each of these."""

    table: CandidateTable
    places: Int64[np.ndarray, " held"] | None
    rows: Int64[np.ndarray, " held"]

    def rows_of(self, places: np.ndarray) -> Int64[np.ndarray, " places"]:
        """Rows of some places, -1 where they are not held."""
        if self.places is None:
            return np.asarray(self.rows[places])
        return _look_up(places, self.places, self.rows)


@final
class Catalog:
    """Candidates of several pools, each id once, by row; rows in order of first appearance.

    Texts, paths and ids stay in the pools' files. A candidate takes 6 bytes, and 8 more in each
    pool it stands in: M-BEIR's 5.6 million, in local pools and in the union, take 124 MB.
    """

    def __init__(self) -> None:
        self._pools: list[_Pool] = []
        self._source: UInt16[np.ndarray, " n"] = np.empty(0, np.uint16)
        self._place: Int32[np.ndarray, " n"] = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._place)

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
        held = np.arange(len(table))
        if keep is not None:
            held = np.unique(table.rows_of(list(keep)))
            held = held[held >= 0]
        rows = self.rows_of(table.ids.take(pa.array(held)).to_pylist())
        if check:
            self._compare(table, held, rows)
        new = np.flatnonzero(rows < 0)
        rows[new] = np.arange(len(self), len(self) + len(new))
        self._place = np.concatenate([self._place, held[new].astype(np.int32)])
        source = np.full(len(new), len(self._pools), np.uint16)
        self._source = np.concatenate([self._source, source])
        self._pools.append(_Pool(table, None if keep is None else held, rows))
        return rows

    def _compare(self, table: CandidateTable, held: np.ndarray, rows: np.ndarray) -> None:
        known = np.flatnonzero(rows >= 0)
        known = known[np.argsort(rows[known], kind="stable")]
        for start in range(0, len(known), _BLOCK):
            some = known[start : start + _BLOCK]
            new, old = table.columns(held[some]), self._columns(rows[some])
            if not new.select(_FIELDS).equals(old.select(_FIELDS)):
                pairs = zip(new.to_pylist(), old.to_pylist(), strict=True)
                differs = next(a["id"] for a, b in pairs if any(a[n] != b[n] for n in _FIELDS))
                raise DataError(
                    "stands for another candidate than in an earlier pool",
                    f"{table.path}: {differs}",
                )

    def _by_pool(
        self, rows: np.ndarray
    ) -> tuple[list[tuple[CandidateTable, np.ndarray]], Int64[np.ndarray, " rows"]]:
        """The places of some rows in each pool, and where the rows then are, one after another."""
        source, place = self._source[rows], self._place[rows]
        order = np.argsort(source, kind="stable")
        numbers, starts = np.unique(source[order], return_index=True)
        tables = [self._pools[number].table for number in numbers.tolist()]
        parts = np.split(place[order], starts[1:])[: len(tables)]
        return list(zip(tables, parts, strict=True)), np.argsort(order, kind="stable")

    def _columns(self, rows: np.ndarray) -> Any:
        """The values of some rows as a ``pyarrow.Table``."""
        parts, back = self._by_pool(rows)
        return pa.concat_tables([table.columns(places) for table, places in parts]).take(back)

    def item(self, row: int) -> Item:
        """The candidate in a row."""
        return next(self.items(np.array([row])))

    def items(self, rows: Int64[np.ndarray, " n"] | None = None) -> Iterator[Item]:
        """The candidates of some rows or of all, a block at a time."""
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), _BLOCK):
            columns = self._columns(rows[start : start + _BLOCK]).columns[:5]
            yield from _items([column.to_pylist() for column in columns])

    def pictures(self) -> Iterator[tuple[str, str]]:
        """Id and picture of every candidate that has one."""
        for start in range(0, len(self), _BLOCK):
            block = self._columns(np.arange(start, min(start + _BLOCK, len(self))))
            held = block.filter(pc.is_valid(block["image"]))
            yield from zip(held["id"].to_pylist(), held["image"].to_pylist(), strict=True)

    def find(self, did: str) -> Item | None:
        """The candidate with an id, or None."""
        row = int(self.rows_of([did])[0])
        return None if row < 0 else self.item(row)

    def rows_of(self, dids: Sequence[str]) -> Int64[np.ndarray, " dids"]:
        """The row of each id, -1 where there is none."""
        rows = np.full(len(dids), -1)
        for pool in self._pools:
            asked = np.flatnonzero(rows < 0)
            places = pool.table.rows_of([dids[place] for place in asked.tolist()])
            there = places >= 0
            rows[asked[there]] = pool.rows_of(places[there])
        return rows

    def names(self, rows: Int64[np.ndarray, " n"]) -> Any:
        """Ids of some rows, a ``pyarrow.LargeStringArray``."""
        parts, back = self._by_pool(rows)
        ids = [pa.array([], pa.large_string())]
        for table, places in parts:
            own = table.ids.combine_chunks().take(pa.array(places))
            ids.append(own.cast(pa.large_string()))
        return pa.concat_arrays(ids).take(pa.array(back))


@final
@dataclass(eq=False)
class StoredQueries(Sequence[Query]):
    """Rows of query files: six bytes each, where a million records would take two gigabytes.

    Processes that load pairs share the files' pages; records that they shared would be copied into
    each of them as soon as they are looked at.
    """

    _tables: Sequence[QueryTable]
    _source: UInt16[np.ndarray, " n"]
    _rows: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Query: ...
    @overload
    def __getitem__(self, place: slice) -> StoredQueries: ...
    def __getitem__(self, place: int | slice) -> Query | StoredQueries:
        if isinstance(place, slice):
            return StoredQueries(self._tables, self._source[place], self._rows[place])
        return self._tables[int(self._source[place])][int(self._rows[place])]

    def where(self, keep: Sequence[bool]) -> StoredQueries:
        """Those that a mask keeps."""
        kept = np.asarray(keep, dtype=bool)
        return StoredQueries(self._tables, self._source[kept], self._rows[kept])

    def __iter__(self) -> Iterator[Query]:
        for start in range(0, len(self), _BLOCK):
            source, rows = (part[start : start + _BLOCK] for part in (self._source, self._rows))
            for own in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(source)) + 1):
                yield from self._tables[int(source[own[0]])].take(rows[own].tolist())
