"""Files and folders that appear whole or not at all; their lines, hashes, JSON, and tables.

The only place for these. A file is written under a temporary name beside its own, brought to the
disk, renamed, and then the folder is brought to the disk, too: after a power cut there is the old
file or the new one, never half of one under the name of a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from augment.errors import DataError, ToolkitError, printable

_BOM = b"\xef\xbb\xbf"
#: First bytes of packed files.
_PACKED = {b"\x1f\x8b": "gzip", b"(\xb5/\xfd": "zstd"}
#: What stands between blanks of ASCII. Other blanks, such as no-break spaces, may stand in an id.
_FIELD = re.compile(r"[^\t-\r ]+")
#: A home folder: alone, of an option (``--root=~``), or with a name (``scripted:~/answers.json``).
_HOME = re.compile(r"(?:(?<=^)|(?<=[=:]))~[^/=:\s]*(?=/|$)")


@contextmanager
def replacing_path(path: Path, error: type[ToolkitError] | None = None) -> Iterator[Path]:
    """A temporary path for any library to write to; then the file has its name and is on disk.

    Args:
        path: of the file to be. Its folder is made. The temporary name has the same ending.
        error: what to raise in place of :class:`OSError`, with the path and the cause.

    Yields:
        A path beside it, at which no file is yet.

    Raises:
        OSError: if the folder or file cannot be written; or ``error`` where that is given.
    """
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        publish(partial, path)
    except OSError as cause:
        raise _unwritable(path, cause, error) from cause
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, error: type[ToolkitError] | None = None) -> Iterator[TextIO]:
    """:func:`replacing_path` for a stream of UTF-8 text."""
    with (
        replacing_path(path, error) as partial,
        partial.open("x", encoding="utf-8", newline="\n") as stream,
    ):
        yield stream


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it gets its name when the block ends, and is gone if it fails.

    Args:
        path: of the folder to be; nothing may be there yet, and a second writer finds that out.

    Yields:
        An empty folder beside it.

    Raises:
        DataError: if there is something under the name or it cannot be written.
    """
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    if path.exists():
        raise DataError(f"{path}: exists; remove it or name another folder")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as cause:
        raise _unwritable(path, cause, DataError) from cause
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(path: Path, cause: OSError, error: type[ToolkitError] | None) -> Exception:
    if error is None:
        return cause
    return error(f"{path}: cannot be written: {cause.strerror or cause}")


def publish(partial: Path, path: Path) -> None:
    """Give a file that is complete its name: first its bytes come to the disk, then its name.

    Args:
        partial: the file, on the same disk.
        path: its name from now on; a file that has it is replaced.

    Raises:
        OSError: if it cannot be read or renamed, or the disk reports a fault.
    """
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str, error: type[ToolkitError] | None = None) -> None:
    """:func:`replacing` for a text that is at hand."""
    with replacing(path, error) as stream:
        stream.write(text)


def write_json(path: Path, value: Any, error: type[ToolkitError] | None = None) -> None:
    """:func:`replacing` for a value: JSON with an indent of 1 and a line end; paths are strings.

    Raises:
        ValueError: for NaN and the infinities, which JSON does not have.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    write_text(path, f"{text}\n", error)


def read_json(path: Path, error: type[ToolkitError] = DataError) -> Any:
    """The value that a JSON file holds.

    Raises:
        ToolkitError: ``error``, if it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise error(f"{path}: is not JSON: {cause}") from cause


def sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hex."""
    return _digest(path, hashlib.sha256())


#: In a folder: the SHA-256 of its files, as ``sha256sum -c SHA256SUMS`` reads them.
SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write :data:`SUMS` of the files of a folder; of a ``README.md``, which people edit, none."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    lines = [
        f"{sha256(folder / name)}  {name}" for name in names if name not in (SUMS, "README.md")
    ]
    write_text(folder / SUMS, "\n".join(lines) + "\n")


def check_sums(folder: Path) -> None:
    """Compare the files of a folder that are named in its :data:`SUMS`, if it has one.

    Raises:
        DataError: for a file whose bytes are others.
    """
    if not (folder / SUMS).is_file():
        return
    for number, line in text_lines(folder / SUMS):
        told, _, name = line.partition("  ")
        path = folder / Path(name).name
        if path.is_file() and sha256(path) != told:
            raise DataError(
                f"{path}: is not what was written (its SHA-256 is not that of line {number} of "
                f"{SUMS}); copy the folder again, or delete {SUMS} if the change is meant"
            )


def checksum(path: Path) -> str:
    """A checksum of the bytes of a file, in hex: notices damage at ten times SHA-256's speed."""
    import xxhash

    return _digest(path, xxhash.xxh3_128())


def _digest(path: Path, digest: Any) -> str:
    """Hex digest of a file, read block by block (``hashlib.file_digest`` needs Python 3.11)."""
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return str(digest.hexdigest())


def digest(value: object) -> str:
    """SHA-256 in hex over the canonical JSON of ``value`` (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


#: Behind the names of files that are packed, or not.
PACKED_ENDINGS = ("", ".gz", ".zst")


def packed(path: Path) -> Path:
    """The file of that name, or else what ``gzip`` or ``zstd`` made of it, if that is there."""
    forms = (path.with_name(path.name + ending) for ending in PACKED_ENDINGS)
    return next((form for form in forms if form.is_file()), path)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file opened for reading bytes, which are unpacked if gzip or Zstandard packed them.

    Raises:
        DataError: if it cannot be opened, or is damaged where it is packed.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", str(path)) from error
    with stream:
        head = stream.peek(4)
        packed = next((how for mark, how in _PACKED.items() if head.startswith(mark)), None)
        if packed is None:
            yield stream
            return
        import pyarrow as pa

        try:
            yield io.BufferedReader(pa.input_stream(stream, compression=packed))
        except OSError as error:
            if error.errno is not None:  # not the unpacking, but what is done with the lines
                raise
            raise DataError(
                f"cannot be unpacked ({packed}): {error}; fetch it again", str(path)
            ) from error


def numbered_lines(stream: BinaryIO, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers, without line ends and byte-order mark.

    Only a line feed ends a line: the separators that Unicode knows besides occur inside texts.

    Args:
        stream: stands where a line begins.
        first: number of that line in the file.
    """
    for number, line in enumerate(stream, start=first):
        body = line[len(_BOM) :] if number == 1 and line.startswith(_BOM) else line
        body = body.rstrip(b"\r\n")
        if body.strip():
            yield number, body


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines of a UTF-8 file with their numbers.

    Raises:
        DataError: if the file cannot be opened or a line is not UTF-8.
    """
    with opened(path) as stream:
        number = 0
        try:
            for number, line in numbered_lines(stream):
                yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: {error}", f"{path}:{number}") from error


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with ``file:line``.

    Raises:
        DataError: if it cannot be read, or at the first line that is no JSON object.
    """
    for number, line in text_lines(path):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"is not a line of JSON: {error}", where) from error
        if not isinstance(row, dict):
            raise DataError("expected a JSON object", where)
        yield where, row


def read_ids(path: Path) -> frozenset[str]:
    """Ids from a file with one a line; what stands behind a tab is not read.

    Raises:
        DataError: if it cannot be read, or holds none.
    """
    found = frozenset(line.partition("\t")[0].strip() for _, line in text_lines(path)) - {""}
    if not found:
        raise DataError("holds no id; expected one a line", str(path))
    return found


def split_fields(line: str) -> list[str]:
    """What stands between blanks of ASCII in a line, as trec_eval parts it."""
    return _FIELD.findall(line)


def homes(given: Any) -> Any:
    """Words of a command line, or values of a config, whose ``~`` is the user's home folder.

    Shells leave it in ``--store=~/texts``, and nothing else looks into a config.

    Args:
        given: a string, or lists and mappings of strings; other values stay as they are.
    """
    if isinstance(given, str):
        # Not pathlib's, which raises for users that it does not know.
        return _HOME.sub(lambda part: os.path.expanduser(part[0]), given)  # noqa: PTH111
    if isinstance(given, Mapping):
        return {name: homes(value) for name, value in given.items()}
    return [homes(one) for one in given] if isinstance(given, list) else given


def legible_output() -> None:
    """Make standard output and error take every character, whatever their encoding.

    Called where a command begins: a locale without UTF-8 must not end it at its first "\u00e9".
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: object, stream: TextIO | None = None) -> None:
    """Write lines for people: nothing in them moves the cursor of a terminal.

    Args:
        text: without its last line end.
        stream: None for standard output.
    """
    stream = stream or sys.stdout
    stream.write(printable(f"{text}\n", lines=True))
    stream.flush()


def aligned(rows: Sequence[Sequence[str]], left: int = 1, head: Sequence[str] = ()) -> str:
    """Rows of cells as lines for a terminal, columns two blanks apart.

    Args:
        rows: as many cells each.
        left: so many columns are set to the left, the others to the right.
        head: names of the columns; a line of dashes stands below them. None if empty.
    """
    table = [list(map(printable, row)) for row in ([head] if head else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if head:
        table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A table in Markdown.

    Args:
        head: names of the columns.
        rows: as many cells each.
        left: so many columns are set to the left, the others to the right.
    """
    marks = ["---" if column < left else "--:" for column in range(len(head))]
    lines = [" | ".join(printable(str(cell)) for cell in row) for row in (head, *rows)]
    lines[1:1] = ["|".join(marks)]
    return "\n".join(
        f"|{line}|" if place == 1 else f"| {line} |" for place, line in enumerate(lines)
    )
