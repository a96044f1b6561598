"""Words, as every check counts them."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+(?:['\u2019.,-][^\W_]+)*")


def word_set(listing: str) -> frozenset[str]:
    """The words of a listing."""
    return frozenset(listing.split())


#: Words that carry no content of their own; shared by the checks that compare two texts.
STOP_WORDS = word_set(
    "a about after an and are as at be before been but by can could did do does for from had"
    " has have he her his how i if in into is it its like me my no nor not of off on or our"
    " out over please she should so some such than that the their them then there these they"
    " this those to too under up was we were what when where which while who whom whose why"
    " will with without would you your"
)


def words(text: str) -> list[str]:
    """The words of a text as written; ``3.5``, ``don't`` and ``T-shirt`` are one word each."""
    return _WORD.findall(text)


def folded(text: str) -> list[str]:
    """The words in lower case, without the possessive ``'s``."""
    return [fold(word) for word in words(text)]


def fold(word: str) -> str:
    """One word in lower case, straight apostrophes, without the possessive ``'s``."""
    return word.casefold().replace("\u2019", "'").removesuffix("'s")


def stem(word: str) -> str:
    """A word without its plural ending, good enough to match ``star`` with ``stars``."""
    word = fold(word)
    for ending in ("sses", "ies", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)] + {"sses": "ss", "ies": "y"}.get(ending, "")
    return word
