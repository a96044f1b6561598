"""From a JSONL file to its cached table: where that lies, when it is trusted, how it is made.

Each source has one folder, ``.cache/<name>.<kind>/`` beside it (or, where the source's folder is
marked read-only, below the user's cache folder)::

    source.json            size and mtime_ns of the source, SHA-256 of its lines, and checksums of
                           the files below
    rows-<sha>.arrow       all rows, in file order
    ids-<sha>.npy          ids in the order of their bytes, of one width
    order-<sha>.npy        the row of each

A table is trusted while the source's size and modification time are the recorded ones. If either
differs, the source is hashed: equal lines only refresh the record, others rebuild. A change
that keeps size *and* modification time to the nanosecond is not noticed; delete the folder then.
The cached files are read once in each process, some gigabytes a second, and compared with their
checksums; where they do not fit, the table is built anew. Every file appears whole, ``source.json``
last. Two processes that build at once do the work twice and end with the same files.

Lines are read in blocks. A block that is plain (every line an object of the published types) is
parsed by Arrow as a whole; any other goes line by line through :mod:`augment.data.records`, which
knows all that is tolerated and words every error. Both give the same rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from jaxtyping import Shaped

from augment.data.records import (
    ITEM_KEYS,
    MODALITIES,
    parse_candidate,
    query_parser,
    record_lines,
    task_in_name,
)
from augment.errors import DataError
from augment.files import checksum, numbered_lines, publish, write_json
from augment.records import TASKS, Item, Query, Side

#: Raised whenever the layout of the cached files changes, so that older ones are rebuilt.
VERSION = 4

#: Bytes of lines that become a record batch; four megabytes are some ten thousand rows.
BLOCK = 1 << 22

#: Ids are looked up in columns of one width; a longer one would make them wide for all rows.
LONGEST_ID = 255

_RECORD = "source.json"
_ID = r"^[^\x00\t-\r ]+$"

_ITEM_FIELDS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("text", pa.large_string()),
    pa.field("image", pa.string()),
    pa.field("modality", pa.string(), nullable=False),
    pa.field("source", pa.large_string()),
]
_QUERY_FIELDS = [
    pa.field("task", pa.int8()),
    pa.field("positives", pa.list_(pa.string()), nullable=False),
    pa.field("negatives", pa.list_(pa.string()), nullable=False),
]
_LINE = pa.field("line", pa.int64(), nullable=False)


@final
@dataclass(frozen=True)
class Kind:
    """What a file holds and how its lines become rows.

    Attributes:
        name: ``candidates`` or ``queries``.
        schema: columns of the rows; ``line`` is the line number in the source.
        published: keys of the published records and their types.
        parser: of a file, what makes a record of a line, given where it stands.
        columns: the same for a table of plain records; None if it turns out not to be plain.
        repeats: whether equal records may repeat (upsampled training files).
    """

    name: str
    schema: Any
    published: Any
    parser: Callable[[Path], Callable[[bytes, str], Item | Query]]
    columns: Callable[[Any, int | None], list[Any] | None]
    repeats: bool


class Entry(NamedTuple):
    """The cached files of one source."""

    rows: Path
    ids: Path
    order: Path


# --- Rows: line by line, and as columns -----------------------------------------------------------


def _row(record: Item | Query) -> tuple[Any, ...]:
    """A record's values in the schema's order, without the number of its line."""
    if isinstance(record, Item):
        return (record.id, record.text, record.image, record.modality, record.source)
    return (*_row(record.item), record.task, record.positives, record.negatives)


def _query_columns(table: Any, hint: int | None) -> list[Any] | None:
    *item, task, wanted, positives, negatives = table.columns
    columns = _item_columns(*item)
    lists = [_plain_ids(column) for column in (positives, negatives)]
    if columns is None or any(column is None for column in lists):
        return None
    derived = pc.and_(pc.is_null(task), pc.is_valid(wanted))
    known = pc.is_in(task.drop_null(), pa.array(list(TASKS)))
    if pc.any(derived).as_py() or not pc.all(known, min_count=0).as_py():
        return None
    if hint is not None:
        there, absent = pa.scalar(hint, pa.int64()), pa.scalar(None, pa.int64())
        task = pc.coalesce(task, pc.if_else(pc.equal(columns[3], TASKS[hint][0]), there, absent))
    return [*columns, task, *lists]


def _item_columns(ids: Any, text: Any, image: Any, modality: Any, source: Any) -> list[Any] | None:
    """The columns of an item; None if an id or modality is not as published."""
    if not _all_ids(ids):
        return None
    image = pc.if_else(pc.equal(image, ""), pa.scalar(None, pa.string()), image)
    spellings = modality.dictionary_encode()
    spelled = [MODALITIES.get(name.replace(" ", "")) for name in spellings.dictionary.to_pylist()]
    if None in spelled:
        return None
    given = pa.array(spelled, pa.string()).take(spellings.indices)
    has_text = pc.fill_null(pc.not_equal(text, ""), fill_value=False)
    held = pc.if_else(pc.is_valid(image), pc.if_else(has_text, "image,text", "image"), "text")
    return [ids, text, image, pc.coalesce(given, held), source]


def _all_ids(ids: Any) -> bool:
    return ids.null_count == 0 and bool(
        pc.all(pc.match_substring_regex(ids, _ID), min_count=0).as_py()
    )


def _plain_ids(lists: Any) -> Any:
    """Lists of ids, empty ones for nulls; None if there is something else among them."""
    ids = lists.values
    if lists.offset or not _all_ids(ids):
        return None
    return pa.ListArray.from_arrays(lists.offsets, ids)


def _published(side: Side, *more: Any) -> Any:
    return pa.schema([*(pa.field(name, pa.string()) for name in ITEM_KEYS[side]), *more])


CANDIDATES = Kind(
    "candidates",
    pa.schema([*_ITEM_FIELDS, _LINE]),
    _published("corpus"),
    lambda _: parse_candidate,
    lambda table, _: _item_columns(*table.columns),
    repeats=False,
)
QUERIES = Kind(
    "queries",
    pa.schema([*_ITEM_FIELDS, *_QUERY_FIELDS, _LINE]),
    _published(
        "query",
        pa.field("task_id", pa.int64()),
        pa.field("candidate_modality", pa.string()),
        pa.field("pos_cand_list", pa.list_(pa.string())),
        pa.field("neg_cand_list", pa.list_(pa.string())),
    ),
    query_parser,
    _query_columns,
    repeats=True,
)


def batch(kind: Kind, block: bytes, first: int, source: Path) -> Any:
    """The rows of some whole lines, a ``pyarrow.RecordBatch`` in the kind's schema.

    Raises:
        DataError: with ``file:line``, at the first line that cannot be used.
    """
    columns = _columns(kind, block, task_in_name(source))
    if columns is not None:
        lines = np.arange(first, first + len(columns[0]))
        columns = [*columns, pa.array(lines)]
    else:
        parse = kind.parser(source)
        rows = [
            (*_row(parse(line, f"{source}:{number}")), number)
            for number, line in numbered_lines(io.BytesIO(block), first)
        ]
        columns = list(zip(*rows, strict=True)) or [[]] * len(kind.schema)
    arrays = [
        column.cast(field.type) if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, kind.schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=kind.schema)


def _columns(kind: Kind, block: bytes, hint: int | None) -> list[Any] | None:
    """The columns of a block of plain lines, or None.

    Arrow reads objects wherever lines end, so it is asked first that each line holds one.
    """
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    ends = block.startswith(b"{") and block.endswith((b"}\n", b"}"))
    if not ends or block.count(b"}\n{") != lines - 1:
        return None
    try:
        block.decode("utf-8")
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pyarrow.json.ParseOptions(kind.published, unexpected_field_behavior="ignore"),
        ).combine_chunks()
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if table.num_rows != lines:
        return None
    return kind.columns(table.to_batches()[0], hint)


# --- The cached files -----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Source:
    """What ``source.json`` holds."""

    size: int
    mtime_ns: int
    sha256: str
    checksums: list[str]
    version: int = VERSION

    def entry(self, folder: Path) -> Entry:
        name = self.sha256[:32]
        return Entry(
            folder / f"rows-{name}.arrow", folder / f"ids-{name}.npy", folder / f"order-{name}.npy"
        )


def cached(kind: Kind, source: Path) -> Entry:
    """The cached files of a source, built now if they are missing or out of date.

    Raises:
        DataError: if the source cannot be read or used, or no cache folder can be written.
    """
    try:
        status = source.stat()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", str(source)) from error
    folders = _folders(kind, source)
    for folder in folders:
        known = _recorded(folder)
        if known is None:
            continue
        if (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known.entry(folder)
        if known.size == status.st_size and _lines_sha256(source) == known.sha256:
            with contextlib.suppress(OSError):  # a folder of someone else: hash again next time
                same = replace(known, mtime_ns=status.st_mtime_ns)
                write_json(folder / _RECORD, asdict(same))
            return known.entry(folder)
    return _build_somewhere(kind, source, folders, status)


def _lines_sha256(source: Path) -> str:
    digest = hashlib.sha256()
    with record_lines(source) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _folders(kind: Kind, source: Path) -> list[Path]:
    """Candidate folders, best first."""
    absolute = source.resolve()
    digest = hashlib.sha256(str(absolute).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    stem = absolute.name.removesuffix(".jsonl")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    beside = absolute.parent / ".cache" / f"{stem}.{kind.name}"
    return [beside, Path(home) / "reasoning-augmented-retrieval" / f"{stem}-{digest}.{kind.name}"]


def _recorded(folder: Path) -> _Source | None:
    """The record of a complete, current and undamaged entry."""
    try:
        known = _Source(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))
        if known.version != VERSION:
            return None
        entry = known.entry(folder)
        found = [
            _checksum(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
            for path, stat in zip(entry, map(Path.stat, entry), strict=True)
        ]
    except (OSError, ValueError, TypeError):
        return None
    return known if found == known.checksums else None


@cache
def _checksum(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """The checksum of a file, which each process reads once in the same state."""
    return checksum(path)


def _build_somewhere(
    kind: Kind, source: Path, folders: list[Path], status: os.stat_result
) -> Entry:
    reasons = []
    for folder in folders:
        reason = _unwritable(folder, source)
        if not reason:
            return _build(kind, source, folder, status)
        reasons.append(f"{folder}: {reason}")
    raise DataError(
        f"no cache folder can be written ({'; '.join(reasons)}); point XDG_CACHE_HOME at one that "
        "can",
        str(source),
    )


def _unwritable(folder: Path, source: Path) -> str:
    """Why a folder cannot be written; it is made. Root, too, leaves read-only data alone."""
    home = source.resolve().parent
    if folder.is_relative_to(home) and not home.stat().st_mode & 0o222:
        return "the data folder is marked read-only"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error.strerror)


def _build(kind: Kind, source: Path, folder: Path, status: os.stat_result) -> Entry:
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as name:
        building = Entry(*(Path(name) / part for part in Entry._fields))
        digest = _write_rows(kind, source, building.rows)
        _write_index(kind, building, source)
        sums = [checksum(path) for path in building]
        known = _Source(status.st_size, status.st_mtime_ns, digest, sums)
        entry = known.entry(folder)
        for partial, path in zip(building, entry, strict=True):
            publish(partial, path)
    write_json(folder / _RECORD, asdict(known))
    for part in Entry._fields:  # of earlier contents; whoever has it mapped keeps it until done
        for path in folder.glob(f"{part}-*"):
            if path not in entry:
                path.unlink(missing_ok=True)
    return entry


def _write_rows(kind: Kind, source: Path, target: Path) -> str:
    """Write the rows of a source; SHA-256 of the lines that they were made of."""
    digest = hashlib.sha256()
    line = 1
    with (
        record_lines(source) as stream,
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.new_stream(sink, kind.schema) as writer,
    ):
        for block in _blocks(stream):
            digest.update(block)
            writer.write_batch(batch(kind, block, line, source))
            line += block.count(b"\n")
    return digest.hexdigest()


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file in blocks of whole lines, at least one."""
    block = stream.read(BLOCK)
    while True:
        yield block if block.endswith(b"\n") else block + stream.readline()
        block = stream.read(BLOCK)
        if not block:
            return


def _write_index(kind: Kind, building: Entry, source: Path) -> None:
    """Write the ids of the rows in the order of their bytes, and the row of each."""
    with pa.memory_map(str(building.rows)) as mapped:
        table = pa.ipc.open_stream(mapped).read_all()
        ids = fixed_width(table["id"].combine_chunks(), source)
        order = np.argsort(ids, kind="stable")  # of equal ids the first line comes first
        ids = ids[order]
        for place in np.flatnonzero(ids[1:] == ids[:-1]).tolist():
            first, second = table.take(order[place : place + 2]).to_pylist()
            lines = first.pop("line"), second.pop("line")
            if not (kind.repeats and first == second):
                differs = ", with other content" if kind.repeats else ""
                raise DataError(
                    f"id {first['id']} was used before in line {lines[0]}{differs}; ids must be "
                    "unique in a file",
                    f"{source}:{lines[1]}",
                )
    for path, array in ((building.ids, ids), (building.order, order.astype(np.int32))):
        with path.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)


def fixed_width(ids: Any, source: Path) -> Shaped[np.ndarray, " n"]:
    """Arrow strings in ASCII as a NumPy array of bytes, as wide as the longest.

    Raises:
        DataError: if one is longer than :data:`LONGEST_ID` bytes.
    """
    width = pc.max(pc.binary_length(ids)).as_py() or 1
    if width > LONGEST_ID:
        raise DataError(
            f"an id is {width} bytes long; up to {LONGEST_ID} can be looked up", str(source)
        )
    padded = pc.ascii_rpad(ids.cast(pa.large_string()), width=width, padding="\0")
    characters = padded.buffers()[2] if len(ids) else b""
    return np.frombuffer(characters, f"S{width}", len(ids))
