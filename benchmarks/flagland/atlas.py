"""Countries: a name, a flag and the facts that only the name or the flag leads to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.flagland.edits import Edit, twins
from benchmarks.flagland.grammar import WORDS, Flag

_ONSETS: list[str] = WORDS["onsets"].split()
_COUNTRY_ENDINGS: list[str] = WORDS["country_endings"].split()
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "l", "n", "r", "s", "m")


def _word(rng: random.Random, syllables: int) -> str:
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    )


def country_name(rng: random.Random) -> str:
    """A name of two syllables and an ending; about half a million differ."""
    return (_word(rng, 2) + rng.choice(_COUNTRY_ENDINGS)).capitalize()


@dataclass(frozen=True, slots=True)
class Country:
    """One country.

    Attributes:
        index: position in the world, from 0.
        name: unique in the world.
        flag: scene graph of its flag; its facts are unique in the world.
        family: index of the first country of a run of near-twins.
        edit: what made this flag from the flag of country ``index - 1``; None starts a family.
        facts: the keys of :data:`benchmarks.flagland.language.QUESTIONS` and their values.
    """

    index: int
    name: str
    flag: Flag
    family: int
    edit: Edit | None
    facts: dict[str, str] = field(hash=False)


def _facts(rng: random.Random) -> dict[str, str]:
    return {
        "capital": _word(rng, 2).capitalize(),
        "river": _word(rng, 2).capitalize(),
        "mountain": _word(rng, 2).capitalize(),
        "export": rng.choice(WORDS["exports"]),
        "currency": _word(rng, 1) + rng.choice(("o", "a", "ar", "ek")),
        "language": _word(rng, 2).capitalize() + "ish",
        "animal": rng.choice(WORDS["animals"]),
    }


def countries(seed: int, twin_share: float = 0.5) -> Iterator[Country]:
    """An endless stream of countries; the same seed gives the same countries.

    Args:
        seed: of the world.
        twin_share: chance that a flag differs from the one before in a single fact.
    """
    rng = random.Random(f"flagland-{seed}")
    names: set[str] = set()
    family = 0
    for index, (flag, edit) in enumerate(twins(rng, twin_share)):
        family = index if edit is None else family
        name = country_name(rng)
        while name in names:
            name = country_name(rng)
        names.add(name)
        yield Country(index, name, flag, family, edit, _facts(rng))


def geography(country: Country) -> str:
    """The half of the entry about places."""
    facts = country.facts
    return (
        f"The capital of {country.name} is {facts['capital']}. Its longest river is the "
        f"{facts['river']}, its highest mountain Mount {facts['mountain']}."
    )


def economy(country: Country) -> str:
    """The half of the entry about people and goods."""
    facts = country.facts
    return (
        f"{country.name} exports {facts['export']}, pays in {facts['currency']} and speaks "
        f"{facts['language']}. Its national animal is the {facts['animal']}."
    )


#: Which half of the entry answers a question about a fact.
HALVES = {
    "capital": geography,
    "river": geography,
    "mountain": geography,
    "export": economy,
    "currency": economy,
    "language": economy,
    "animal": economy,
}


def entry(country: Country) -> str:
    """The whole encyclopaedia entry; it does not describe the flag."""
    return f"{geography(country)} {economy(country)}"
