"""Pyserini's files: JSON collections and tab-separated topics, with whatever text a view shows.

A collection is a ``.jsonl`` file of ``{"id": ..., "contents": ...}``, topics are lines of id, tab,
text (Pyserini, "Indexing custom corpora"). For its M-BEIR encoders Pyserini reads published query
and pool files as they are. Its runs (``--output-format trec``) are read by
:func:`retrievers.evaluation.run.read_table`, its qrels are TREC's four columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from augment.errors import DataError
from augment.files import replacing, text_lines
from augment.records import Item


class Document(NamedTuple):
    """A candidate or a query as text."""

    id: str
    text: str


def write_collection(
    path: str | Path, items: Iterable[Item], text: Callable[[Item], str | None]
) -> int:
    """Write a collection; items without text are left out, as an index of words cannot hold them.

    Args:
        path: the ``.jsonl`` file; Pyserini takes its folder.
        items: candidates.
        text: what to write of one, for example :meth:`retrievers.data.texts.TextRecipe.candidate`.

    Returns:
        How many were left out.
    """
    left_out = 0
    with replacing(Path(path), DataError) as stream:
        for item in items:
            contents = (text(item) or "").strip()
            if not contents:
                left_out += 1
                continue
            record = {"id": item.id, "contents": contents}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return left_out


def read_collection(path: str | Path) -> Iterator[Document]:
    """Documents of a collection, in file order.

    Raises:
        DataError: with ``file:line``, if a line has no string ``id`` and ``contents``, or an id
            stands twice.
    """
    seen: set[str] = set()
    for number, line in text_lines(Path(path)):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"is not a line of JSON: {error}", where) from error
        fields = [record.get(key) for key in ("id", "contents")] if isinstance(record, dict) else []
        if len(fields) != 2 or not all(isinstance(field, str) and field for field in fields):
            raise DataError('expected {"id": "...", "contents": "..."}, both strings', where)
        yield _once(Document(str(fields[0]), str(fields[1])), seen, where)


def write_topics(path: str | Path, topics: Iterable[Document]) -> int:
    """Write topics; tabs and line ends inside a text become blanks, empty texts are left out.

    Returns:
        How many were left out.
    """
    left_out = 0
    with replacing(Path(path), DataError) as stream:
        for topic in topics:
            text = " ".join(topic.text.split())
            left_out += not text
            if text:
                stream.write(f"{topic.id}\t{text}\n")
    return left_out


def read_topics(path: str | Path) -> Iterator[Document]:
    """Topics, in file order.

    Raises:
        DataError: with ``file:line``, if a line has no tab, an empty id or text, or an id stands
            twice.
    """
    seen: set[str] = set()
    for number, line in text_lines(Path(path)):
        where = f"{path}:{number}"
        name, tab, text = line.partition("\t")
        if not tab or not name.strip() or not text.strip():
            raise DataError(f"expected 'id<TAB>text', found {line[:60]!r}", where)
        yield _once(Document(name.strip(), text.strip()), seen, where)


def _once(document: Document, seen: set[str], where: str) -> Document:
    if document.id in seen:
        raise DataError(f"id {document.id} was used before; ids must be unique", where)
    seen.add(document.id)
    return document
