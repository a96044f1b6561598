"""The grammar of flags: scene graphs, facts, near-twins.

A :class:`Flag` is the whole truth about a picture. Its :meth:`Flag.facts` are what a description
is scored against. Two flags with the same facts look the same but for shade and proportion.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import pairwise
from typing import Any, Literal

import yaml

#: Wordings by what they say.
WORDS: dict[str, Any] = yaml.safe_load(
    resources.files("benchmarks.flagland").joinpath("words.yml").read_text(encoding="utf-8")
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 30, 38),
    "maroon": (112, 16, 34),
    "orange": (240, 128, 20),
    "yellow": (250, 212, 30),
    "green": (14, 128, 62),
    "light blue": (112, 184, 232),
    "blue": (18, 62, 152),
    "purple": (122, 40, 146),
    "black": (22, 22, 24),
    "white": (250, 250, 248),
}
COLOUR_NAMES = tuple(COLOURS)

Layout = Literal[
    "plain", "horizontal", "vertical", "rising", "falling", "cross", "nordic", "saltire", "quarters"
]
Proportion = Literal["equal", "middle wide", "middle narrow", "first wide"]
Shape = Literal["star", "crescent", "disc", "ring", "sun", "diamond"]
Size = Literal["small", "large"]
Place = Literal["canton", "triangle", "hoist", "centre", "fly"]

LAYOUTS: tuple[Layout, ...] = (
    "plain", "horizontal", "vertical", "rising", "falling", "cross", "nordic", "saltire",
    "quarters",
)  # fmt: skip
LAYOUT_WEIGHTS = (12, 30, 16, 5, 5, 8, 9, 8, 7)
SHAPES: tuple[Shape, ...] = ("star", "crescent", "disc", "ring", "sun", "diamond")
#: Canonical order of charge groups, from hoist to fly; at most one group per place.
PLACES: tuple[Place, ...] = ("canton", "triangle", "hoist", "centre", "fly")
MAX_COUNT = 5

#: The kinds of fact, the rows of every score table.
FACT_TYPES = (
    "layout", "field colour", "proportion", "edging", "triangle", "canton", "border",
    "charge shape", "charge colour", "charge count", "charge size", "charge place",
)  # fmt: skip

Fact = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Charge:
    """A group of equal charges. ``size`` is told apart only for a single charge."""

    shape: Shape
    colour: str
    count: int
    size: Size
    place: Place


@dataclass(frozen=True, slots=True)
class Flag:
    """Scene graph of one flag.

    Attributes:
        layout: how the field is divided.
        colours: field colours in reading order (top to bottom, hoist to fly); for crosses and
            saltires the field, then the cross; for quarters the first and the second quarter.
        proportion: widths of the bands.
        edging: colour of the thin line between a cross or saltire and its field.
        triangle: colour of the triangle at the hoist.
        canton: colour of the upper hoist corner.
        border: colour of the border.
        charges: groups of charges in the order of :data:`PLACES`.
    """

    layout: Layout
    colours: tuple[str, ...]
    proportion: Proportion = "equal"
    edging: str | None = None
    triangle: str | None = None
    canton: str | None = None
    border: str | None = None
    charges: tuple[Charge, ...] = ()

    def facts(self) -> frozenset[Fact]:
        """Everything a full description says, as (type, value) pairs."""
        found: list[Fact] = [("layout", self.layout)]
        found += [("field colour", f"{i}:{colour}") for i, colour in enumerate(self.colours)]
        if self.proportion != "equal":
            found.append(("proportion", self.proportion))
        for kind in ("edging", "triangle", "canton", "border"):
            colour = getattr(self, kind)
            if colour is not None:
                found.append((kind, colour))
        for i, charge in enumerate(self.charges):
            found += [
                ("charge shape", f"{i}:{charge.shape}"),
                ("charge colour", f"{i}:{charge.colour}"),
                ("charge count", f"{i}:{charge.count}"),
                ("charge place", f"{i}:{charge.place}"),
            ]
            if charge.count == 1:
                found.append(("charge size", f"{i}:{charge.size}"))
        return frozenset(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form, kept beside every picture."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Flag:
        """Inverse of :meth:`to_dict`."""
        charges = tuple(Charge(**charge) for charge in data["charges"])
        return Flag(**{**data, "colours": tuple(data["colours"]), "charges": charges})


def random_colour(rng: random.Random, taken: set[str]) -> str:
    """A colour's name that is not among ``taken``."""
    return rng.choice([name for name in COLOUR_NAMES if name not in taken])


def _band_colours(rng: random.Random, count: int) -> tuple[str, ...]:
    """Neighbours differ; outer bands of three or more often repeat, as in real flags."""
    colours: list[str] = []
    for i in range(count):
        if i >= 2 and rng.random() < 0.3 and colours[i - 2] != colours[i - 1]:
            colours.append(colours[i - 2])
        else:
            colours.append(random_colour(rng, {colours[-1]} if colours else set()))
    return tuple(colours)


def _bands(rng: random.Random, layout: Layout) -> Flag:
    counts, weights = ((2, 3, 4, 5), (26, 52, 10, 12))
    if layout == "vertical":
        counts, weights = ((2, 3, 4, 5), (34, 56, 10, 0))
    count = rng.choices(counts, weights)[0]
    proportion: Proportion = "equal"
    if count == 3 and rng.random() < 0.4:
        proportion = rng.choice(("middle wide", "middle narrow"))
    elif count == 2 and rng.random() < 0.3:
        proportion = "first wide"
    return Flag(layout, _band_colours(rng, count), proportion)


def _field(rng: random.Random) -> Flag:
    layout = rng.choices(LAYOUTS, LAYOUT_WEIGHTS)[0]
    if layout == "plain":
        return Flag(layout, (random_colour(rng, set()),))
    if layout in ("horizontal", "vertical"):
        return _bands(rng, layout)
    first = random_colour(rng, set())
    flag = Flag(layout, (first, random_colour(rng, {first})))
    if layout in ("cross", "nordic", "saltire") and rng.random() < 0.4:
        flag = replace(flag, edging=random_colour(rng, set(flag.colours)))
    return flag


def _parts(rng: random.Random, flag: Flag) -> Flag:
    """Triangle, canton or border, where they do not hide each other or the field."""
    roll = rng.random()
    used = set(flag.colours)
    if flag.layout in ("plain", "horizontal") and roll < 0.22:
        flag = replace(flag, triangle=random_colour(rng, used))
    elif flag.layout in ("plain", "horizontal") and roll < 0.46:
        flag = replace(flag, canton=random_colour(rng, used))
    if flag.triangle is None and flag.canton is None:
        chance = 0.35 if flag.layout == "plain" else 0.1
        if rng.random() < chance:
            flag = replace(flag, border=random_colour(rng, used | {flag.edging or ""}))
    return flag


def open_places(flag: Flag) -> tuple[Place, ...]:
    """Where charges may stand without hiding a part of the flag."""
    if flag.layout in ("cross", "saltire", "nordic"):
        return ()
    if flag.canton is not None:
        return ("canton", "centre", "fly")
    if flag.triangle is not None:
        return ("triangle", "centre", "fly")
    return ("hoist", "centre", "fly")


def ground(flag: Flag, place: Place) -> set[str]:
    """Colours that a charge at ``place`` must differ from to be seen."""
    if place == "canton":
        return {flag.canton or ""}
    if place == "triangle":
        return {flag.triangle or ""}
    return {*flag.colours, flag.canton or "", flag.triangle or "", flag.border or ""}


def _charge(rng: random.Random, flag: Flag, place: Place) -> Charge:
    count = rng.choices((1, 2, 3, 4, 5), (50, 13, 15, 11, 11))[0]
    size: Size = "small"
    if count == 1 and place not in ("canton", "triangle"):
        size = rng.choice(("small", "large"))
    colour = random_colour(rng, ground(flag, place))
    return Charge(rng.choice(SHAPES), colour, count, size, place)


def _clashes(first: Place, second: Place) -> bool:
    return {first, second} in ({"hoist", "centre"}, {"centre", "fly"})


def _charges(rng: random.Random, flag: Flag) -> Flag:
    places = list(open_places(flag))
    wanted = rng.choices((0, 1, 2), (22, 58, 20))[0]
    if flag.layout == "plain" and flag.border is None and flag.canton is None:
        wanted = max(wanted, 1)
    rng.shuffle(places)
    chosen: list[Place] = []
    for place in places:
        if len(chosen) < wanted and not any(_clashes(place, other) for other in chosen):
            chosen.append(place)
    chosen.sort(key=PLACES.index)
    return replace(flag, charges=tuple(_charge(rng, flag, place) for place in chosen))


def random_flag(rng: random.Random) -> Flag:
    """Draw one flag from the grammar."""
    return _charges(rng, _parts(rng, _field(rng)))


def is_valid(flag: Flag) -> bool:
    """Whether every part can be seen: neighbours differ in colour, charges from their ground."""
    colours = flag.colours
    if any(a == b for a, b in pairwise(colours)):
        return False
    parts = [flag.edging, flag.triangle, flag.canton, flag.border]
    if any(part is not None and part in colours for part in parts):
        return False
    return all(charge.colour not in ground(flag, charge.place) for charge in flag.charges)


NUMBERS = ("zero", "one", "two", "three", "four", "five")
PLURALS: dict[Shape, str] = WORDS["plurals"]
PLACE_WORDS: dict[Place, str] = WORDS["charge_places"]


def charge_words(charge: Charge) -> str:
    """The canonical phrase for a group, such as ``one large yellow star in the centre``."""
    number = NUMBERS[charge.count]
    noun: str = charge.shape if charge.count == 1 else PLURALS[charge.shape]
    size = f"{charge.size} " if charge.count == 1 else ""
    return f"{number} {size}{charge.colour} {noun} {PLACE_WORDS[charge.place]}"
