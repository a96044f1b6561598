"""One picture, one pass, several lengths: a phrase, a dense description, a list of sentences.

A prompt of form ``lengths`` asks for them in one JSON object. Models wrap it in fences and chatter,
leave commas and quotes astray, write tags or headings instead, or stop early; what can be read is
taken, and a part that is missing is derived from the others, so that every length is always there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from json_repair import repair_json

from augment.checks.clean import clean
from augment.engines.reasoning import without_reasoning

Length = Literal["short", "dense", "sentences", "final"]

LENGTHS: tuple[Length, ...] = get_args(Length)

#: Those that a prompt of form ``lengths`` asks for; ``final`` is what stands behind a thought.
ASKED = LENGTHS[:3]
_NAMES = "|".join(ASKED)
_TAGGED = re.compile(
    rf"<({_NAMES})>(.*?)(?=</?(?:{_NAMES})>|\Z)(?:</\1>)?", re.IGNORECASE | re.DOTALL
)
_HEADED = re.compile(
    rf"^[ \t#*]*({_NAMES})[ \t*]*:[ \t*]*(.*?)(?=^[ \t#*]*(?:{_NAMES})[ \t*]*:|\Z)",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W_a-z])|\n+")


class Parsed(NamedTuple):
    """An answer in its lengths.

    Attributes:
        lengths: every one that is asked for; sentences stand on lines of their own.
        derived: the lengths that the answer lacked.
    """

    lengths: Mapping[Length, str]
    derived: tuple[Length, ...]


def parse_lengths(answer: str) -> Parsed:
    """Read an answer to a prompt of form ``lengths``.

    Args:
        answer: a JSON object with a key for each length (whole or damaged), sections in tags
            (``<short>...</short>``) or under headings (``Short: ...``), or plain text, which is
            taken for the dense description.
    """
    answer = without_reasoning(answer)  # which may draft an object of its own
    found = _from_json(answer) or _sections(_TAGGED, answer) or _sections(_HEADED, answer)
    # An object without a usable text is no description.
    given = found or {"dense": "" if answer.lstrip().startswith("{") else clean(answer)}
    longest = given.get("dense") or given.get("sentences") or given.get("short") or ""
    lengths: dict[Length, str] = {
        length: given.get(length) or derive(longest, length) for length in ASKED
    }
    return Parsed(lengths, tuple(length for length in ASKED if not given.get(length)))


def derive(text: str, length: Length) -> str:
    """One length out of a plain text.

    Args:
        text: a dense description, or sentences on lines of their own.
        length: ``short`` is its first sentence, ``sentences`` one on each line, ``dense`` all of
            them in one paragraph, ``final`` the text itself: no thought stands before it.
    """
    if length == "final":
        return text
    sentences = split_sentences(text)
    if length == "short":
        return sentences[0] if sentences else ""
    return ("\n" if length == "sentences" else " ").join(sentences)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; a line end ends one, too."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def _from_json(answer: str) -> dict[Length, str]:
    start = answer.find("{")
    if start < 0:
        return {}
    try:
        value: Any = repair_json(answer[start:], return_objects=True)
    except (ValueError, RecursionError):
        return {}
    # With text behind the object, the repaired value is a list of what was found.
    options = value if isinstance(value, list) else [value]
    records = [option for option in options if isinstance(option, dict)]
    return _known(records[0]) if records else {}


def _sections(pattern: re.Pattern[str], answer: str) -> dict[Length, str]:
    return _known({match[1]: match[2] for match in pattern.finditer(answer)})


def _known(record: Mapping[str, Any]) -> dict[Length, str]:
    named = {str(key).strip().casefold(): value for key, value in record.items()}
    texts = {length: _text(named.get(length), length) for length in ASKED}
    return {length: text for length, text in texts.items() if text}


def _text(value: Any, length: Length) -> str:
    parts = value if isinstance(value, list) else [value]
    lines = [clean(part) for part in parts if isinstance(part, str)]
    joined = "\n".join(line for line in lines if line)
    if length == "sentences":
        return "\n".join(split_sentences(joined))
    return " ".join(joined.split("\n"))
