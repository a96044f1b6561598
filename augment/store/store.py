"""The store of generated text. See the package for its layout."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, final

from augment.atomic import write_text
from augment.errors import StoreError, StoreWriteError
from augment.keys import Recipe
from augment.records import Enrichment, Side
from augment.store import runs, wal
from augment.store.evidence import Death, Suspects, suspects
from augment.store.rows import Rows
from augment.store.runs import RunRecord, Scope
from augment.store.segments import FOLDERS, KINDS, SCHEMAS, Kind, enrichment, flat, name_of, write
from augment.store.texts import Texts

#: A log with this many records is sealed, so that opening reads few lines.
SEAL_ROWS = 100_000

#: Logs of ended writers are sealed once they hold this many records together.
SEAL_LEFT = 2_000

#: So many of them are sealed even if they hold less.
MANY_LOGS = 64

#: Version of the layout.
FORMAT = 2

_LOG = logging.getLogger(__name__)


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

    Attributes:
        damaged: ``file:line`` of lines in the middle of a log that cannot be read. Their texts
            count as absent and are generated again.

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
        self.damaged: list[str] = []
        self._sync_seconds = sync_seconds
        self._seal_rows = seal_rows
        self._rows: dict[tuple[Kind, str], Rows] = {}
        self._deaths: dict[str, Death] = {}
        self._better: dict[str, Mended] | None = None
        self._wal: wal.Wal | None = None
        self._in_flight: dict[str, None] = {}
        self._lock = threading.RLock()
        try:
            self._check_format()
            # Logs before segments: what is sealed in between is then seen twice, never missed.
            logs = [self._read(path) for path in sorted(self.folder.glob("wal/*.jsonl"))]
            for records in logs:
                for record in records:
                    self._take(record)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot read the store: {error}") from error
        for where in self.damaged:
            _LOG.warning("%s: unreadable record; its text will be generated again", where)

    def _check_format(self) -> None:
        try:
            found = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))["format"]
        except FileNotFoundError:
            older = any(self.folder.glob("recipe-*.json"))
            found = 1 if older else FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder}/store.json: cannot be read: {error}") from error
        if found != FORMAT:
            raise StoreError(
                f"{self.folder}: a store of format {found}, this version reads {FORMAT}; make the"
                " texts anew in another folder"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self._sync_seconds, self._seal_rows)

    # Reading

    def _read(self, path: Path, note: bool = True) -> list[dict[str, Any]]:
        """The records of a log; none if it was sealed in the meantime."""
        records = []
        try:
            with path.open("rb") as file:
                for line in wal.read(file):
                    if line.record is not None:
                        records.append(line.record)
                    elif not line.torn and note:
                        self.damaged.append(f"{path}:{line.number}")
        except FileNotFoundError:
            return []
        return records

    def rows(self, kind: Kind, recipe: str = "") -> Rows:
        """All records of a kind; links and failures by recipe.

        Raises:
            OSError: if the store cannot be read.
        """
        found = self._rows.get((kind, recipe))
        if found is None:
            segments = sorted((self.folder / FOLDERS[kind] / recipe).glob("*.parquet"))
            found = Rows(kind, segments, self.folder / "cache")
            self._rows[kind, recipe] = found
        return found

    def _take(self, record: dict[str, Any]) -> None:
        kind = record.pop("kind")
        if kind in KINDS:
            self.rows(kind, record.pop("recipe", "")).put(record)
            if kind == "text" and self._better is not None:
                self._note_retry(record)
        elif kind == "died":
            source = record["source"]
            self._deaths[source] = Death(
                source, frozenset(record["keys"]), record["seen"], record["at"]
            )

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
        return self._retries().get(key)

    def _retries(self) -> dict[str, Mended]:
        """Key of a refused text -> the earliest accepted text in its place."""
        if self._better is None:
            self._better = {}
            for record in self.rows("text").where("retry_of", "at", "key", "rejected"):
                self._note_retry(record)
        return self._better

    def _note_retry(self, record: Mapping[str, Any]) -> None:
        base = record.get("retry_of")
        if base and not record["rejected"] and self._better is not None:
            mended = Mended(record["at"], record["key"])
            self._better[base] = min(self._better.get(base, mended), mended)

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
            self._write({"kind": "text", **flat(text)})
        self._in_flight.pop(text.key, None)

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
        self._write(record)

    def fail(self, recipe: str, failure: Failure) -> None:
        """Save that an item failed under a recipe, and why."""
        self._in_flight.pop(failure.key, None)
        item, image, reason, key = failure
        record = {"kind": "fail", "recipe": recipe, "item": item, "image": image}
        self._write({**record, "reason": reason, "key": key})

    def save_picture(self, name: str, sha256: str) -> None:
        """Remember a picture's hash.

        Args:
            name: stands for the file and its state (see :mod:`augment.pictures`).
            sha256: in hex.
        """
        self._write({"kind": "picture", "picture": name, "sha256": sha256})

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
        self._write({"kind": kind, **columns, **({"recipe": recipe} if recipe else {})})
        return True

    def starting(self, keys: Sequence[str]) -> None:
        """Save that these keys enter the engine now, in case one of them kills it."""
        with self._lock:
            self._in_flight.update(dict.fromkeys(keys))
            self._write({"kind": "try", "keys": list(keys)})

    def calm(self) -> None:
        """Save that nothing is in the engine any more, whatever became of it."""
        with self._lock:
            if self._in_flight:
                self._in_flight.clear()
                self._write({"kind": "calm"})

    def save_recipe(self, recipe: Recipe) -> None:
        """Save a recipe.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        with self._writing():
            self._begin_folder()
            runs.save_recipe(self.folder, recipe)

    def begin(self, recipe: Recipe, scope: Scope) -> RunRecord:
        """Save a recipe and that a run of it starts.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        self.save_recipe(recipe)
        run = runs.start(recipe, scope)
        with self._writing():
            runs.save_run(self.folder, run)
        return run

    def finish(self, run: RunRecord, counts: Mapping[str, Any]) -> None:
        """Save how a run ended.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        with self._writing():
            runs.save_run(self.folder, runs.end(run, counts))

    def choose(self, side: Side, recipe: str) -> None:
        """Make a recipe the one that is meant when none is named.

        Raises:
            StoreError: if there is no such recipe, or the choice cannot be written.
        """
        runs.choose(self.folder, side, recipe)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreWriteError(
                f"{self.folder}: cannot write the store: {error}; everything before is saved,"
                " run the same command again when this is mended"
            ) from error

    def _begin_folder(self) -> None:
        if not (self.folder / "store.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "store.json", json.dumps({"format": FORMAT}) + "\n")

    def _write(self, record: dict[str, Any]) -> None:
        with self._lock, self._writing():
            record.setdefault("at", wal.stamp())
            line = wal.encode(record)
            self._append(line)
            # As it will be read again: a lone surrogate is a question mark then.
            self._take((b"?" in line and wal.decode(line)) or record)
            if self._wal is not None and self._wal.rows >= self._seal_rows:
                self._rotate()

    def _append(self, line: bytes) -> None:
        if self._wal is None:
            self._begin_folder()
            self._wal = wal.Wal(self.folder / "wal", self._sync_seconds)
        try:
            self._wal.append(line)
        except OSError:
            # The line may be torn: what follows must not be glued to it.
            broken, self._wal = self._wal, None
            with contextlib.suppress(OSError):
                broken.close()
            raise

    def _rotate(self) -> None:
        """Seal the own log and go on with a new one."""
        full, self._wal = self._wal, None
        if full is None:
            return
        if self._in_flight:
            keys = list(self._in_flight)
            self._append(wal.encode({"kind": "try", "keys": keys, "at": wal.stamp()}))
        full.sync()
        self._seal([full.path])
        full.close()

    def _seal(self, logs: Sequence[Path]) -> None:
        """Turn logs that nobody else writes to or seals into segments, then remove them."""
        sealed: dict[tuple[Kind, str], list[dict[str, Any]]] = {}
        for path in logs:
            for record in self._read(path, note=False):
                if record["kind"] == "died" and any(key not in self for key in record["keys"]):
                    self._append(wal.encode(record))  # it must outlive the log
                kind = record.pop("kind")
                if kind in KINDS:
                    sealed.setdefault((kind, record.pop("recipe", "")), []).append(record)
        for (kind, recipe), records in sealed.items():
            folder = self.folder / FOLDERS[kind] / recipe
            self.rows(kind, recipe).seal(write(folder, logs[0].stem, kind, records), records)
        for path in logs:
            path.unlink()

    def adopt(self, seen: Collection[int] = ()) -> None:
        """Take over what writers of this host left when they ended.

        What was in the engine when they died is noted; their logs are sealed once they hold much.

        Args:
            seen: processes that the supervising process saw die.

        Raises:
            StoreWriteError: if it cannot be written.
        """
        own = None if self._wal is None else self._wal.path
        paths = [path for path in sorted(self.folder.glob("wal/*.jsonl")) if path != own]
        claimed = [ended for path in paths if (ended := wal.Ended.claim(path))]
        try:
            with self._lock, self._writing():
                self._take_over(claimed, seen)
        finally:
            for ended in claimed:
                ended.close()

    def _take_over(self, claimed: Sequence[wal.Ended], seen: Collection[int]) -> None:
        rows = 0
        for ended in claimed:
            name = ended.path.name
            records = self._read(ended.path, note=False)
            rows += len(records)
            settled = {r["key"] for r in records if r["kind"] in ("text", "fail")}
            left = _tried(records) - settled
            if left and name not in self._deaths:
                at = max(r["at"] for r in records)
                self._deaths[name] = Death(name, left, wal.writer_pid(name) in seen, at)
                self._save_death(self._deaths[name])
        if rows < min(SEAL_LEFT, self._seal_rows) and len(claimed) < MANY_LOGS:
            return
        for ended in claimed:
            self._seal([ended.path])

    def _save_death(self, death: Death) -> None:
        record = {"kind": "died", "source": death.source, "keys": sorted(death.keys)}
        self._append(wal.encode({**record, "seen": death.seen, "at": death.at}))

    def suspects(self, recipe: str) -> Suspects:
        """Which keys may have killed the engine; see :mod:`augment.store.evidence`.

        Args:
            recipe: id of a recipe; keys that failed under it since count as settled.
        """
        if not self._deaths:
            return Suspects()
        failed = {row["key"]: row["at"] for row in self.rows("fail", recipe).scan("key", "at")}
        return suspects(
            self._deaths.values(), lambda key, at: key in self or failed.get(key, -1) > at
        )

    def close(self) -> None:
        """Sync, seal if there is much, and close. The store may be read and written on.

        Raises:
            StoreWriteError: if the last records cannot be brought to the disk.
        """
        with self._lock, self._writing():
            # What a death left in flight is seen in the log by the next process.
            self._close_log(seal=not self._in_flight)
            self._in_flight.clear()
            self._close_log(seal=False)  # the one that sealing may have begun

    def _close_log(self, seal: bool) -> None:
        ended, self._wal = self._wal, None
        if ended is None:
            return
        try:
            ended.sync()
            if seal and ended.rows >= min(SEAL_LEFT, self._seal_rows):
                self._seal_quietly(ended.path)
        finally:
            ended.close()

    def _seal_quietly(self, path: Path) -> None:
        try:
            self._seal([path])
        except OSError as error:
            _LOG.warning("%s: not sealed (%s); nothing is lost, it stays a log", path, error)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def as_link(row: Mapping[str, Any]) -> Link:
    """The link of a row; columns that an older store lacks are empty."""
    found = (row.get(name) or "" for name in ("route", "judged", "shown", "rejected", "checks"))
    return Link(row["key"], row["at"], *found)


def _tried(records: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Keys that entered the engine and were not taken back when it came to rest."""
    tried: set[str] = set()
    for record in records:
        if record["kind"] == "calm":
            tried.clear()
        elif record["kind"] == "try":
            tried.update(record["keys"])
    return frozenset(tried)
