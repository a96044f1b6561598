"""What a reader of another format yields, and what it may ask of files that others wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.errors import DataError
from augment.files import read_json, split_fields
from augment.records import Side


@final
@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A candidate or a query, as another format has it.

    Attributes:
        id: any string; blanks are written as ``%20``, because blanks part the columns of runs.
        text: its text, or None.
        image: path of its picture below the folder of pictures, or of the folder of a video's
            frames, or the bytes of a file; or None.
        side: ``corpus`` or ``query``.
        grades: of a query: id of a candidate -> grade; relevant above 0.
        excluded: of a query: candidates that its ranking leaves out by protocol.
        subset: of a query: the candidates of its own list, for scores among these alone.
        pool: data set of the root that it belongs to; empty for the one that the import is called.
        split: of a query: ``train``, ``val`` or ``test``.
        source: what else is known; kept as ``src_content``, a string as it is.
        more: further pictures (:attr:`~augment.data.sources.writing.Bounds.several`).
        box: left, top, right and bottom in pixels of what is cut out of the picture and, with
            black, made square.
    """

    id: str
    text: str | None = None
    image: str | bytes | None = None
    side: Side = "corpus"
    grades: Mapping[str, int] = field(default_factory=dict)
    excluded: Sequence[str] = ()
    subset: Sequence[str] = ()
    pool: str = ""
    split: str = "test"
    source: Mapping[str, Any] | str | None = None
    more: Sequence[str | bytes] = ()
    box: tuple[float, float, float, float] | None = None


class LeftOut(NamedTuple):
    """A row that is no entry: why, and which."""

    reason: str
    where: str


#: What a reader yields.
Entries = Iterator[SourceEntry | LeftOut]


def listed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON file that is a list, each with its place.

    Raises:
        DataError: if it cannot be read or is something else.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("expected a JSON list of objects", str(path))
    return ((f"{path}: entry {number}", row) for number, row in enumerate(rows, start=1))


def text_of(*parts: object) -> str | None:
    """Texts with a blank between them, as BEIR joins title and text; None if there is none."""
    said = (str(part).strip() for part in parts if part is not None)
    return " ".join(part for part in said if part) or None


def ids_in(value: object) -> list[str]:
    """Ids in a cell: a list of them, or a string in which blanks part them."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    return [str(one) for one in (split_fields(str(value or "")) if listed is None else listed)]


def extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """What our own exports say of an entry besides its text and picture."""
    lists = {name: ids_in(row.get(name)) for name in ("excluded", "subset")}
    return {"source": row.get("src_content"), **lists}
