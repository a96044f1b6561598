"""Which text an item uses, what was found of it, and why an item has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Failure(NamedTuple):
    """An item that got no text; ``reason`` starts with a short class, then ``:`` and details.

    ``key`` is that of the request, where one could be made.
    """

    item_id: str
    image: str | None
    reason: str
    key: str = ""


class Judged(NamedTuple):
    """A verdict on the text of one item.

    Attributes:
        mark: of the limits it was made under; empty if none was made.
        shown: key of the text that it is about, where that is one that a retry made.
        rejected: why it is refused; empty when accepted.
        checks: scores as JSON, where they differ from those of the text; else empty.
    """

    mark: str = ""
    shown: str = ""
    rejected: str = ""
    checks: str = ""


#: No verdict.
UNJUDGED = Judged()


class Link(NamedTuple):
    """Which text an item uses, and what was found of it; the fields of :class:`Judged` besides."""

    key: str
    at: int
    route: str
    judged: str
    shown: str
    rejected: str
    checks: str


class Mended(NamedTuple):
    """An accepted text that a retry made, and when."""

    at: int
    key: str


def as_link(row: Mapping[str, Any]) -> Link:
    """The link of a row; columns that an older store lacks are empty."""
    found = (row.get(name) or "" for name in ("route", "judged", "shown", "rejected", "checks"))
    return Link(row["key"], row["at"], *found)
