"""What a rewritten query must keep of the original: negations, numbers, being a question.

The rules know English. They err towards refusing: a refused rewrite falls back to the original,
a wrong one searches for something else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from augment.checks.words import STOP_WORDS, fold, stem, word_set, words

#: "one" is left out: it is a pronoun far more often than a number.
_NUMBERS: Mapping[str, str] = {
    word: value
    for word, _, value in (
        pair.partition("=")
        for pair in word_set(
            "zero=0 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10 eleven=11"
            " twelve=12 thirteen=13 fourteen=14 fifteen=15 sixteen=16 seventeen=17 eighteen=18"
            " nineteen=19 twenty=20 thirty=30 forty=40 fifty=50 hundred=100 thousand=1000 dozen=12"
            " pair=2 both=2 twice=2 double=2 triple=3 second=2nd third=3rd fourth=4th fifth=5th"
        )
    )
}

#: Negations that stand before what they deny, and those that stand behind it.
_BEFORE = word_set(
    "no not without never neither nor none cannot lacks lacking lack except minus remove removes"
    " removed drop omit exclude excluding free"
)
_BEHIND = word_set("gone removed missing absent away excluded omitted free")
#: How far a negation reaches, in words.
_REACH = 6
_REMOVAL = re.compile(r"\b(take|takes|taking|get|gets|do) (away|off|out|rid of)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[.,;:!?]|\bbut\b", re.IGNORECASE)
_REQUEST = re.compile(r"\s*(can|could|would|will|do|may|might) (you|i|we)\b", re.IGNORECASE)
_QUESTION_WORD = re.compile(r"\b(who|whom|whose|what|which|where|when|why|how)\b", re.IGNORECASE)


def lost_numbers(text: str, original: str) -> list[str]:
    """Numbers of the original, in digits or words, that the text lacks."""
    return list((Counter(_values(original)).keys()) - set(_values(text)))


def _values(text: str) -> list[str]:
    said = [fold(word) for word in words(text)]
    return [
        _NUMBERS.get(word, word.replace(",", ""))
        for word in said
        if word in _NUMBERS or word[0].isdigit()
    ]


def lost_negations(text: str, original: str) -> list[str]:
    """What the original denies and the text does not: the content words behind each negation.

    A denial is kept if one of its words stands near a negation in the text.
    """
    kept = {word for denied in _denials(text, _REACH) for word in denied}
    denials = _denials(original, 3)
    return [" ".join(denied) for denied in denials if denied and not kept.intersection(denied)]


def _denials(text: str, reach: int) -> list[list[str]]:
    """The stems that each negation of a text denies."""
    found = []
    for clause in _CLAUSE.split(_REMOVAL.sub("remove", text)):
        said = [fold(word) for word in words(clause)]
        for at, word in enumerate(said):
            if word in _BEFORE or word.endswith("n't"):
                denied = _content(said[at + 1 :], reach)
                if denied:
                    found.append(denied)
                    continue
            if word in _BEHIND:
                found.append(_content(said[:at][::-1], reach))
    return found


def _content(said: Sequence[str], reach: int) -> list[str]:
    near = said[: reach + 2]
    kept = [stem(w) for w in near if w not in STOP_WORDS and w not in _BEFORE and w not in _BEHIND]
    return kept[:reach]


def answered(text: str, original: str) -> float:
    """1 if a question is followed by an answer, 0.9 if it is no question any more.

    A question is recognised by its mark, or in the text by a word such as ``which``. A request that
    is merely put as a question ("Can you find ...?") may lose that form.
    """
    if not original.rstrip().endswith("?") or _REQUEST.match(original):
        return 0.0
    if "?" not in text:
        return 0.0 if _QUESTION_WORD.search(text) else 0.9
    after = words(text.rpartition("?")[2])
    return 1.0 if after else 0.0


def added(text: str, original: str) -> int:
    """How many words the text has that the original lacks, articles apart."""
    new = Counter(fold(w) for w in words(text)) - Counter(fold(w) for w in words(original))
    return sum(count for word, count in new.items() if word not in ("a", "an", "the"))
