"""Is a text in the language asked for? Told by its letters and its commonest words.

A description in key words may hold no common word of any language; then only its letters speak, and
silence counts as right. Languages: those of :data:`COMMON` by common words, others by letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from augment.checks.words import folded, word_set

#: Common words by language (ISO 639-1), without those that are also words of another in the table.
COMMON: Mapping[str, frozenset[str]] = {
    code: word_set(listing)
    for code, listing in {
        "en": "the and of with is are it its this that which from by has what there their was",
        "de": "der das und mit ist ein eine einer einem auf dem den von zu im sind nicht auch"
        " über für oder zwei drei",
        "fr": "le la de à un et en les des est avec une dans sur du au aux qui ou deux trois sont"
        " cette pour",
        "es": "de la un el los las una con en y del por sobre que dos tres es está son para blanca",
        "it": "la di un il gli una con di che della nel sulla sono due tre è alla dei e per",
        "pt": "os uma com em e da na dos sobre que dois três é são para ao do",
        "nl": "het een met van en op zijn niet ook voor twee drie wordt naar aan",
        "sv": "och med en ett på är som av till två tre för den det",
        "da": "og med en et på er som af til to tre den det ikke",
        "pl": "i z na w jest oraz dwa trzy nie się do przez który biały",
        "ro": "și cu o pe este din sunt două trei care în pentru",
        "tr": "ve bir ile bu için üzerinde olan iki üç da de",
        "id": "dan dengan yang di dari ini itu pada dua tiga untuk adalah",
    }.items()
}

#: Language -> the script its letters are named after in Unicode; Latin where not listed.
_SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "bg": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}

#: Fewer common words of another language are taken for names ("Tour de France").
FEWEST = 3


def foreign(text: str, language: str) -> float:
    """How much speaks against a language, 0 to 1.

    Args:
        text: the text.
        language: ISO 639-1 code of the language asked for.

    Returns:
        The share of letters in another script, or the share of foreign words among all common
        words, whichever is larger.
    """
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return 0.0
    wanted = _SCRIPTS.get(language, ("LATIN",))
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
