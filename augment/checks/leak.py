"""Zero leak: a rewritten query must not say what is searched for (RAR, 2602.07125).

RAR's rewriter may name what a picture shows ("this tower" becomes "the Eiffel Tower") but not
answer ("How tall is it?"). Both kinds of words stand in the passage that is searched for, so the
rule has to tell its subject from the rest:

- ``names``: a new name or number of the text that the passage has beyond its subject, or eight
  words in a row copied from it, most of them new. The subject is what stands before the first
  verb or stop.
- ``words``: any new content word that the passage has beyond its subject. Misses less, and
  refuses descriptions whose words happen to stand in the passage.
- ``off``.

Known answers (see :class:`Forbidden`) may not stand in the text under either rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from augment.checks.words import STOP_WORDS, fold, words

LeakRule = Literal["names", "words", "off"]

#: Most words of a passage that count as its subject.
SUBJECT_WORDS = 6

#: A run of this many words copied from a passage is a leak.
COPIED_WORDS = 8

_SUBJECT_END = re.compile(
    r"[.,:;()\u2013\u2014\n]|\b(is|are|was|were|has|have|had|lies|shows|exports|speaks)\b"
)
_NO_ANSWER = frozenset({"yes", "no", "none", "unknown", "n/a"})


class Forbidden(NamedTuple):
    """What a rewritten query must not say.

    Attributes:
        texts: published texts of the candidates that are searched for.
        answers: known answers, word for word.
    """

    texts: Sequence[str] = ()
    answers: Sequence[str] = ()


def leaks(text: str, original: str, forbidden: Forbidden, rule: LeakRule = "names") -> list[str]:
    """What a text gives away, each piece once; empty if nothing.

    Args:
        text: the rewritten query.
        original: the published query; its own words are no leak.
        forbidden: see :class:`Forbidden`.
        rule: see the module.
    """
    if rule == "off":
        return []
    known = {fold(word) for word in words(original)}
    found = dict.fromkeys(_answers(text, original, forbidden.answers))
    new = [word for word in words(text) if fold(word) not in known]
    suspects = {fold(w): w for w in new if rule == "words" or w[0].isupper() or w[0].isdigit()}
    for passage in forbidden.texts:
        found.update(dict.fromkeys(_told(suspects, passage, rule)))
        found.update(dict.fromkeys(_copied(text, known, passage)))
    return list(found)


def _answers(text: str, original: str, answers: Sequence[str]) -> list[str]:
    said, asked = _joined(text), _joined(original)
    found = []
    for answer in answers:
        wanted = _joined(answer)
        if wanted.strip() and wanted.strip() not in _NO_ANSWER and wanted in said:
            found += [answer] if wanted not in asked else []
    return found


def _joined(text: str) -> str:
    return f" {' '.join(fold(word) for word in words(text))} "


def _told(suspects: dict[str, str], passage: str, rule: LeakRule) -> list[str]:
    """Suspect words that a passage has beyond its subject."""
    subject = _subject(passage)
    beyond = {fold(w): w for w in words(passage) if fold(w) not in subject}
    return [
        word
        for folded, word in suspects.items()
        if folded in beyond
        and folded not in STOP_WORDS
        # A capital letter may be that of a sentence; in the passage, too, it must be a name.
        and (rule == "words" or word[0].isdigit() or beyond[folded][0].isupper())
    ]


def _subject(passage: str) -> set[str]:
    end = _SUBJECT_END.search(passage)
    head = passage[: end.start()] if end else passage
    return {fold(word) for word in words(head)[:SUBJECT_WORDS]}


def _copied(text: str, known: set[str], passage: str) -> list[str]:
    """Runs copied from a passage, most of whose words are new."""
    there, said = _joined(passage), words(text)
    found, at = [], 0
    while at + COPIED_WORDS <= len(said):
        run = said[at : at + COPIED_WORDS]
        new = [w for w in run if fold(w) not in known and fold(w) not in STOP_WORDS]
        if 2 * len(new) >= COPIED_WORDS and _joined(" ".join(run)) in there:
            found.append(" ".join(run))
            at += COPIED_WORDS
        else:
            at += 1
    return found
