"""Views: what an encoder sees of an item. Rendered at read time; no published field changes.

========== ==================================================================================
raw        the published text
append     the published text, a newline, the generated text (RAR's default for candidates)
replace    the generated text; the published one where there is none
========== ==================================================================================

Where a text is absent, failed or was rejected by a check, every view falls back to the published
text. The texts of several recipes (``A+B``: what was seen and what was read) are shown as one:
those that are there and accepted, on lines of their own, in the order named. A mark
(:data:`MARKS`) may stand before a text and say what the item is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, final

from augment.checks import said
from augment.checks.lengths import LENGTHS, Length, derive
from augment.errors import DataError
from augment.files import digest
from augment.records import Enrichment, Item, Modality, Side
from augment.store import Store, runs

VIEWS: tuple[str, ...] = ("raw", "append", "replace")
Mark = Literal["none", "short", "words"]
#: What an item is, before its text: nothing, M-BEIR's code, or words as instructions ask for it.
MARKS: Mapping[Mark, Mapping[Modality, str]] = {
    "none": {},
    "short": {"text": "[text]", "image": "[image]", "image,text": "[image,text]"},
    "words": {
        "text": "This is a text.",
        "image": "This is a picture.",
        "image,text": "This is a picture with its text.",
    },
}


def render(text: str | None, generated: str | None, view: str) -> str | None:
    """One text out of the published and the generated one.

    Args:
        text: as published, None or empty if there is none.
        generated: accepted generated text, None or empty if there is none.
        view: see the module.

    Raises:
        ValueError: if the view is unknown.
    """
    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}; choose one of {', '.join(VIEWS)}")
    if view == "raw" or not generated:
        return text
    if view == "append" and text and text.strip():
        return f"{text}\n{generated}"
    return generated


@final
@dataclass(frozen=True, eq=False)
class Joined(Mapping[str, Enrichment]):
    """Item id -> its accepted texts under several recipes as one, line by line; read on demand.

    Provenance is that of the first of them; where all were rejected, so is the text.
    """

    parts: Sequence[Mapping[str, Enrichment]]

    def __getitem__(self, item_id: str) -> Enrichment:
        """The texts of an item as one."""
        found = [one for part in self.parts if (one := part.get(item_id)) is not None]
        shown = [one for one in found if one.text and not one.rejected] or found[:1]
        if not shown:
            raise KeyError(item_id)
        lengths: dict[str, str] = {
            length: "\n".join(one.lengths.get(length) or derive(one.text, length) for one in shown)
            for length in LENGTHS
        }
        return replace(shown[0], text="\n".join(one.text for one in shown), lengths=lengths)

    def __iter__(self) -> Iterator[str]:
        """Ids of items that have a text."""
        return iter(dict.fromkeys(chain.from_iterable(self.parts)))

    def __len__(self) -> int:
        """How many items have a text."""
        return sum(1 for _ in self)


@final
@dataclass(frozen=True, eq=False)
class TextView:
    """The texts of one side as an encoder sees them. Made by :func:`open_view`.

    Attributes:
        side: query or corpus.
        view: see the module.
        recipe: how the generated texts were made, JSON-serialisable; empty for raw. Of several
            recipes their ids as one and, as ``joined``, each.
        length: which length of a generated text is shown (see :mod:`augment.checks.lengths`).
        checks: what generated texts were judged under, where it differs from
            :data:`augment.checks.UNSAID`: refused texts are not shown. Several, where the
            texts may have been judged under several.
        mark: what stands before each text.
    """

    side: Side
    view: str
    recipe: Mapping[str, object]
    _texts: Mapping[str, Enrichment]
    length: Length = "dense"
    checks: Sequence[Mapping[str, Any]] = ()
    mark: Mark = "none"

    def other(self, view: str, length: Length = "dense") -> TextView:
        """The same generated texts in another view; raw forgets them."""
        if view == "raw":
            return TextView(self.side, view, {}, {}, mark=self.mark)
        return TextView(self.side, view, self.recipe, self._texts, length, self.checks, self.mark)

    @property
    def recipes(self) -> Sequence[Mapping[str, Any]]:
        """How each of the texts shown was made; none for raw."""
        told: Any = self.recipe.get("joined") or [self.recipe]
        return [one for one in told if one]

    @property
    def name(self) -> str:
        """View and fingerprint, as checkpoints remember them."""
        return f"{self.view}:{self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over view, recipe, length, checks and mark; of raw, no store."""
        shown: dict[str, object] = {"view": self.view, "recipe": self.recipe.get("id", "")}
        if self.length != "dense":
            shown["length"] = self.length
        if self.checks:
            shown["checks"] = self.checks
        if self.mark != "none":
            shown["mark"] = MARKS[self.mark]
        return digest(shown)[:12]

    def text(self, item: Item) -> str | None:
        """What the encoder sees of the item's text."""
        return self.marked(item, render(item.text, self.generated(item.id), self.view))

    def marked(self, item: Item, text: str | None) -> str | None:
        """A text of the item behind the view's mark; without a text, nothing."""
        mark = MARKS[self.mark].get(item.modality)
        return f"{mark} {text}" if mark and text and text.strip() else text

    def generated(self, item_id: str) -> str | None:
        """The generated text at the view's length; None if it is absent or was rejected."""
        found = self._texts.get(item_id)
        if found is None or found.rejected:
            return None
        if self.length == "dense":
            return found.text
        return found.lengths.get(self.length) or derive(found.text, self.length)

    def enrichment(self, item_id: str) -> Enrichment | None:
        """The generated text behind an item with its provenance, rejected ones included."""
        return self._texts.get(item_id)


def judged_under(store: Store, side: Side, recipe: str) -> Sequence[Mapping[str, Any]]:
    """What a view remembers of the checks of its texts: see :class:`TextView`.

    Of several recipes (``A+B``), what it remembers of each that differs.
    """
    parts = recipe.split("+")
    if len(parts) > 1:
        told = ((part, judged_under(store, side, part)) for part in parts)
        return [{"recipe": part, "checks": checks} for part, checks in told if checks]
    found = {
        digest(one): one for one in map(said, runs.checks_in_force(store.folder, side, recipe))
    }
    several = [found[name] for name in sorted(found)]
    return [] if several == [{}] else several


def open_view(
    side: Side,
    view: str = "raw",
    store: Path | None = None,
    recipe: str | None = None,
    length: Length = "dense",
    mark: Mark = "none",
) -> TextView:
    """Open a view.

    Args:
        side: query or corpus.
        view: see the module.
        store: folder of the generated texts; not needed (and not opened) for raw.
        recipe: id of a recipe in the store; None takes the chosen one, else the only one, else the
            only one that was run to the end of its input. ``A+B`` shows the texts of two together.
        length: ``short``, ``dense`` or ``sentences``. Where the prompt asked for one length only,
            short is its first sentence and sentences are its sentences line by line.
        mark: what stands before each text, see :data:`MARKS`.

    Raises:
        DataError: if the view, length or mark is unknown, or needs a store and none is given.
        StoreError: if the store or the recipe cannot be read, or several recipes could be meant.
    """
    for name, given, known in (
        ("view", view, VIEWS), ("length", length, LENGTHS), ("mark", mark, MARKS),
    ):  # fmt: skip
        if given not in known:
            raise DataError(f"unknown {name} {given!r}; choose one of {', '.join(known)}")
    if view == "raw":
        return TextView(side, view, {}, {}, mark=mark)
    if store is None:
        raise DataError(f"the {side} view {view!r} shows generated text: name the store it is in")
    opened = Store(store)
    made, texts = open_texts(opened, side, recipe)
    checks = judged_under(opened, side, str(made["id"]))
    return TextView(side, view, made, texts, length, checks, mark)


#: Columns of a table of traces: what a query is to write before its vector, empty for nothing; the
#: answer in it; why its text was refused, in which case it writes nothing.
_TRACE = {"id": str, "task": int, "writes": bool, "text": str, "answer": str, "refused": str,
          "model": str, "prompt": str}  # fmt: skip


def trace_row(view: TextView, item: Item, task: int | None, asked: bool) -> dict[str, Any]:
    """A query's row in a table of traces.

    Args:
        view: of the texts that are to be written.
        item: the query's.
        task: its code, None where it has none.
        asked: whether it is among those that are to write.
    """
    one = view.enrichment(item.id) if asked else None
    text = "" if one is None else one.text
    told = (item.id, -1 if task is None else task, bool(text and one and not one.rejected), text,
            (one.lengths.get("final", "") if one else ""), one.rejected if one else "",
            one.model if one else "", one.prompt if one else "")  # fmt: skip
    return dict(zip(_TRACE, told, strict=True))


def write_traces(path: Path, recipe: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a split's table, the recipe of its texts in its metadata."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(
        pd.DataFrame(rows, columns=list(_TRACE)).astype(_TRACE), preserve_index=False
    )
    pq.write_table(table.replace_schema_metadata({"recipe": json.dumps(dict(recipe))}), path)


def open_traces(folder: Path) -> TextView:
    """The view of what queries are to write, from the tables of an exported root.

    Raises:
        DataError: if a table cannot be read or is none of these.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts: dict[str, Enrichment] = {}
    recipe: dict[str, Any] = {}
    for path in sorted((folder / "trace").glob("*.parquet")):
        try:
            table = pq.read_table(path, columns=list(_TRACE))
            recipe = dict(json.loads((table.schema.metadata or {})[b"recipe"]))
            kinds = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
            table = table.cast(pa.schema([(name, kinds[kind]) for name, kind in _TRACE.items()]))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"is no table of traces ({error})", str(path)) from error
        for row in table.to_pylist():
            if row["text"]:
                lengths = {"final": row["answer"]} if row["answer"] else {}
                texts[row["id"]] = Enrichment(
                    "", row["id"], row["text"], row["prompt"], row["model"], "",
                    rejected=row["refused"], lengths=lengths,
                )  # fmt: skip
    held = digest(sorted((name, one.text, one.rejected) for name, one in texts.items()))
    return TextView("query", "replace", {**recipe, "id": f"{recipe.get('id')}~{held[:12]}"}, texts)


def open_texts(
    store: Store, side: Side, recipe: str | None
) -> tuple[Mapping[str, object], Mapping[str, Enrichment]]:
    """A recipe, or several (``A+B``), as a view remembers it, and its texts by item id.

    Raises:
        DataError: if a recipe is named twice.
        StoreError: as :func:`open_view`.
    """
    names = recipe.split("+") if recipe else [None]
    if len(set(names)) < len(names):
        raise DataError(f"names a {side} recipe twice: {recipe}; name each once")
    found = [store.recipe(side, name) for name in names]
    texts = [store.texts(side, one.id) for one in found]
    if len(found) == 1:
        return found[0].to_json(), texts[0]
    told = {"id": "+".join(one.id for one in found), "joined": [one.to_json() for one in found]}
    return told, Joined(texts)
