"""Which words of a generated text are new, and which of the published text are gone."""

from __future__ import annotations

import re
from typing import NamedTuple

#: Words are marked where at least this share of the generated ones was there before: in a rewrite
#: the new words are the news, in a fresh description every word would be marked.
KEPT_SHARE = 0.3

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


class Piece(NamedTuple):
    """A stretch of text; ``changed`` if its words are in one of two texts only."""

    text: str
    changed: bool


def compare(published: str | None, generated: str) -> tuple[list[Piece], list[Piece]]:
    """The published and the generated text in pieces; nothing is marked unless it is a rewrite.

    The pieces of each text, joined, are that text.
    """
    before = published or ""
    old, new = _words(before), _words(generated)
    if not old or not new or len(old & new) < KEPT_SHARE * len(new):
        return [Piece(before, False)], [Piece(generated, False)]
    return _pieces(before, new), _pieces(generated, old)


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def _pieces(text: str, known: set[str]) -> list[Piece]:
    pieces: list[Piece] = []
    done = 0
    for word in _WORD.finditer(text):
        if word.group().casefold() in known:
            continue
        between = text[done : word.start()]
        if pieces and not _WORD.search(between):  # neighbours share one mark
            pieces[-1] = Piece(pieces[-1].text + between + word.group(), True)
        else:
            pieces += [Piece(between, False), Piece(word.group(), True)]
        done = word.end()
    return [piece for piece in [*pieces, Piece(text[done:], False)] if piece.text]
