"""Changes of generated text with known rates: wrong facts, missing facts, filler.

Facts here are the words of a text that have rivals: a colour, a number, a shape, a size, a place, a
direction. On Flagland they are the grammar's own (so that a wrong fact is one that the world could
show), elsewhere those of :data:`augment.checks.faithful.RIVALS`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from augment.checks.faithful import RIVALS
from benchmarks.flagland.grammar import COLOUR_NAMES, NUMBERS, PLACE_WORDS, PLURALS

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


class Changed(NamedTuple):
    """A changed text and what was done to it.

    Attributes:
        text: the new text.
        facts: words with rivals in the old one.
        wrong: how many of them were exchanged.
        gone: how many were left out.
    """

    text: str
    facts: int
    wrong: int
    gone: int


def corrupt(
    text: str, random: Random, hallucination: float, omission: float, groups: Groups = FLAGLAND
) -> Changed:
    """Exchange and leave out facts, each on its own with the given chances.

    Args:
        text: generated text.
        random: draws.
        hallucination: chance that a fact is exchanged for a rival.
        omission: chance that it is left out.
        groups: words that exclude each other.

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


def filler(words: int, start: int = 0) -> str:
    """So many words that say nothing, from a place of :data:`FILLER` on, round and round."""
    return " ".join(FILLER[(start + n) % len(FILLER)] for n in range(max(1, words)))
