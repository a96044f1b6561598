"""Queries and candidates, one JSON object per line, and judgements, to and from records.

``pos_cand_list`` may hold ids (the published files) or objects with a ``did`` (the dataset card).
A missing ``task_id`` is taken from ``candidate_modality`` where the record has it, else from
``_task{t}_`` in the file's name, else it is None (see :func:`derive_task`).

Judgements have M-BEIR's five columns or TREC's four. The fifth (the task code) is not TREC:
evaluators of others want four columns.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from augment.errors import DataError
from augment.files import numbered_lines, opened, replacing, split_fields, text_lines
from augment.records import TASKS, Item, Modality, Qrel, Query, Side, one_picture

#: Spellings met in published data (the dataset card writes ``text,image``) -> ours.
MODALITIES: Mapping[str, Modality] = {
    "text": "text",
    "image": "image",
    "image,text": "image,text",
    "text,image": "image,text",
}
_CODES = {modalities: code for code, modalities in TASKS.items()}
#: What may stand in a line of judgements, whose columns blanks part; M-BEIR has "9:41".
_ID = re.compile(r"[^\x00\t-\r ]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
#: First bytes of files that are something else -> what they are and what to do.
_OTHER_FILES = {
    b"PK\x03\x04": "it is a zip archive; unpack it",
    b"\xff\xfe": "it is in UTF-16; convert it to UTF-8",
    b"\xfe\xff": "it is in UTF-16; convert it to UTF-8",
    b"version https://git-lfs": "it is a Git-LFS pointer; run 'git lfs pull' where it came from",
}
_TASK_IN_NAME = re.compile(r"_task([0-8])_")
#: Side -> keys under which its published records have what :class:`Item` has, in its order.
ITEM_KEYS: Mapping[Side, tuple[str, ...]] = {
    "corpus": ("did", "txt", "img_path", "modality", "src_content"),
    "query": ("qid", "query_txt", "query_img_path", "query_modality", "query_src_content"),
}
#: All keys; a Parquet file may have other columns, such as bytes of pictures.
_KEYS = {"task_id", "candidate_modality", "pos_cand_list", "neg_cand_list"}.union(
    *ITEM_KEYS.values()
)
_Parsed = TypeVar("_Parsed")


def read_candidates(path: str | Path) -> Iterator[Item]:
    """Candidates of a pool, in file order.

    Raises:
        DataError: with ``file:line``, at the first line that cannot be used.
    """
    return (item for _, item in numbered_records(Path(path), parse_candidate))


def read_queries(path: str | Path) -> Iterator[Query]:
    """:func:`read_candidates` for queries; upsampled training files repeat ids on purpose."""
    return (query for _, query in numbered_records(Path(path), query_parser(Path(path))))


def numbered_records(
    path: Path,
    parse: Callable[[bytes, str], _Parsed],
    refused: Callable[[DataError], None] | None = None,
    name: str = "",
) -> Iterator[tuple[int, _Parsed]]:
    """Records with the numbers of their lines, in file order.

    Args:
        path: of the file.
        parse: makes a record of a line, given where it stands.
        refused: takes the error of a line that cannot be used, then the rest is read; None: the
            first such error is raised.
        name: what errors call the file; its path if empty.

    Raises:
        DataError: if the file cannot be read.
    """
    with record_lines(path) as stream:
        for number, line in numbered_lines(stream):
            try:
                record = parse(line, f"{name or path}:{number}")
            except DataError as error:  # noqa: PERF203 - the next line may be read
                if refused is None:
                    raise
                refused(error)
            else:
                yield number, record


def query_parser(path: Path) -> Callable[[bytes, str], Query]:
    """:func:`parse_query` for the lines of a file whose name may tell the task."""
    return partial(parse_query, hint=task_in_name(path))


@contextmanager
def record_lines(path: Path) -> Iterator[io.BufferedReader]:
    """The lines of a file of records, packed or not; rows of a Parquet file become lines.

    Raises:
        DataError: if it cannot be opened, or is damaged where it is packed.
    """
    with opened(path) as stream:
        if not stream.peek(4).startswith(b"PAR1"):
            yield stream
            return
        try:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            yield io.BufferedReader(_Rows(_parquet_lines(file)))
        except (pa.ArrowException, TypeError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # of what is done with the lines
                raise
            raise DataError(f"is no Parquet file of records: {error}", str(path)) from error


def _parquet_lines(file: pq.ParquetFile) -> Iterator[bytes]:
    names = [name for name in file.schema_arrow.names if name in _KEYS]
    for batch in file.iter_batches(4096, columns=names):
        rows = pa.table([_as_json(column) for column in batch.columns], names).to_pylist()
        yield "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def _as_json(column: Any) -> Any:
    """A column with values that JSON has: others write texts as bytes, and task codes as floats."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.int64()) if pa.types.is_floating(column.type) else column


class _Rows(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or next(self._blocks, b"")
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def write_candidates(path: str | Path, items: Iterable[Item]) -> None:
    """Write a pool in M-BEIR's format; the file appears when it is complete."""
    _write(Path(path), map(item_record, items))


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries in M-BEIR's format; the file appears when it is complete."""
    _write(Path(path), map(_query_record, queries))


def derive_task(query_modality: Modality, candidate_modality: Modality | None) -> int | None:
    """The M-BEIR task code of a query, 0 to 8; None while the wanted modality is unknown."""
    return None if candidate_modality is None else _CODES[query_modality, candidate_modality]


def task_in_name(path: Path) -> int | None:
    """The task code in a file name such as ``mbeir_cirr_task7_test.jsonl``."""
    named = _TASK_IN_NAME.search(path.name)
    return int(named[1]) if named else None


def parse_candidate(line: bytes, where: str) -> Item:
    """One candidate from its line."""
    return _item(_record(line, where), where, "corpus")


def parse_query(line: bytes, where: str, hint: int | None = None) -> Query:
    """One query from its line; ``hint`` is the task to assume where the record has none."""
    record = _record(line, where)
    item = _item(record, where, "query")
    return Query(
        item,
        _task(record, item.modality, hint, where),
        _ids(record, "pos_cand_list", where),
        _ids(record, "neg_cand_list", where),
    )


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = _DECODER.decode(line.decode("utf-8"))
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"holds half of a surrogate pair: {error}", where) from error
    except (ValueError, RecursionError) as error:
        why = next((what for head, what in _OTHER_FILES.items() if line.startswith(head)), error)
        raise DataError(f"is not a line of JSON in UTF-8: {why}", where) from error
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {_kind(record)}", where)
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key given twice, readers keep one value or the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"the key {twice!r} is given twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _item(record: dict[str, Any], where: str, side: Side) -> Item:
    name, text_key, image_key, modality, source = ITEM_KEYS[side]
    text = _string(record, text_key, where)
    image = _string(record, image_key, where) or None
    return Item(
        _id(record.get(name), name, where),
        text,
        one_picture(image),
        _modality(record, modality, text, image, where),
        _string(record, source, where),
    )


def _modality(
    record: dict[str, Any], key: str, text: str | None, image: str | None, where: str
) -> Modality:
    value = record.get(key)
    if value is None:  # absent: what the record holds
        return "text" if not image else "image,text" if text else "image"
    known = MODALITIES.get(value.replace(" ", "")) if isinstance(value, str) else None
    if known is None:
        raise DataError(f"{key} is {value!r}; expected text, image or image,text", where)
    return known


def _string(record: dict[str, Any], key: str, where: str) -> str | None:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{key} is {_kind(value)}; expected a string or null", where)
    return value


def _id(value: object, key: str, where: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DataError(
            f"{key} is {value!r}; expected a string without blanks, such as '9:41'", where
        )
    return value


def _ids(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = record.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{key} is {_kind(value)}; expected a list of ids", where)
    return tuple(
        _id(entry.get("did") if isinstance(entry, dict) else entry, key, where) for entry in value
    )


def _task(record: dict[str, Any], modality: Modality, hint: int | None, where: str) -> int | None:
    value = record.get("task_id")
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, int) or value not in TASKS:
            raise DataError(f"task_id is {value!r}; expected a code from 0 to 8", where)
        return value
    if record.get("candidate_modality") is not None:
        return derive_task(modality, _modality(record, "candidate_modality", None, None, where))
    return hint if hint is not None and TASKS[hint][0] == modality else None


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def item_record(item: Item, side: Side = "corpus") -> dict[str, Any]:
    """An item as a JSON object with the published keys of its side; of a candidate, the whole."""
    values = (item.id, item.text, item.image, item.modality, item.source)
    return dict(zip(ITEM_KEYS[side], values, strict=True))


def _query_record(query: Query) -> dict[str, Any]:
    links = {"pos_cand_list": list(query.positives), "neg_cand_list": list(query.negatives)}
    task = {} if query.task is None else {"task_id": query.task}
    return item_record(query.item, "query") | links | task


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with replacing(path, DataError) as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_qrels(path: str | Path) -> list[Qrel]:
    """All judgements of a file in order, those with relevance 0 and below included.

    Raises:
        DataError: with ``file:line``, if a line has not four or five columns, or the relevance or
            the task is not a number.
    """
    rows: list[Qrel] = []
    for number, line in text_lines(Path(path)):
        where = f"{path}:{number}"
        columns = split_fields(line)
        if len(columns) not in (4, 5):
            raise DataError(
                f"has {len(columns)} columns; expected 'qid 0 did relevance' with or without a "
                "task code",
                where,
            )
        task = _integer(columns[4], "task code", where) if len(columns) == 5 else None
        if task is not None and task not in TASKS:
            raise DataError(f"task code is {task}; expected 0 to 8", where)
        rows.append(Qrel(columns[0], columns[2], _integer(columns[3], "relevance", where), task))
    return rows


def grades_of(qrels: Iterable[Qrel]) -> dict[str, dict[str, int]]:
    """Judgements grouped by query, in the order of first appearance.

    Raises:
        DataError: if a pair is judged twice with different grades.
    """
    grades: dict[str, dict[str, int]] = {}
    for qrel in qrels:
        judged = grades.setdefault(qrel.qid, {})
        if judged.setdefault(qrel.did, qrel.relevance) != qrel.relevance:
            raise DataError(
                f"candidate {qrel.did} is judged {judged[qrel.did]} and {qrel.relevance}; "
                "keep one judgement",
                f"query {qrel.qid}",
            )
    return grades


def write_qrels(path: str | Path, qrels: Iterable[Qrel], columns: Literal[5, 4] = 5) -> None:
    """Write judgements with M-BEIR's five columns or TREC's four.

    Raises:
        DataError: if five columns are asked for and a judgement has no task, or an id has a blank
            in it.
    """
    with replacing(Path(path), DataError) as stream:
        for qrel in qrels:
            if any(split_fields(part) != [part] for part in (qrel.qid, qrel.did)):
                raise DataError(f"an id is empty or has a blank in it: {qrel}", str(path))
            fields = [qrel.qid, "0", qrel.did, str(qrel.relevance)]
            if columns == 5:
                if qrel.task is None:
                    raise DataError(f"no task code for {qrel}; write four columns", str(path))
                fields.append(str(qrel.task))
            stream.write(" ".join(fields) + "\n")


def _integer(value: str, name: str, where: str) -> int:
    if not _INTEGER.fullmatch(value):
        raise DataError(f"{name} is {value!r}; expected a whole number", where)
    return int(value)
