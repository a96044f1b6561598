"""Scores that need the text alone: words, repetition, refusals, language. 0 is no trouble.

The language of a text is told by its letters and its commonest words. A description in key words
may hold no common word of any language; then only its letters speak, and silence counts as right.
Languages: those of :data:`COMMON` by common words, others by letters.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from augment.engines.reasoning import has_mark
from augment.records import Finish

_WORD = re.compile(r"[^\W_]+(?:['\u2019.,-][^\W_]+)*")


def word_set(listing: str) -> frozenset[str]:
    """The words of a listing."""
    return frozenset(listing.split())


#: Words by what they are for: ``words.yaml``, which says more.
WORDS: Mapping[str, Any] = yaml.safe_load(
    resources.files("augment.checks").joinpath("words.yaml").read_text(encoding="utf-8")
)
STOP_WORDS = word_set(WORDS["stop_words"])


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


#: Length of the n-gram whose most frequent copy is counted. Gopher (2112.11446, Table A1) refuses
#: documents whose top 4-gram covers over 16 % of the characters; descriptions of a few words repeat
#: more ("left ... left"), hence a higher limit in :class:`augment.checks.Limits`.
REPEATED_WORDS = 4

#: Length of the n-grams whose later copies are counted: finds loops with a long period.
LOOPED_WORDS = 8

#: Shorter texts are not compressed: the window of the compressor has nothing to repeat.
COMPRESSED_CHARACTERS = 200

#: Score of a text that stopped by itself but ends in the middle of a phrase.
DANGLING = 0.8

#: Score of a text of several words without a full stop at its end; usual for key words, so that it
#: refuses nothing unless the limit is set below it.
UNENDED = 0.4
_UNENDED_WORDS = 8

#: What is said to show, or not to show, what was asked for.
_SHOWN = r"(?:\w+ )?(?:image|picture|photo(?:graph)?|text|passage|question|context)"
_FACTS = r"(?:\w+ )?(?:information|context|details?)\b"
_NOT = r"(?: not|n['\u2019]t)"
_TELL = r"(?:determined?|identify|name|tell|say|answer|describe|view|see)"
#: Texts that decline begin like this; "a sign says sorry, we are closed" does not.
_DECLINES = (
    r"i(?:['\u2019]?m| am) (?:sorry|afraid|unable|not able|not sure)",
    r"sorry(?:[,.]|!(?!,)| but\b)|apologies\b|i apologi[sz]e|i (?:must|have to) decline",
    r"(?:my|the) guidelines do",
    rf"(?:i|we|one|it) (?:can(?:no|['\u2019])t|could{_NOT}|won['\u2019]t|will not)"
    rf" (?:be )?(?:\w+ )?(?:{_TELL}|assist|help|provide|fulfil|comply|make out)",
    rf"i (?:do|did){_NOT} (?:know\b|receive|have (?:access|the ability|enough|sufficient|any))",
    r"(?:i|we) have (?:no|too little) (?:information|knowledge|idea|way|access|context|means)",
    rf"(?:\w+ ){{1,6}}is (?:not (?:enough|sufficient) to {_TELL}|(?:not |im)possible[.!]?\s*\Z)",
    r"no (?:\w+ )?answer (?:can|is|was|could)",
    r"as an? (?:ai|language model)\b|unfortunately,? (?:i|the|it|there)\b",
    rf"(?:it(?: is|['\u2019]s) )?(?:unable|impossible|not possible) to (?:\w+ )?{_TELL}",
    rf"(?:cannot|can['\u2019]t) (?:be )?{_TELL}|it(?: is|['\u2019]s) unclear",
    rf"without (?:more|additional|further) {_FACTS}",
    rf"(?:there (?:is|are)(?:{_NOT})? )?(?:not |insufficient |(?<=not )|(?<=n['\u2019]t ))"
    rf"(?:enough |sufficient )?{_FACTS}",
    rf"(?:there is )?no {_FACTS}|there is no (?:image|picture|photo)\b",
    r"(?:could|can|would) you (?:please )?(?:\w+ )?(?:provide|share|upload|clarify)\b",
    rf"(?:the|this) {_SHOWN} (?:does{_NOT} (?:\w+ )?(?:contain|show|provide|mention|specify|reveal"
    r"|say|state|tell|indicate)|can(?:not|['\u2019]t) be|is too (?:blurry|dark|small)|is unclear)",
    r"the (?:\w+ )?(?:answer|date|name|location|year|brand) is not "
    r"(?:given|specified|stated|known)",
    r"(?:n/?a|none|unknown|not (?:applicable|specified))[.!]?\s*\Z",
)
_REFUSAL = re.compile(
    rf"\A[\"'\u201c]*(?:(?:hmm+|well|oh|um|regrettably)[,.]? )?(?:{'|'.join(_DECLINES)})"
    r"|\bas an (?:ai )?language (?:model|assistant)\b|\bas an ai (?:model|assistant)\b"
    r"|\bi (?:do not|don['\u2019]t) (?:see|have access to) (?:an?|any|the) (?:image|picture|photo)"
    r"|\bno (?:image|picture|photo) (?:was|is|has been) (?:provided|attached|given)\b"
    r"|\bplease (?:provide|upload|share|attach) (?:an?|the|more)\b",
    re.IGNORECASE,
)
#: How thinking models begin, and go on, where no mark tells thought from answer.
_THINKING = re.compile(
    r"\A(?:(?:okay|ok|alright|all right|so|hmm+|well|now|got it|first)\b[,.]?\s+)*"
    r"(?:let me (?:think|see|look|start|analy[sz]e|describe|break|try|figure)"
    r"|let['\u2019]s (?:think|see|look|start|analy[sz]e|describe|break|try|tackle|figure)"
    r"|(?:i|we) (?:need|have|should|must)(?: to)? (?:describe|write|rewrite|look|analy[sz]e|figure)"
    r"|the (?:question|task|prompt) (?:asks|is asking|wants|is to))\b"
    r"|\bthe user(?:['\u2019]s (?:question|query|request|image)"
    r"| (?:wants|asks|asked|is asking|has asked|wrote|provided|says))\b"
    r"|(?:\A|[.!?]\s+)(?:wait|hmm+),",
    re.IGNORECASE,
)
_DANGLING = re.compile(
    r"([,;:(\[\u2013\u2014-]"
    r"|\b(a|an|the|and|or|but|nor|its|their|his|my|our|your|whose|into|onto|between|among|than|very"
    r"|because|although|while))\s*\Z",
    re.IGNORECASE,
)
#: Words that a short request may end with ("what it is made of"), and a long text hardly does.
_STRANDED = re.compile(
    r"\b(of|with|from|at|by|for|as|to|is|are|was|were|has|have|which|that|this|each|every)\s*\Z",
    re.IGNORECASE,
)
#: Words that say as little as the phrases below.
_EMPTY = STOP_WORDS | word_set(
    "scene moment view various variety different several elements objects things something image "
    "picture photo photograph mood feel atmosphere captures serene peaceful pleasant nice good "
    "interesting way composition essence overall contribute"
)
_FILLER = re.compile(
    r"\b(in (this|the) (image|picture|photo)"
    r"|(this|the) (image|picture|photo)(graph)? "
    r"(shows|depicts|features|displays|captures|contains|presents)"
    r"|(we|you|one) can see|it (appears|seems) (to be|that)|overall,"
    r"|(creating|creates|evoking|evokes|adding) an? [\w ]{1,30}(atmosphere|mood|feel(ing)?|touch)"
    r"|here is (the|a|your)|sure, here)\b",
    re.IGNORECASE,
)


def empty(text: str) -> float:
    """1 if there is no letter and no digit."""
    return float(not any(character.isalnum() for character in text))


def reasoning(text: str) -> float:
    """1 if a mark of reasoning is left in the text, or it is thought about and not written."""
    return float(has_mark(text) or _THINKING.search(text) is not None)


def refusal(text: str) -> float:
    """1 if the text declines the task instead of doing it."""
    return float(bool(_REFUSAL.search(text)))


def truncation(text: str, finish: Finish) -> float:
    """1 if the limit of new tokens was reached; else :data:`DANGLING`, :data:`UNENDED` or 0."""
    if finish == "length":
        return 1.0
    if _DANGLING.search(text):
        return DANGLING
    ended = text.rstrip("\"')]\u201d\u2019").endswith((".", "!", "?", "\u2026", "\u3002"))
    if ended or len(words(text)) < _UNENDED_WORDS:
        return 0.0
    return DANGLING if _STRANDED.search(text) else UNENDED


#: Up to five words that stand three times in a row.
_RUN = re.compile(r"\b(\w{2,}(?:\W+\w+){0,4}?|\w(?:\W+\w+){1,4}?)(?:\W+\1\b){2,}", re.IGNORECASE)


def repetition(text: str) -> float:
    """Share of the words that repeat: one 4-gram, later copies of 8-grams, or a run of copies.

    1 where one word, but no number, stands three times in a row: no text means that.
    """
    said = [word.casefold() for word in words(text)]
    runs = [run for run in _RUN.finditer(text) if not run[1].isdigit()]
    if any(run[1].isalnum() for run in runs):
        return 1.0
    in_runs = sum(len(words(run[0])) for run in runs) / max(len(said), 1)
    return max(_frequent(said), _looped(said), in_runs)


def _frequent(said: list[str]) -> float:
    starts = range(len(said) - REPEATED_WORDS + 1)
    counts = Counter(tuple(said[at : at + REPEATED_WORDS]) for at in starts)
    most = max(counts.values(), default=0)
    return min(1.0, most * REPEATED_WORDS / len(said)) if most > 2 else 0.0


def _looped(said: list[str]) -> float:
    seen: set[tuple[str, ...]] = set()
    again: set[int] = set()
    for at in range(len(said) - LOOPED_WORDS + 1):
        gram = tuple(said[at : at + LOOPED_WORDS])
        if gram in seen:
            again.update(range(at, at + LOOPED_WORDS))
        seen.add(gram)
    return len(again) / len(said) if said else 0.0


def compression(text: str) -> float:
    """Share of the bytes that DEFLATE saves; prose saves about 0.4, a loop over 0.7."""
    if len(text) < COMPRESSED_CHARACTERS:
        return 0.0
    plain = text.encode("utf-8", "backslashreplace")
    return max(0.0, 1 - len(zlib.compress(plain, 9)) / len(plain))


def filler(text: str) -> float:
    """Share of the words in phrases that say nothing about the picture; of facts, 0.

    A number, a name or a word of content beside one such phrase is a fact, however short the text
    is ("There are 11 apples in the image.").
    """
    total = len(words(text))
    found = [match[0] for match in _FILLER.finditer(text)]
    left = words(_FILLER.sub(" ", text))
    if len(found) == 1 and any(fold(word) not in _EMPTY for word in left):
        return 0.0
    return sum(len(words(match)) for match in found) / total if total else 0.0


#: Language (ISO 639-1) -> its common words.
COMMON: Mapping[str, frozenset[str]] = {
    code: word_set(listing) for code, listing in WORDS["common"].items()
}

#: One or two Greek letters are of a formula, and of no language.
_SYMBOLS = re.compile(r"(?<![\u0370-\u03ff])[\u0370-\u03ff]{1,2}(?![\u0370-\u03ff])")

#: Fewer common words of another language are taken for names ("Tour de France").
FEWEST = 3


def foreign(text: str, language: str) -> float:
    """How much speaks against a language, 0 to 1.

    ``language`` is an ISO 639-1 code.

    Returns:
        The share of letters in another script, or the share of foreign words among all common
        words, whichever is larger.
    """
    letters = [character for character in _SYMBOLS.sub("", text) if character.isalpha()]
    if not letters:
        return 0.0
    wanted = tuple(WORDS["scripts"].get(language, "LATIN").split())
    other = sum(not _script(character).startswith(wanted) for character in letters)
    return max(other / len(letters), _foreign_words(text, language))


def _foreign_words(text: str, language: str) -> float:
    said = folded(text)
    own = COMMON.get(language)
    if own is None:
        return 0.0
    ours = sum(word in own for word in said)
    most = max(
        sum(word in common and word not in own for word in said)
        for code, common in COMMON.items()
        if code != language
    )
    return most / (most + ours) if most >= FEWEST else 0.0


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    return unicodedata.name(character, "")
