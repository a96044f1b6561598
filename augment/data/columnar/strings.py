"""Strings of a mapped Arrow file, gathered from all of its record batches at once.

Arrow takes rows batch by batch, and a thousand random rows lie in hundreds of batches. Here the
places of all strings are computed in one go from the buffers of the mapped file.
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Int64


class _Column(NamedTuple):
    """Where a column's buffers begin in the file, by batch.

    Attributes:
        offsets: in units of their own width.
        text: in bytes.
        valid: bitmap in bytes; -1 where a batch has no null.
        wide: whether offsets have 64 bits.
    """

    offsets: Int64[np.ndarray, " batches"]
    text: Int64[np.ndarray, " batches"]
    valid: Int64[np.ndarray, " batches"]
    wide: bool


@final
class MappedStrings:
    """The first columns of a mapped Arrow file, all of them strings.

    Args:
        mapped: the file.
        batches: the record batches read from this map; all but the last of one size.
        columns: how many columns.
        size: rows of a batch.
    """

    def __init__(self, mapped: mmap, batches: Sequence[Any], columns: int, size: int) -> None:
        self._mapped = mapped
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._narrow = np.frombuffer(mapped, np.int32, len(mapped) // 4)
        self._wide = np.frombuffer(mapped, np.int64, len(mapped) // 8)
        self._size = size
        self._columns = [
            _column([batch.column(number) for batch in batches], self._bytes.ctypes.data)
            for number in range(columns)
        ]

    def take(self, rows: Int64[np.ndarray, " n"]) -> list[list[str | None]]:
        """Values of some rows, column by column.

        Args:
            rows: 0 to the number of rows less one.
        """
        batch, place = np.divmod(rows, self._size)
        return [self._values(column, batch, place) for column in self._columns]

    def _values(
        self,
        column: _Column,
        batch: Int64[np.ndarray, " n"],
        place: Int64[np.ndarray, " n"],
    ) -> list[str | None]:
        words = self._wide if column.wide else self._narrow
        at, text, mapped = column.offsets[batch] + place, column.text[batch], self._mapped
        starts, stops = (text + words[at]).tolist(), (text + words[at + 1]).tolist()
        found: list[str | None] = [mapped[a:b].decode() for a, b in zip(starts, stops, strict=True)]
        valid = column.valid[batch]
        if (valid < 0).all():
            return found
        bits = self._bytes[np.maximum(valid, 0) + (place >> 3)] >> (place & 7) & 1
        there = (bits.astype(bool) | (valid < 0)).tolist()
        return [value if is_there else None for value, is_there in zip(found, there, strict=True)]


def _column(arrays: Sequence[Any], base: int) -> _Column:
    wide = any(pa.types.is_large_string(array.type) for array in arrays)
    width = 8 if wide else 4
    places = [[_place(buffer, base) for buffer in array.buffers()] for array in arrays]
    valid, offsets, text = np.array(places, np.int64).reshape(-1, 3).T
    if (offsets % width).any():
        raise ValueError("offsets of a mapped Arrow file are not aligned")
    return _Column(offsets // width, np.maximum(text, 0), valid, wide)


def _place(buffer: Any, base: int) -> int:
    """Where a buffer begins in the file; -1 where there is none."""
    return buffer.address - base if buffer is not None and buffer.size else -1
