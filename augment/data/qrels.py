"""Relevance judgements: M-BEIR's five columns and TREC's four.

The fifth column of M-BEIR (the task code) is not TREC: evaluators of others want four columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from augment.errors import DataError
from augment.files import replacing, text_lines
from augment.records import TASKS, Qrel

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


def read_qrels(path: str | Path) -> list[Qrel]:
    """All judgements of a file in order, those with relevance 0 and below included.

    Raises:
        DataError: with ``file:line``, if a line has not four or five columns, or the relevance or
            the task is not a number.
    """
    rows: list[Qrel] = []
    for number, line in text_lines(Path(path)):
        where = f"{path}:{number}"
        columns = line.split()
        if len(columns) not in (4, 5):
            raise DataError(
                f"has {len(columns)} columns; expected 'qid 0 did relevance' with or without a "
                "task code",
                where,
            )
        task = _integer(columns[4], "task code", where) if len(columns) == 5 else None
        if task is not None and task not in TASKS:
            raise DataError(f"task code is {task}; expected 0 to 8", where)
        rows.append(Qrel(columns[0], columns[2], _integer(columns[3], "relevance", where), task))
    return rows


def grades_of(qrels: Iterable[Qrel]) -> dict[str, dict[str, int]]:
    """Judgements grouped by query, in the order of first appearance.

    Raises:
        DataError: if a pair is judged twice with different grades.
    """
    grades: dict[str, dict[str, int]] = {}
    for qrel in qrels:
        judged = grades.setdefault(qrel.qid, {})
        if judged.setdefault(qrel.did, qrel.relevance) != qrel.relevance:
            raise DataError(
                f"candidate {qrel.did} is judged {judged[qrel.did]} and {qrel.relevance}; "
                "keep one judgement",
                f"query {qrel.qid}",
            )
    return grades


def write_qrels(path: str | Path, qrels: Iterable[Qrel], columns: Literal[5, 4] = 5) -> None:
    """Write judgements with M-BEIR's five columns or TREC's four.

    Raises:
        DataError: if five columns are asked for and a judgement has no task, or an id has a blank
            in it.
    """
    with replacing(Path(path), DataError) as stream:
        for qrel in qrels:
            if any(len(part.split()) != 1 for part in (qrel.qid, qrel.did)):
                raise DataError(f"an id is empty or has a blank in it: {qrel}", str(path))
            fields = [qrel.qid, "0", qrel.did, str(qrel.relevance)]
            if columns == 5:
                if qrel.task is None:
                    raise DataError(f"no task code for {qrel}; write four columns", str(path))
                fields.append(str(qrel.task))
            stream.write(" ".join(fields) + "\n")


def _integer(value: str, name: str, where: str) -> int:
    if not _INTEGER.fullmatch(value):
        raise DataError(f"{name} is {value!r}; expected a whole number", where)
    return int(value)
