"""M-BEIR's evaluation protocol (UniIR 2311.17136, section 5): rows, cut-offs, odd positives.

UniIR reports success@5 ("Recall@5"), on Fashion200K and FashionIQ success@10, and the plain mean of
16 rows, each a data set and a task. Where its code leaves a choice, the choice is a named option.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

#: The 16 rows in the order of UniIR's tables: data set, task code (0 to 8).
ROWS: tuple[tuple[str, int], ...] = (
    ("visualnews", 0), ("mscoco", 0), ("fashion200k", 0), ("webqa", 1), ("edis", 2), ("webqa", 2),
    ("visualnews", 3), ("mscoco", 3), ("fashion200k", 3), ("nights", 4), ("oven", 6),
    ("infoseek", 6), ("fashioniq", 7), ("cirr", 7), ("oven", 8), ("infoseek", 8),
)  # fmt: skip

#: Data sets on which M-BEIR reports success@10; success@5 elsewhere.
_AT_TEN = frozenset({"fashion200k", "fashioniq"})
#: Name of the reported number in tables and JSON.
REPORTED = "mbeir"


def reported_k(dataset: str) -> int:
    """Cut-off of the number that M-BEIR's papers report for a data set (name in lower case)."""
    return 10 if dataset in _AT_TEN else 5


def row_order(dataset: str, task: int | None) -> tuple[int, str, int]:
    """Sorts rows as UniIR's tables do; others follow, by name and task."""
    known = (dataset, task if task is not None else -1)
    place = ROWS.index(known) if known in ROWS else len(ROWS)
    return place, *known


def missing_rows(rows: Collection[tuple[str, int | None]]) -> list[str]:
    """Rows of M-BEIR that a table lacks, if it has any of them at all."""
    lacking = [f"{dataset} task {task}" for dataset, task in ROWS if (dataset, task) not in rows]
    return lacking if len(lacking) < len(ROWS) else []


@dataclass(frozen=True)
class PositiveConfig:
    """What becomes of positives that a pool lacks, or that are of another data set.

    In OVEN task 6, 89.9 % of the judgements name candidates outside OVEN's own pool, in InfoSeek
    task 6 10.2 % (embeddings-benchmark/mteb#5021): success@k is unharmed, recall@k and nDCG not.

    Args:
        dangling: positives that are not in the pool. keep: they stay in the judgements and cannot
            be found (UniIR); drop: they are removed, and queries that have no other are left out
            and counted; combine: the local pools that hold them are searched together with it.
        foreign: positives of another data set than the query's. keep (UniIR) or drop.
    """

    dangling: Literal["keep", "drop", "combine"] = "keep"
    foreign: Literal["keep", "drop"] = "keep"


class Kept(NamedTuple):
    """Judgements after a policy.

    Attributes:
        grades: query id -> candidate id -> grade; queries without a positive are gone.
        dropped: relevant (query, candidate) pairs removed.
        left_out: ids of queries that lost their last positive.
    """

    grades: dict[str, dict[str, int]]
    dropped: int
    left_out: list[str]


def keep_positives(
    grades: Mapping[str, Mapping[str, int]],
    policy: PositiveConfig,
    inside: Callable[[str], bool],
) -> Kept:
    """Apply a policy to the judgements of a task.

    Args:
        grades: query id -> candidate id -> grade.
        policy: what to drop; ``combine`` drops nothing here.
        inside: whether a candidate is in the pool.
    """

    def stays(qid: str, did: str, grade: int) -> bool:
        if policy.foreign == "drop" and did.partition(":")[0] != qid.partition(":")[0]:
            return False
        return grade <= 0 or policy.dangling != "drop" or inside(did)

    kept: dict[str, dict[str, int]] = {}
    dropped, left_out = 0, []
    for qid, judged in grades.items():
        own = {did: grade for did, grade in judged.items() if stays(qid, did, grade)}
        lost = sum(grade > 0 and did not in own for did, grade in judged.items())
        dropped += lost
        if lost and not any(grade > 0 for grade in own.values()):
            left_out.append(qid)
        else:
            kept[qid] = own
    return Kept(kept, dropped, left_out)
