"""The store of generated text, and the texts of one recipe in it; the package has the layout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, final

from augment.errors import StoreError
from augment.files import write_json
from augment.records import Enrichment, Side
from augment.store import log, runs
from augment.store.keys import Recipe
from augment.store.log import Death, Log, Suspects
from augment.store.runs import RunRecord, Scope
from augment.store.schema import (
    FOLDERS,
    SCHEMAS,
    UNJUDGED,
    VERDICT,
    Failure,
    Judged,
    Kind,
    Link,
    Mended,
    enrichment,
    flat,
    name_of,
)
from augment.store.segments import Rows, write

#: A log with this many records is sealed, so that opening reads few lines.
SEAL_ROWS = 100_000

#: Logs of ended writers are sealed once they hold this many records together.
SEAL_LEFT = 2_000

#: So many of them are sealed even if they hold less.
MANY_LOGS = 64

#: Characters that are kept of why an item failed; a server may say anything.
MOST_REASON = 4_000

_LOG = logging.getLogger(__name__)


@final
class Store:
    """Generated texts of one folder.

    The folder is created by the first write. Opening reads the logs that are not sealed yet; of
    sealed records, codes are read when first needed and texts on demand. A store sees what was
    there when it was opened, and what it writes itself; it may be asked from several threads.

    Attributes:
        damaged: ``file:line`` of lines in the middle of a log that cannot be read. Their texts
            count as absent and are generated again.

    Raises:
        StoreError: if the folder is there and cannot be read.
        StoreWriteError: of all that writes, if it cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        sync_seconds: float = log.SYNC_SECONDS,
        seal_rows: int = SEAL_ROWS,
    ) -> None:
        self.folder = Path(folder)
        self.damaged: list[str] = []
        self._settings = (sync_seconds, seal_rows)
        self._rows: dict[tuple[Kind, str], Rows] = {}
        #: Of writers, by the names of their logs.
        self._deaths: dict[str, Death] = {}
        #: Key of a refused text -> the one made in its place; None until it is asked for.
        self._better: dict[str, Mended] | None = None
        self._log: Log | None = None
        #: Keys that are in the engine now.
        self._in_flight: dict[str, None] = {}
        self._lock = threading.RLock()
        try:
            runs.check_folder(self.folder)
            # Logs before segments: what is sealed in between is then seen twice, never missed.
            logs = [self._read(path) for path in sorted(self.folder.glob("wal/*.jsonl"))]
            for records in logs:
                for record in records:
                    self._take(record)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot read the store: {error}") from error
        for where in self.damaged:
            _LOG.warning("%s: unreadable record; its text will be generated again", where)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, *self._settings)

    def _read(self, path: Path, note: bool = True) -> list[dict[str, Any]]:
        """The records of a log; none if it was sealed in the meantime."""
        records = []
        try:
            with path.open("rb") as file:
                for line in log.read(file):
                    if line.record is not None:
                        records.append(line.record)
                    elif not line.torn and note:
                        self.damaged.append(f"{path}:{line.number}")
        except FileNotFoundError:
            return []
        return records

    def _take(self, record: dict[str, Any]) -> None:
        """Take up a record of a log."""
        kind = record.pop("kind")
        if kind in FOLDERS:
            self.rows(kind, record.pop("recipe", "")).put(record)
            if kind == "text" and self._better is not None:
                self._note_retry(record)
        elif kind == "died":
            keys = frozenset(record["keys"])
            death = Death(record["source"], keys, record["seen"], record["at"])
            self._deaths[death.source] = death

    # Reading

    def rows(self, kind: Kind, recipe: str = "") -> Rows:
        """All records of a kind; links and failures by recipe.

        Raises:
            OSError: if the store cannot be read.
        """
        found = self._rows.get((kind, recipe))
        if found is None:
            segments = sorted((self.folder / FOLDERS[kind] / recipe).glob("*.parquet"))
            found = self._rows[kind, recipe] = Rows(kind, segments, self.folder / "cache")
        return found

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

    def link_of(self, recipe: str, owner: str) -> Link | None:
        """Which text an item or a pair uses under a recipe, or None."""
        row = self.rows("link", recipe).get(owner)
        return None if row is None else Link.of(row)

    def mended(self, key: str) -> Mended | None:
        """The earliest accepted text that a retry made in the place of this key's, or None."""
        if self._better is None:
            self._better = {}
            for record in self.rows("text").where("retry_of", "at", "key", "rejected"):
                self._note_retry(record)
        return self._better.get(key)

    def _note_retry(self, record: Mapping[str, Any]) -> None:
        base = record.get("retry_of")
        if base and not record["rejected"] and self._better is not None:
            mended = Mended(record["at"], record["key"])
            self._better[base] = min(self._better.get(base, mended), mended)

    def texts(self, side: Side, recipe: str | None = None) -> Texts:
        """Item id (or :func:`augment.store.pair_id`) -> text under a recipe, read on demand.

        Raises:
            StoreError: if no such recipe ran here for this side, or several could be meant.
        """
        return Texts(self, self.recipe(side, recipe))

    def failures(self, side: Side, recipe: str | None = None) -> Mapping[str, Failure]:
        """Item id -> why it has no text, for items that failed and have not been mended since."""
        name = self.recipe(side, recipe).id
        owners = (row["item"] for row in self.rows("fail", name).scan("item"))
        found = ((owner, self.failure(name, owner)) for owner in owners)
        return {owner: failure for owner, failure in found if failure is not None}

    def failure(self, recipe: str, owner: str) -> Failure | None:
        """Why an item or a pair has no text under a recipe; None if it has not failed since."""
        failed_at = self.rows("fail", recipe).at(owner)
        if failed_at is None:
            return None
        linked_at = self.rows("link", recipe).at(owner)
        row = self.rows("fail", recipe).get(owner)
        if row is None or (linked_at is not None and linked_at >= failed_at):
            return None
        return Failure(owner, row["image"], row["reason"], row["key"])

    def recipe(self, side: Side, recipe: str | None = None) -> Recipe:
        """A recipe that ran here.

        Args:
            side: query or corpus.
            recipe: an id; None takes the chosen one, else the only one, else the only one that was
                run to the end of its input. The last one is never guessed.

        Raises:
            StoreError: if there is none, or several could be meant; lists them.
        """
        return runs.load_recipe(self.folder, side, recipe or runs.meant(self.folder, side))

    def recipes(self, side: Side) -> list[Recipe]:
        """All recipes of a side, by id."""
        ids = runs.recipe_ids(self.folder, side)
        return [runs.load_recipe(self.folder, side, name) for name in ids]

    def picture(self, name: str) -> str | None:
        """SHA-256 of a picture that was read before, or None."""
        row = self.rows("picture").get(name)
        return None if row is None else str(row["sha256"])

    def suspects(self, recipe: str) -> Suspects:
        """Which keys may have killed the engine; see :mod:`augment.store.log`.

        Args:
            recipe: id of a recipe; keys that failed under it since count as settled.
        """
        if not self._deaths:
            return Suspects()
        failed = {row["key"]: row["at"] for row in self.rows("fail", recipe).scan("key", "at")}
        return log.suspects(
            self._deaths.values(), lambda key, at: key in self or failed.get(key, -1) > at
        )

    # Writing

    def append(self, text: Enrichment) -> None:
        """Save a text. A key that is known already keeps its text, and nothing is written."""
        if text.key not in self:
            self._write({"kind": "text", **flat(text)})
        self._in_flight.pop(text.key, None)

    def link(
        self, recipe: str, owner: str, key: str, route: str = "", judged: Judged = UNJUDGED
    ) -> None:
        """Save that an item or a pair uses a key under a recipe; nothing if that is known."""
        known = self.link_of(recipe, owner)
        same = known is not None and known.key == key and judged in (UNJUDGED, known.judged)
        if same and self.failure(recipe, owner) is None:
            return
        mended = self.mended(key)
        at = self._after(recipe, owner, mended.at if mended else 0)
        record = {"kind": "link", "recipe": recipe, "item": owner, "key": key, "route": route}
        verdict = zip(VERDICT, judged if judged.mark else UNJUDGED, strict=True)
        self._write(record | {name: value for name, value in verdict if value} | {"at": at})

    def fail(self, recipe: str, failure: Failure) -> None:
        """Save that an item or a pair failed under a recipe, and why."""
        self._in_flight.pop(failure.key, None)
        owner, image, reason, key = failure
        died = max((one.at for one in self._deaths.values() if key in one.keys), default=0)
        record = {"kind": "fail", "recipe": recipe, "item": owner, "image": image}
        at = self._after(recipe, owner, died)
        self._write({**record, "reason": reason[:MOST_REASON], "key": key, "at": at})

    def _after(self, recipe: str, owner: str, other: int) -> int:
        """Now, or the moment behind what is known of an owner: a clock may have been ahead."""
        known = (self.rows(kind, recipe).at(owner) for kind in ("link", "fail"))
        return max(time.time_ns(), other + 1, *(at + 1 for at in known if at is not None))

    def save_picture(self, name: str, sha256: str) -> None:
        """Remember a picture's hash."""
        self._write({"kind": "picture", "picture": name, "sha256": sha256})

    def put(self, kind: Kind, recipe: str, row: Mapping[str, Any]) -> bool:
        """Save a record of another store as it is, unless it would not count here.

        Returns:
            Whether it was saved.
        """
        rows = self.rows(kind, recipe)
        at = rows.at(name_of(kind, row))
        if at is not None and (at == row["at"] or not rows.wins(row["at"], at)):
            return False
        columns = {name: row.get(name) for name in SCHEMAS[kind].names if name != "code"}
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
        """Save a recipe, unless it is there."""
        path = self.folder / "recipes" / f"{recipe.side}-{recipe.id}.json"
        with runs.writing(self.folder):
            runs.make_folder(self.folder)
            if not path.exists():
                write_json(path, recipe.to_json())

    def begin(self, recipe: Recipe, scope: Scope) -> RunRecord:
        """Save a recipe and that a run of it starts; to be ended by :meth:`finish`."""
        self.save_recipe(recipe)
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        # Later than all others, though a clock may once have been ahead.
        latest = [run.started + 1e-3 for run in runs.load_runs(self.folder)[-1:]]
        run = RunRecord(
            name,
            recipe.side,
            recipe.id,
            scope,
            max([time.time(), *latest]),
            host=log.host(),
            pid=os.getpid(),
        )
        runs.save_run(self.folder, run)
        return run

    def finish(self, run: RunRecord, counts: Mapping[str, Any]) -> None:
        """Save how a run ended."""
        ended = max(time.time(), run.started)
        runs.save_run(self.folder, replace(run, ended=ended, counts=dict(counts)))

    def _write(self, record: dict[str, Any]) -> None:
        """Save a record, with the time if it has none."""
        with self._lock, runs.writing(self.folder):
            record.setdefault("at", time.time_ns())
            line = log.encode(record)
            self._append(line)
            # As it will be read again: a lone surrogate is a question mark then.
            self._take((b"?" in line and log.decode(line)) or record)
            if self._log is not None and self._log.rows >= self._settings[1]:
                self._rotate()

    def _append(self, line: bytes) -> None:
        if self._log is None:
            runs.make_folder(self.folder)
            self._log = Log(self.folder / "wal", self._settings[0])
        try:
            self._log.append(line)
        except OSError:
            # The line may be torn: what follows must not be glued to it.
            broken, self._log = self._log, None
            with contextlib.suppress(OSError):
                broken.close()
            raise

    # Sealing

    def _rotate(self) -> None:
        """Seal the own log and go on with a new one."""
        full, self._log = self._log, None
        if full is None:
            return
        if self._in_flight:
            keys = list(self._in_flight)
            self._append(log.encode({"kind": "try", "keys": keys, "at": time.time_ns()}))
        full.sync()
        self._seal(full.path)
        full.close()

    def _seal(self, path: Path) -> None:
        """Turn a log that nobody else writes to or seals into segments, then remove it."""
        sealed: dict[tuple[Kind, str], list[dict[str, Any]]] = {}
        for record in self._read(path, note=False):
            if record["kind"] == "died" and any(key not in self for key in record["keys"]):
                self._append(log.encode(record))  # it must outlive the log
            kind = record.pop("kind")
            if kind in FOLDERS:
                sealed.setdefault((kind, record.pop("recipe", "")), []).append(record)
        for (kind, recipe), records in sealed.items():
            segment = write(self.folder / FOLDERS[kind] / recipe, path.stem, kind, records)
            self.rows(kind, recipe).seal(segment, records)
        path.unlink()

    def adopt(self, seen: Collection[int] = ()) -> None:
        """Take over what writers of this host left when they ended.

        What was in the engine when they died is noted; their logs are sealed once they hold much.

        ``seen`` are processes that the supervising process saw die.
        """
        own = None if self._log is None else self._log.path
        paths = [path for path in sorted(self.folder.glob("wal/*.jsonl")) if path != own]
        with contextlib.ExitStack() as locks, self._lock, runs.writing(self.folder):
            claimed = [file for path in paths if (file := log.claim(path))]
            for file in claimed:
                locks.callback(file.close)
            rows = sum(self._note_death(file, seen) for file in claimed)
            if rows >= min(SEAL_LEFT, self._settings[1]) or len(claimed) >= MANY_LOGS:
                for file in claimed:
                    self._seal(Path(file.name))

    def _note_death(self, file: BinaryIO, seen: Collection[int]) -> int:
        """Note what was in flight when the writer of a log died; how many records it holds."""
        name = Path(file.name).name
        records = self._read(Path(file.name), note=False)
        settled = {r["key"] for r in records if r["kind"] in ("text", "fail")}
        left = log.tried(records) - settled
        if left and name not in self._deaths:
            death = Death(name, left, log.writer_pid(name) in seen, max(r["at"] for r in records))
            self._deaths[name] = death
            record = {"kind": "died", "source": name, "keys": sorted(left)}
            self._append(log.encode({**record, "seen": death.seen, "at": death.at}))
        return len(records)

    def close(self) -> None:
        """Sync, seal if there is much, and close. The store may be read and written on."""
        with self._lock, runs.writing(self.folder):
            # What a death left in flight is seen in the log by the next process.
            self._close_log(seal=not self._in_flight)
            self._in_flight.clear()
            self._close_log(seal=False)  # the one that sealing may have begun

    def _close_log(self, seal: bool) -> None:
        ended, self._log = self._log, None
        if ended is None:
            return
        with contextlib.closing(ended):
            ended.sync()
            if not seal or ended.rows < min(SEAL_LEFT, self._settings[1]):
                return
            try:
                self._seal(ended.path)
            except OSError as error:
                _LOG.warning("%s: not sealed (%s); nothing is lost", ended.path, error)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@final
class Texts(Mapping[str, Enrichment]):
    """Item id (or :func:`augment.store.pair_id`) -> generated text under one recipe, on demand.

    A text comes with the verdict on it as this item's; a refused text that a retry mended is the
    mended one. Pickles as the store's path.
    """

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self.recipe, self._store = recipe, store
        self._links = store.rows("link", recipe.id)

    def __getitem__(self, owner: str) -> Enrichment:
        row = self._links.get(owner)
        text = None if row is None else self._shown(Link.of(row))
        if text is None:
            raise KeyError(owner)
        return text

    def _shown(self, link: Link) -> Enrichment | None:
        """The text of a link as it was judged, or the one that a retry made since."""
        judged = link.judged
        text = self._store.get(judged.shown or link.key)
        if text is None:
            return None
        if judged.mark:
            checks = json.loads(judged.checks) if judged.checks else text.checks
            text = replace(text, rejected=judged.rejected, checks=checks)
        if not text.rejected:
            return text
        mended = self._store.mended(link.key)
        return text if mended is None or link.judged_since(mended) else self._store.get(mended.key)

    def __contains__(self, owner: object) -> bool:
        row = self._links.get(owner) if isinstance(owner, str) else None
        return row is not None and row["key"] in self._store

    def __iter__(self) -> Iterator[str]:
        for row in self._links.scan("item", "key"):
            if row["key"] in self._store:
                yield row["item"]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, self.recipe)
