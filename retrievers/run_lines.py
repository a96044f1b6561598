"""Writing run files: millions of lines by numpy, none by itself.

Each field is a column of fixed width, padded with zero bytes; dropping these leaves the lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Shaped

from augment.errors import DataError

if TYPE_CHECKING:
    from retrievers.run import RunTable

#: Lines formatted at once; more of them leave the processor's cache, fewer cost calls.
_BLOCK = 1 << 17
#: Lines that are looked at to guess how much of a block is padding.
_SAMPLE = 4096
#: Ids as columns of fixed width take no more memory than this; larger ones are made per block.
_MOST_BYTES = 1 << 27


def _packed(texts: Sequence[bytes]) -> Shaped[np.ndarray, " texts"]:
    """Texts of up to eight bytes as numbers, which are copied faster and can be put together."""
    return np.array(texts, dtype="S8").view(np.uint64)


#: "0.000" to "9.999", and behind it "000" to "999".
_UPPER = _packed([b"%d.%03d" % divmod(n, 1000) for n in range(10_000)])
_LOWER = _packed([b"\0\0\0\0\0%03d" % n for n in range(1000)])
_DIGITS = np.array([b"%03d" % n for n in range(1000)])
_WHOLE = np.array([b"%d." % n for n in range(1000)])


def run_lines(table: RunTable, tails: Sequence[bytes]) -> Iterator[bytes | bytearray]:
    """Blocks of whole lines.

    Args:
        table: the run.
        tails: what stands after the score: one for all, or one for each query.

    Raises:
        DataError: if an id is empty or contains white space or a zero byte.
    """
    if not len(table.rows):
        return
    _check(table.qids)
    found, place = _used(table)
    fits = _width(found) * len(found) <= _MOST_BYTES
    dids = _columns(found) if fits else None
    ranks = np.array([b" %d " % n for n in range(1, table.depth + 1)])
    ends = np.array(tails)
    for first, last in _parts(table.starts):
        counts = np.diff(table.starts[first : last + 1])
        hits = slice(int(table.starts[first]), int(table.starts[last]))
        rank = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = table.rows[hits] if place is None else place[table.rows[hits]]
        heads = pc.binary_join_element_wise(table.qids[first:last], "Q0", "", " ")
        yield _joined(
            (
                np.repeat(_columns(heads), counts),
                dids.take(rows) if dids is not None else _columns(found.take(pa.array(rows))),
                ranks.take(rank),
                *_scores(table.scores[hits]),
                np.repeat(ends[first:last], counts) if len(tails) > 1 else ends,
            ),
            len(rank),
        )


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


def _joined(columns: Sequence[np.ndarray], lines: int) -> bytes | bytearray:
    kind = np.dtype([(f"f{n}", column.dtype) for n, column in enumerate(columns)])
    whole = bytearray(lines * kind.itemsize)
    record = np.frombuffer(whole, kind)
    for n, column in enumerate(columns):
        record[f"f{n}"] = column
    # The one looks for zeros, the other at every byte.
    some = record[:_SAMPLE].view(np.uint8)
    few = 8 * (len(some) - np.count_nonzero(some)) < len(some)
    return whole.replace(b"\0", b"") if few else whole.translate(None, b"\0")


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


def _columns(words: Any) -> Shaped[np.ndarray, " words"]:
    """Ids as bytes of fixed width, padded with zeros."""
    offsets = np.frombuffer(words.buffers()[1], dtype=np.int32)
    offsets = offsets[words.offset : words.offset + len(words) + 1]
    data = np.frombuffer(words.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    padded = np.zeros((len(words), int(lengths.max())), dtype=np.uint8)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = data
    return padded.view(f"S{padded.shape[1]}").ravel()


def _scores(scores: np.ndarray) -> list[Shaped[np.ndarray, " hits"]]:
    """Six decimals where they read back as the same single-precision number, else nine digits."""
    millionths = np.rint(scores.astype(np.float64) * 1e6)
    exact = (millionths / 1e6).astype(np.float32) == scores
    size = np.abs(millionths)
    largest = size.max()
    if not exact.all() or largest >= 1e9:
        return [np.array([f"{score:.9g}".encode() for score in scores.tolist()])]
    upper, lower = np.divmod(size.astype(np.int32), np.int32(1000))
    if largest < 1e7:
        digits = [_UPPER.take(upper) | _LOWER.take(lower)]
    else:
        whole, middle = np.divmod(upper, np.int32(1000))
        digits = [_WHOLE.take(whole), _DIGITS.take(middle), _DIGITS.take(lower)]
    below = millionths < 0
    return [np.where(below, b"-", b""), *digits] if below.any() else digits
