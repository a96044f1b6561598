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


def _refusals() -> Mapping[str, re.Pattern[str]]:
    """The shapes of ``words.yaml``, each list as one expression, with the slots filled in."""
    slots: dict[str, str] = {}
    for name, slot in WORDS["refusals"]["slots"].items():
        slots[name] = f"(?:{_filled(slot, slots)})"
    shapes = WORDS["refusals"]["shapes"]
    return {
        name: re.compile("|".join(f"(?:{_filled(one, slots)})" for one in listed))
        for name, listed in shapes.items()
    }


def _filled(shape: str, slots: Mapping[str, str]) -> str:
    return re.sub(r"<(\w+)>", lambda name: slots[name[1]], shape.replace("| ", "|"))


_REFUSALS = _refusals()
_SENTENCE = re.compile(r"(?<=[.!?])[\"'\]]*\s+")
_CLAUSE = re.compile(r"[,;]\s+|\s[\u2013\u2014-]\s")
_CONTRACTED = {
    "\u2019": "'", "cannot": "can not", "can't": "can not", "won't": "will not", "n't": " not",
    "i'm": "i am", "'re ": " are ", "'ll ": " will ", "'d ": " would ", "'ve ": " have ",
    "it's": "it is", "there's": "there is", "that's": "that is",
}  # fmt: skip
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
    """1 if the text declines the task, or says that something is missing and nothing else.

    A refusal has a clause of its first sentence in which somebody cannot, may not or will not tell
    ("I can't say"); a non-answer has only clauses that deny ("No flag is visible."). Beside a
    clause of content a denial is a description ("A beach; no people are visible."), and behind
    words that quote, everything is.
    """
    plain = text.casefold()
    for short, full in _CONTRACTED.items():
        plain = plain.replace(short, full)
    if _REFUSALS["anywhere"].search(plain):
        return 1.0
    clauses = [_CLAUSE.split(one.strip(" \"'[]*.!?\n")) for one in _SENTENCE.split(plain)]
    for sentence in clauses:
        for at, clause in enumerate(sentence):
            if any(_REFUSALS["declines"].match(one) for one in (clause, _unled(clause))):
                return float(not (at and _REFUSALS["quotes"].search(plain)))
            if not at and _REFUSALS["negated"].match(_unled(clause)):
                return float(not _REFUSALS["works"].search(plain))
        if not all(map(_leads, sentence)):
            break
    said = [_unled(one) for sentence in clauses for one in sentence if not _leads(one)]
    return float(bool(said) and all(_REFUSALS["denies"].fullmatch(one) for one in said))


def _leads(clause: str) -> bool:
    """Whether a clause says nothing by itself."""
    return not _unled(clause) or _REFUSALS["leads"].fullmatch(clause) is not None


def _unled(clause: str) -> str:
    """A clause without the words that lead into it."""
    while (lead := _REFUSALS["openings"].match(clause)) is not None:
        clause = clause[lead.end() :]
    return clause


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

_name = lru_cache(maxsize=4096)(unicodedata.name)

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
    other = sum(not _name(character, "").startswith(wanted) for character in letters)
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
