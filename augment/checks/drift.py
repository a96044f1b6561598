"""Drift: what the texts of a run say together, which no text shows alone.

A model out of its depth passes every check of single texts and writes about what it knows: of 226
questions about groceries the packaged model made 224 about flags. Three signs are scored: rewrites
that share no content with their request, a word that nearly all texts say and hardly a request
does, and texts that collapse onto few words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, final

from augment.checks.text import STOP_WORDS, folded, stem

#: Fewer texts say nothing about a run.
FEWEST_TEXTS = 20
#: Above this share of the rewrites that share no content with their request.
APART = 0.5
#: A word in this share of the texts, and in no more than :data:`ASKED` of the requests; told where
#: at least :data:`SOME_APART` share nothing, because pictures bring words of their own, too.
SAID, ASKED, SOME_APART = 0.8, 0.1, 0.2
#: Words that make up :data:`COLLAPSED` of all content: so few are no description of many things.
FEW_WORDS, COLLAPSED = 10, 0.8


@final
@dataclass
class Drift:
    """Counts of the texts of a run, added one by one; memory goes with the vocabulary.

    Attributes:
        texts: accepted texts.
        requests: of these, rewrites of a request.
        apart: of these, without a content word of the request.
        said: stem of a content word -> texts that have it.
        rewritten: the same among rewrites alone.
        asked: the same among their requests.
    """

    texts: int = 0
    requests: int = 0
    apart: int = 0
    said: Counter[str] = field(default_factory=Counter)
    rewritten: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, request: str | None = None) -> None:
        """Count one text, and the request that it rewrites."""
        said = content(text)
        self.texts += 1
        self.said.update(said)
        asked = content(request or "")
        if asked:
            self.requests += 1
            self.apart += not said & asked
            self.rewritten.update(said)
            self.asked.update(asked)

    def scores(self) -> dict[str, Any]:
        """Shares of 1, and in ``warnings`` what to say of them; empty for fewer than 20 texts."""
        if self.texts < FEWEST_TEXTS:
            return {}
        few = sum(number for _, number in self.said.most_common(FEW_WORDS))
        collapsed = few / max(self.said.total(), 1)
        apart = self.apart / max(self.requests, 1)
        gained = {word: (self.asked[word] - texts, word) for word, texts in self.rewritten.items()}
        word = min(gained, key=gained.__getitem__, default="")
        texts, asked, requests = self.rewritten[word], self.asked[word], max(self.requests, 1)
        told = []
        if apart > APART and self.requests >= FEWEST_TEXTS:
            told.append(
                f"{self.apart:,} of {self.requests:,} rewrites share no word with their request"
            )
        foreign = texts > SAID * requests and asked <= ASKED * requests
        if foreign and apart > SOME_APART and self.requests >= FEWEST_TEXTS:
            told.append(
                f"{texts:,} of {requests:,} rewrites say {word!r}, {asked or 'no'} "
                f"{'request does' if asked < 2 else 'requests do'}"
            )
        if collapsed > COLLAPSED:
            told.append(
                f"{FEW_WORDS} words make up {100 * collapsed:.0f} % of {self.texts:,} texts: "
                f"{', '.join(word for word, _ in self.said.most_common(5))}, ..."
            )
        return {"texts": self.texts, "apart": round(apart, 3), "word": word,
                "word_texts": texts, "word_requests": asked, "collapsed": round(collapsed, 3),
                "warnings": told}  # fmt: skip

    @property
    def warnings(self) -> list[str]:
        """What to say of the scores."""
        return list(self.scores().get("warnings", ()))


def content(text: str) -> set[str]:
    """Stems of the words that carry content."""
    return {stem(word) for word in folded(text) if word not in STOP_WORDS}
