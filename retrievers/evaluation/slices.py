"""Parts of a query set worth looking at apart: by modality, length of text, kind of request."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from augment.prompts.route import classify, worded_as_question
from augment.records import Query

#: Upper bounds of the number of words, and the name of what is longer.
_LENGTHS = ((5, "1 to 5 words"), (15, "6 to 15 words"), (40, "16 to 40 words"))


def length_of(query: Query) -> str:
    """Class of the length of a query's published text."""
    words = len((query.item.text or "").split())
    if not words:
        return "no text"
    return next((name for most, name in _LENGTHS if words <= most), "over 40 words")


def kind_of(query: Query) -> str:
    """What is asked: a question, a change to a picture, a description, or a picture alone."""
    kind = classify(query).kind
    if kind == "image" or not (query.item.text or "").strip():
        return "picture alone"
    if kind != "text":
        return kind
    return "question" if worded_as_question(query.item.text or "") else "description"


def slices_of(queries: Iterable[Query], wanted: Collection[str]) -> dict[str, list[str]]:
    """Name of a slice -> ids of its queries, in order of first appearance within each kind.

    Args:
        queries: what was asked; ids that occur twice count once.
        wanted: ids to keep.
    """
    kinds: tuple[dict[str, dict[str, None]], ...] = ({}, {}, {})
    for query in queries:
        if query.item.id not in wanted:
            continue
        names = (
            f"modality: {query.item.modality}",
            f"text: {length_of(query)}",
            f"type: {kind_of(query)}",
        )
        for found, name in zip(kinds, names, strict=True):
            found.setdefault(name, {})[query.item.id] = None
    return {name: list(qids) for found in kinds for name, qids in found.items()}
