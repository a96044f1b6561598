"""The writing side of a store: one log, its sealing, and what ended writers left."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from augment.errors import StoreWriteError
from augment.files import write_text
from augment.store import wal
from augment.store.contents import FORMAT, Contents
from augment.store.evidence import Death
from augment.store.segments import FOLDERS, KINDS, Kind, write

#: A log with this many records is sealed, so that opening reads few lines.
SEAL_ROWS = 100_000

#: Logs of ended writers are sealed once they hold this many records together.
SEAL_LEFT = 2_000

#: So many of them are sealed even if they hold less.
MANY_LOGS = 64

_LOG = logging.getLogger(__name__)


@final
class Writer:
    """Appends records to a log of its own, and to the contents in memory.

    Nothing is written before the first record.

    Args:
        contents: of the store.
        sync_seconds: see :data:`augment.store.SYNC_SECONDS`.
        seal_rows: see :data:`SEAL_ROWS`.
    """

    def __init__(self, contents: Contents, sync_seconds: float, seal_rows: int) -> None:
        self._contents = contents
        self._folder = contents.folder
        self._sync_seconds = sync_seconds
        self._seal_rows = seal_rows
        self._wal: wal.Wal | None = None
        self._in_flight: dict[str, None] = {}
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Errors of the system within are those of a store that cannot be written."""
        try:
            yield
        except OSError as error:
            raise StoreWriteError(
                f"{self._folder}: cannot write the store: {error}; everything before is saved,"
                " run the same command again when this is mended"
            ) from error

    def begin_folder(self) -> None:
        """Make the folder of the store."""
        if not (self._folder / "store.json").exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / "store.json", json.dumps({"format": FORMAT}) + "\n")

    def write(self, record: dict[str, Any]) -> None:
        """Save a record, with the time if it has none."""
        with self._lock, self.writing():
            record.setdefault("at", wal.stamp())
            line = wal.encode(record)
            self._append(line)
            # As it will be read again: a lone surrogate is a question mark then.
            self._contents.take((b"?" in line and wal.decode(line)) or record)
            if self._wal is not None and self._wal.rows >= self._seal_rows:
                self._rotate()

    def settled(self, key: str) -> None:
        """Note that a key is not in the engine any more."""
        self._in_flight.pop(key, None)

    def starting(self, keys: Sequence[str]) -> None:
        """See :meth:`augment.store.Store.starting`."""
        with self._lock:
            self._in_flight.update(dict.fromkeys(keys))
            self.write({"kind": "try", "keys": list(keys)})

    def calm(self) -> None:
        """See :meth:`augment.store.Store.calm`."""
        with self._lock:
            if self._in_flight:
                self._in_flight.clear()
                self.write({"kind": "calm"})

    def _append(self, line: bytes) -> None:
        if self._wal is None:
            self.begin_folder()
            self._wal = wal.Wal(self._folder / "wal", self._sync_seconds)
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
        texts = self._contents.rows("text")
        sealed: dict[tuple[Kind, str], list[dict[str, Any]]] = {}
        for path in logs:
            for record in self._contents.read(path, note=False):
                if record["kind"] == "died" and any(key not in texts for key in record["keys"]):
                    self._append(wal.encode(record))  # it must outlive the log
                kind = record.pop("kind")
                if kind in KINDS:
                    sealed.setdefault((kind, record.pop("recipe", "")), []).append(record)
        for (kind, recipe), records in sealed.items():
            folder = self._folder / FOLDERS[kind] / recipe
            self._contents.rows(kind, recipe).seal(
                write(folder, logs[0].stem, kind, records), records
            )
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
        paths = [path for path in sorted(self._folder.glob("wal/*.jsonl")) if path != own]
        claimed = [ended for path in paths if (ended := wal.Ended.claim(path))]
        try:
            with self._lock, self.writing():
                self._take_over(claimed, seen)
        finally:
            for ended in claimed:
                ended.close()

    def _take_over(self, claimed: Sequence[wal.Ended], seen: Collection[int]) -> None:
        rows = 0
        for ended in claimed:
            name = ended.path.name
            records = self._contents.read(ended.path, note=False)
            rows += len(records)
            settled = {r["key"] for r in records if r["kind"] in ("text", "fail")}
            left = _tried(records) - settled
            if left and name not in self._contents.deaths:
                at = max(r["at"] for r in records)
                self._contents.deaths[name] = Death(name, left, wal.writer_pid(name) in seen, at)
                self._save_death(self._contents.deaths[name])
        if rows < min(SEAL_LEFT, self._seal_rows) and len(claimed) < MANY_LOGS:
            return
        for ended in claimed:
            self._seal([ended.path])

    def _save_death(self, death: Death) -> None:
        record = {"kind": "died", "source": death.source, "keys": sorted(death.keys)}
        self._append(wal.encode({**record, "seen": death.seen, "at": death.at}))

    def close(self) -> None:
        """Sync, seal if there is much, and close. The store may be read and written on.

        Raises:
            StoreWriteError: if the last records cannot be brought to the disk.
        """
        with self._lock, self.writing():
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


def _tried(records: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Keys that entered the engine and were not taken back when it came to rest."""
    tried: set[str] = set()
    for record in records:
        if record["kind"] == "calm":
            tried.clear()
        elif record["kind"] == "try":
            tried.update(record["keys"])
    return frozenset(tried)
