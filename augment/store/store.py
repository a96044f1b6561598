"""The store of generated text. See the package for its layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, final

from augment.records import Enrichment, Side
from augment.store import runs, wal
from augment.store.contents import Contents
from augment.store.evidence import Suspects, suspects
from augment.store.keys import Recipe
from augment.store.links import UNJUDGED, Failure, Judged, Link, Mended, as_link
from augment.store.rows import Rows
from augment.store.runs import RunRecord, Scope
from augment.store.segments import SCHEMAS, Kind, enrichment, flat, name_of
from augment.store.texts import Texts
from augment.store.writer import SEAL_ROWS, Writer

_LOG = logging.getLogger(__name__)


@final
class Store:
    """Generated texts of one folder.

    The folder is created by the first write. Opening reads the logs that are not sealed yet; of
    sealed records, codes are read when first needed and texts on demand. A store sees what was
    there when it was opened, and what it writes itself.

    Args:
        folder: where the store lives.
        sync_seconds: see :data:`augment.store.SYNC_SECONDS`.
        seal_rows: see :data:`SEAL_ROWS`.

    Raises:
        StoreError: if the folder is there and cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        sync_seconds: float = wal.SYNC_SECONDS,
        seal_rows: int = SEAL_ROWS,
    ) -> None:
        self.folder = Path(folder)
        self._settings = (sync_seconds, seal_rows)
        self._contents = Contents(self.folder)
        self._writer = Writer(self._contents, sync_seconds, seal_rows)
        for where in self.damaged:
            _LOG.warning("%s: unreadable record; its text will be generated again", where)

    @property
    def damaged(self) -> list[str]:
        """``file:line`` of lines in the middle of a log that cannot be read.

        Their texts count as absent and are generated again.
        """
        return self._contents.damaged

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, *self._settings)

    # Reading

    def rows(self, kind: Kind, recipe: str = "") -> Rows:
        """All records of a kind; links and failures by recipe.

        Raises:
            OSError: if the store cannot be read.
        """
        return self._contents.rows(kind, recipe)

    def __len__(self) -> int:
        return len(self.rows("text"))

    def __iter__(self) -> Iterator[Enrichment]:
        return (enrichment(row) for row in self.rows("text").scan())

    def __contains__(self, key: str) -> bool:
        return key in self.rows("text")

    def get(self, key: str) -> Enrichment | None:
        """The text of a key, or None."""
        row = self.rows("text").get(key)
        return None if row is None else enrichment(row)

    def shown(self, link: Link) -> Enrichment | None:
        """The text of an item as it was judged for it, or the one that a retry made since."""
        found = self.get(link.shown or link.key)
        if found is None:
            return None
        if link.judged:
            checks = json.loads(link.checks) if link.checks else found.checks
            found = replace(found, rejected=link.rejected, checks=checks)
        if not found.rejected:
            return found
        mended = self.mended(link.key)
        if mended is None or (link.judged and mended.at <= link.at):
            return found
        return self.get(mended.key)

    def mended(self, key: str) -> Mended | None:
        """The earliest accepted text that a retry made in the place of this key's, or None."""
        return self._contents.mended(key)

    def key_of(self, recipe: str, item_id: str) -> str | None:
        """The key that an item uses under a recipe, or None."""
        link = self.linked(recipe, item_id)
        return None if link is None else link.key

    def linked(self, recipe: str, item_id: str) -> Link | None:
        """Which text an item uses under a recipe, or None."""
        row = self.rows("link", recipe).get(item_id)
        return None if row is None else as_link(row)

    def texts(self, side: Side, recipe: str | None = None) -> Texts:
        """Item id -> generated text under a recipe, read on demand.

        Args:
            side: query or corpus.
            recipe: an id; None as in :meth:`recipe`.

        Raises:
            StoreError: if no such recipe ran here for this side, or several could be meant.
        """
        return Texts(self, self.recipe(side, recipe))

    def failures(self, side: Side, recipe: str | None = None) -> Mapping[str, Failure]:
        """Item id -> why it has no text, for items that failed and have not been mended since.

        Raises:
            StoreError: as :meth:`texts`.
        """
        name = self.recipe(side, recipe).id
        found = (Failure(row["item"], row["image"], row["reason"], row.get("key") or "")
                 for row in self.rows("fail", name).scan())  # fmt: skip
        return {failure.item_id: failure for failure in found if self.failed(name, failure.item_id)}

    def failed(self, recipe: str, item_id: str) -> bool:
        """Whether an item failed under a recipe and has not been mended since."""
        failed_at = self.rows("fail", recipe).at(item_id)
        linked_at = self.rows("link", recipe).at(item_id)
        return failed_at is not None and (linked_at is None or linked_at < failed_at)

    def failure(self, recipe: str, item_id: str) -> Failure | None:
        """Why an item has no text under a recipe, or None."""
        if not self.failed(recipe, item_id):
            return None
        row = self.rows("fail", recipe).get(item_id)
        return None if row is None else Failure(item_id, row["image"], row["reason"], row["key"])

    def recipe(self, side: Side, recipe: str | None = None) -> Recipe:
        """A recipe that ran here.

        Args:
            side: query or corpus.
            recipe: an id; None takes the chosen one (:meth:`choose`), else the only one, else the
                only one that was run to the end of its input. The last one is never guessed.

        Raises:
            StoreError: if there is none, or several could be meant; lists them.
        """
        return runs.load_recipe(self.folder, side, recipe or runs.meant(self.folder, side))

    def recipes(self, side: Side) -> list[Recipe]:
        """All recipes of a side, by id."""
        ids = runs.recipe_ids(self.folder, side)
        return [runs.load_recipe(self.folder, side, name) for name in ids]

    def complete(self, side: Side) -> set[str]:
        """Ids of the recipes that were run to the end of their input."""
        return runs.complete_recipes(self.folder, side)

    def checks(self, side: Side, recipe: str) -> list[Mapping[str, Any]]:
        """What the texts of a recipe may have been judged under, as runs remember it."""
        return runs.checks_in_force(self.folder, side, recipe)

    def runs(self) -> list[RunRecord]:
        """All runs, the earliest first."""
        return list(runs.load_runs(self.folder))

    def picture(self, name: str) -> str | None:
        """SHA-256 of a picture that was read before, or None."""
        row = self.rows("picture").get(name)
        return None if row is None else str(row["sha256"])

    # Writing

    def append(self, text: Enrichment) -> None:
        """Save a text. A key that is known already keeps its text, and nothing is written.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        if text.key not in self:
            self._writer.write({"kind": "text", **flat(text)})
        self._writer.settled(text.key)

    def link(
        self, recipe: str, item_id: str, key: str, route: str = "", judged: Judged = UNJUDGED
    ) -> None:
        """Save that an item uses a key under a recipe; nothing is written if it is known.

        Args:
            recipe: id of the recipe.
            item_id: the item.
            key: key of its text.
            route: how its prompt was chosen, for people.
            judged: the verdict on its text.
        """
        mark, shown, rejected, checks = judged
        known = self.linked(recipe, item_id)
        same = known is not None and known.key == key and not self.failed(recipe, item_id)
        if same and known and (not mark or known[3:] == judged):
            return
        record = {"kind": "link", "recipe": recipe, "item": item_id, "key": key, "route": route}
        if mark:
            verdict = {"judged": mark, "shown": shown, "rejected": rejected, "checks": checks}
            record |= {name: value for name, value in verdict.items() if value}
        self._writer.write(record)

    def fail(self, recipe: str, failure: Failure) -> None:
        """Save that an item failed under a recipe, and why."""
        self._writer.settled(failure.key)
        item, image, reason, key = failure
        record = {"kind": "fail", "recipe": recipe, "item": item, "image": image}
        self._writer.write({**record, "reason": reason, "key": key})

    def save_picture(self, name: str, sha256: str) -> None:
        """Remember a picture's hash.

        Args:
            name: stands for the file and its state (see :mod:`augment.data.images`).
            sha256: in hex.
        """
        self._writer.write({"kind": "picture", "picture": name, "sha256": sha256})

    def put(self, kind: Kind, recipe: str, row: Mapping[str, Any]) -> bool:
        """Save a record of another store as it is, unless it would not count here.

        Args:
            kind: of the record.
            recipe: id of its recipe, for links and failures.
            row: as :meth:`augment.store.rows.Rows.scan` gives it.

        Returns:
            Whether it was saved.
        """
        rows = self.rows(kind, recipe)
        at = rows.at(name_of(kind, row))
        if at is not None and (at <= row["at"] if kind == "text" else at >= row["at"]):
            return False
        columns = {name: row.get(name) for name in SCHEMAS[kind].names if "code" not in name}
        self._writer.write({"kind": kind, **columns, **({"recipe": recipe} if recipe else {})})
        return True

    def starting(self, keys: Sequence[str]) -> None:
        """Save that these keys enter the engine now, in case one of them kills it."""
        self._writer.starting(keys)

    def calm(self) -> None:
        """Save that nothing is in the engine any more, whatever became of it."""
        self._writer.calm()

    def save_recipe(self, recipe: Recipe) -> None:
        """Save a recipe.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        with self._writer.writing():
            self._writer.begin_folder()
            runs.save_recipe(self.folder, recipe)

    def begin(self, recipe: Recipe, scope: Scope) -> RunRecord:
        """Save a recipe and that a run of it starts.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        self.save_recipe(recipe)
        run = runs.start(recipe, scope)
        with self._writer.writing():
            runs.save_run(self.folder, run)
        return run

    def finish(self, run: RunRecord, counts: Mapping[str, Any]) -> None:
        """Save how a run ended.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        with self._writer.writing():
            runs.save_run(self.folder, runs.end(run, counts))

    def choose(self, side: Side, recipe: str) -> None:
        """Make a recipe the one that is meant when none is named.

        Raises:
            StoreError: if there is no such recipe, or the choice cannot be written.
        """
        runs.choose(self.folder, side, recipe)

    def adopt(self, seen: Collection[int] = ()) -> None:
        """Take over what writers of this host left when they ended.

        What was in the engine when they died is noted; their logs are sealed once they hold much.

        Args:
            seen: processes that the supervising process saw die.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        self._writer.adopt(seen)

    def suspects(self, recipe: str) -> Suspects:
        """Which keys may have killed the engine; see :mod:`augment.store.evidence`.

        Args:
            recipe: id of a recipe; keys that failed under it since count as settled.
        """
        if not self._contents.deaths:
            return Suspects()
        failed = {row["key"]: row["at"] for row in self.rows("fail", recipe).scan("key", "at")}
        return suspects(
            self._contents.deaths.values(), lambda key, at: key in self or failed.get(key, -1) > at
        )

    def close(self) -> None:
        """Sync, seal if there is much, and close. The store may be read and written on.

        Raises:
            StoreWriteError: if the last records cannot be brought to the disk.
        """
        self._writer.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
