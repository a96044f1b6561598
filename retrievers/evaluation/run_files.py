"""TREC run files (``qid Q0 did rank score tag``), and UniIR's with a task code in a seventh column.

Blanks of ASCII part the fields, as in trec_eval; words behind the tag are passed over.
Packed files are read. Written from columns; read by pyarrow where they are regular, line by line
where they are not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from jaxtyping import Shaped

from augment.errors import DataError
from augment.files import opened, replacing, split_fields, text_lines
from augment.records import TASKS, Hit, Run
from retrievers.evaluation.run import RunTable

#: Lines formatted at once; more of them leave the processor's cache, fewer cost calls.
_BLOCK = 1 << 17
#: Query ids, candidate ids, and per hit: place of the query, place of the candidate, score.
_Columns = tuple[Any, Any, Any, Any, Any]
#: UniIR's seventh column.
_CODES = frozenset(str(task) for task in TASKS)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?", re.IGNORECASE)
_NAMES = ("qid", "q0", "did", "rank", "score", "tag", "task")
#: Blanks of ASCII, which part fields; others may stand in an id.
_BLANK = r"[\t-\r ]"
#: Bytes of a file that is not worth starting threads for.
_SMALL = 1 << 22


def write_run(path: str | Path, run: Run | RunTable, tag: str = "run") -> None:
    """Write a run file; the file appears whole or not at all.

    Scores are written so that they read back as the same single-precision number: with six
    decimals where that is enough (the precision that the indexes of this package rank by), else
    with nine digits.

    Raises:
        ValueError: if the tag contains a blank.
        DataError: if an id is empty or contains a blank.
    """
    if split_fields(tag) != [tag]:
        raise ValueError(f"run tag {tag!r} must be one word")
    table = run if isinstance(run, RunTable) else RunTable.from_run(run)
    with replacing(Path(path), DataError) as stream:
        for lines in _blocks(table, f"{tag}\n"):
            stream.buffer.write(lines)


def _blocks(table: RunTable, tail: str) -> Iterator[Any]:
    """Whole lines of :data:`_BLOCK` hits at a time, as one buffer: Arrow's join of the fields."""
    used = np.zeros(len(table.ids), dtype=bool)
    used[table.rows] = True
    for words in (table.qids, table.ids.filter(pa.array(used))):
        bad = words.filter(pc.match_substring_regex(words, rf"^$|{_BLANK}|\x00"))
        if len(bad):
            raise DataError(f"id {bad[0].as_py()!r} is empty or contains a blank; rename it")
    heads = pc.binary_join_element_wise(table.qids, "Q0", " ")
    query, rank = table.query, table.rank
    for first in range(0, len(table.rows), _BLOCK):
        hits = slice(first, first + _BLOCK)
        lines = pc.binary_join_element_wise(
            heads.take(pa.array(query[hits])),
            table.ids.take(pa.array(table.rows[hits])),
            pa.array(rank[hits]).cast(pa.string()),
            _scores(table.scores[hits]),
            tail,
            " ",
        )
        yield lines.buffers()[2]


def _scores(scores: Shaped[np.ndarray, " hits"]) -> Any:
    """Six decimals where they read back as the same single-precision number, else nine digits."""
    millionths = np.rint(scores.astype(np.float64) * 1e6)
    exact = ((millionths / 1e6).astype(np.float32) == scores) & (np.abs(millionths) < 1e9)
    whole, rest = np.divmod(np.where(exact, np.abs(millionths), 0).astype(np.int64), 1_000_000)
    six = pc.binary_join_element_wise(
        pc.if_else(pa.array(millionths < 0), "-", ""),
        pa.array(whole).cast(pa.string()),
        ".",
        pc.utf8_slice_codeunits(pa.array(rest + 1_000_000).cast(pa.string()), 1),
        "",
    )
    if exact.all():
        return six
    nine = pa.array([f"{score:.9g}" for score in scores[~exact].tolist()])
    return pc.replace_with_mask(six, pa.array(~exact), nine)


def read_run(path: str | Path) -> dict[str, list[Hit]]:
    """Read a run file; hits come back by score, ties by id, whatever the rank column says.

    Raises:
        DataError: see :func:`read_table`.
    """
    return read_table(path).to_run()


def read_table(path: str | Path, *, empty: bool = False) -> RunTable:
    """Read a run file of six columns, or of UniIR's seven, into columns.

    ``empty`` accepts a file without a line: a search that found nothing.

    Raises:
        DataError: with ``file:line``, if the file is empty, a line is malformed, a score is no
            finite number, a candidate stands twice under one query, or two tags occur.
    """
    if empty and Path(path).is_file() and not Path(path).stat().st_size:
        return RunTable([], [], [], [], [])
    found = _parse_quickly(Path(path))
    if found is not None:
        try:
            return RunTable(*found)
        except DataError:
            pass  # read again, line by line, to say where
    return RunTable(*_parse_lines(Path(path)))


def _parse_quickly(path: Path) -> _Columns | None:
    """Columns of a file whose fields are parted by single blanks or tabs; None for any other.

    What it cannot vouch for goes to :func:`_parse_lines`, which knows line numbers.
    """
    try:
        with opened(path) as stream:
            first = stream.readline()
        delimiter = "\t" if b"\t" in first else " "
        width = first.count(delimiter.encode()) + 1
        if width not in (6, 7) or len(first.split()) != width:
            return None
        words = pa.dictionary(pa.int32(), pa.string())
        kinds = dict.fromkeys(_NAMES[:width], words) | {"score": pa.float64()}
        with opened(path) as stream:
            table = pa_csv.read_csv(
                stream,
                pa_csv.ReadOptions(
                    column_names=list(_NAMES[:width]), use_threads=path.stat().st_size > _SMALL
                ),
                pa_csv.ParseOptions(delimiter=delimiter, quote_char=False),
                pa_csv.ConvertOptions(
                    column_types=kinds, null_values=[], strings_can_be_null=False
                ),
            )
    except (OSError, pa.ArrowInvalid):
        return None
    columns = {name: table.column(name).combine_chunks() for name in ("qid", "did", "tag", "score")}
    regular = len(columns["tag"].dictionary) == 1 and all(
        not pc.any(pc.match_substring_regex(columns[name].dictionary, rf"^$|{_BLANK}")).as_py()
        for name in ("qid", "did")
    )
    tasks = table.column("task").combine_chunks().dictionary.to_pylist() if width == 7 else ()
    if not regular or not _CODES.issuperset(tasks):
        return None
    return (
        columns["qid"].dictionary,
        columns["did"].dictionary,
        columns["qid"].indices.to_numpy(),
        columns["did"].indices.to_numpy(),
        columns["score"].to_numpy(),
    )


def _parse_lines(path: Path) -> _Columns:
    """Columns of any run file, with the place of the first thing wrong."""
    queries: dict[str, int] = {}
    candidates: dict[str, int] = {}
    seen: dict[tuple[int, int], int] = {}
    query, rows, scores = [], [], []
    tag: tuple[str, int] | None = None
    for number, line in text_lines(path):
        where = f"{path}:{number}"
        qid, did, score, named = _parse(split_fields(line), where)
        tag = tag or (named, number)
        if named != tag[0]:
            raise DataError(
                f"tag {named!r} after {tag[0]!r} in line {tag[1]}: two runs in one file; "
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


def _parse(parts: Sequence[str], where: str) -> tuple[str, str, float, str]:
    """Query, candidate, score and tag of a line; words behind the tag are passed over."""
    # UniIR appends the task code as a seventh column.
    words = parts[5:-1] if len(parts) == 7 and parts[6] in _CODES else parts[5:]
    if len(parts) < 6 or (len(words) > 1 and _shifted(parts)):
        hint = " (MS MARCO's form? write the run with --output-format trec)"
        also = "; an id may hold no blank" if len(parts) > 6 else ""
        raise DataError(
            f"expected 'qid Q0 did rank score tag', found {len(parts)} columns"
            f"{hint if len(parts) == 3 else also}",
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
    return parts[0], parts[2], score, words[0]


def _shifted(parts: Sequence[str]) -> bool:
    """Whether a blank in an id, rather than in the tag, makes a line of many columns."""
    integer = [_INTEGER.fullmatch(part) is not None for part in parts[3:5]]
    return not integer[0] or (integer[1] and _NUMBER.fullmatch(parts[5]) is not None)
