"""What a store keeps: four kinds of record, the columns they are sealed in, and how they are found.

::

    text      a generated text, once per key; the earliest of a key counts
    link      which key an item (or pair) uses under a recipe, and the verdict; the latest counts
    fail      why an item (or pair) failed under a recipe; the latest counts
    picture   the hash of a picture that was read; the earliest counts

A text may belong to an item or to a pair, such as a candidate rewritten for one query. What it
belongs to is named by one string: the item's id, or :func:`pair_id`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from augment.records import Enrichment, Sampling

Kind = Literal["text", "link", "fail", "picture"]

#: Kind of record -> its folder in a store.
FOLDERS: Mapping[Kind, str] = {
    "text": "texts",
    "link": "links",
    "fail": "failures",
    "picture": "pictures",
}

_SEPARATOR = "\x1f"  # stands in no id: it is a control character made for this


def pair_id(query_id: str, candidate_id: str) -> str:
    """What a text of a query and a candidate together is found by, as an item's is by its id."""
    return f"{query_id}{_SEPARATOR}{candidate_id}"


class Failure(NamedTuple):
    """An item that got no text; ``reason`` starts with a short class, then ``:`` and details.

    ``key`` is that of the request, where one could be made.
    """

    item_id: str
    image: str | None
    reason: str
    key: str = ""


def reason_class(reason: str) -> str:
    """The short class that the reason of a failure or a refusal starts with."""
    return reason.partition(":")[0]


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
    """Which text an item uses, since when, how its prompt was chosen, and the verdict on it."""

    key: str
    at: int
    route: str
    judged: Judged

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Link:
        """The link of a row."""
        mark, shown, rejected, checks = (row.get(name) or "" for name in VERDICT)
        verdict = Judged(mark, shown, rejected, checks)
        return cls(row["key"], row["at"], row.get("route") or "", verdict)

    def judged_since(self, mended: Mended) -> bool:
        """Whether the verdict is younger than the text that a retry made, which then is in it."""
        return bool(self.judged.mark) and mended.at <= self.at


#: Columns of a verdict, in the order of :class:`Judged`.
VERDICT = ("judged", "shown", "rejected", "checks")


class Mended(NamedTuple):
    """An accepted text that a retry made, and when."""

    at: int
    key: str


def code(name: str) -> bytes:
    """Sixteen bytes that stand for a key, an item, a pair or a picture."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def name_of(kind: Kind, record: Mapping[str, Any]) -> str:
    """What a record is found by."""
    return str(record[{"text": "key", "picture": "picture"}.get(kind, "item")])


_STRING = pa.large_string()


_COLUMNS: Mapping[Kind, Sequence[tuple[str, Any]]] = {
    # What is not a string or a number becomes JSON.
    "text": [(f.name, pa.int64() if f.type == "int" else _STRING) for f in fields(Enrichment)],
    "link": [(name, _STRING) for name in ("item", "key", "route", *VERDICT)],
    "fail": [(name, _STRING) for name in ("item", "image", "reason", "key")],
    "picture": [("sha256", pa.string())],
}

#: Kind -> columns. Every row has its :func:`code`, by which it is found, and ``at``, the time of
#: the record in nanoseconds since 1970.
SCHEMAS: Mapping[Kind, Any] = {
    kind: pa.schema([("code", pa.binary(16)), ("at", pa.int64()), *columns])
    for kind, columns in _COLUMNS.items()
}

#: Of an Enrichment: fields that are stored as JSON.
_STRUCTURED = tuple(f.name for f in fields(Enrichment) if f.type not in ("int", "str", "Finish"))


def flat(text: Enrichment) -> dict[str, Any]:
    """A text as plain values: the columns of its row."""
    row = {f.name: getattr(text, f.name) for f in fields(Enrichment)}
    for name in _STRUCTURED:
        value = row[name]
        plain = vars(value) if isinstance(value, Sampling) else value
        row[name] = json.dumps(
            dict(plain) if isinstance(plain, Mapping) else plain, sort_keys=True, ensure_ascii=False
        )
    return row


def enrichment(row: Mapping[str, Any]) -> Enrichment:
    """The text of a row.

    Raises:
        KeyError, TypeError, ValueError: if it is not the row of a text.
    """
    values = {}
    for field in fields(Enrichment):
        value = row.get(field.name)
        if value is None:
            if field.default is MISSING and field.default_factory is MISSING:
                raise KeyError(field.name)
            continue
        values[field.name] = json.loads(value) if field.name in _STRUCTURED else value
    values["sampling"] = Sampling(**values.get("sampling", {}))
    return Enrichment(**values)


def batch(kind: Kind, records: Sequence[Mapping[str, Any]]) -> Any:
    """Records of logs as an Arrow batch.

    What a log has accepted can be sealed: a number that no column holds becomes the largest that
    one does, and what is no string its JSON.
    """
    arrays = []
    for field in SCHEMAS[kind]:
        if field.name == "code":
            values: list[Any] = [code(name_of(kind, record)) for record in records]
        else:
            values = [record.get(field.name) for record in records]
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            arrays.append(pa.array([_fitted(value, field.type) for value in values], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMAS[kind])


def _fitted(value: Any, kind: Any) -> Any:
    """The value that stands for one that a column cannot hold."""
    if value is None:
        return None
    if pa.types.is_integer(kind):
        try:
            return max(min(int(value), (1 << 63) - 1), -(1 << 63))
        except (OverflowError, TypeError, ValueError):
            return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
