"""Records of one kind, sealed and not yet sealed, found by name without holding them in memory.

Per sealed row, 32 bytes stay in memory (code, time, place); the rest is read on demand. Records of
logs that are not sealed yet are held whole; a log is sealed before they become many.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augment.store.segments import (
    GROUP,
    Codes,
    Kind,
    Mapped,
    as_codes,
    as_times,
    code,
    column,
    find,
    name_of,
    rows_of,
)

Places = npt.NDArray[np.int64]


@final
class Index:
    """Where the row that counts is, for every code.

    Args:
        codes: of all rows.
        at: times of all rows.
        latest: whether the latest row of a code counts, or the earliest.
    """

    def __init__(self, codes: Codes, at: Places, latest: bool) -> None:
        high = codes[:, 0]
        order = np.argsort(high, kind="stable")
        ordered = high[order]
        if bool((ordered[1:] == ordered[:-1]).any()):
            order = np.lexsort((-at if latest else at, codes[:, 1], high))
            sorted_codes = codes[order]
            first = np.ones(len(order), bool)
            first[1:] = (sorted_codes[1:] != sorted_codes[:-1]).any(axis=1)
            order = order[first]
        self.rows: Places = order.astype(np.int64)
        self.at = at
        self._high = np.ascontiguousarray(high[order])
        self._low = np.ascontiguousarray(codes[order, 1])

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, codes: Codes) -> Places:
        """Row of each code, -1 where there is none."""
        places = np.searchsorted(self._high, codes[:, 0])
        found = np.full(len(codes), -1, np.int64)
        open_ = np.arange(len(codes))
        while len(open_):  # more than once only where 64 bits of two codes agree
            at = places[open_]
            inside = at < len(self)
            open_, at = open_[inside], at[inside]
            same = self._high[at] == codes[open_, 0]
            open_, at = open_[same], at[same]
            hit = self._low[at] == codes[open_, 1]
            found[open_[hit]] = self.rows[at[hit]]
            open_ = open_[~hit]
            places[open_] += 1
        return found

    def find_one(self, one: bytes) -> int:
        """Row of a code, -1 if there is none."""
        at = find(self._high.data, self._low.data, one)
        return -1 if at < 0 else int(self.rows[at])


@final
class Rows:
    """All records of one kind (of one recipe, for links and failures).

    Args:
        kind: which.
        segments: sealed files.
        cache: folder of their memory-mapped copies.
    """

    def __init__(self, kind: Kind, segments: list[Path], cache: Path) -> None:
        self.kind = kind
        self.segments = segments
        #: name -> record of a log that is not sealed yet.
        self.tail: dict[str, dict[str, Any]] = {}
        self._cache = cache
        self._latest = kind in ("link", "fail")
        self._mapped: dict[int, Mapped] = {}

    @cached_property
    def _starts(self) -> Places:
        """Number of the first row of every segment, and the total."""
        return np.cumsum([0, *(rows_of(path) for path in self.segments)])

    @cached_property
    def _bounds(self) -> list[int]:
        return [int(start) for start in self._starts]

    @cached_property
    def index(self) -> Index:
        """Of the sealed rows; read when first needed."""
        tables = [column(path, "code", "at") for path in self.segments]
        codes = [as_codes(table["code"]) for table in tables]
        at = [as_times(table["at"]) for table in tables]
        none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
        return Index(
            np.concatenate([none[0], *codes]), np.concatenate([none[1], *at]), self._latest
        )

    def seal(self, segment: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Take up a segment that was written just now from these records of logs."""
        if segment not in self.segments:  # else another process has sealed the same records
            self.segments.append(segment)
        for record in records:
            name = name_of(self.kind, record)
            if self.tail.get(name, {}).get("at") == record["at"]:
                del self.tail[name]
        for part in ("index", "_starts", "_bounds"):
            self.__dict__.pop(part, None)

    def put(self, record: dict[str, Any]) -> None:
        """Take up a record of a log."""
        name = name_of(self.kind, record)
        known = self.tail.get(name)
        if known is None or self._wins(record["at"], known["at"]):
            self.tail[name] = record

    def _wins(self, one: int, other: int) -> bool:
        return one >= other if self._latest else one < other

    def _sealed(self, name: str) -> int:
        """The sealed row that counts, -1 if there is none or a record of the tail counts."""
        row = self.index.find_one(code(name)) if self.segments else -1
        record = self.tail.get(name)
        if row >= 0 and record is not None and self._wins(record["at"], int(self.index.at[row])):
            return -1
        return row

    def __contains__(self, name: str) -> bool:
        return name in self.tail or (bool(self.segments) and self.index.find_one(code(name)) >= 0)

    def at(self, name: str) -> int | None:
        """Time of the record that counts, None if there is none."""
        row = self._sealed(name)
        if row >= 0:
            return int(self.index.at[row])
        record = self.tail.get(name)
        return None if record is None else int(record["at"])

    def get(self, name: str) -> dict[str, Any] | None:
        """The record that counts, or None."""
        row = self._sealed(name)
        return self.tail.get(name) if row < 0 else self.read(row)

    def read(self, row: int) -> dict[str, Any]:
        """A sealed row."""
        number = bisect_right(self._bounds, row) - 1
        mapped = self._mapped.get(number)
        if mapped is None:
            mapped = self._mapped[number] = Mapped(self.segments[number], self._cache)
        return mapped.row(row - self._bounds[number])

    def counting(self) -> npt.NDArray[np.bool_]:
        """Which sealed rows count: one per name, and none that a record of the tail replaces."""
        keep = np.zeros(int(self._starts[-1]), bool)
        if self.segments:
            keep[self.index.rows] = True
            for name, record in self.tail.items():
                row = self.index.find_one(code(name))
                if row >= 0 and self._wins(record["at"], int(self.index.at[row])):
                    keep[row] = False
        return keep

    def _tail(self) -> Iterator[dict[str, Any]]:
        for name, record in self.tail.items():
            if self._sealed(name) < 0:
                yield record

    def __len__(self) -> int:
        return int(self.counting().sum()) + sum(1 for _ in self._tail())

    def scan(self, *names: str) -> Iterator[dict[str, Any]]:
        """All records that count, a group of rows in memory at a time.

        Args:
            *names: columns wanted; none means all.
        """
        keep = self.counting()
        for number, path in enumerate(self.segments):
            row = int(self._starts[number])
            file = pq.ParquetFile(path)
            wanted = [n for n in names or file.schema_arrow.names if n in file.schema_arrow.names]
            for part in file.iter_batches(GROUP, columns=wanted):
                mask = keep[row : row + part.num_rows]
                row += part.num_rows
                if mask.any():
                    yield from part.take(np.flatnonzero(mask)).to_pylist()
        for record in self._tail():
            yield {name: record.get(name) for name in names} if names else dict(record)

    def where(self, filled: str, *names: str) -> Iterator[dict[str, Any]]:
        """Records, counting or not, in which a column of strings is not empty."""
        for path in self.segments:
            table = column(path, filled, *names)
            yield from table.filter(pc.greater(table[filled], "")).to_pylist()
        for record in self.tail.values():
            if record.get(filled):
                yield {name: record.get(name) for name in (filled, *names)}

    def codes(self, name: str) -> Codes:
        """A column of codes of the sealed rows that count."""
        parts = [as_codes(column(path, name)[name]) for path in self.segments]
        joined = np.concatenate([np.zeros((0, 2), np.uint64), *parts])
        return joined[self.counting()]

    def tail_records(self) -> list[Mapping[str, Any]]:
        """Records of the tail that count."""
        return list(self._tail())
