"""Static pages: one file, no network, no script; whatever is shown is escaped.

Templates live in ``augment/store/templates``. ``base.html`` has the style, light and dark, and a
content security policy that forbids scripts and requests, should escaping ever fail.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from augment.data.images import open_image
from augment.errors import DataError, ImageError
from augment.files import write_text

#: Longest side of a thumbnail in pixels, and its JPEG quality: about 12 kB each.
THUMBNAIL_SIDE = 360
THUMBNAIL_QUALITY = 78

#: Longer texts are cut on the page, with a note. Generated text is far shorter.
SHOWN_CHARACTERS = 8000

#: Words are marked where at least this share of the generated ones was there before: in a rewrite
#: the new words are the news, in a fresh description every word would be marked.
KEPT_SHARE = 0.3

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")

# Control characters, lone surrogates and marks that turn the direction of what follows.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """A text that can stand on a page: unprintable characters replaced, cut if very long."""
    surplus = len(text) - SHOWN_CHARACTERS
    shown = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text[:SHOWN_CHARACTERS])
    return f"{shown} … and {surplus:,} more characters" if surplus > 0 else shown


def environment() -> Environment:
    """The Jinja environment of all pages: autoescape on, undefined names are errors."""
    made = Environment(
        loader=PackageLoader("augment.store", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    made.filters["number"] = "{:,}".format
    made.filters["percent"] = percent
    return made


def percent(part: int, whole: int) -> str:
    """A share for people: neither 0 nor 100 % unless it is exactly that."""
    if whole == 0:
        return "-"
    if part in (0, whole):
        return "100 %" if part else "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if share > 99.9 else f"{share:.1f} %"


@final
class DataUri(str):
    """Content of a file within the page; never cut, unlike other text."""

    __slots__ = ()


def thumbnail(
    root: Path, image: str, expected: str = "", side: int = THUMBNAIL_SIDE
) -> tuple[DataUri | None, str]:
    """A small JPEG of a picture as a data URI, or None and why there is none.

    ``expected`` is the SHA-256 in hex of the picture that is meant; empty for whatever is there.
    """
    try:
        small = open_image(root, image, expected=expected)
    except ImageError as error:
        return None, f"picture {error.reason}"
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return DataUri("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()), ""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of ``templates`` to a file, which appears when it is complete.

    Raises:
        DataError: if the file cannot be written.
    """
    write_text(path, environment().get_template(template).render(values), DataError)


def markdown(template: str, **values: Any) -> Markup:
    """Render a template of Markdown, in which no text that is given can leave its place."""
    made = environment().overlay(
        autoescape=False, finalize=lambda value: inline(value) if type(value) is str else value
    )
    return Markup(made.get_template(template).render(values))  # noqa: S704 - it is no HTML


def inline(text: str) -> str:
    """A text that cannot leave its place in a line of Markdown."""
    return re.sub(r"[`|<>\[\]\s]+", " ", visible(text)).strip()


class Piece(NamedTuple):
    """A stretch of text; ``changed`` if its words are in one of two texts only."""

    text: str
    changed: bool


def compare(published: str | None, generated: str) -> tuple[list[Piece], list[Piece]]:
    """The published and the generated text in pieces; nothing is marked unless it is a rewrite.

    The pieces of each text, joined, are that text.
    """
    before = published or ""
    old, new = ({word.casefold() for word in _WORD.findall(text)} for text in (before, generated))
    if not old or not new or len(old & new) < KEPT_SHARE * len(new):
        return [Piece(before, False)], [Piece(generated, False)]
    return _pieces(before, new), _pieces(generated, old)


def _pieces(text: str, known: set[str]) -> list[Piece]:
    pieces: list[Piece] = []
    done = 0
    for word in _WORD.finditer(text):
        if word.group().casefold() in known:
            continue
        between = text[done : word.start()]
        if pieces and not _WORD.search(between):  # neighbours share one mark
            pieces[-1] = Piece(pieces[-1].text + between + word.group(), True)
        else:
            pieces += [Piece(between, False), Piece(word.group(), True)]
        done = word.end()
    return [piece for piece in [*pieces, Piece(text[done:], False)] if piece.text]
