"""Cleaning: what models wrap around their text is taken off, step by step, each step by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from augment.engines.reasoning import has_mark, without_reasoning
from augment.prompts.fence import LONGEST

_FENCE = re.compile(r"\s*`{3,}([\w-]*)\s*")
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_BULLET = re.compile(r"^[ \t]*(?:#{1,6}|[-*+]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_SPACES = re.compile(r"[ \t\u00a0]+")
_ANSWER = re.compile(r"\A(?:\s*<(?:answer|response|output|conclusion)>)+", re.IGNORECASE)
_ANSWERED = re.compile(r"</(?:answer|response|output|conclusion)>", re.IGNORECASE)
_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>")

#: Stands before a ``#`` that is no heading while a text is cleaned; taken out of what comes in.
_GUARD = "\x00"

_PICTURE = r"(?:image|picture|photo|photograph)"
_OPENINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\A(?:(?:sure|certainly|of course|absolutely|okay|ok)\b[,.!:]?\s*)?"
        r"here(?: is|'s|\u2019s| are)\b[^:\n]{0,80}:\s*",
        r"\A(?:sure|certainly|of course|absolutely)[,.!]\s+(?=\S)",
        r"\A(?:(?:rewritten|refined|revised|shortened)\s+(?:query|question|request|text)"
        r"|(?:query|caption|description|output))[ ]*[:\n]\s*",
        rf"\Ain (?:this|the) {_PICTURE},?\s+"
        r"(?:(?:we (?:can )?see|you (?:can )?see|there (?:is|are))\s+)?",
        rf"\A(?:this|the) {_PICTURE}\s+"
        r"(?:shows|depicts|features|displays|captures|presents|portrays)\s+",
    )
)
_CLOSING = re.compile(
    r"(?:\A|\s+)(?:let me know if|i hope (?:this|that) helps|feel free to|would you like me to)\b"
    r"[^\n]*\Z",
    re.IGNORECASE,
)


class Cleaned(NamedTuple):
    """A cleaned text and the names of the steps that changed it."""

    text: str
    steps: tuple[str, ...]


def clean(text: str) -> str:
    """The text without what models wrap around it; see :func:`clean_steps`."""
    return clean_steps(text).text


def clean_steps(text: str) -> Cleaned:
    """The text without thoughts, Markdown, chatter, surplus blanks and outer quotes.

    A line that begins with ``#`` is a heading, in a fence (but one of Markdown) a comment.

    Returns:
        The text, on which cleaning again changes nothing but such comments, and the steps among
        ``control``, ``thought``, ``fence``, ``markdown``, ``blanks``, ``quotes`` and ``filler``.
    """
    plain = text.replace("\r\n", "\n").replace(_GUARD, "")
    steps = {"control": None} if plain != text else {}
    text = _thought(plain)
    if text != plain:
        steps["thought"] = None
    # What is left of a thought stays marked, for the checks; what is too long is no description.
    if has_mark(text) or len(text) > LONGEST:
        return Cleaned(text, tuple(steps))
    # Taking one wrapping off may bare another: chatter in front of a fence, quotes inside one.
    while True:
        before = text
        for name, step in _STEPS:
            after = step(text)
            if after != text:
                steps[name] = None
                text = after
        if text == before:
            return Cleaned(text.replace(_GUARD, ""), tuple(steps))


def _thought(text: str) -> str:
    answer = without_reasoning(text)
    if opened := _ANSWER.match(answer):
        answer = _ANSWERED.sub("", answer[opened.end() :])
    return text if answer == text else answer.strip()


def _fence(text: str) -> str:
    kept: list[str] = []
    form: str | None = None  # what the fence says it holds; None outside one
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if fence is not None:
            form = fence[1] if form is None else None
            continue
        if form not in (None, "markdown", "md") and line.lstrip().startswith("#"):
            line = line.replace("#", f"{_GUARD}#", 1)
        if form is not None and line.rstrip().endswith("```"):
            form, line = None, line.rstrip().rstrip("`")
        kept.append(line)
    return "\n".join(kept)


def _blanks(text: str) -> str:
    lines = (_SPACES.sub(" ", line).strip() for line in text.strip().split("\n"))
    return "\n".join(line for line in lines if line)


def _quotes(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        return text[1:-1].strip()
    return text


def _filler(text: str) -> str:
    for opening in _OPENINGS:
        found = opening.match(text)
        if found:
            rest = text[found.end() :]
            text = rest[:1].upper() + rest[1:]
    return _CLOSING.sub("", text)


_STEPS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("thought", _thought),
    ("control", partial(_CONTROL_TOKEN.sub, "")),
    ("fence", _fence),
    ("markdown", lambda text: _BULLET.sub("", _EMPHASIS.sub(r"\2", text))),
    ("blanks", _blanks),
    ("quotes", _quotes),
    ("filler", _filler),
)
