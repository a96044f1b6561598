"""M-BEIR's evaluation protocol (UniIR 2311.17136, section 5): rows, cut-offs, names of tasks.

UniIR reports success@5 ("Recall@5"), on Fashion200K and FashionIQ success@10, and the plain mean of
16 rows, each a data set and a task. Where its code leaves a choice, the choice is a named option
(see :class:`retrievers.data.plan.PositiveConfig`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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

#: M-BEIR task code -> what goes in and what is wanted.
TASK_NAMES: Mapping[int, str] = {
    0: "text → image", 1: "text → text", 2: "text → image+text", 3: "image → text",
    4: "image → image", 6: "image+text → text", 7: "image+text → image",
    8: "image+text → image+text",
}  # fmt: skip


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


def task_titles(names: Collection[str]) -> dict[str, str]:
    """Tasks as rows of tables call them, by name; with their data sets, where there are several."""
    several = len({name.rpartition("_task")[0] for name in names}) > 1
    titles = {name: name for name in names}
    for name in names:
        dataset, marker, code = name.rpartition("_task")
        if marker and code.isdigit():
            task = f"{code}: {TASK_NAMES.get(int(code), name)}"
            titles[name] = f"{dataset} {task}" if several else task
    return titles
