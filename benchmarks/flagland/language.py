"""What is said about flags: the canonical description and its parser, human wordings, requests.

The canonical description (:func:`describe`) is what the small VLM is taught to write, and
:func:`parse` reads it back into facts, so that a generated text can be scored. Human wordings
(:func:`human_description`) use other words and another order; they are what queries and passages
say, so that matching them is not string equality.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from benchmarks.flagland.edits import Edit
from benchmarks.flagland.grammar import (
    COLOUR_NAMES,
    NUMBERS,
    PLACE_WORDS,
    PLURALS,
    SHAPES,
    WORDS,
    Charge,
    Fact,
    Flag,
    charge_words,
)

#: Fact of an encyclopaedia entry -> ways to ask for it; ``{ref}`` is who is asked about.
QUESTIONS: dict[str, list[str]] = WORDS["questions"]
#: What points at a picture.
REFERENCES: list[str] = WORDS["references"]


def tidy(text: str) -> str:
    """``an`` before the one colour that begins with a vowel."""
    return re.sub(r"\ba (?=orange\b)", "an ", text)


def _listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _field_words(flag: Flag) -> str:
    first, last = flag.colours[0], flag.colours[-1]
    if flag.layout == "plain":
        return f"a plain {first} field"
    if flag.layout in ("horizontal", "vertical"):
        return f"{flag.layout} bands of {_listing(flag.colours)}"
    if flag.layout in ("rising", "falling"):
        return f"a {flag.layout} diagonal with {first} above and {last} below"
    if flag.layout == "quarters":
        return f"quarters of {first} and {last}"
    edging = f" edged {flag.edging}" if flag.edging else ""
    return f"a {last} {WORDS['crosses'][flag.layout]}{edging} on {first}"


def describe(flag: Flag) -> str:
    """The canonical description, lower case, all facts in one fixed order.

    Example: ``horizontal bands of red, white and blue, the middle one wide, a green triangle at
    the hoist, one large yellow star in the centre``.
    """
    parts = [_field_words(flag)]
    if flag.proportion != "equal":
        parts.append(WORDS["proportions"][flag.proportion])
    if flag.triangle:
        parts.append(f"a {flag.triangle} triangle at the hoist")
    if flag.canton:
        parts.append(f"a {flag.canton} canton")
    if flag.border:
        parts.append(f"a {flag.border} border")
    parts += [charge_words(charge) for charge in flag.charges]
    return tidy(", ".join(parts))


def caption(flag: Flag) -> str:
    """The dense description as a sentence: what the VLM writes about a picture."""
    return f"A flag with {describe(flag)}."


def recalled(name: str, flag: Flag) -> str:
    """What somebody knows who is asked for the flag of a country."""
    return f"The country is {name}. Its flag has {describe(flag)}."


_C = "|".join(sorted(COLOUR_NAMES, key=len, reverse=True))
_LIST = rf"(?:(?:{_C}), )*(?:{_C})(?: and (?:{_C}))?"
_SINGULARS: dict[str, str] = {**{p: s for s, p in PLURALS.items()}, **{s: s for s in SHAPES}}
_PLACES = {words: place for place, words in PLACE_WORDS.items()}
_BANDS = re.compile(rf"\b(horizontal|vertical) bands of ({_LIST})")
_DIAGONAL = re.compile(rf"\b(rising|falling) diagonal with ({_C}) above and ({_C}) below")
_QUARTERS = re.compile(rf"\bquarters of ({_C}) and ({_C})")
_PLAIN = re.compile(rf"\bplain ({_C}) field")
_CROSS = re.compile(rf"\b({_C}) (cross|Nordic cross|saltire)(?: edged ({_C}))? on ({_C})")
_PART = re.compile(rf"\ban? ({_C}) (triangle|canton|border)\b")
_CHARGE = re.compile(
    rf"\b({'|'.join(NUMBERS[1:])}) (?:(small|large) )?({_C}) ({'|'.join(_SINGULARS)}) "
    rf"({'|'.join(_PLACES)})"
)


def _parse_field(text: str) -> list[Fact]:
    def colours(*names: str) -> list[Fact]:
        return [("field colour", f"{i}:{name}") for i, name in enumerate(names)]

    if match := _BANDS.search(text):
        return [("layout", match[1]), *colours(*re.findall(_C, match[2]))]
    if match := _DIAGONAL.search(text):
        return [("layout", match[1]), *colours(match[2], match[3])]
    if match := _QUARTERS.search(text):
        return [("layout", "quarters"), *colours(match[1], match[2])]
    if match := _CROSS.search(text):
        names = {words: layout for layout, words in WORDS["crosses"].items()}
        edging = [("edging", match[3])] if match[3] else []
        return [("layout", names[match[2]]), *colours(match[4], match[1]), *edging]
    if match := _PLAIN.search(text):
        return [("layout", "plain"), *colours(match[1])]
    return []


def parse(text: str) -> frozenset[Fact]:
    """The facts that a text in the canonical wording states; what it cannot read, it leaves out."""
    found = _parse_field(text)
    for proportion, words in WORDS["proportions"].items():
        if proportion != "equal" and words in text:
            found.append(("proportion", proportion))
    found += [(part, colour) for colour, part in _PART.findall(text)]
    for i, (number, size, colour, noun, place) in enumerate(_CHARGE.findall(text)):
        found += [
            ("charge shape", f"{i}:{_SINGULARS[noun]}"),
            ("charge colour", f"{i}:{colour}"),
            ("charge count", f"{i}:{NUMBERS.index(number)}"),
            ("charge place", f"{i}:{_PLACES[place]}"),
        ]
        if size:
            found.append(("charge size", f"{i}:{size}"))
    return frozenset(found)


# -- human wordings ---------------------------------------------------------------------------


def _say(rng: random.Random, colour: str) -> str:
    return str(rng.choice(WORDS["colours"][colour]))


def _human_bands(rng: random.Random, flag: Flag) -> str:
    colours = [_say(rng, colour) for colour in flag.colours]
    if flag.layout == "horizontal":
        form = rng.choice(("{n} stripes, {over}", "horizontal stripes in {list}", "{over}"))
        joined = " over ".join(colours)
    else:
        form = rng.choice(("{n} upright stripes, {over}", "vertical stripes in {list}"))
        joined = ", then ".join(colours)
    text = form.format(n=NUMBERS[len(colours)], over=joined, list=_listing(colours))
    if flag.proportion != "equal":
        text += f" {rng.choice(WORDS['human_proportions'][flag.proportion])}"
    return text


def _human_field(rng: random.Random, flag: Flag) -> str:
    if flag.layout in ("horizontal", "vertical"):
        return _human_bands(rng, flag)
    first, last = _say(rng, flag.colours[0]), _say(rng, flag.colours[-1])
    if flag.layout == "plain":
        return rng.choice((f"all {first}", f"a single {first} ground", f"a {first} cloth"))
    if flag.layout == "quarters":
        return rng.choice((f"four quarters, {first} and {last}", f"quartered {first} and {last}"))
    if flag.layout in ("rising", "falling"):
        way = "up to the right" if flag.layout == "rising" else "down to the right"
        return f"split slantwise {way}, {first} upper part, {last} lower part"
    cross = {
        "cross": ("upright cross", "centred cross"),
        "nordic": ("Scandinavian cross", "off-centre cross"),
        "saltire": ("diagonal cross", "saltire"),
    }[flag.layout]
    edging = f" outlined in {_say(rng, flag.edging)}" if flag.edging else ""
    return f"a {last} {rng.choice(cross)}{edging} on a {first} ground"


def _human_charge(rng: random.Random, charge: Charge) -> str:
    singular, plural = rng.choice(WORDS["nouns"][charge.shape])
    colour, where = _say(rng, charge.colour), rng.choice(WORDS["places"][charge.place])
    if charge.count > 1:
        return f"{NUMBERS[charge.count]} {colour} {plural} {where}"
    big, little = rng.choice(("big", "large")), rng.choice(("little", "small"))
    size = big if charge.size == "large" else little
    return f"a {size} {colour} {singular} {where}"


def human_description(rng: random.Random, flag: Flag) -> str:
    """All facts in one of many human wordings: synonyms, another order, no fixed form."""
    parts = []
    if flag.triangle:
        parts.append(f"a {_say(rng, flag.triangle)} triangle at the pole")
    if flag.canton:
        parts.append(f"a {_say(rng, flag.canton)} box in the upper left")
    if flag.border:
        parts.append(f"a {_say(rng, flag.border)} {rng.choice(('frame', 'edge all round'))}")
    parts += [_human_charge(rng, charge) for charge in flag.charges]
    rng.shuffle(parts)
    field = _human_field(rng, flag)
    if not parts:
        return tidy(field)
    if flag.charges and rng.random() < 0.3:
        return tidy(f"{_listing(parts)} on {field}")
    return tidy(f"{field} with {_listing(parts)}")


# -- modification requests --------------------------------------------------------------------


def _field_part(flag: Flag, index: int) -> str:
    if flag.layout in ("horizontal", "vertical"):
        return f"{('first', 'second', 'third', 'fourth', 'fifth')[index]} band"
    if flag.layout in ("rising", "falling"):
        return ("upper part", "lower part")[index]
    if flag.layout == "quarters":
        return ("first and last quarter", "second and third quarter")[index]
    if flag.layout == "plain":
        return "field"
    return ("field", WORDS["crosses"][flag.layout])[index]


def constraint(flag: Flag, edit: Edit) -> str:
    """The request reduced to what the wanted picture must show (the rewrite without picture)."""
    if edit.kind == "field colour":
        return f"{edit.after} {_field_part(flag, int(edit.part))} instead of {edit.before}"
    if edit.kind == "part colour":
        return f"{edit.after} {edit.part} instead of {edit.before}"
    if edit.kind == "proportion":
        return str(WORDS["proportion_requests"][edit.after])
    if edit.kind == "add":
        return tidy(f"a {edit.after} {edit.part}")
    if edit.kind == "remove":
        return f"no {edit.before} {edit.part}" if edit.part == "border" else f"no {edit.before}"
    return f"{edit.after} instead of {edit.before}"


def modification_request(rng: random.Random, flag: Flag, edit: Edit) -> str:
    """A human-sounding request that turns ``flag`` into its twin by ``edit``."""
    before, after, frame = edit.before, edit.after, "instead"
    if edit.kind == "field colour":
        part = _field_part(flag, int(edit.part))
        before, after = f"a {before} {part}", f"a {after} {part}"
    elif edit.kind == "part colour":
        before, after = f"a {before} {edit.part}", f"a {after} {edit.part}"
    elif edit.kind == "proportion":
        frame, after = "proportion", WORDS["proportion_requests"][edit.after]
    elif edit.kind in ("add", "remove"):
        frame = edit.kind
        if edit.part == "border":
            before, after = f"the {before} border", f"a {after} border"
    return tidy(rng.choice(WORDS["frames"][frame]).format(before=before, after=after))


# -- questions --------------------------------------------------------------------------------


def question(rng: random.Random, fact: str, reference: str) -> tuple[str, str]:
    """A question for a fact about ``reference``; also its frame with ``{ref}`` left open."""
    frame = rng.choice(QUESTIONS[fact])
    return frame.format(ref=reference), frame


def resolved(frame: str, flag: Flag) -> str:
    """The question as it stands alone: the reference replaced by what the picture shows."""
    return frame.format(ref=f"the country whose flag has {describe(flag)}")
