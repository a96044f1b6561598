"""Readers of what people have: tables, folders of pictures, Hugging Face data sets, tars."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.images import PICTURES, part_path
from augment.data.sources.entries import (
    Entries,
    LeftOut,
    SourceEntry,
    extras,
    ids_in,
    listed,
    text_of,
)
from augment.data.sources.parquet import mteb, streams, undecoded
from augment.errors import DataError
from augment.files import objects, opened, say
from augment.records import Side

#: Largest member of a tar that is read.
_MEMBER_BYTES = 256 << 20


class _Columns(NamedTuple):
    """Names of columns: of the id, the texts, the pictures, the group and the positives."""

    id: str | None
    text: Sequence[str]
    image: Sequence[str]
    group: str | None
    positives: str


def table(
    source: Path,
    id: str | None = None,  # noqa: A002 - the word of the format
    text: Sequence[str] = ("text",),
    image: Sequence[str] = ("image",),
    group: str | None = None,
    queries: Path | None = None,
    positives: str = "positives",
    split: str = "test",
) -> Entries:
    """A table of candidates: CSV, TSV, JSON lines or Parquet, packed or not.

    Args:
        source: The file.
        id: Column of ids; null: the column ``id``, or without one the number of the row.
        text: Columns of text, joined with a blank; those that the table lacks are passed over.
        image: Columns of pictures: paths below the folder of pictures, or bytes as data sets have
            them.
        group: Column of what belongs together: every row becomes a query, too, which looks for
            the others of its group and leaves itself out.
        queries: Another table, of queries, with the same names of columns.
        positives: Its column of relevant ids: a list, or ids with blanks between them.
        split: Of the queries: train, val or test.
    """
    columns = _Columns(id, text, image, group, positives)
    yield from rows_to_entries(_table_rows(source), columns, "corpus", split)
    if queries is not None:
        asked = columns._replace(group=None)
        yield from rows_to_entries(_table_rows(queries), asked, "query", split)


def datasets(
    source: Path,
    id: str | None = None,  # noqa: A002 - the word of the format
    text: Sequence[str] = ("text", "caption"),
    image: Sequence[str] = ("image",),
    group: str | None = None,
    part: str = "train",
    split: str = "test",
    subset: str | None = None,
) -> Entries:
    """A Hugging Face data set: a folder of its files, or that ``save_to_disk`` wrote, or a name.

    One with configurations as our own exports have them is read as kind ``mteb``.

    Args:
        source: Folder, such as a snapshot of the Hub, or name on the Hub.
        id: Column of ids; null: the column ``id``, or without one the number of the row.
        text: Columns of text, joined with a blank; those that it lacks are passed over.
        image: Columns of pictures.
        group: Column of what belongs together: every row becomes a query, too, which looks for
            the others of its group and leaves itself out.
        part: Of a data set that has several.
        split: Of the queries: train, val or test.
        subset: Of a data set that has several: the name of its configuration.
    """
    from datasets import get_dataset_config_names, load_from_disk

    if any((source / name).is_file() for name in ("state.json", "dataset_dict.json")):
        saved = load_from_disk(str(source))
        parts: Mapping[str, Any] = saved if isinstance(saved, dict) else {part: saved}
    else:
        configs = get_dataset_config_names(str(source))
        if subset is None and any(name.endswith("corpus") for name in configs):
            yield from mteb(source)
            return
        chosen = [name for name in configs if subset in (None, name)]
        if len(chosen) != 1:
            raise DataError(f"--subset names one of {', '.join(configs)}", str(source))
        parts = streams(source, chosen[0])
    if part not in parts:
        raise DataError(f"no part {part!r}; there are {', '.join(parts)}", str(source))
    found = enumerate(undecoded(parts[part]), start=1)
    rows = ((f"{source}: row {number}", row) for number, row in found)
    yield from rows_to_entries(rows, _Columns(id, text, image, group, ""), "corpus", split)


def _table_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".csv", ".tsv")):
        csv.field_size_limit(1 << 24)
        with opened(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t" if name.endswith(".tsv") else ",")
            try:
                for row in rows:
                    yield f"{path}:{rows.line_num}", row
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"is no table: {error}", f"{path}:{rows.line_num}") from error
    elif name.endswith((".jsonl", ".ndjson")):
        yield from objects(path)
    elif name.endswith(".json"):
        yield from listed(path)
    elif name.endswith(".parquet"):
        try:
            batches = pq.ParquetFile(path, page_checksum_verification=True).iter_batches(64)
            rows_of = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows_of, 1))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"is no Parquet file: {error}", str(path)) from error
    else:
        raise DataError("expected a .csv, .tsv, .jsonl, .json or .parquet file", str(path))


def rows_to_entries(
    rows: Iterator[tuple[str, Mapping[str, Any]]], columns: _Columns, side: Side, split: str
) -> Entries:
    """Rows of a table as entries; with a group, each is a query after all are candidates."""
    groups: dict[str, list[SourceEntry]] = {}
    for number, (where, row) in enumerate(rows, start=1):
        if number == 1:
            _check_columns(columns, row, where)
        given = row.get(columns.id or "id")
        name = str(number) if columns.id is None and "id" not in row else str(given or "")
        if not name:
            yield LeftOut("rows without an id", where)
            continue
        pictures = [one for name_of in columns.image for one in _pictures(row.get(name_of))]
        text = text_of(*(row.get(name_of) for name_of in columns.text))
        grades = dict.fromkeys(ids_in(row.get(columns.positives)), 1) if side == "query" else {}
        entry = SourceEntry(name, text, next(iter(pictures), None), side, grades, split=split,
                            more=pictures[1:])  # fmt: skip
        yield entry
        if columns.group and side == "corpus" and row.get(columns.group) not in (None, ""):
            groups.setdefault(str(row[columns.group]), []).append(entry)
    for alike in groups.values():
        names = [entry.id for entry in alike]
        for entry in alike if len(alike) > 1 else ():
            grades = {name: 1 for name in names if name != entry.id}
            yield replace(entry, side="query", grades=grades, excluded=(entry.id,))


def _check_columns(columns: _Columns, row: Mapping[str, Any], where: str) -> None:
    asked = [name for name in (columns.id, columns.group) if name]
    lacking = [name for name in asked if name not in row]
    if lacking or not any(name in row for name in (*columns.text, *columns.image)):
        raise DataError(
            f"there is no column {' and no '.join(lacking) or 'of text or pictures'}; there are "
            f"{', '.join(map(str, row))}",
            where,
        )


def _pictures(value: object) -> list[str | bytes]:
    """The pictures in a cell: a path, bytes, what data sets write of a picture, or a list."""
    if isinstance(value, Mapping):
        return _pictures(value.get("bytes") or value.get("path"))
    if isinstance(value, list | tuple):
        return [one for part in value for one in _pictures(part)]
    return [cast("str | bytes", value)] if value else []


def folder(source: Path, group: bool = False, split: str = "test") -> Entries:
    """A folder of pictures; text in a file beside a picture (``a.txt``) is its text.

    Args:
        source: The folder; what lies deeper counts, hidden files do not.
        group: Pictures of one folder belong together, as in ImageFolder: each becomes a query,
            too, which looks for the others and leaves itself out.
        split: Of the queries: train, val or test.
    """
    if not source.is_dir():
        raise DataError("no such folder", str(source))
    yield from rows_to_entries(
        _files(source), _Columns("id", ["text"], ["image"], "group" * group or None, ""),
        "corpus", split,
    )  # fmt: skip


def _files(source: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in PICTURES:
                continue
            inner = path.relative_to(source).as_posix()
            beside = path.with_suffix(".txt")
            text = beside.read_text("utf-8", "replace") if beside.is_file() else None
            group = str(PurePosixPath(inner).parent)
            yield str(path), {"id": inner, "text": text, "image": inner, "group": group}


def webdataset(source: Path) -> Entries:
    """A tar, or a folder of tars, whose members of one name are an entry: picture, text, JSON.

    Pictures stay inside, but those of a packed tar, which become files.

    Args:
        source: Tar, packed or not, or folder. Text is a member ``.txt`` or ``.caption``, or in a
            member ``.json`` under ``caption`` or ``text``. In our own exports that has all else.
    """
    paths = sorted(source.glob("*.tar*")) if source.is_dir() else [source]
    for path in paths:
        try:
            plain = _is_plain(path)
            with tarfile.open(path, "r:" if plain else "r|*") as tar:
                key, parts = "", dict[str, bytes | str]()
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # else all are held
                    stem, _, ending = PurePosixPath(member.name).name.partition(".")
                    if not member.isfile() or not ending or not stem:
                        continue
                    name = str(PurePosixPath(member.name).with_name(stem))
                    if name != key and parts:
                        yield _sample(key, parts)
                        parts = {}
                    key = name
                    if member.size > _MEMBER_BYTES:
                        yield LeftOut("members of a tar that are too large", member.name)
                    elif (stream := tar.extractfile(member)) is not None:
                        data, ending = stream.read(), f".{ending.lower()}"
                        parts[ending] = data
                        if plain and ending in PICTURES and not member.issparse():
                            start = member.offset_data
                            parts[ending] = part_path(path.name, start, data, stem + ending)
                if parts:
                    yield _sample(key, parts)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"is no tar that can be read: {error}", str(path)) from error


def _is_plain(path: Path) -> bool:
    """Whether a file is a tar that is not packed; of others it is said what becomes of them."""
    try:
        tarfile.open(path, "r:").close()
    except tarfile.ReadError:
        say(f"{path}: is packed, so its pictures become files; unpacked, it keeps them", sys.stderr)
        return False
    return path.suffix == ".tar"


def _sample(key: str, parts: Mapping[str, bytes | str]) -> SourceEntry | LeftOut:
    try:
        told = json.loads(parts.get(".json", b"{}"))
        plain = [cast("bytes", parts[end]).decode() for end in (".txt", ".caption") if end in parts]
    except (ValueError, RecursionError):
        return LeftOut("members of a tar whose text or JSON cannot be read", key)
    told = told if isinstance(told, dict) else {}
    picture = next((parts[ending] for ending in PICTURES if ending in parts), None)
    text = text_of(*plain) or text_of(told.get("caption") or told.get("text"))
    if "_id" not in told:
        return SourceEntry(key, text, picture)
    entry = SourceEntry(str(told["_id"]), text, picture, pool=told["pool"], **extras(told))
    if told.get("side") != "query":
        return entry
    return replace(entry, side="query", grades=told["grades"], split=told["split"])
