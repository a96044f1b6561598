"""Sequences of records over memory-mapped Arrow files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, Shaped

from augment.data.columnar.build import BATCH, CANDIDATES, QUERIES, Kind
from augment.data.columnar.cache import Entry, locate
from augment.data.columnar.strings import MappedStrings
from augment.errors import DataError
from augment.records import Item, Query

#: A binary search over all ids starts between every so many of them.
_STEP = 1024
#: Bytes of an id that are compared there.
_PREFIX = 24

_Record = TypeVar("_Record", Item, Query)


class Table(Sequence[_Record], ABC, Generic[_Record]):
    """Rows of one JSONL file in file order, found by number or by id.

    Pickles as its path: a worker process maps the same files again.

    Args:
        path: the JSONL file.
        cache: folder for the cached tables; None puts them beside the source.

    Raises:
        DataError: see :func:`open_candidates`.
    """

    def __init__(self, path: Path, cache: Path | None) -> None:
        self.path = path
        self._cache = cache
        entry = locate(self._kind(), path, cache)
        try:
            self._map(entry)
        except FileNotFoundError:  # replaced by another process between looking and opening
            self._map(locate(self._kind(), path, cache))
        except ValueError as error:  # Arrow's own, or that of an empty file
            raise DataError(
                f"its cached table is damaged ({error}); delete {entry.rows.parent}", str(path)
            ) from error

    def _map(self, entry: Entry) -> None:
        with entry.rows.open("rb") as stream:
            self._mapped = mmap(stream.fileno(), 0, access=ACCESS_READ)
        self._table = pa.ipc.open_file(pa.py_buffer(self._mapped)).read_all()
        self._batches = self._table.to_batches()
        index = pa.ipc.open_file(pa.memory_map(str(entry.ids))).get_batch(0)
        self._sorted = index.column(0)
        _, offsets, characters = index.column(0).buffers()
        self._offsets = memoryview(offsets).cast("q")
        self._characters = memoryview(characters) if characters is not None else memoryview(b"")
        self._rows = index.column(1)

    @classmethod
    @abstractmethod
    def _kind(cls) -> Kind:
        """What the file holds."""

    @abstractmethod
    def _record(self, values: Sequence[Any]) -> _Record:
        """A record from the values of a row, in the schema's order."""

    def __len__(self) -> int:
        return cast("int", self._table.num_rows)

    @overload
    def __getitem__(self, place: int) -> _Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[_Record]: ...
    def __getitem__(self, place: int | slice) -> _Record | list[_Record]:
        if isinstance(place, slice):
            return [self._at(row) for row in range(*place.indices(len(self)))]
        row = place + len(self) if place < 0 else place
        if not 0 <= row < len(self):
            raise IndexError(f"row {place} of {len(self)} in {self.path}")
        return self._at(row)

    def _at(self, row: int) -> _Record:
        batch = self._batches[row // BATCH]
        return self._record([column[row % BATCH].as_py() for column in batch.columns])

    def take(self, rows: Sequence[int]) -> list[_Record]:
        """Records of some rows, in the order given; several times faster than one by one.

        Args:
            rows: 0 to the number of rows less one.

        Raises:
            IndexError: if there is no such row.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if not len(wanted):
            return []
        if wanted.min() < 0 or wanted.max() >= len(self):
            bad = wanted.min() if wanted.min() < 0 else wanted.max()
            raise IndexError(f"row {bad} of {len(self)} in {self.path}")
        return self._taken(wanted)

    def _taken(self, wanted: Int64[np.ndarray, " n"]) -> list[_Record]:
        order = np.argsort(wanted, kind="stable")
        batches, starts = np.unique(wanted[order] // BATCH, return_index=True)
        parts = [
            self._batches[batch].take(pa.array(places % BATCH))
            for batch, places in zip(
                batches.tolist(), np.split(wanted[order], starts[1:]), strict=True
            )
        ]
        columns = (column.to_pylist() for column in pa.Table.from_batches(parts).columns)
        records = map(self._record, zip(*columns, strict=True))
        found: list[Any] = [None] * len(wanted)
        for place, record in zip(order.tolist(), records, strict=True):
            found[place] = record
        return found

    def __iter__(self) -> Iterator[_Record]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, 1024):  # few Python objects at a time
                part = batch.slice(start, 1024)
                columns = (column.to_pylist() for column in part.columns)
                yield from map(self._record, zip(*columns, strict=True))

    @property
    def ids(self) -> Any:
        """Ids in row order, a ``pyarrow.ChunkedArray`` of strings."""
        return self._table["id"]

    @property
    def by_id(self) -> tuple[Any, Any]:
        """Ids in ascending order of their bytes, and the row of each; two ``pyarrow.Array``."""
        return self._sorted, self._rows

    def column(self, name: str) -> Any:
        """A whole column as a ``pyarrow.ChunkedArray``, without copying.

        Raises:
            DataError: if there is no such column; lists them.
        """
        if name not in self._table.column_names:
            names = ", ".join(self._table.column_names)
            raise DataError(f"no column {name!r}; there are {names}", str(self.path))
        return self._table[name]

    def find(self, id: str) -> int | None:  # noqa: A002 - the word of the format
        """The row with this id, the first of them where equal queries repeat, or None."""
        key = id.encode("utf-8", "surrogatepass")
        place = bisect_left(range(len(self)), key, key=self._id_at)
        if place == len(self) or self._id_at(place) != key:
            return None
        return cast("int", self._rows[place].as_py())

    def find_all(self, ids: Sequence[str]) -> list[int | None]:
        """The row of each id as :meth:`find` gives it; one binary search for all of them.

        Args:
            ids: strings, or an Arrow array of large strings.
        """
        return [None if row < 0 else row for row in self.rows_of(ids).tolist()]

    def rows_of(self, ids: Sequence[str]) -> Int64[np.ndarray, " ids"]:
        """What :meth:`find_all` gives, -1 where there is no such row."""
        found = np.full(len(ids), -1)
        if not len(ids) or not len(self):
            return found
        asked = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        first, last = self._sorted[0], self._sorted[-1]
        between = np.asarray(pc.and_(pc.greater_equal(asked, first), pc.less_equal(asked, last)))
        keys = asked.filter(pa.array(between))
        if len(keys):
            found[between] = self._rows_within(keys)
        return found

    def _rows_within(self, keys: Any) -> Int64[np.ndarray, " keys"]:
        """Rows of ids none of which stands before the first or behind the last."""
        known = self._landmarks
        own = np.array([key.encode() for key in keys.to_pylist()], known.dtype)
        low = np.maximum(np.searchsorted(known, own, side="left") - 1, 0) * _STEP
        high = np.minimum(np.searchsorted(known, own, side="right") * _STEP, len(self))
        for _ in range(int((high - low).max()).bit_length()):
            middle = (low + high) // 2
            before = pc.less(self._sorted.take(pa.array(np.minimum(middle, len(self) - 1))), keys)
            right = before.to_numpy(zero_copy_only=False) & (low < high)
            low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
        place = pa.array(np.minimum(low, len(self) - 1))
        there = pc.equal(self._sorted.take(place), keys).to_numpy(zero_copy_only=False)
        return np.where(there, self._rows.take(place).to_numpy(zero_copy_only=False), -1)

    @cached_property
    def _landmarks(self) -> Shaped[np.ndarray, " landmarks"]:
        """How every :data:`_STEP`-th id begins, in one place that a cache holds.

        Ids that begin alike count as equal here: a search then looks between the landmarks before
        and after all of these.
        """
        ids = self._sorted.take(pa.array(np.arange(0, len(self), _STEP))).to_pylist()
        return np.array([id_.encode() for id_ in ids], f"S{_PREFIX}")

    def row(self, id: str) -> int:  # noqa: A002 - the word of the format
        """The row with this id.

        Raises:
            DataError: if no row has it.
        """
        row = self.find(id)
        if row is None:
            raise DataError(f"no record has the id {id!r}", str(self.path))
        return row

    def where(self, row: int) -> str:
        """``file:line`` of a row, for messages."""
        return f"{self.path}:{self._table['line'][row].as_py()}"

    def _id_at(self, place: int) -> bytes:
        return bytes(self._characters[self._offsets[place] : self._offsets[place + 1]])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._cache)


@final
class CandidateTable(Table[Item]):
    """A candidate pool: a sequence of :class:`~augment.records.Item`."""

    @classmethod
    def _kind(cls) -> Kind:
        return CANDIDATES

    def _record(self, values: Sequence[Any]) -> Item:
        return Item(*values[:5])

    def _taken(self, wanted: Int64[np.ndarray, " n"]) -> list[Item]:
        columns: list[Any] = self._strings.take(wanted)
        return list(map(Item, *columns))

    @cached_property
    def _strings(self) -> MappedStrings:
        return MappedStrings(self._mapped, self._batches, len(fields(Item)), BATCH)


@final
class QueryTable(Table[Query]):
    """Queries with their relevance lists: a sequence of :class:`~augment.records.Query`."""

    @classmethod
    def _kind(cls) -> Kind:
        return QUERIES

    def _record(self, values: Sequence[Any]) -> Query:
        return Query(Item(*values[:5]), values[5], tuple(values[6]), tuple(values[7]))


def open_candidates(path: Path, cache: Path | None = None) -> CandidateTable:
    """Open a candidate pool, building its table first if the file is new or has changed.

    Args:
        path: a ``cand_pool`` file.
        cache: folder for the tables; None: ``.cache/`` beside the file, or the user's cache
            folder where the file's folder is read-only.

    Raises:
        DataError: with ``file:line`` while building: a line that cannot be used, an id twice.
    """
    return CandidateTable(Path(path), cache)


def open_queries(path: Path, cache: Path | None = None) -> QueryTable:
    """Open a file of queries, building its table first if the file is new or has changed.

    Equal records may repeat, as they do in M-BEIR's upsampled training file.

    Args:
        path: a ``query`` file.
        cache: see :func:`open_candidates`.

    Raises:
        DataError: with ``file:line`` while building: a line that cannot be used, an id given to
            two different queries.
    """
    return QueryTable(Path(path), cache)
