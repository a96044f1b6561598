"""Where the tables of a source lie, when they are trusted, and how they come to be.

Each source has one folder, ``.cache/<name>.<kind>/`` beside it (or below a folder that the caller
names; or, where the source's folder is marked read-only, below the user's cache folder)::

    source.json            size, mtime_ns and SHA-256 of the source that was read
    rows-<sha>.arrow       all rows
    ids-<sha>.arrow        sorted ids

A table is trusted while the source's size and modification time are the recorded ones. If either
differs, the source is hashed: equal bytes only refresh the record, other bytes rebuild. A change
that keeps size *and* modification time to the nanosecond is not noticed; delete the folder then.

Every file is written under a temporary name, synchronised and renamed, ``source.json`` last. Two
processes that build at once do the work twice and end with the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from augment.data.columnar.build import VERSION, Kind, build_index, build_rows
from augment.errors import DataError
from augment.files import opened

_RECORD = "source.json"


@final
@dataclass(frozen=True)
class Entry:
    """The cached files of one source."""

    rows: Path
    ids: Path


@final
@dataclass(frozen=True)
class _Source:
    """What ``source.json`` holds."""

    size: int
    mtime_ns: int
    sha256: str
    version: int = VERSION

    def entry(self, folder: Path) -> Entry:
        return Entry(
            folder / f"rows-{self.sha256[:32]}.arrow", folder / f"ids-{self.sha256[:32]}.arrow"
        )


def locate(kind: Kind, source: Path, cache: Path | None) -> Entry:
    """The cached files of a source, built now if they are missing or out of date.

    Raises:
        DataError: if the source cannot be read or used, or no cache folder can be written.
    """
    try:
        status = source.stat()
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", str(source)) from error
    folders = _folders(kind, source, cache)
    for folder in folders:
        known = _recorded(folder)
        if known is None:
            continue
        if (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return known.entry(folder)
        if known.size == status.st_size and _hash(source) == known.sha256:
            with contextlib.suppress(OSError):  # a folder of someone else: hash again next time
                _record(folder, _Source(status.st_size, status.st_mtime_ns, known.sha256))
            return known.entry(folder)
    return _build_somewhere(kind, source, folders)


def _folders(kind: Kind, source: Path, cache: Path | None) -> list[Path]:
    """Candidate folders, best first."""
    absolute = source.resolve()
    digest = hashlib.sha256(str(absolute).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    named = f"{absolute.stem}-{digest}.{kind.name}"
    if cache is not None:
        return [cache / named]
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    beside = absolute.parent / ".cache" / f"{absolute.stem}.{kind.name}"
    return [beside, Path(home) / "reasoning-augmented-retrieval" / named]


def _recorded(folder: Path) -> _Source | None:
    """The record of a complete, current entry."""
    try:
        fields = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        known = _Source(**fields)
        entry = known.entry(folder)
        complete = known.version == VERSION and entry.rows.is_file() and entry.ids.is_file()
    except (OSError, ValueError, TypeError):
        return None
    return known if complete else None


def _build_somewhere(kind: Kind, source: Path, folders: list[Path]) -> Entry:
    reasons: list[str] = []
    for folder in folders:
        try:
            _make(folder, source)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        return _build(kind, source, folder)
    raise DataError(
        f"no cache folder can be written ({'; '.join(reasons)}); name one that can", str(source)
    )


def _make(folder: Path, source: Path) -> None:
    """Create a folder and see that it can be written. Root, too, leaves read-only data alone."""
    beside = folder.is_relative_to(source.resolve().parent)
    if beside and not source.resolve().parent.stat().st_mode & 0o222:
        raise PermissionError(13, "the data folder is marked read-only")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _build(kind: Kind, source: Path, folder: Path) -> Entry:
    with _temporary(folder) as rows, _temporary(folder) as ids:
        with opened(source) as stream:
            status = os.fstat(stream.fileno())
            digest = build_rows(kind, stream, source, rows)
        build_index(kind, rows, source, ids)
        known = _Source(status.st_size, status.st_mtime_ns, digest)
        entry = known.entry(folder)
        for temporary, final_path in ((rows, entry.rows), (ids, entry.ids)):
            _publish(temporary, final_path)
    _record(folder, known)
    _prune(folder, entry)
    return entry


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=".building-", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _publish(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.chmod(0o644)  # temporary files are private; a cache beside shared data is shared
    temporary.replace(target)


def _record(folder: Path, known: _Source) -> None:
    with _temporary(folder) as temporary:
        temporary.write_text(json.dumps(asdict(known)), encoding="utf-8")
        _publish(temporary, folder / _RECORD)


def _prune(folder: Path, current: Entry) -> None:
    """Remove the tables of earlier contents; whoever has them mapped keeps them until done."""
    for path in folder.glob("*.arrow"):
        if path not in (current.rows, current.ids):
            with contextlib.suppress(OSError):
                path.unlink()


def _hash(source: Path) -> str:
    digest = hashlib.sha256()
    with opened(source) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
