"""Changes of generated text with known rates, and routers that choose which items get a text.

Facts here are the words of a text that have rivals: a colour, a number, a shape, a size, a place, a
direction. On Flagland they are the grammar's own (so that a wrong fact is one that the world could
show), elsewhere those of :data:`augment.checks.faithful.RIVALS`.

Routers put the items of a side in order, the first ones first:

========== ====================================================================================
random     a fixed shuffle
thin       fewest published words first: a picture alone before a picture with an article
contested  asks a retriever that knows only the published text. Queries: smallest distance between
           its first two hits first. Candidates: those that came closest to another hit of some
           query, be it above or below them; candidates that no query found come last. No judgement
           is looked at.
========== ====================================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, final

from augment.checks.faithful import RIVALS
from augment.errors import DataError
from augment.files import digest
from augment.records import Hit, Item, Side
from benchmarks.flagland.grammar import COLOUR_NAMES, NUMBERS, PLACE_WORDS, PLURALS, WORDS
from retrievers.evaluation.run_files import read_table

Groups = Sequence[Sequence[str]]

#: Words of Flagland's canonical descriptions of which a flag shows one and not the others.
FLAGLAND: Groups = (
    tuple(COLOUR_NAMES),
    tuple(PLURALS),
    tuple(PLURALS.values()),
    NUMBERS[2:],  # "one" goes with a singular
    ("small", "large"),
    tuple(PLACE_WORDS.values()),
    ("horizontal", "vertical"),
    ("rising", "falling"),
    ("triangle", "canton", "border"),
)
GENERAL: Groups = RIVALS

_FILLER = (
    "this is a picture that was taken and kept with all the others of its kind and there is "
    "nothing more to be said of it than what can be seen by anyone who looks at it as it is here "
    "in the place where it was found on the day when it was put there and then kept for others"
)
#: Says nothing of any picture; cut to the wanted number of words.
FILLER: Sequence[str] = tuple(_FILLER.split(" "))


@final
class Changed(NamedTuple):
    """A changed text and what was done to it.

    Attributes:
        text: the new text.
        facts: words with rivals in the old one.
        wrong: how many of them were exchanged.
        gone: how many were left out.
    """

    text: str
    facts: int = 0
    wrong: int = 0
    gone: int = 0


def corrupt(
    text: str, random: Random, hallucination: float, omission: float, groups: Groups = FLAGLAND
) -> Changed:
    """Exchange and leave out facts, each on its own with the given chances.

    Raises:
        ValueError: if the chances are no shares of one whole.
    """
    if min(hallucination, omission) < 0 or hallucination + omission > 1:
        raise ValueError(f"rates {hallucination} and {omission}: need 0 <= each, sum at most 1")
    rivals = {word: [other for other in group if other != word] for group in groups
              for word in group}  # fmt: skip
    words = sorted(rivals, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")
    counts = [0, 0, 0]

    def change(match: re.Match[str]) -> str:
        counts[0] += 1
        roll = random.random()
        if roll < hallucination:
            counts[1] += 1
            return random.choice(rivals[match[0]])
        if roll < hallucination + omission:
            counts[2] += 1
            return ""
        return match[0]

    changed = pattern.sub(change, text)
    changed = re.sub(r"\s+(?=[,.?]|$)|(?<=\s)\s+", "", changed)
    return Changed(re.sub(r",(?=[,.?])", "", changed).strip(), *counts)


#: Begins a part of a description after a comma, unlike the next colour of a list.
_PART = re.compile(r",\s+(?=(?:an?|the|one|two|three|four|five|six|all|with)\b)")


def clauses(text: str) -> str:
    """A sentence for every part of a description; a question is left as it is."""
    if text.rstrip().endswith("?"):
        return text
    parts = [part.strip().rstrip(".") for part in _PART.split(text)]
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts if part)


#: Words of canonical descriptions -> others for them.
_VOICE: Mapping[str, Sequence[str]] = {
    **WORDS["voice"],
    **{words: WORDS["places"][place] for place, words in PLACE_WORDS.items()},
    **{name: others[1:] for name, others in WORDS["colours"].items() if others[1:]},
    **{forms[0][n]: [form[n] for form in forms[1:]] for forms in WORDS["nouns"].values()
       for n in (0, 1)},
}  # fmt: skip
_SAID = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, _VOICE), key=len, reverse=True))})\b")

#: What stands behind the country in a question, longest first; nothing where there is no question.
_TAILS = sorted({frame.partition("{ref}")[2] for frames in WORDS["questions"].values()
                 for frame in frames} | {""}, key=len, reverse=True)  # fmt: skip


def voiced(text: str, random: Random, omission: float, misspelt: float) -> Changed:
    """What a canonical description says in other words and another order.

    Args:
        text: with descriptions in the canonical wording.
        random: draws words and order.
        omission: chance that a part of a description is left out; one stays.
        misspelt: chance that two neighbouring letters of a word of five or more change places.
    """
    asked, frame, said = text.partition(" whose flag has ")
    head = f"{asked}{frame}" if frame else f"{random.choice(WORDS['openers'])} "
    tail = next(one for one in _TAILS if said.endswith(one))
    parts = _PART.split(said.removesuffix(tail) or text.removeprefix("A flag with ").rstrip("."))
    kept = [part for part in parts if random.random() >= omission] or parts[:1]
    random.shuffle(kept)
    words = _SAID.sub(lambda one: random.choice(_VOICE[one[0]]), ", ".join(kept)).split(" ")
    for n, word in enumerate(words):
        if len(word) > 4 and random.random() < misspelt:
            at = random.randrange(1, len(word) - 2)
            words[n] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return Changed(f"{head}{' '.join(words)}{tail}", len(parts), 0, len(parts) - len(kept))


def filler(words: int, start: int = 0) -> str:
    """So many words that say nothing, from a place of :data:`FILLER` on, round and round."""
    return " ".join(FILLER[(start + n) % len(FILLER)] for n in range(max(1, words)))


#: Hits of a query that count as its rivals.
DEPTH = 10

#: Name -> whether a retriever is asked.
ROUTERS: Mapping[str, bool] = {"random": False, "thin": False, "contested": True}


def chosen(
    items: Mapping[str, Item],
    side: Side,
    share: float,
    router: str,
    seed: int = 0,
    runs: Path | None = None,
) -> frozenset[str]:
    """Ids of the items that get a text.

    Raises:
        DataError: if the router is unknown, or needs runs and gets none.
    """
    if router not in ROUTERS:
        raise DataError(f"unknown router {router!r}; there are {', '.join(ROUTERS)}")
    if not 0 <= share <= 1:
        raise DataError(f"a share is between 0 and 1, got {share}")
    ranks: Mapping[str, float] = {}
    if router == "thin":
        ranks = {item_id: len((item.text or "").split()) for item_id, item in items.items()}
    elif router == "contested":
        if runs is None:
            raise DataError("the router contested asks a retriever; name its arm with contested_by")
        ranks = margins(runs) if side == "query" else closeness(runs)
    order = sorted(items, key=lambda name: (ranks.get(name, math.inf), digest([seed, name])))
    return frozenset(order[: round(share * len(order))])


def _hits(runs: Path) -> Iterator[tuple[str, Sequence[Hit]]]:
    for path in sorted(runs.glob("*.local.trec")):
        yield from read_table(path, empty=True).to_run().items()


def margins(runs: Path) -> dict[str, float]:
    """Query id -> distance in score of its first two hits; infinite where there is one."""
    return {
        qid: hits[0].score - hits[1].score if len(hits) > 1 else math.inf
        for qid, hits in _hits(runs)
    }


def closeness(runs: Path) -> dict[str, float]:
    """Candidate id -> smallest distance in score to the first hit (of the first: to the second)."""
    found: dict[str, float] = {}
    for _, hits in _hits(runs):
        near = hits[:DEPTH]
        for place, hit in enumerate(near):
            rival = near[0] if place else (near[1] if len(near) > 1 else None)
            distance = abs(hit.score - rival.score) if rival else math.inf
            found[hit.did] = min(found.get(hit.did, math.inf), distance)
    return found
