"""One-fact edits of flags, and the streams of flags with near-twins that they make."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.flagland.grammar import (
    MAX_COUNT,
    SHAPES,
    Fact,
    Flag,
    Proportion,
    charge_words,
    is_valid,
    open_places,
    random_colour,
    random_flag,
)


@dataclass(frozen=True, slots=True)
class Edit:
    """One changed fact: what it was, what it becomes.

    Attributes:
        kind: the fact type that changes, or ``add``/``remove`` of a ``part``.
        part: what it is about: ``band 2``, ``cross``, ``border``, ``charge 0`` ...
        before: value in the first flag; empty when something is added.
        after: value in the second flag; empty when something is removed.
    """

    kind: str
    part: str
    before: str
    after: str


Change = tuple[Edit, Flag]


def _edit_field(rng: random.Random, flag: Flag) -> Change:
    i = rng.randrange(len(flag.colours))
    new = random_colour(rng, {flag.colours[i]})
    colours = (*flag.colours[:i], new, *flag.colours[i + 1 :])
    return Edit("field colour", str(i), flag.colours[i], new), replace(flag, colours=colours)


def _edit_part(rng: random.Random, flag: Flag) -> Change | None:
    parts = [p for p in ("edging", "triangle", "canton", "border") if getattr(flag, p) is not None]
    if not parts:
        return None
    part = rng.choice(parts)
    before = getattr(flag, part)
    new = random_colour(rng, {before})
    twin = Flag.from_dict({**flag.to_dict(), part: new})
    return Edit("part colour", part, before, new), twin


def _edit_border(rng: random.Random, flag: Flag) -> Change | None:
    if flag.border is not None:
        return Edit("remove", "border", flag.border, ""), replace(flag, border=None)
    if flag.canton is not None or flag.triangle is not None or flag.edging is not None:
        return None
    new = random_colour(rng, set(flag.colours))
    return Edit("add", "border", "", new), replace(flag, border=new)


def _edit_charge(rng: random.Random, flag: Flag) -> Change | None:
    if not flag.charges:
        return None
    i = rng.randrange(len(flag.charges))
    charge = flag.charges[i]
    kinds = ["charge colour", "charge shape", "charge count", "remove"]
    if charge.count == 1 and charge.place not in ("canton", "triangle"):
        kinds += ["charge size", "charge place"]
    kind = rng.choice(kinds)
    if kind == "charge colour":
        new = replace(charge, colour=random_colour(rng, {charge.colour}))
    elif kind == "charge shape":
        new = replace(charge, shape=rng.choice([s for s in SHAPES if s != charge.shape]))
    elif kind == "charge count":
        choice = [n for n in range(1, MAX_COUNT + 1) if n != charge.count]
        new = replace(charge, count=rng.choice(choice), size="small")
    elif kind == "charge size":
        new = replace(charge, size="large" if charge.size == "small" else "small")
    elif kind == "charge place":
        free = [p for p in open_places(flag) if p not in ("canton", "triangle", charge.place)]
        new = replace(charge, place=rng.choice(free)) if free else charge
    else:
        rest = (*flag.charges[:i], *flag.charges[i + 1 :])
        return Edit("remove", "charge", charge_words(charge), ""), replace(flag, charges=rest)
    if new == charge or (len(flag.charges) > 1 and new.place != charge.place):
        return None
    charges = (*flag.charges[:i], new, *flag.charges[i + 1 :])
    return Edit(kind, "charge", charge_words(charge), charge_words(new)), replace(
        flag, charges=charges
    )


def _edit_proportion(rng: random.Random, flag: Flag) -> Change | None:
    if flag.layout not in ("horizontal", "vertical") or len(flag.colours) not in (2, 3):
        return None
    options: tuple[Proportion, ...] = ("equal", "first wide")
    if len(flag.colours) == 3:
        options = ("equal", "middle wide", "middle narrow")
    new = rng.choice([option for option in options if option != flag.proportion])
    return Edit("proportion", "bands", flag.proportion, new), replace(flag, proportion=new)


_EDITS: tuple[tuple[Callable[[random.Random, Flag], Change | None], int], ...] = (
    (_edit_field, 30),
    (_edit_part, 20),
    (_edit_border, 10),
    (_edit_charge, 48),
    (_edit_proportion, 10),
)


def random_edit(rng: random.Random, flag: Flag) -> Change:
    """Change one fact, so that the result is another valid flag: a near-twin."""
    edits, weights = [edit for edit, _ in _EDITS], [weight for _, weight in _EDITS]
    while True:
        change = rng.choices(edits, weights)[0](rng, flag)
        if change is not None and is_valid(change[1]) and change[1].facts() != flag.facts():
            return change


def twins(rng: random.Random, twin_share: float = 0.5) -> Iterator[tuple[Flag, Edit | None]]:
    """An endless stream of flags with distinct facts, many of them near-twins of the one before.

    Args:
        rng: source of randomness.
        twin_share: chance that a flag is a one-fact edit of the flag before it.

    Yields:
        The flag, and the edit that made it from the flag before; None starts a new family.
    """
    seen: set[frozenset[Fact]] = set()
    last: Flag | None = None
    while True:
        edit: Edit | None = None
        if last is not None and rng.random() < twin_share:
            edit, flag = random_edit(rng, last)
        else:
            flag = random_flag(rng)
        if is_valid(flag) and flag.facts() not in seen:
            seen.add(flag.facts())
            last = flag
            yield flag, edit


def families(rng: random.Random, twin_share: float = 0.5) -> Iterator[Flag]:
    """The flags of :func:`twins` alone."""
    return (flag for flag, _ in twins(rng, twin_share))
