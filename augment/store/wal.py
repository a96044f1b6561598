"""The write-ahead log: one file per writer, one checked line per record.

A line is JSON, a tab, the CRC-32 of the JSON in eight hex digits, and a line feed (``cut -f1``
gives the JSON). Each line is handed to the system at once, so a killed process loses nothing it
wrote; a thread syncs the file to the disk every :data:`SYNC_SECONDS`, so a power cut loses no more
than that. A line torn by a crash is the last of its file, and nobody else writes to that file.

The writer holds a lock on its file. A file whose lock is free and that was made on this host is
that of a writer that has ended; files of other hosts are only read, because locks cannot be trusted
on every shared file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

#: A power cut loses at most this much finished work, in seconds. A killed process loses none.
SYNC_SECONDS = 1.0


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


@cache
def host() -> str:
    """This machine's name and hardware address, so that two machines of one name differ."""
    name = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())
    return f"{name}_{uuid.getnode():012x}"


def writer_pid(name: str) -> int | None:
    """The process that wrote the log of this name, if it ran on this host."""
    place, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if place == host() else None


@final
class Wal:
    """A log that is being written, by any number of threads of one process.

    Args:
        folder: made if absent.
        sync_seconds: see :data:`SYNC_SECONDS`; 0 syncs every record before going on.

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
        if sync_seconds > 0:
            threading.Thread(target=self._keep_synced, name="fsync", daemon=True).start()

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
        """Bring everything written so far to the disk.

        Raises:
            OSError: if that fails.
        """
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
            OSError: if the last records cannot be synced.
        """
        self._ended.set()
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()


@final
class Ended:
    """The log of a writer that has ended, locked so that one process alone deals with it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file

    @classmethod
    def claim(cls, path: Path) -> Ended | None:
        """The log, or None if its writer lives, or another process deals with it."""
        if writer_pid(path.name) is None:
            return None
        try:
            file = path.open("rb")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink > 0:
                return cls(path, file)
        except OSError:
            pass  # its writer lives, or the file system knows no locks
        file.close()
        return None

    def close(self) -> None:
        """Let go of it."""
        self.file.close()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def stamp() -> int:
    """Nanoseconds since 1970, the time of a record."""
    return time.time_ns()
