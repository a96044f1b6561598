"""Writing run files: millions of lines by numpy, none by itself.

Each field is a column of fixed width, padded with zero bytes; dropping these leaves the lines. A
field is kept and moved in words of eight bytes, several times faster than as text.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Shaped, UInt8, UInt64

from augment.errors import DataError

if TYPE_CHECKING:
    from retrievers.evaluation.run import RunTable

#: Lines formatted at once; more of them leave the processor's cache, fewer cost calls.
_BLOCK = 1 << 17
#: Blocks made at a time, if there are processors; the part that needs the interpreter is a third.
_THREADS = 2
#: Lines that are looked at to guess how much of a block is padding.
_SAMPLE = 4096
#: Ids as columns of fixed width take no more memory than this; larger ones are made per block.
_MOST_BYTES = 1 << 27


class _Field(NamedTuple):
    """A field of lines: its words, [..., words], and its width in bytes.

    The last word ends where the field ends and so repeats some of the word before it; the one word
    of a field of less than eight bytes has zeros behind them.
    """

    words: UInt64[np.ndarray, "*lines words"]
    width: int

    def take(self, rows: Shaped[np.ndarray, " lines"]) -> _Field:
        """The field of some rows."""
        return _Field(self.words.take(rows, axis=0), self.width)

    def shaped(self, *lines: int) -> _Field:
        """The same as so many queries by so many hits."""
        return _Field(self.words.reshape(*lines, self.words.shape[-1]), self.width)

    def starts(self) -> list[int]:
        """Where its words start."""
        return [max(0, min(8 * n, self.width - 8)) for n in range(self.words.shape[-1])]


def _field(texts: Sequence[bytes]) -> _Field:
    """Texts as a field."""
    cells = np.asarray(texts, dtype=np.bytes_)
    width = cells.dtype.itemsize
    whole = cells.astype(f"S{max(8, width)}").view(np.uint8).reshape(len(cells), -1)
    return _of_bytes(whole, width)


def _of_bytes(whole: UInt8[np.ndarray, "texts width"], width: int) -> _Field:
    """Texts as a field: at least eight bytes each, zeros behind."""
    words = np.empty((len(whole), -(-width // 8)), dtype=np.uint64)
    field = _Field(words, width)
    for n, start in enumerate(field.starts()):
        words[:, n] = np.ascontiguousarray(whole[:, start : start + 8]).view(np.uint64)[:, 0]
    return field


def _packed(texts: Sequence[bytes]) -> UInt64[np.ndarray, " texts"]:
    return _field(texts).words[:, 0]


#: "0.000" to "9.999", and behind it "000" to "999".
_UPPER = _packed([b"%d.%03d" % divmod(n, 1000) for n in range(10_000)])
_LOWER = _packed([b"\0\0\0\0\0%03d" % n for n in range(1000)])
#: "0." to "999.", and behind it "000000" to "999999" by halves.
_WHOLE = _field([b"%d." % n for n in range(1000)])
_DIGITS = _field([b"%03d" % n for n in range(1000)])
_SIGN = _field([b"", b"-"])


def run_lines(table: RunTable, tails: Sequence[bytes]) -> Iterator[bytes | bytearray]:
    """Blocks of whole lines, in order.

    Args:
        table: the run.
        tails: what stands after the score: one for all, or one for each query.

    Raises:
        DataError: if an id is empty or contains white space or a zero byte.
    """
    if not len(table.rows):
        return
    _check(table.qids)
    blocks, threads = _Blocks(table, tails), min(_THREADS, pa.cpu_count())
    if threads == 1:
        yield from itertools.starmap(blocks.make, _parts(table.starts))
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[bytes | bytearray]] = deque()
        for first, last in _parts(table.starts):
            waiting.append(pool.submit(blocks.make, first, last))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@final
class _Blocks:
    """What the blocks of one file share; several may be made at a time."""

    def __init__(self, table: RunTable, tails: Sequence[bytes]) -> None:
        self.table = table
        self.found, self.place = _used(table)
        fits = _width(self.found) * len(self.found) <= _MOST_BYTES
        self.dids = _ids(self.found) if fits else None
        self.ranks = _field([b" %d " % n for n in range(1, table.depth + 1)])
        self.ends = _field(tails)
        self.buffers: list[bytearray] = []

    def make(self, first: int, last: int) -> bytes | bytearray:
        """The lines of some queries."""
        counts = np.diff(self.table.starts[first : last + 1])
        hits = slice(int(self.table.starts[first]), int(self.table.starts[last]))
        heads = _ids(pc.binary_join_element_wise(self.table.qids[first:last], "Q0", "", " "))
        did = self._candidates(self.table.rows[hits])
        scores = _scores(self.table.scores[hits])
        ranks, end = self.ranks, self.ends
        if len(end.words) > 1:
            end = _Field(end.words[first:last], end.width)
        if counts.min() == counts.max():  # as many hits for every query: nothing is repeated
            shape: tuple[int, ...] = (len(counts), int(counts[0]))
            rank = _Field(ranks.words[: shape[1]], ranks.width)
            fields = [heads.shaped(-1, 1), did.shaped(*shape), rank.shaped(1, -1)]
            fields += [*(score.shaped(*shape) for score in scores), end.shaped(-1, 1)]
        else:
            query = np.repeat(np.arange(len(counts)), counts)
            shape = query.shape
            rank = ranks.take(np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts))
            fields = [heads.take(query), did, rank, *scores]
            fields.append(end.take(query) if len(end.words) > 1 else end)
        whole = self.buffers.pop() if self.buffers else bytearray()
        lines = _joined(fields, shape, whole)
        self.buffers.append(whole)
        return lines

    def _candidates(self, rows: Shaped[np.ndarray, " hits"]) -> _Field:
        rows = rows if self.place is None else self.place[rows]
        return _ids(self.found.take(pa.array(rows))) if self.dids is None else self.dids.take(rows)


def _used(table: RunTable) -> tuple[Any, Shaped[np.ndarray, " ids"] | None]:
    """Ids that are checked and may be written, and the place of each id among them; None: the same.

    Raises:
        DataError: if an id that was found is empty or contains white space or a zero byte.
    """
    # Where most ids are found, to leave out the others costs more than to keep them.
    if len(table.ids) <= len(table.rows) and _plain(table.ids):
        return table.ids, None
    used = np.zeros(len(table.ids), dtype=bool)
    used[table.rows] = True
    found = table.ids.filter(pa.array(used))
    _check(found)
    return found, np.cumsum(used, dtype=np.int32) - 1


def _parts(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of queries with some :data:`_BLOCK` hits together; those of one query stay together."""
    first, end = 0, len(starts) - 1
    while first < end:
        last = int(np.searchsorted(starts, starts[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), end)
        if starts[last] > starts[first]:
            yield first, last
        first = last


def _joined(
    fields: Sequence[_Field], shape: tuple[int, ...], whole: bytearray
) -> bytes | bytearray:
    """Whole lines from their fields.

    Args:
        fields: with the shape of the lines, or one that repeats to it.
        shape: of the lines.
        whole: is overwritten; used again, since to clear a new one takes time.
    """
    width = sum(field.width for field in fields)
    size = math.prod(shape) * width
    del whole[size:]
    whole.extend(bytes(size - len(whole)))
    strides = (width * shape[-1], width)[-len(shape) :]
    start = 0
    for field in fields:
        # The zeros behind a short field come where later fields are written, or are left out.
        fits = field.width >= 8 or start + 8 <= width
        for n, first in enumerate(field.starts()):
            words = field.words[..., n]
            cells = words if fits else _short(words, field.width)
            at = np.ndarray(shape, cells.dtype, whole, start + first, strides)
            at[...] = cells
        start += field.width
    del at  # a buffer that is looked at keeps its size
    # The one looks for zeros, the other at every byte.
    some = np.frombuffer(whole, np.uint8, min(len(whole), _SAMPLE * width))
    few = 8 * (len(some) - np.count_nonzero(some)) < len(some)
    del some
    return whole.replace(b"\0", b"") if few else whole.translate(None, b"\0")


def _short(words: UInt64[np.ndarray, "*lines"], width: int) -> Shaped[np.ndarray, "*lines"]:
    """The first bytes of each word, as texts."""
    return np.ascontiguousarray(words)[..., None].view("S8")[..., 0].astype(f"S{width}")


def _plain(words: Any) -> bool:
    """Whether no word is empty or has a blank or control character: they are at most 32."""
    data = np.frombuffer(words.buffers()[2] or b"", dtype=np.uint8)
    whole: bool = pc.all(pc.greater(pc.binary_length(words), 0)).as_py()
    return whole and bool((data > 32).all())


def _check(words: Any) -> None:
    if _plain(words):  # most runs need no closer look
        return
    bad = pc.filter(words, pc.match_substring_regex(words, r"^$|[\s\x00]"))
    if len(bad):
        raise DataError(f"id {bad[0].as_py()!r} is empty or contains white space; rename it")


def _width(words: Any) -> int:
    return pc.max(pc.binary_length(words)).as_py() or 1


def _ids(words: Any) -> _Field:
    """Ids as a field."""
    offsets = np.frombuffer(words.buffers()[1], dtype=np.int32)
    offsets = offsets[words.offset : words.offset + len(words) + 1]
    data = np.frombuffer(words.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    width = int(lengths.max())
    whole = np.zeros((len(words), max(8, width)), dtype=np.uint8)
    whole[np.arange(whole.shape[1]) < lengths[:, None]] = data
    return _of_bytes(whole, width)


def _scores(scores: np.ndarray) -> list[_Field]:
    """Six decimals where they read back as the same single-precision number, else nine digits."""
    millionths = np.rint(scores.astype(np.float64) * 1e6)
    exact = (millionths / 1e6).astype(np.float32) == scores
    size = np.abs(millionths)
    largest = size.max()
    if not exact.all() or largest >= 1e9:
        return [_field([f"{score:.9g}".encode() for score in scores.tolist()])]
    upper, lower = _thousands(size.astype(np.int32))
    if largest < 1e7:
        digits = [_Field((_UPPER.take(upper) | _LOWER.take(lower))[:, None], 8)]
    else:
        whole, middle = _thousands(upper)
        digits = [_WHOLE.take(whole), _DIGITS.take(middle), _DIGITS.take(lower)]
    below = millionths < 0
    return [_SIGN.take(below.astype(np.int8)), *digits] if below.any() else digits


def _thousands(numbers: Int32[np.ndarray, " hits"]) -> tuple[np.ndarray, np.ndarray]:
    """What ``divmod`` by 1,000 gives, which numpy has no fast loop for."""
    upper = numbers // np.int32(1000)
    return upper, numbers - upper * np.int32(1000)
