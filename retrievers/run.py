"""TREC run files: six columns, ``qid Q0 did rank score tag``, best first."""

from __future__ import annotations

import math
from pathlib import Path

from augment.errors import DataError
from augment.records import Hit, Run
from retrievers.metrics import ranked


def write_run(path: str | Path, run: Run, tag: str = "run") -> None:
    """Write a run file; the file appears whole or not at all.

    Scores are written with six decimals, the precision that the indexes of this package rank by,
    so that reading the file gives the same ranking.

    Args:
        path: the file; its folder is made.
        run: hits per query, in any order.
        tag: last column; must not contain white space.

    Raises:
        ValueError: if the tag contains white space.
    """
    if not tag or any(character.isspace() for character in tag):
        raise ValueError(f"run tag {tag!r} must be one word")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for qid, hits in run.items():
            scores = {hit.did: hit.score for hit in hits}
            for rank, did in enumerate(ranked(hits), start=1):
                file.write(f"{qid} Q0 {did} {rank} {scores[did]:.6f} {tag}\n")
    partial.replace(path)


def read_run(path: str | Path) -> dict[str, list[Hit]]:
    """Read a run file; hits come back by score, ties by id, whatever the rank column says.

    Raises:
        DataError: with ``file:line``, if a line is malformed, a score is no finite number, or a
            candidate stands twice under one query.
    """
    run: dict[str, dict[str, float]] = {}
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            qid, did, score = _parse(line, where)
            if did in run.setdefault(qid, {}):
                raise DataError(f"candidate {did} stands twice under query {qid}", where)
            run[qid][did] = score
    return {
        qid: [Hit(did, scores[did]) for did in ranked(Hit(*pair) for pair in scores.items())]
        for qid, scores in run.items()
    }


def _parse(line: str, where: str) -> tuple[str, str, float]:
    parts = line.split()
    # UniIR appends the task id as a seventh column.
    if len(parts) not in (6, 7):
        raise DataError(f"expected 'qid Q0 did rank score tag', found {len(parts)} columns", where)
    try:
        score = float(parts[4])
    except ValueError:
        raise DataError(f"score {parts[4]!r} is not a number", where) from None
    if not math.isfinite(score):
        raise DataError(f"score {parts[4]!r} is not finite", where)
    return parts[0], parts[2], score
