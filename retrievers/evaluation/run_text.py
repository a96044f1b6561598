"""Reading run files: by pyarrow where they are regular, line by line where they are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from augment.errors import DataError
from augment.files import text_lines
from augment.records import TASKS

#: Query ids, candidate ids, and per hit: place of the query, place of the candidate, score.
Columns = tuple[Any, Any, Any, Any, Any]

_NAMES = ("qid", "q0", "did", "rank", "score", "tag", "task")
#: Bytes of a file that is not worth starting threads for.
_SMALL = 1 << 22


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
