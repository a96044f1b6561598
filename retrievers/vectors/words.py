"""Texts as words, the same on both sides of a search: what BM25 counts."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, final, get_args

import numpy as np
import regex
from jaxtyping import Int64

from augment.errors import DataError

# Where JAX is installed, bm25s asks it for a device as it is imported, and three quarters of a
# GPU's memory are gone. Nothing that is used here needs it.
_JAX = [(name, sys.modules.pop(name)) for name in ("jax", "jax.lax") if name in sys.modules]
sys.modules["jax"] = None  # type: ignore[assignment]
try:
    from bm25s import stopwords as lists
finally:
    del sys.modules["jax"]
    sys.modules.update(_JAX)


#: Whose stop words are left out; none leaves out none.
Language = Literal[
    "english",
    "danish",
    "dutch",
    "french",
    "german",
    "italian",
    "norwegian",
    "portuguese",
    "russian",
    "spanish",
    "swedish",
    "turkish",
    "none",
]
#: Part of the fingerprint of an index; raised whenever other words come out.
VERSION = "unicode words 1"
#: Marks that no letter stands before, such as that of a keycap, belong to no word.
_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{Mn}\p{Mc}]*")
#: What is not seen inside a word: joiners, soft hyphens, variation selectors.
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


def analyser(language: Language) -> Callable[[str], list[str]]:
    """What makes words of a text.

    A word is a run of letters, digits and their marks in any script, normalised (NFKC, case
    folded, Turkish dotted capital I as i), so that composed and decomposed spellings meet. A single
    letter of ASCII is none: it is mostly what an apostrophe has left. There is no stemming, and a
    script without blanks between words makes one word of a clause.

    Args:
        language: its stop words are dropped: Lucene's 33 English ones, as Anserini does, or NLTK's
            of others, as bm25s has them.

    Raises:
        DataError: if there is no list for the language.
    """
    if language not in get_args(Language):
        raise DataError(f"no stop words of {language!r}; there are {', '.join(get_args(Language))}")
    dropped = _stopwords(language)
    return lambda text: [word for word in _words(text) if word not in dropped]


@cache
def _stopwords(language: Language) -> frozenset[str]:
    name = {"english": "EN"}.get(language, language.upper())
    listed = [] if language == "none" else getattr(lists, f"STOPWORDS_{name}")
    return frozenset(word for text in listed for word in _words(text))


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", folded)).replace("i\u0307", "i")
    return [w for w in _WORD.findall(plain) if len(w) > 1 or not (w.isascii() and w.isalpha())]


@final
class Words:
    """The words of texts, by row of an index."""

    kind = "texts"

    def __init__(self, language: Language, words: Sequence[list[str]] = ()) -> None:
        self._language, self._analysed = language, analyser(language)
        self.words = list(words)

    def only(self, rows: Int64[np.ndarray, " n"]) -> Words:
        """Some of the texts."""
        return Words(self._language, [self.words[row] for row in rows.tolist()])

    def checked(self, ids: Any, items: Sequence[str]) -> list[list[str]]:
        """The words of each text; none of some."""
        return [self._analysed(text) for text in items]

    def append(self, items: Sequence[list[str]], rows: None = None) -> None:
        """Keep the words of more texts."""
        self.words.extend(items)

    def queries(self, queries: Sequence[str]) -> list[list[str]]:
        """The words of each query."""
        if not all(text.strip() for text in queries):
            raise DataError("the query is empty; give it some words")
        return self.checked(None, queries)
