"""Views: what an encoder sees of an item. Rendered at read time; no published field changes.

========== ==================================================================================
raw        the published text
append     the published text, a newline, the generated text (RAR's default for candidates)
replace    the generated text; the published one where there is none
========== ==================================================================================

Where a text is absent, failed or was rejected by a check, every view falls back to the published
text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from augment.checks import said
from augment.checks.lengths import LENGTHS, Length, derive
from augment.errors import DataError
from augment.files import digest
from augment.records import Enrichment, Item, Side
from augment.store import Store, runs

VIEWS: tuple[str, ...] = ("raw", "append", "replace")


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
class TextView:
    """The texts of one side as an encoder sees them. Made by :func:`open_view`.

    Attributes:
        side: query or corpus.
        view: see the module.
        recipe: how the generated texts were made, JSON-serialisable; empty for raw.
        length: which length of a generated text is shown (see :mod:`augment.checks.lengths`).
        checks: what generated texts were judged under, where it differs from
            :data:`augment.checks.UNSAID`: refused texts are not shown. Several, where the
            texts may have been judged under several.
    """

    side: Side
    view: str
    recipe: Mapping[str, object]
    _texts: Mapping[str, Enrichment]
    length: Length = "dense"
    checks: Sequence[Mapping[str, Any]] = ()

    def other(self, view: str, length: Length = "dense") -> TextView:
        """The same generated texts in another view; raw forgets them."""
        if view == "raw":
            return TextView(self.side, view, {}, {})
        return TextView(self.side, view, self.recipe, self._texts, length, self.checks)

    @property
    def name(self) -> str:
        """View and fingerprint, as checkpoints remember them."""
        return f"{self.view}:{self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over view, recipe, length and checks; that of raw, over no store."""
        shown: dict[str, object] = {"view": self.view, "recipe": self.recipe.get("id", "")}
        if self.length != "dense":
            shown["length"] = self.length
        if self.checks:
            shown["checks"] = self.checks
        return digest(shown)[:12]

    def text(self, item: Item) -> str | None:
        """What the encoder sees of the item's text."""
        return render(item.text, self.generated(item.id), self.view)

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
    """What a view remembers of the checks of its texts: see :class:`TextView`."""
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
) -> TextView:
    """Open a view.

    Args:
        side: query or corpus.
        view: see the module.
        store: folder of the generated texts; not needed (and not opened) for raw.
        recipe: id of a recipe in the store; None takes the chosen one, else the only one, else the
            only one that was run to the end of its input.
        length: ``short``, ``dense`` or ``sentences``. Where the prompt asked for one length only,
            short is its first sentence and sentences are its sentences line by line.

    Raises:
        DataError: if the view or the length is unknown, or needs a store and none is given.
        StoreError: if the store or the recipe cannot be read, or several recipes could be meant.
    """
    if view not in VIEWS:
        raise DataError(f"unknown view {view!r}; choose one of {', '.join(VIEWS)}")
    if length not in LENGTHS:
        raise DataError(f"unknown length {length!r}; choose one of {', '.join(LENGTHS)}")
    if view == "raw":
        return TextView(side, view, {}, {})
    if store is None:
        raise DataError(f"the {side} view {view!r} shows generated text: name the store it is in")
    opened = Store(store)
    found = opened.recipe(side, recipe)
    checks = judged_under(opened, side, found.id)
    return TextView(side, view, found.to_json(), opened.texts(side, found.id), length, checks)
