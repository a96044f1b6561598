"""What a rewritten query must keep, and what it must not say.

It must keep negations and numbers and, if it is one, being a question. The rules know English. They
err towards refusing: a refused rewrite falls back to the original, a wrong one searches for
something else.

Zero leak: it must not say what is searched for (RAR, 2602.07125). RAR's rewriter may name what a
picture shows ("this tower" becomes "the Eiffel Tower") but not answer ("How tall is it?"). Both
kinds of words stand in the passage that is searched for, so the rule has to tell its subject from
the rest:

- ``names``: a new name or number of the text that the passage has beyond its subject, or eight
  words in a row copied from it, most of them new. The subject is what stands before the first
  verb or stop.
- ``words``: any new content word that the passage has beyond its subject. Misses less, and
  refuses descriptions whose words happen to stand in the passage.
- ``off``.

Known answers (see :class:`Forbidden`) may not stand in the text under either rule.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from augment.checks.text import STOP_WORDS, WORDS, fold, folded, stem, word_set, words
from augment.data.items import RootItems
from augment.records import Query

_NUMBERS: Mapping[str, str] = dict(pair.split("=") for pair in WORDS["numbers"].split())
#: Negations that stand before what they deny, and those that stand behind it.
_BEFORE, _BEHIND = word_set(WORDS["before"]), word_set(WORDS["behind"])
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
    said = folded(text)
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
        said = folded(clause)
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


# --- Leaks

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

    The words of the published query are no leak.
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
    head = _SUBJECT_END.split(passage, maxsplit=1)[0]
    subject = {fold(word) for word in words(head)[:SUBJECT_WORDS]}
    beyond = {fold(w): w for w in words(passage) if fold(w) not in subject}
    return [
        word
        for folded, word in suspects.items()
        if folded in beyond
        and folded not in STOP_WORDS
        # A capital letter may be that of a sentence; in the passage, too, it must be a name.
        and (rule == "words" or word[0].isdigit() or beyond[folded][0].isupper())
    ]


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


#: Positives read per query. A query of InfoSeek or OVEN may have hundreds, much alike.
MOST_POSITIVES = 20

#: Keys of ``query_src_content`` that hold known answers, as a string or a list of strings.
ANSWER_KEYS = ("answer", "answers", "answer_eval")


def forbidden(items: RootItems, query: Query) -> Forbidden:
    """What a rewrite of a query must not say: texts of its positives, and its known answers.

    Args:
        items: the candidates, which stay memory-mapped; a positive that is not among them forbids
            nothing.
        query: whose text is judged.
    """
    found = (items.find(did) for did in query.positives[:MOST_POSITIVES])
    texts = [item.text for item in found if item is not None and item.text]
    return Forbidden(tuple(dict.fromkeys(texts)), tuple(_known_answers(query.item.source)))


def _known_answers(source: str | None) -> Iterator[str]:
    if not source or not any(f'"{key}"' in source for key in ANSWER_KEYS):
        return
    try:
        record = json.loads(source)
    except (ValueError, RecursionError):
        return
    if isinstance(record, Mapping):
        for key in ANSWER_KEYS:
            value = record.get(key)
            for answer in value if isinstance(value, list) else [value]:
                if isinstance(answer, str) and answer.strip():
                    yield answer
