"""The text of run files: parsed by pyarrow where it is regular, line by line where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from jaxtyping import Shaped

from augment.errors import DataError
from augment.mbeir.files import text_lines
from augment.records import TASKS

if TYPE_CHECKING:
    from retrievers.run import RunTable

#: Query ids, candidate ids, and per hit: place of the query, place of the candidate, score.
Columns = tuple[Any, Any, Any, Any, Any]

_NAMES = ("qid", "q0", "did", "rank", "score", "tag", "task")
#: Lines formatted at once: their bytes stay in the processor's cache.
_BLOCK = 1 << 15
#: Bytes of a file that is not worth starting threads for.
_SMALL = 1 << 22
_DIGITS = np.array([b"%03d" % n for n in range(1000)])
_WHOLE = np.array([b"%d." % n for n in range(1000)])


def parse_quickly(path: Path) -> Columns | None:
    """Columns of a file whose fields are parted by single blanks or tabs; None for any other.

    What it cannot vouch for goes to :func:`parse_lines`, which knows line numbers.
    """
    try:
        with path.open("rb") as stream:
            first = stream.readline()
        delimiter = "\t" if b"\t" in first else " "
        width = first.count(delimiter.encode()) + 1
        if width not in (6, 7) or len(first.split()) != width:
            return None
        words = pa.dictionary(pa.int32(), pa.string())
        kinds = dict.fromkeys(_NAMES[:width], words) | {"score": pa.float64()}
        table = pa_csv.read_csv(
            path,
            pa_csv.ReadOptions(
                column_names=list(_NAMES[:width]), use_threads=path.stat().st_size > _SMALL
            ),
            pa_csv.ParseOptions(delimiter=delimiter, quote_char=False),
            pa_csv.ConvertOptions(column_types=kinds, null_values=[], strings_can_be_null=False),
        )
    except (OSError, pa.ArrowInvalid):
        return None
    columns = {name: table.column(name).combine_chunks() for name in ("qid", "did", "tag", "score")}
    regular = len(columns["tag"].dictionary) == 1 and all(
        _one_word(columns[name].dictionary) for name in ("qid", "did")
    )
    if not regular or (width == 7 and not _tasks(table.column("task"))):
        return None
    return (
        columns["qid"].dictionary,
        columns["did"].dictionary,
        columns["qid"].indices.to_numpy(),
        columns["did"].indices.to_numpy(),
        columns["score"].to_numpy(),
    )


def _one_word(ids: Any) -> bool:
    return not pc.any(pc.match_substring_regex(ids, r"^$|\s")).as_py()


def _tasks(column: Any) -> bool:
    return set(column.combine_chunks().dictionary.to_pylist()) <= {str(task) for task in TASKS}


def parse_lines(path: Path) -> Columns:
    """Columns of any run file, with the place of the first thing wrong.

    Raises:
        DataError: with ``file:line``.
    """
    queries: dict[str, int] = {}
    candidates: dict[str, int] = {}
    seen: dict[tuple[int, int], int] = {}
    query, rows, scores = [], [], []
    tag: tuple[str, int] | None = None
    for number, line in text_lines(path):
        where = f"{path}:{number}"
        parts = line.split()
        qid, did, score = _parse(parts, where)
        tag = tag or (parts[5], number)
        if parts[5] != tag[0]:
            raise DataError(
                f"tag {parts[5]!r} after {tag[0]!r} in line {tag[1]}: two runs in one file; "
                "write each to its own",
                where,
            )
        place = queries.setdefault(qid, len(queries)), candidates.setdefault(did, len(candidates))
        if seen.setdefault(place, number) != number:
            raise DataError(
                f"candidate {did} stands twice under query {qid}, first in line {seen[place]}; "
                "keep its best score only",
                where,
            )
        query.append(place[0])
        rows.append(place[1])
        scores.append(score)
    if not query:
        raise DataError("is empty; a run has a line 'qid Q0 did rank score tag' a hit", str(path))
    return list(queries), list(candidates), query, rows, scores


def _parse(parts: Sequence[str], where: str) -> tuple[str, str, float]:
    # UniIR appends the task id as a seventh column.
    if len(parts) not in (6, 7):
        hint = " (MS MARCO's form? write the run with --output-format trec)"
        raise DataError(
            f"expected 'qid Q0 did rank score tag', found {len(parts)} columns"
            f"{hint if len(parts) == 3 else ''}",
            where,
        )
    try:
        score = float(parts[4])
    except ValueError:
        raise DataError(
            f"score {parts[4]!r} is not a number; the fifth column holds the score", where
        ) from None
    if not math.isfinite(score) or abs(score) > float(np.finfo(np.float32).max):
        raise DataError(
            f"score {parts[4]!r} is not finite in single precision; search again, or drop the hit",
            where,
        )
    if len(parts) == 7 and parts[6] not in {str(task) for task in TASKS}:
        raise DataError(f"task code is {parts[6]!r}; expected 0 to 8", where)
    return parts[0], parts[2], score


def run_lines(table: RunTable, tails: Sequence[bytes]) -> Iterator[bytes]:
    """Blocks of whole lines.

    Each field is a column of fixed width padded with zero bytes; dropping these leaves the lines.

    Args:
        table: the run.
        tails: what stands after the score: one for all, or one for each query.

    Raises:
        DataError: if an id is empty or contains white space or a zero byte.
    """
    if not len(table.rows):
        return
    used = np.zeros(len(table.ids), dtype=bool)
    used[table.rows] = True
    place = np.cumsum(used, dtype=np.int32) - 1
    dids = _bytes(table.ids.filter(pa.array(used)), b" ")
    qids = _bytes(table.qids, b" Q0 ")
    ranks = np.array([b"%d " % n for n in range(1, table.depth + 1)])
    ends = np.array(tails)
    query, rank = table.query, table.rank
    for start in range(0, len(table.rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        own = query[part]
        columns = (
            qids[own],
            dids[place[table.rows[part]]],
            ranks[rank[part] - 1],
            *_scores(table.scores[part]),
            ends[own if len(tails) > 1 else np.zeros(len(own), dtype=np.int64)],
        )
        lines = np.empty(len(own), [(f"f{n}", column.dtype) for n, column in enumerate(columns)])
        for n, column in enumerate(columns):
            lines[f"f{n}"] = column
        yield lines.tobytes().translate(None, b"\0")


def _bytes(words: Any, tail: bytes) -> Shaped[np.ndarray, " words"]:
    """Ids as fixed-width bytes, padded with zeros; ``tail`` stands behind each."""
    bad = pc.filter(words, pc.match_substring_regex(words, r"^$|[\s\x00]"))
    if len(bad):
        raise DataError(f"id {bad[0].as_py()!r} is empty or contains white space; rename it")
    return np.array([word + tail for word in words.cast(pa.binary()).to_pylist()])


def _scores(scores: np.ndarray) -> list[Shaped[np.ndarray, " hits"]]:
    """Six decimals where they read back as the same single-precision number, else nine digits."""
    millionths = np.rint(scores.astype(np.float64) * 1e6)
    exact = (millionths / 1e6).astype(np.float32) == scores
    if not exact.all() or np.abs(millionths).max() >= 1e9:
        return [np.array([f"{score:.9g}".encode() for score in scores.tolist()])]
    whole, fraction = np.divmod(np.abs(millionths).astype(np.int32), np.int32(1_000_000))
    high, low = np.divmod(fraction, np.int32(1000))
    digits = [_WHOLE[whole], _DIGITS[high], _DIGITS[low]]
    below = millionths < 0
    return [np.where(below, b"-", b""), *digits] if below.any() else digits
