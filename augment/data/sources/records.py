"""Readers of other trainers' pairs: ms-swift's conversations, Tevatron's queries and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from augment.data.sources.entries import Entries, LeftOut, SourceEntry, text_of
from augment.errors import DataError
from augment.files import digest, objects

#: Keys of a record, and the grade of what they list; negatives become ``neg_cand_list``.
_GRADES = {"positive": 1, "negative": 0}


def ms_swift(source: Path, base: str = "", split: str = "train") -> Entries:
    """ms-swift's records for embeddings: messages, positive_messages, negative_messages.

    Pictures are those of images, positive_images and negative_images. A query's id is the number of
    its line, a candidate's a hash of its content. System turns are left out.

    Args:
        source: The file, JSON lines.
        base: What paths of pictures begin with and is taken off.
        split: Of the queries: train, val or test.
    """
    known: set[str] = set()
    for number, (where, row) in enumerate(objects(source), start=1):
        grades: dict[str, int] = {}
        for kind, grade in _GRADES.items():
            given = row.get(f"{kind}_messages") or []
            pictures = row.get(f"{kind}_images") or [[] for _ in given]
            if len(pictures) != len(given):
                raise DataError(f"{kind}_images and {kind}_messages differ in number", where)
            for messages, shown in zip(given, pictures, strict=True):
                text, images = _said(messages, where), _paths(shown, base)
                if len(images) > 1:
                    yield LeftOut("candidates with several pictures", where)
                    continue
                did = digest([text, images])[:16]
                grades.setdefault(did, grade)
                if did not in known:
                    known.add(did)
                    yield SourceEntry(did, text, _first(images))
        images = _paths(row.get("images") or [], base)
        if len(images) > 1:
            yield LeftOut("queries with several pictures", where)
            continue
        asked = _said(row.get("messages") or [], where)
        yield SourceEntry(str(number), asked, _first(images), "query", grades, split=split)


def _said(messages: Sequence[Mapping[str, Any]], where: str) -> str | None:
    """What users say in a conversation, without the places of pictures."""
    try:
        turns = [str(turn["content"]) for turn in messages if turn["role"] != "system"]
    except (KeyError, TypeError) as error:
        raise DataError("expected messages, each with a role and content", where) from error
    return text_of(*(turn.replace("<image>", "") for turn in turns))


def _paths(pictures: Sequence[Any], base: str) -> list[str]:
    named = (one.get("path") if isinstance(one, Mapping) else one for one in pictures)
    return [str(one).removeprefix(base).lstrip("/" if base else "") for one in named if one]


def _first(paths: Sequence[str]) -> str | None:
    return paths[0] if paths else None


def tevatron(source: Path, base: str = "", split: str = "train") -> Entries:
    """Tevatron's queries, with passages in them or ids of a corpus.

    Records have positive_passages and negative_passages, or positive_document_ids and
    negative_document_ids and a file corpus.jsonl beside them. A passage's title stands before its
    text, as in Tevatron's own code.

    Args:
        source: The file, JSON lines.
        base: What paths of pictures begin with and is taken off.
        split: Of the queries: train, val or test.
    """
    corpus = source.with_name("corpus.jsonl")
    known: set[str] = set()
    for _, row in objects(corpus) if corpus.is_file() else ():
        known.add(str(row.get("docid", "")))
        yield _document(row, base)
    for where, row in objects(source):
        grades: dict[str, int] = {}
        for kind, grade in _GRADES.items():
            for passage in row.get(f"{kind}_passages") or ():
                entry = _document(passage, base)
                grades.setdefault(entry.id, grade)
                if entry.id not in known:
                    known.add(entry.id)
                    yield entry
            for did in row.get(f"{kind}_document_ids") or ():
                grades.setdefault(str(did), grade)
        if "query_id" not in row:
            raise DataError("has no query_id", where)
        text = text_of(row.get("query_text", row.get("query")))
        image = _first(_paths([row.get("query_image")], base))
        yield SourceEntry(str(row["query_id"]), text, image, "query", grades, split=split)


def _document(row: Mapping[str, Any], base: str) -> SourceEntry:
    text = text_of(row.get("title"), row.get("text"))
    return SourceEntry(str(row.get("docid", "")), text, _first(_paths([row.get("image")], base)))
