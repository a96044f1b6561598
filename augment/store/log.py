"""The write-ahead log: one file per writer, one checked line per record; and what its death tells.

A line is JSON, a tab, the CRC-32 of the JSON in eight hex digits, and a line feed (``cut -f1``
gives the JSON). Each line is handed to the system at once, so a killed process loses nothing it
wrote; a thread syncs the file to the disk every :data:`SYNC_SECONDS`, so a power cut loses no more
than that. A line torn by a crash is the last of its file, and nobody else writes to that file.

The writer holds a lock on its file. A file whose lock is free and that was made on this host is
that of a writer that has ended; files of other hosts are only read, because locks cannot be trusted
on every shared file system.

Before requests enter the engine, a writer logs their keys (a ``try`` record). Keys of a dead writer
that got neither a text nor a failure were in flight: one of them may have killed it. If the
supervising process saw the death (see :mod:`augment.enrichment.supervise`), that is strong
evidence. If nobody saw it, a power cut or a user's kill is more likely, so it counts only when it
happens again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

from augment.files import digest, sync_folder

#: A power cut loses at most this much finished work, in seconds. A killed process loses none.
SYNC_SECONDS = 1.0

#: An item that was alone in the engine at so many deaths is set aside.
SEEN_ALONE = 2
UNSEEN_ALONE = 5

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        number: counted from 1.
        record: what it holds, None if it cannot be read.
        torn: whether it is the unfinished end of a writer that was killed.
    """

    number: int
    record: dict[str, Any] | None
    torn: bool


def encode(record: Mapping[str, Any]) -> bytes:
    """A record as a line. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    text = _ENCODER.encode(record).encode("utf-8", "replace")
    return b"%b\t%08x\n" % (text, zlib.crc32(text))


def decode(line: bytes) -> dict[str, Any] | None:
    """The record of a line, None if the line is torn or rotten."""
    text, _, check = line.rpartition(b"\t")
    if check != b"%08x\n" % zlib.crc32(text):
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) else None


def read(file: BinaryIO) -> Iterator[Line]:
    """The lines of an opened log."""
    for number, line in enumerate(file, start=1):
        yield Line(number, decode(line), not line.endswith(b"\n"))


#: Files that name a machine without a network card: the installation, or else this boot of it.
MACHINE_IDS = ("/etc/machine-id", "/proc/sys/kernel/random/boot_id")


@cache
def host() -> str:
    """This machine's name and hardware address, so that two machines of one name differ."""
    name = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())
    address = uuid.getnode()
    # Where there is none, Python draws one with this bit set, another one in every process.
    for path in MACHINE_IDS if address >> 40 & 1 else ():
        with contextlib.suppress(OSError):
            if machine := Path(path).read_text().strip():  # private, so not told itself
                return f"{name}_{digest(machine)[:12]}"
    return f"{name}_{0 if address >> 40 & 1 else address:012x}"


def writer_pid(name: str) -> int | None:
    """The process that wrote the log of this name, if it ran on this host."""
    place, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if place == host() else None


@final
class Log:
    """A log that is being written, by any number of threads of one process.

    With ``sync_seconds`` 0, every record is synced before going on.

    Raises:
        OSError: if the file cannot be made.
    """

    def __init__(self, folder: Path, sync_seconds: float = SYNC_SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{host()}.{os.getpid()}.{secrets.token_hex(4)}.jsonl"
        self.rows = 0
        self._file = self.path.open("xb", buffering=0)
        with contextlib.suppress(OSError):  # without locks, nobody takes the file for ended
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sync_folder(folder)
        self._wait = sync_seconds
        self._dirty = False
        self._error: OSError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._syncer = threading.Thread(target=self._keep_synced, name="fsync", daemon=True)
        if sync_seconds > 0:
            self._syncer.start()

    def append(self, line: bytes) -> None:
        """Write one record, as :func:`encode` made it.

        Raises:
            OSError: if it cannot be written, or what was written before could not be synced. The
                end of the file may be torn: write on to another file.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            self.rows += 1
            self._dirty = True
        if self._wait <= 0:
            self.sync()

    def sync(self) -> None:
        """Bring everything written so far to the disk."""
        if self._dirty:
            self._dirty = False
            os.fsync(self._file.fileno())

    def _keep_synced(self) -> None:
        try:
            while not self._ended.wait(self._wait):
                self.sync()
        except OSError as error:
            self._error = error

    def close(self) -> None:
        """Sync and release the lock; harmless when repeated.

        Raises:
            OSError: if the last records could not be synced, now or in the background.
        """
        self._ended.set()
        if self._file.closed:
            return
        try:
            if self._syncer.is_alive():  # it may be at the last records, and tells if that fails
                self._syncer.join()
            if self._error is not None:
                raise self._error
            self.sync()
        finally:
            self._file.close()


def claim(path: Path) -> BinaryIO | None:
    """Lock the log of a writer that has ended, so that one process alone deals with it.

    Returns:
        The opened log, to be closed; None if its writer lives or another process deals with it.
    """
    if writer_pid(path.name) is None:
        return None
    # An error: its writer lives, or the file system knows no locks.
    with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
        file = closing.enter_context(path.open("rb"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink > 0:
            closing.pop_all()
            return file
    return None


@final
@dataclass(frozen=True)
class Death:
    """One death of a writer.

    Attributes:
        source: name of its log, so that a death is counted once.
        keys: in flight at that moment.
        seen: whether the supervising process saw it die.
        at: time of its last record.
    """

    source: str
    keys: frozenset[str]
    seen: bool
    at: int


@final
@dataclass(frozen=True)
class Suspects:
    """What the deaths so far say.

    Attributes:
        groups: to be asked in halves, the largest first, each key once.
        aside: keys that died alone too often.
    """

    groups: tuple[frozenset[str], ...] = ()
    aside: frozenset[str] = frozenset()


def suspects(deaths: Iterable[Death], settled: Callable[[str, int], bool]) -> Suspects:
    """Who may have killed the engine.

    Args:
        deaths: all that are known.
        settled: whether a key has a text, or a failure since a time.
    """
    open_: list[Death] = []
    alone: Counter[str] = Counter()
    alone_seen: Counter[str] = Counter()
    for death in deaths:
        keys = frozenset(key for key in death.keys if not settled(key, death.at))
        if keys:
            open_.append(replace(death, keys=keys))
            if len(death.keys) == 1:
                alone.update(keys)
                alone_seen.update(keys if death.seen else ())
    aside = {key for key in alone if alone_seen[key] >= SEEN_ALONE or alone[key] >= UNSEEN_ALONE}
    groups: list[frozenset[str]] = []
    taken = set(aside)
    for death in sorted(open_, key=lambda death: (len(death.keys), death.source)):
        strong = death.seen or any(
            other is not death and death.keys & other.keys for other in open_
        )
        keys = death.keys - taken
        if strong and keys:
            groups.append(keys)
            taken |= keys
    return Suspects(tuple(reversed(groups)), frozenset(aside))


def tried(records: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Keys that entered the engine and were not taken back when it came to rest."""
    entered: set[str] = set()
    for record in records:
        if record["kind"] == "calm":
            entered.clear()
        elif record["kind"] == "try":
            entered.update(record["keys"])
    return frozenset(entered)
