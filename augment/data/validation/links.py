"""Checks between files: positives and negatives against pools, qrels against queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from augment.data import DataFile, DataRoot, Instructions, read_qrels
from augment.data.validation.records import Link
from augment.data.validation.report import Report
from augment.errors import DataError
from augment.records import TASKS, Modality

#: pool -> query files that are searched in it, each with the task to select or None for all.
Searches = Mapping[Path, list[tuple[DataFile, int | None]]]

EVALUATED = ("val", "test")


def searches(root: DataRoot, queries: Mapping[str, list[DataFile]], report: Report) -> Searches:
    """Which queries search which pool.

    Queries of an evaluated split search their local pool and the union pool of that split.
    Training queries are looked up in the union training pool or, without one, in the local pools
    of their dataset's tasks.
    """
    found: dict[Path, list[tuple[DataFile, int | None]]] = {}
    for split, files in queries.items():
        union = _maybe_union(root, split.removeprefix("union_"))
        for file in files:
            local = _local(root, file, split, union)
            if not local and union is None:
                report.add("no-pool", _relative(root, file.path))
            for pool, task in [*local, *([(union, None)] if union else [])]:
                found.setdefault(pool, []).append((file, task))
    return found


def _local(
    root: DataRoot, file: DataFile, split: str, union: Path | None
) -> list[tuple[Path, int | None]]:
    if split in EVALUATED:
        try:
            return [(root.pool_for(file.dataset, file.task, split), None)]
        except DataError:
            return []
    if union is not None:
        return []
    return [(pool.path, pool.task) for pool in root.pools() if pool.dataset == file.dataset]


def _maybe_union(root: DataRoot, split: str) -> Path | None:
    try:
        return root.union_pool(split)
    except DataError:
        return None


def check_links(
    links: Iterable[Link],
    task: int | None,
    ids: Mapping[str, Modality],
    name: str,
    file: str,
    report: Report,
) -> None:
    """Positives and negatives of queries against the ids of a pool.

    Args:
        links: what the queries ask for.
        task: only queries of this task; None for all.
        ids: ids in the pool with their modalities.
        name: ``queries -> pool``, for the report.
        file: the query file, for ``file:line``.
        report: where findings go.
    """
    for link in links:
        if task is not None and link.task != task:
            continue
        where = f"{file}:{link.line}: query {link.qid}"
        if not any(did in ids for did in link.positives):
            report.add("no-positive", name, f"{where}, of {len(link.positives)} positives")
        for did in link.positives:
            if did not in ids:
                own = did.partition(":")[0] == link.qid.partition(":")[0]
                report.add(
                    "dangling-positive" if own else "foreign-positive",
                    name,
                    f"{where}, positive {did}",
                )
            elif link.task is not None and ids[did] != TASKS[link.task][1]:
                wanted = f"task {link.task} wants {TASKS[link.task][1]}"
                report.add("wrong-modality", name, f"{where}, positive {did}: {ids[did]}, {wanted}")
        for did in link.negatives:
            if did not in ids:
                report.add("dangling-negative", name, f"{where}, negative {did}")


def check_instructions(
    links: Iterable[Link], instructions: Instructions, file: str, report: Report
) -> None:
    """Whether every kind of query has an instruction; a kind is counted once a file."""
    kinds: dict[tuple[str, int], Link] = {}
    for link in links:
        if link.task is not None:
            kinds.setdefault((link.qid.partition(":")[0], link.task), link)
    for (dataset, task), link in kinds.items():
        missing = _no_instruction(instructions, dataset, task)
        if missing:
            report.add("no-instruction", file, f"{file}:{link.line}: query {link.qid}: {missing}")


def _no_instruction(instructions: Instructions, dataset: str, task: int) -> str:
    try:
        instructions.get(dataset, *TASKS[task])
    except DataError as error:
        return str(error)
    return ""


def check_qrels(
    root: DataRoot, split: str, links: Mapping[Path, list[Link]], report: Report
) -> None:
    """The judgements of a split against the positives in its queries, as sets per query.

    A training file mixes tasks, where judgements may come task by task: such a file of judgements
    is compared with the queries of its task.
    """
    for file in root.qrels(split):
        name = _relative(root, file.path)
        try:
            judged: dict[str, set[str]] = {}
            for qrel in read_qrels(file.path):
                if qrel.relevance > 0:
                    judged.setdefault(qrel.qid, set()).add(qrel.did)
            queries = links[root.query_file(file.dataset, file.task, split)]
        except (DataError, KeyError) as error:
            report.add("unreadable", name, str(error))
            continue
        asked = {
            link.qid: set(link.positives)
            for link in queries
            if split in EVALUATED or _belongs(link, file.task, judged)
        }
        for qid in sorted(asked.keys() | judged.keys()):
            ours, theirs = asked.get(qid), judged.get(qid)
            if ours != theirs:
                report.add("qrel-mismatch", name, f"query {qid}: {_differ(ours, theirs)}")


def _belongs(link: Link, task: int | None, judged: Collection[str]) -> bool:
    """Whether judgements of a task, None for all, should have a query of a file of mixed tasks."""
    if task is None or link.task == task:
        return True
    return link.task is None and link.qid in judged  # else another file may have it


def _differ(positives: set[str] | None, judged: set[str] | None) -> str:
    if positives is None:
        return "is judged but not among the queries"
    if judged is None:
        return "has no judgement"
    return (
        f"{len(positives - judged)} positives without judgement, {len(judged - positives)} "
        "judgements without positive"
    )


def _relative(root: DataRoot, path: Path) -> str:
    return path.relative_to(root.path).as_posix()
