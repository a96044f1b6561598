"""Checks of generated text: a reason why it is refused, or an empty string.

A refused text stays in the store with its reason, and every view falls back to the published text.
"""

from __future__ import annotations

import re
from collections import Counter

from augment.records import Finish

#: A text may be this much longer than its prompt asked for, since models count words badly.
LENGTH_SLACK = 1.5

#: Repetition: one n-gram of this length covers more than this share of the text.
#: Gopher (2112.11446, Table A1) refuses documents whose top 4-gram covers over 16 % of the
#: characters; descriptions of a few words repeat more ("left ... left"), hence 30 %.
REPEATED_WORDS = 4
REPEATED_SHARE = 0.3

_FENCE = re.compile(r"\A```[\w-]*[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_BULLET = re.compile(r"^[ \t]*(?:#{1,6}|[-*+]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_SPACES = re.compile(r"[ \t\u00a0]+")
_REFUSAL = re.compile(
    r"^(i['\u2019]?m (sorry|unable|not able)|i am (sorry|unable|not able)|sorry,|i apologi[sz]e"
    r"|i (can(no|['\u2019])t|could not|couldn['\u2019]t|won['\u2019]t|will not) "
    r"(\w+ )?(assist|help|provide|describe|identify|fulfil|comply|answer|see|view)"
    r"|as an ai\b|unfortunately, i\b)",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """The text without Markdown: fences, emphasis, headings, bullets, surplus blanks, quotes."""
    text = text.replace("\r\n", "\n").replace("\x00", "").strip()
    fenced = _FENCE.match(text)
    if fenced:
        text = fenced.group(1)
    text = _BULLET.sub("", _EMPHASIS.sub(r"\2", text))
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def check(text: str, finish: Finish = "stop", max_words: int | None = None) -> str:
    """Why a cleaned text is refused, or ``""``.

    Args:
        text: as :func:`clean` left it.
        finish: how generation ended.
        max_words: limit named in the prompt; None for none. See :data:`LENGTH_SLACK`.
    """
    words = text.split()
    if not any(character.isalnum() for character in text):
        return "empty"
    if finish == "length":
        return "truncated: reached the limit of new tokens"
    if _REFUSAL.match(text):
        return "refusal"
    if _repeats(words):
        return "repetition"
    if max_words is not None and len(words) > max_words * LENGTH_SLACK:
        return f"too long: {len(words)} words, {max_words} asked for"
    return ""


def _repeats(words: list[str]) -> bool:
    """Whether one n-gram fills more of the text than :data:`REPEATED_SHARE`."""
    grams = [tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words))]
    counts = Counter(gram for gram in grams if len(gram) == REPEATED_WORDS)
    if not counts:
        return False
    most = max(counts.values())
    return most > 2 and most * REPEATED_WORDS > REPEATED_SHARE * len(words)
