"""Reading lines with their numbers, and writing whole files or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from augment import files as atomic
from augment.errors import DataError

_BOM = b"\xef\xbb\xbf"


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading bytes.

    Raises:
        DataError: if it cannot be opened.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", str(path)) from error
    with stream:
        yield stream


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their numbers from 1, without line ends and byte-order mark.

    Only a line feed ends a line: the separators that Unicode knows besides occur inside texts.
    """
    for number, line in enumerate(stream, start=1):
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
        for number, line in numbered_lines(stream):
            yield number, _decoded(line, f"{path}:{number}")


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", where) from error


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Write a UTF-8 file that appears under its name only when it is complete and on disk.

    Raises:
        DataError: if the folder or file cannot be written.
    """
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(atomic.replacing(path))
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror}", str(path)) from error
        yield stream
