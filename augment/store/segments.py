"""Sealed records: Parquet files that appear whole, and how a record is found in them.

A file's name ends with the beginning of the SHA-256 of its bytes, which is compared before a
process reads from it; pages carry checksums, too. Per sealed row, 32 bytes stay in memory (code,
time, place); the rest is read on demand. Parquet reads a whole group to give one row, so a reader
of single texts maps a copy, made on first use in the store's ``cache`` folder, which may be deleted
at any time. Records of logs that are not sealed yet are held whole; a log is sealed before they
become many.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import struct
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augment.errors import StoreError
from augment.files import checksum, publish, sha256
from augment.store.schema import SCHEMAS, Kind, batch, code, name_of

#: Rows of a Parquet row group: memory that reading in a row takes; and of a batch of its copy.
GROUP, BATCH = 16_384, 2_048

#: Rows decoded together where rows are asked for in their order, gaps of NEAR included.
DECODED, NEAR = 128, 8

#: Latest names of :class:`Seen`, in a dict until they are this many.
LATEST = 1 << 16

Codes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
_Number = TypeVar("_Number", np.uint64, np.int64)

#: What to do about a damaged segment.
REMEDY = "; restore the file from a copy, or delete it: its texts are generated again"

_LOG = logging.getLogger(__name__)


def write(folder: Path, stem: str, kind: Kind, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write a segment, whole or not at all.

    Args:
        folder: made if absent.
        stem: first part of its name; the second is the beginning of the SHA-256 of its bytes, so
            that damage is found, and what is sealed twice after a crash has one name.
        kind: of the records.
        records: at least one.

    Returns:
        Its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{stem}.{secrets.token_hex(4)}"
    names = set(SCHEMAS[kind].names) - {"code", "at", "key", "text"}
    try:
        with (
            partial.open("wb") as sink,
            pq.ParquetWriter(
                sink,
                SCHEMAS[kind],
                compression="zstd",
                use_dictionary=sorted(names),
                write_page_checksum=True,
            ) as writer,
        ):
            for start in range(0, len(records), GROUP):
                writer.write_batch(batch(kind, records[start : start + GROUP]))
        path = folder / f"{stem}.{sha256(partial)[:16]}.parquet"
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@lru_cache(maxsize=1 << 16)
def sound(path: Path, size: int, changed: int) -> bool:
    """Whether the bytes of a segment are those that its name tells; looked at once a process."""
    return sha256(path)[:16] == path.stem.rpartition(".")[2]


def opened(path: Path) -> Any:
    """A segment whose bytes are those that were sealed, to the last bit.

    Parquet checks pages alone, and not their headers or the footer, which say how to read them.

    Raises:
        StoreError: if it is damaged or cannot be read.
    """
    try:
        status = path.stat()
        if not sound(path, status.st_size, status.st_mtime_ns):
            raise StoreError(f"{path}: is damaged: its checksum is not the one in its name{REMEDY}")
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read: {error}{REMEDY}") from error


def column(path: Path, *names: str) -> Any:
    """Some columns of a segment, as an Arrow table."""
    # Not read_table, which loads Arrow's whole machinery for data sets.
    return opened(path).read(list(names), use_threads=False)


def numbers(array: Any, kind: type[_Number], each: int = 1) -> npt.NDArray[_Number]:
    """A column of fixed width as numbers of eight bytes, ``each`` a row."""
    # Not to_numpy, which loads pandas: a second of time and 60 MiB.
    parts = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    views = [
        np.frombuffer(part.buffers()[1], kind, each * len(part), part.offset * each * 8)
        for part in parts
        if len(part)
    ]
    return np.concatenate(views) if views else np.zeros(0, kind)


def find(highs: memoryview, lows: memoryview, one: bytes) -> int:
    """Where a code stands in two columns sorted by the first, -1 where it does not.

    By bisect: numpy's search lets go of the interpreter's lock, and to get that back from other
    threads takes a hundred times as long as a search.
    """
    high, low = struct.unpack("=QQ", one)
    at = bisect_left(highs, high)
    while at < len(highs) and highs[at] == high:
        if lows[at] == low:
            return at
        at += 1
    return -1


@final
class RowIndex:
    """Where the row that counts is, for every code.

    That is the ``latest`` of a code, or the earliest.
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

    def find(self, one: bytes) -> int:
        """Row of a code, -1 if there is none."""
        at = find(self._high.data, self._low.data, one)
        return -1 if at < 0 else int(self.rows[at])


@final
class Mapped:
    """A segment with cheap access to any row, through a copy in Arrow's format that is mapped.

    The copy's name has a checksum of its bytes, which is compared when it is opened; a copy that is
    damaged is made anew.

    Where the ``cache`` cannot be written, the copy lives in a temporary file.
    """

    def __init__(self, kind: Kind, path: Path, cache: Path) -> None:
        self._path, self._cache = path, cache
        self._columns = [name for name in SCHEMAS[kind].names if name != "code"]
        self._latest = -1
        #: Rows that were decoded together, and the number of the first.
        self._block: tuple[int, list[dict[str, Any]]] = 0, []
        self._batch = lru_cache(maxsize=64)(self._opened().get_batch)

    def row(self, number: int) -> dict[str, Any]:
        """One row as plain values; rows asked for one after another are decoded many at a time."""
        follows, self._latest = 0 < number - self._latest <= NEAR, number
        first, rows = self._block
        if not first <= number < first + len(rows):
            part, at = self._batch(number // BATCH), number % BATCH
            first, rows = number, part.slice(at, DECODED if follows else 1).to_pylist()
            self._block = first, rows
        return dict(rows[number - first])

    def _opened(self) -> Any:
        """The copy, made now if there is none that is whole."""
        # The name of a segment has its checksum, so a copy of this name is of these bytes.
        stem = f"{self._path.parent.name}.{self._path.stem}"
        for copy in self._cache.glob(f"{stem}.*.arrow"):
            with contextlib.suppress(OSError):
                if checksum(copy) == copy.name.split(".")[-2]:
                    return _mapped(copy)
                copy.unlink()
        partial = self._cache / f".{stem}.{secrets.token_hex(4)}"
        try:
            self._cache.mkdir(exist_ok=True)
            self._write(partial)
            copy = self._cache / f"{stem}.{checksum(partial)}.arrow"
            publish(partial, copy)
            return _mapped(copy)
        except OSError as error:
            _LOG.info("%s: no cache (%s), using a temporary file", self._cache, error)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
            self._write(Path(file.name))
            return _mapped(Path(file.name))  # the mapping keeps it until we are done

    def _write(self, target: Path) -> None:
        """Parquet to Arrow, batch by batch; every one but the last has BATCH rows."""
        whole = opened(self._path)
        schema = pa.schema([whole.schema_arrow.field(name) for name in self._columns])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for part in whole.iter_batches(BATCH, columns=self._columns):
                writer.write_batch(part)


def _mapped(path: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(path)))


@final
class Rows:
    """All records of one kind (of one recipe, for links and failures), found by name."""

    def __init__(self, kind: Kind, segments: list[Path], cache: Path) -> None:
        self.kind = kind
        self.segments = segments
        #: name -> record of a log that is not sealed yet.
        self.tail: dict[str, dict[str, Any]] = {}
        self._cache = cache
        self._latest = kind in ("link", "fail")
        self._mapped: dict[int, Mapped] = {}

    @cached_property
    def _starts(self) -> list[int]:
        """Number of the first row of every segment, and the total."""
        counts = (opened(path).metadata.num_rows for path in self.segments)
        return [0, *np.cumsum(np.fromiter(counts, np.int64)).tolist()]

    @cached_property
    def _index(self) -> RowIndex:
        """Of the sealed rows; read when first needed."""
        tables = [column(path, "code", "at") for path in self.segments]
        codes = [numbers(table["code"], np.uint64, 2) for table in tables]
        at = [numbers(table["at"], np.int64) for table in tables]
        return RowIndex(
            np.concatenate([np.zeros(0, np.uint64), *codes]).reshape(-1, 2),
            np.concatenate([np.zeros(0, np.int64), *at]),
            self._latest,
        )

    def seal(self, segment: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Take up a segment that was written just now from these records of logs."""
        if segment not in self.segments:  # else another process has sealed the same records
            self.segments.append(segment)
        for record in records:
            name = name_of(self.kind, record)
            if self.tail.get(name, {}).get("at") == record["at"]:
                del self.tail[name]
        for part in ("_index", "_starts"):
            self.__dict__.pop(part, None)

    def put(self, record: dict[str, Any]) -> None:
        """Take up a record of a log."""
        name = name_of(self.kind, record)
        known = self.tail.get(name)
        if known is None or self.wins(record["at"], known["at"]):
            self.tail[name] = record

    def wins(self, one: int, other: int) -> bool:
        """Whether a record of one time counts rather than a record of another."""
        return one >= other if self._latest else one < other

    def _find(self, name: str) -> tuple[int, dict[str, Any] | None]:
        """The record that counts: the number of its sealed row, or -1 and what the tail has."""
        record = self.tail.get(name)
        row = self._index.find(code(name)) if self.segments else -1
        if record is None or row < 0 or not self.wins(record["at"], int(self._index.at[row])):
            return row, None if row >= 0 else record
        return -1, record

    def __contains__(self, name: str) -> bool:
        return name in self.tail or (bool(self.segments) and self._index.find(code(name)) >= 0)

    def at(self, name: str) -> int | None:
        """Time of the record that counts, None if there is none."""
        row, record = self._find(name)
        if row >= 0:
            return int(self._index.at[row])
        return None if record is None else int(record["at"])

    def get(self, name: str) -> dict[str, Any] | None:
        """The record that counts, or None."""
        row, record = self._find(name)
        if row < 0:
            return record
        number = bisect_right(self._starts, row) - 1
        mapped = self._mapped.get(number)
        if mapped is None:
            mapped = self._mapped[number] = Mapped(self.kind, self.segments[number], self._cache)
        return mapped.row(row - self._starts[number])

    def _counting(self) -> npt.NDArray[np.bool_]:
        """Which sealed rows count: one per name, and none that a record of the tail replaces."""
        keep = np.zeros(self._starts[-1], bool)
        keep[self._index.rows] = True
        for name, record in self.tail.items():
            row = self._index.find(code(name))
            if row >= 0 and self.wins(record["at"], int(self._index.at[row])):
                keep[row] = False
        return keep

    def __len__(self) -> int:
        new = sum(self._index.find(code(name)) < 0 for name in self.tail)
        return len(self._index) + new

    def copies(self) -> int:
        """Rows that repeat a name and do not count."""
        return self._starts[-1] + len(self.tail) - len(self)

    def scan(self, *names: str) -> Iterator[dict[str, Any]]:
        """All records that count, a group of rows in memory at a time."""
        keep, row = self._counting(), 0
        for path in self.segments:
            for part in opened(path).iter_batches(GROUP, columns=list(names) or None):
                mask = keep[row : row + part.num_rows]
                row += part.num_rows
                if mask.any():
                    yield from part.take(np.flatnonzero(mask)).to_pylist()
        for name, record in self.tail.items():
            if self._find(name)[1] is not None:
                yield {name: record.get(name) for name in names} if names else dict(record)

    def where(self, filled: str, *names: str) -> Iterator[dict[str, Any]]:
        """Records, counting or not, in which a column of strings is not empty."""
        for path in self.segments:
            table = column(path, filled, *names)
            yield from table.filter(pc.greater(table[filled], "")).to_pylist()
        for record in self.tail.values():
            if record.get(filled):
                yield {name: record.get(name) for name in (filled, *names)}


@final
class Seen:
    """Names that came by, with a number of 64 bits each: every id and every key of a run.

    They take 24 bytes a name (30 to 34 MiB a million, measured), where a dict or a set of strings
    takes 135 to 170. Names are kept as codes of 128 bits: among 10 million, two agree with a chance
    of 1e-25.
    """

    def __init__(self) -> None:
        self._latest: dict[bytes, int] = {}
        self._high: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._low: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._numbers: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._latest) + len(self._numbers)

    def __contains__(self, name: str) -> bool:
        return self._find(code(name)) is not None

    def add(self, name: str, number: int = 0) -> int | None:
        """Remember a name, unless it is known; the number it was known with, or None."""
        one = code(name)
        known = self._find(one)
        if known is None:
            self._latest[one] = number
            if len(self._latest) >= LATEST:
                self._sort_in()
        return known

    def _find(self, one: bytes) -> int | None:
        if one in self._latest:
            return self._latest[one]
        at = find(self._high.data, self._low.data, one)
        return None if at < 0 else int(self._numbers[at])

    def _sort_in(self) -> None:
        codes = np.frombuffer(b"".join(self._latest), np.uint64).reshape(-1, 2)
        new = np.fromiter(self._latest.values(), np.int64, len(self._latest))
        order = np.argsort(codes[:, 0], kind="stable")
        # One place for each, so that only one column at a time exists twice.
        at = np.searchsorted(self._high, codes[order, 0], side="right")
        self._high = np.insert(self._high, at, codes[order, 0])
        self._low = np.insert(self._low, at, codes[order, 1])
        self._numbers = np.insert(self._numbers, at, new[order])
        self._latest = {}
