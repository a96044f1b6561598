"""Routing: which prompt an item gets.

RAR (2602.07125) sorts queries into question, modification and image-only, and leaves text alone. A
query's M-BEIR task decides where it is known; otherwise the wording does, and it is told how sure
that is. The only definition of the kind of a query: evaluation slices its queries by the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from augment.errors import DataError
from augment.prompts.prompt import Prompt, load_prompt
from augment.records import Query

Kind = Literal["text", "image", "question", "modification"]
Composed = Literal["question", "modification"]
Form = Literal["picture alone", "question", "modification", "description"]

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

#: The engine that follows no prompt, and the prompt that says what it does.
OCR, OCR_PROMPT = "ocr", "ocr/text"

#: M-BEIR task codes of composed queries: 6 and 8 ask about the picture, 7 changes it.
_TASK_KINDS: Mapping[int | None, Composed] = {6: "question", 7: "modification", 8: "question"}

_SUBJECT = r"(?:the|this|that|these|those|it|they|there|he|she|you|we|i|both|either|any)"

#: Words that a question begins with; "how the ..." and "who's who" begin none.
_ASKED = (
    r"(?:who|whom|whose|what|which|when|where|why|how)\b"
    r"(?!(?:'s)? (?:the|a|an|he|she|they|we|i|it|who)\b)"
)

#: Beginnings of questions without their mark, and how often one is right. A bare "is", "has" or
#: "does" begins changes, too ("is blue and longer", "has the word peace on it"), so that these
#: count before a subject only, which "the same" is not.
_QUESTIONS: Sequence[tuple[re.Pattern[str], float]] = tuple(
    (re.compile(pattern, re.IGNORECASE), confidence)
    for pattern, confidence in (
        (rf"(?:(?:in|on|at|to|from|of|for|by|with|under|near) )?{_ASKED}", 0.95),
        (r"(?:name|tell me|identify|say) (?:the|which|what|who|where|how)\b", 0.95),
        (rf"(?:has|have|had) {_SUBJECT}\b.*\b(?:been|ever|always|yet|become)\b", 0.9),
        (r"(?:the )?\w+ (?:of|on|in) th(?:is|ese)(?: \w+){1,3}$", 0.7),
        (
            rf"(?:is|are|was|were|do|does|did|can|could|will|would|should) {_SUBJECT}\b"
            r"(?! (?:same|opposite|only|exact|other)\b)",
            0.7,
        ),
    )
)

#: What asks for a change even where it is put as a question.
_REQUEST = re.compile(
    r"(?:can|could|would|will) (?:you|we|i)\b|(?:do you have|is there one|what about|how about)\b"
    rf"|what (?:i|we) (?:want|need)\b|(?!{_ASKED}).*\b(?:instead|rather than)\b",
    re.IGNORECASE | re.DOTALL,
)

#: How changes begin, or what is compared in them.
_CHANGE = re.compile(
    r"(?:is|are|was|were|has|have|does|would|shows?|with|without|more|less|fewer|same|similar|no|not"
    r"|i (?:want|need)|i'd like|make|change|remove|add|replace|put|turn|give|find|look|take)\b"
    r"|.*\b(?:same|more|less|fewer|now|longer|shorter|darker|lighter|larger|bigger|smaller|closer"
    r"|[a-z]+er than)\b",
    re.IGNORECASE | re.DOTALL,
)

_QUESTION_MARKS = ("?", "\uff1f", "\u061f", "\u037e")


def followed(name: str, model: str, usual: str | None) -> Prompt:
    """The prompt of a run; with :data:`OCR`, in place of the usual one, that of what it does.

    Args:
        name: as asked for.
        model: that is to follow it.
        usual: the default.

    Raises:
        DataError: if there is no such prompt, or the model follows none of its kind.
    """
    prompt = load_prompt(OCR_PROMPT if model == OCR and name == usual else name)
    if model == OCR and prompt.kind != "transcript":
        raise DataError(f"--model {OCR} reads text and follows no prompt, so not {name}; leave it")
    return prompt


class Routing(NamedTuple):
    """What kind of query it is, and how that was decided.

    Attributes:
        kind: decides the prompt.
        form: the same for people, who tell a question without a picture from a description.
        confidence: how often a decision of this sort is right, 0 to 1; measured on examples in the
            words of seven data sets (``tests/augment/prompts/kinds.tsv``).
        reason: what decided.
    """

    kind: Kind
    form: Form
    confidence: float
    reason: str

    def __str__(self) -> str:
        sure = "" if self.confidence == 1 else f", {self.confidence:.0%} sure"
        return f"{self.kind} ({self.reason}{sure})"


def classify(query: Query) -> Routing:
    """Sort a query by what it has, its task, and last its wording."""
    text = (query.item.text or "").strip()
    if not text and query.item.images:
        return Routing("image", "picture alone", 1.0, "picture only")
    asks, confidence, reason = _wording(text)
    if not query.item.images:
        form: Form = "question" if asks else "description"
        return Routing("text", form, 1.0, "no picture")
    if query.task in _TASK_KINDS:
        kind = _TASK_KINDS[query.task]
        return Routing(kind, kind, 1.0, f"task {query.task}")
    worded: Composed = "question" if asks else "modification"
    return Routing(worded, worded, confidence, reason)


def _wording(text: str) -> tuple[bool, float, str]:
    """Whether a text asks for an answer, how sure that is, and why."""
    if _REQUEST.match(text):
        return False, 0.95, "asks for a change"
    if text.endswith(_QUESTION_MARKS):
        return True, 0.95, "ends in a question mark"
    for pattern, confidence in _QUESTIONS:
        if pattern.match(text):
            return True, confidence, "begins like a question"
    if _CHANGE.match(text):
        return False, 0.95, "is worded like a change"
    return False, 0.7, "is not worded as a question"
