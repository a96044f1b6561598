"""Sealed records: Parquet files that appear whole, and memory-mapped copies for random access.

Kinds of record, one folder each::

    texts/*.parquet               generated texts, once per key; the earliest of a key counts
    links/<recipe>/*.parquet      this item uses this key under this recipe; the latest counts
    failures/<recipe>/*.parquet   this item failed, and why; the latest counts
    pictures/*.parquet            hashes of pictures that were read

Every row has a ``code``, 16 bytes of BLAKE2b over the key, item id or picture, by which it is
found, and ``at``, nanoseconds since 1970. Pages carry checksums, and a file's name ends with the
beginning of the SHA-256 of its bytes. Parquet reads a whole group to
give one row, so a reader of single texts maps an Arrow copy, made on first use in the store's
``cache`` folder, which may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import struct
import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from augment.records import Enrichment, Sampling
from augment.store.wal import sync_folder

Kind = Literal["text", "link", "fail", "picture"]
KINDS: tuple[Kind, ...] = ("text", "link", "fail", "picture")
FOLDERS: Mapping[Kind, str] = {
    "text": "texts",
    "link": "links",
    "fail": "failures",
    "picture": "pictures",
}

#: Rows of a Parquet row group and of an Arrow batch: memory that reading in a row takes.
GROUP = 16_384

#: Rows decoded together where rows are asked for in their order, gaps of NEAR included.
DECODED, NEAR = 128, 8

Codes = npt.NDArray[np.uint64]
_Number = TypeVar("_Number", np.uint64, np.int64)

_LOG = logging.getLogger(__name__)
_FOUND = [pa.field("code", pa.binary(16), nullable=False), pa.field("at", pa.int64())]
_STRING = pa.large_string()


def _type(field: Field[Any]) -> Any:
    """Column type of an Enrichment's field; what is not a string or a number becomes JSON."""
    return pa.int32() if field.type == "int" else _STRING


SCHEMAS: Mapping[Kind, Any] = {
    "text": pa.schema([*_FOUND, *(pa.field(f.name, _type(f)) for f in fields(Enrichment))]),
    "link": pa.schema(
        [
            *_FOUND,
            *(pa.field(name, _STRING) for name in ("item", "key", "route")),
            pa.field("key_code", pa.binary(16)),
            *(pa.field(name, _STRING) for name in ("judged", "shown", "rejected", "checks")),
        ]
    ),
    "fail": pa.schema(
        [*_FOUND, *(pa.field(name, _STRING) for name in ("item", "image", "reason", "key"))]
    ),
    "picture": pa.schema([*_FOUND, pa.field("sha256", pa.string())]),
}

#: Of an Enrichment: fields that are stored as JSON.
_STRUCTURED = tuple(f.name for f in fields(Enrichment) if f.type not in ("int", "str", "Finish"))


def code(name: str) -> bytes:
    """Sixteen bytes that stand for a key, an item id or a picture."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def place(high: memoryview, wanted: int) -> int:
    """Where a number stands in a sorted column, or would stand.

    numpy's search lets go of the interpreter's lock, and to get that back from other threads takes
    a hundred times as long as a search.
    """
    return bisect_left(high, wanted)


def find(highs: memoryview, lows: memoryview, one: bytes) -> int:
    """Where a code stands in two columns sorted by the first, -1 where it does not."""
    high, low = struct.unpack("=QQ", one)
    at = place(highs, high)
    while at < len(highs) and highs[at] == high:
        if lows[at] == low:
            return at
        at += 1
    return -1


def name_of(kind: Kind, record: Mapping[str, Any]) -> str:
    """What a record is found by."""
    return str(record[{"text": "key", "picture": "picture"}.get(kind, "item")])


def flat(text: Enrichment) -> dict[str, Any]:
    """A text as plain values: the columns of its row."""
    row = {f.name: getattr(text, f.name) for f in fields(Enrichment)}
    for name in _STRUCTURED:
        value = row[name]
        plain = vars(value) if isinstance(value, Sampling) else dict(value)
        row[name] = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return row


def enrichment(row: Mapping[str, Any]) -> Enrichment:
    """The text of a row; columns that an older store lacks take their default.

    Raises:
        KeyError, TypeError, ValueError: if it is not the row of a text.
    """
    values = {}
    for field in fields(Enrichment):
        value = row.get(field.name)
        if value is None:
            if field.default is MISSING and field.default_factory is MISSING:
                raise KeyError(field.name)
            continue
        values[field.name] = json.loads(value) if field.name in _STRUCTURED else value
    values["sampling"] = Sampling(**values.get("sampling", {}))
    return Enrichment(**values)


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

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{stem}.{secrets.token_hex(4)}"
    try:
        with partial.open("wb") as sink:
            with _parquet_writer(sink, kind) as writer:
                for start in range(0, len(records), GROUP):
                    writer.write_batch(batch(kind, records[start : start + GROUP]))
            sink.flush()
            os.fsync(sink.fileno())
        path = folder / f"{stem}.{checksum(partial)}.parquet"
        partial.replace(path)
        sync_folder(folder)
    finally:
        partial.unlink(missing_ok=True)
    return path


def checksum(path: Path) -> str:
    """Sixteen hex digits of the SHA-256 of a file.

    Raises:
        OSError: if it cannot be read.
    """
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()[:16]


def _parquet_writer(sink: Any, kind: Kind) -> Any:
    names = SCHEMAS[kind].names
    return pq.ParquetWriter(
        sink,
        SCHEMAS[kind],
        compression="zstd",
        use_dictionary=[n for n in names if n not in ("code", "at", "key", "key_code", "text")],
        write_page_checksum=True,
    )


def batch(kind: Kind, records: Sequence[Mapping[str, Any]]) -> Any:
    """Records as an Arrow batch."""
    columns: dict[str, list[Any]] = {"code": [code(name_of(kind, record)) for record in records]}
    if kind == "link":
        columns["key_code"] = [code(record["key"]) for record in records]
    for name in SCHEMAS[kind].names:
        if name not in columns:
            columns[name] = [record.get(name) for record in records]
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMAS[kind]]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMAS[kind])


def column(path: Path, *names: str) -> Any:
    """Some columns of a segment, as an Arrow table.

    Raises:
        OSError: if the segment cannot be read; Arrow's errors for damage are OSErrors, too.
    """
    try:
        # Not read_table, which loads Arrow's whole machinery for data sets.
        return pq.ParquetFile(path).read(list(names), use_threads=False)
    except pa.ArrowInvalid as error:
        raise OSError(f"{path} is damaged: {error}") from error


def rows_of(path: Path) -> int:
    """Number of rows, from the segment's footer.

    Raises:
        OSError: if the segment cannot be read.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise OSError(f"{path} is damaged: {error}") from error


def as_codes(array: Any) -> Codes:
    """A column of codes as (n, 2) unsigned integers."""
    return _numbers(array, np.uint64, 2).reshape(-1, 2)


def as_times(array: Any) -> npt.NDArray[np.int64]:
    """A column of times."""
    return _numbers(array, np.int64, 1)


def _numbers(array: Any, kind: type[_Number], each: int) -> npt.NDArray[_Number]:
    # Not to_numpy, which loads pandas: a second of time and 60 MiB.
    parts = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    views = [
        np.frombuffer(part.buffers()[1], kind, each * len(part), part.offset * each * 8)
        for part in parts
        if len(part)
    ]
    return np.concatenate(views) if views else np.zeros(0, kind)


@final
class Mapped:
    """A segment with cheap access to any row.

    Args:
        path: the segment.
        cache: folder of memory-mapped copies; where it cannot be written, the copy lives in a
            temporary file.
    """

    def __init__(self, path: Path, cache: Path) -> None:
        copy = cache / f"{path.parent.name}.{path.stem}.arrow"
        try:
            status, made = path.stat(), copy.stat()
            usable = made.st_mtime_ns >= status.st_mtime_ns
        except OSError:
            usable = False
        source = str(copy) if usable else _convert(path, copy)
        table = pa.ipc.open_file(pa.memory_map(source)).read_all()
        shown = [name for name in table.column_names if name not in ("code", "key_code")]
        self._batches = table.select(shown).to_batches()
        self._latest = -1
        #: Rows that were decoded together, and the number of the first.
        self._block: tuple[int, list[dict[str, Any]]] = 0, []
        if source != str(copy):
            Path(source).unlink()  # the mapping keeps it until we are done

    def row(self, number: int) -> dict[str, Any]:
        """One row as plain values.

        Rows asked for one after another are decoded many at a time.
        """
        follows, self._latest = 0 < number - self._latest <= NEAR, number
        first, rows = self._block
        if not first <= number < first + len(rows):
            part, at = self._batches[number // GROUP], number % GROUP
            first, rows = number, part.slice(at, DECODED if follows else 1).to_pylist()
            self._block = first, rows
        return dict(rows[number - first])


def _convert(path: Path, copy: Path) -> str:
    """Make the Arrow copy; where the cache cannot be written, a temporary file."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
        try:
            _copy(path, partial)
            partial.replace(copy)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return str(copy)
    except OSError as error:
        _LOG.info("%s: no cache (%s), using a temporary file", copy.parent, error)
        handle, name = tempfile.mkstemp(suffix=".arrow")
        os.close(handle)
        _copy(path, Path(name))
        return name


def _copy(path: Path, target: Path) -> None:
    """Parquet to Arrow, a group at a time; every batch but the last has GROUP rows."""
    source = pq.ParquetFile(path)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, source.schema_arrow) as out:
        for part in source.iter_batches(GROUP):
            out.write_batch(part)
