"""Routing: which prompt an item gets.

RAR (2602.07125) sorts queries into question, modification and image-only, and leaves text alone. A
query's M-BEIR task decides where it is known; otherwise the wording does, and the reason says so.
The only definition of the kind of a query: evaluation slices its queries by the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from augment.records import Query

Kind = Literal["text", "image", "question", "modification"]

#: Kind of query -> prompt; None leaves it alone. RAR withholds the picture from the rewriter of
#: modifications (prompt ``rar/modification``); showing it is our default.
QUERY_PROMPTS: Mapping[Kind, str | None] = {
    "image": "rar/image_query",
    "question": "rar/question",
    "modification": "rar/modification_shown",
    "text": None,
}

#: Prompt of every candidate with a picture.
CORPUS_PROMPT = "rar/corpus"

#: M-BEIR task codes of composed queries: 6 and 8 ask about the picture, 7 changes it.
_TASK_KINDS: Mapping[int | None, Kind] = {6: "question", 7: "modification", 8: "question"}

# "that" and "like" begin modifications; a bare "is" begins both ("is blue and longer" in
# FashionIQ), so auxiliaries count only before a subject.
_QUESTION = re.compile(
    r"(who|whom|whose|what|which|where|when|why|how)\b"
    r"|(in|on|at|to|from|of|for|by|with|under) (what|which|whose|whom)\b"
    r"|(is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)"
    r" (the|this|that|these|those|it|they|there|he|she|you|we|i)\b"
    r"|(name|tell me|identify) (the|which|what|who|where)\b",
    re.IGNORECASE,
)


class Routing(NamedTuple):
    """What kind of item it is, and how that was decided."""

    kind: Kind
    reason: str


def classify(query: Query) -> Routing:
    """Sort a query by what it has, its task, and last its wording."""
    text = (query.item.text or "").strip()
    if not query.item.images:
        return Routing("text", "no picture")
    if not text:
        return Routing("image", "picture only")
    if query.task in _TASK_KINDS:
        return Routing(_TASK_KINDS[query.task], f"task {query.task}")
    reason = question_reason(text)
    if reason:
        return Routing("question", reason)
    return Routing("modification", "is not worded as a question")


def question_reason(text: str) -> str:
    """Why a text counts as a question; empty if it does not."""
    text = text.strip()
    if text.endswith("?"):
        return "ends in a question mark"
    return "begins like a question" if _QUESTION.match(text) else ""
