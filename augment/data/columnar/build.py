"""From JSONL to Arrow: rows in file order, and an index of ids in sorted order.

Rows are streamed in batches; besides one batch, only the id column is sorted in memory (some
thirty bytes a row). Ids stay strings from end to end, so no two of them can alias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast, final

import pyarrow as pa
import pyarrow.compute as pc

from augment.data.records import numbered_candidates, numbered_queries
from augment.errors import DataError
from augment.records import Item, Query

#: Raised whenever the layout of the cached files changes, so that older ones are rebuilt.
VERSION = 2

#: Rows of a record batch; every batch but the last has exactly this many.
BATCH = 16_384

_ITEM_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("text", pa.large_string()),
    pa.field("image", pa.string()),
    pa.field("modality", pa.string(), nullable=False),
    pa.field("source", pa.large_string()),
]
_QUERY_FIELDS = [
    pa.field("task", pa.int8()),
    pa.field("positives", pa.large_list(pa.string()), nullable=False),
    pa.field("negatives", pa.large_list(pa.string()), nullable=False),
]
_LINE = pa.field("line", pa.int64(), nullable=False)
_INDEX = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)


@final
@dataclass(frozen=True)
class Kind:
    """What a file holds and how its records become rows.

    Attributes:
        name: ``candidates`` or ``queries``.
        schema: columns of the rows; ``line`` is the line number in the source.
        parse: records with their line numbers, from a stream and the path to name in errors.
        row: a record's values in the schema's order, without the line.
        repeats: whether equal records may repeat (upsampled training files).
    """

    name: str
    schema: Any
    parse: Callable[[BinaryIO, Path], Iterable[tuple[int, Any]]]
    row: Callable[[Any], tuple[Any, ...]]
    repeats: bool


def _item_row(item: Item) -> tuple[Any, ...]:
    return (item.id, item.text, item.image, item.modality, item.source)


def _query_row(query: Query) -> tuple[Any, ...]:
    return (*_item_row(query.item), query.task, query.positives, query.negatives)


CANDIDATES = Kind(
    "candidates", pa.schema([*_ITEM_FIELDS, _LINE]), numbered_candidates, _item_row, repeats=False
)
QUERIES = Kind(
    "queries",
    pa.schema([*_ITEM_FIELDS, *_QUERY_FIELDS, _LINE]),
    numbered_queries,
    _query_row,
    repeats=True,
)


@final
class _Hashing:
    """The lines of a stream, hashed on the way: what is cached is exactly what was hashed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for line in self._stream:
            self.digest.update(line)
            yield line


def build_rows(kind: Kind, stream: BinaryIO, source: Path, target: Path) -> str:
    """Write the rows of an opened source to an Arrow file.

    Returns:
        SHA-256 of the bytes read, in hex.

    Raises:
        DataError: with ``file:line``, at the first line that cannot be used.
    """
    lines = _Hashing(stream)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, kind.schema) as writer:
        rows: list[tuple[Any, ...]] = []
        for number, record in kind.parse(cast("BinaryIO", lines), source):
            rows.append((*kind.row(record), number))
            if len(rows) == BATCH:
                writer.write_batch(_batch(kind, rows))
                rows = []
        if rows:
            writer.write_batch(_batch(kind, rows))
    return lines.digest.hexdigest()


def _batch(kind: Kind, rows: list[tuple[Any, ...]]) -> Any:
    columns = zip(*rows, strict=True)
    arrays = [
        pa.array(values, field.type) for values, field in zip(columns, kind.schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=kind.schema)


def build_index(kind: Kind, rows: Path, source: Path, target: Path) -> None:
    """Write the ids of an Arrow file in sorted order (by UTF-8 bytes) with their row numbers.

    Raises:
        DataError: with ``file:line``, if an id occurs twice where it may not.
    """
    with pa.memory_map(str(rows)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
        order = pc.sort_indices(table, sort_keys=[("id", "ascending"), ("line", "ascending")])
        ids = table["id"].cast(pa.large_string()).combine_chunks().take(order)
        _refuse_duplicates(kind, table, ids, order, source)
        batch = pa.RecordBatch.from_arrays([ids, order.cast(pa.int64())], schema=_INDEX)
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, _INDEX) as writer:
            writer.write_batch(batch)


def _refuse_duplicates(kind: Kind, table: Any, ids: Any, order: Any, source: Path) -> None:
    if len(ids) < 2:
        return
    equal = pc.equal(ids.slice(0, len(ids) - 1), ids.slice(1))
    for place in pc.indices_nonzero(equal).to_pylist():
        first, second = (table.slice(order[place + k].as_py(), 1).to_pylist()[0] for k in (0, 1))
        lines = first.pop("line"), second.pop("line")
        if kind.repeats and first == second:
            continue
        differs = ", with other content" if kind.repeats else ""
        raise DataError(
            f"id {first['id']} was used before in line {lines[0]}{differs}; ids must be unique "
            "in a file",
            f"{source}:{lines[1]}",
        )
