"""What an evaluation embeds and searches: each candidate once, queries by data set and task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from posixpath import normpath
from random import Random
from typing import Any, Literal, NamedTuple, final
from unicodedata import normalize

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from augment.data import DataRoot, grades_of, read_qrels
from augment.data.images import content_hash, resolve, tar_part
from augment.data.pools import Catalog, open_candidates, open_queries
from augment.errors import DataError, ImageError
from augment.records import TASKS, Item, Modality, OwnPicture, Query, Side, dataset_of
from retrievers.data.datasets import Reader, target_modality
from retrievers.data.examples import Example

#: Whether a task is searched in all candidates of a pool, or in those of the modality it asks for.
SearchedModality = Literal["any", "asked"]


class Content(NamedTuple):
    """What an encoder sees of one item.

    Attributes:
        id: unique in its store.
        text: as rendered by the view, instruction included; None if there is none.
        images: paths relative to the data root.
    """

    id: str
    text: str | None
    images: tuple[str, ...]


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
    """Apply a policy to the judgements of a task."""

    def stays(qid: str, did: str, grade: int) -> bool:
        if policy.foreign == "drop" and dataset_of(did) != dataset_of(qid):
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


@dataclass
class EvalTask:
    """Queries of one data set and task, with their judgements and pool.

    Attributes:
        dataset: name, lower case.
        task: task code, None where unknown.
        queries: in file order.
        grades: query id -> candidate id -> grade.
        pool: name of the local pool, a key of :attr:`Plan.pools`.
        dropped: relevant (query, candidate) pairs removed by the policy for positives.
        left_out: queries that lost their last positive by it; they do not count.
        own: query id -> candidates that show its own picture and are to be left out of its ranking
            (:meth:`retrievers.evaluation.run.RunTable.without`).
        union: name of the pool of all candidates, where the plan has one.
    """

    dataset: str
    task: int | None
    queries: list[Query]
    grades: dict[str, dict[str, int]]
    pool: str
    dropped: int = 0
    left_out: int = 0
    own: dict[str, list[str]] = field(default_factory=dict)
    union: str = "union"

    @property
    def name(self) -> str:
        """Stem of its run files."""
        return f"{self.dataset}_task{'x' if self.task is None else self.task}"


@final
@dataclass
class Plan:
    """Candidates (each id once, whatever number of pools it stands in), pools as rows, tasks.

    Attributes:
        tasks: what is searched.
        pools: name -> rows of the candidates, in pool order. ``union`` is all pools together.
        catalog: the candidates.
    """

    tasks: list[EvalTask] = field(default_factory=list)
    pools: dict[str, Int64[np.ndarray, " rows"]] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=Catalog)

    def __len__(self) -> int:
        return len(self.catalog)

    @property
    def ids(self) -> Any:
        """Candidate ids by row, an Arrow array of strings."""
        return self.catalog.names(np.arange(len(self)))

    def item(self, row: int) -> Item:
        """The candidate in a row."""
        return self.catalog.item(row)

    def find(self, did: str) -> Item | None:
        """The candidate with an id, or None."""
        return self.catalog.find(did)

    @cached_property
    def queries(self) -> list[tuple[Query, Modality]]:
        """All queries, task after task, each with the wanted candidate's modality."""
        return [(q, target_modality(q, self.find)) for task in self.tasks for q in task.queries]

    def add_pool(self, name: str, path: Path, keep: set[str] | None = None) -> None:
        """Add a pool file once; ``keep`` restricts it to some ids.

        Raises:
            DataError: if an id already stands for something else.
        """
        if name not in self.pools:
            self.pools[name] = self.catalog.add(path, keep, check=name != "union")

    def add_union(self, path: Path | None) -> None:
        """Add the pool ``union``: the file's candidates, or without one those of all pools."""
        if path is not None:
            self.add_pool("union", path)
        else:
            self.pools["union"] = np.arange(len(self), dtype=np.int64)

    def search_union(self) -> None:
        """Have every task searched in the candidates of all, in place of its own."""
        self.pools["all"] = np.arange(len(self), dtype=np.int64)
        for task in self.tasks:
            task.pool = "all"


@final
class PlanItems(Dataset[Example]):
    """Examples of one side of a plan, by row; goes into loader processes."""

    def __init__(self, plan: Plan, side: Side, reader: Reader) -> None:
        self._plan, self._side, self._reader = plan, side, reader

    def __len__(self) -> int:
        return len(self._plan if self._side == "corpus" else self._plan.queries)

    def __getitem__(self, row: int) -> Example:
        if self._side == "corpus":
            return self._reader.candidate(self._plan.item(int(row)), int(row))
        query, target = self._plan.queries[row]
        return self._reader.query(query, target, None, int(row))

    def contents(self) -> Iterator[Content]:
        """What the encoder sees of each row; no picture is opened."""
        recipe = self._reader.recipe
        if self._side == "corpus":
            for item in self._plan.catalog.items():
                yield Content(item.id, recipe.candidate(item), item.images)
            return
        names = self.names(range(len(self)))
        for (query, target), name in zip(self._plan.queries, names, strict=True):
            yield Content(name, recipe.query(query, target), query.item.images)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids under which the vectors of some rows are kept.

        A query is named after its task too, because its instruction depends on it.
        """
        if self._side == "corpus":
            ids: list[str] = self._plan.catalog.names(np.asarray(rows, np.int64)).to_pylist()
            return ids
        return [f"{self._tasks[row]}/{self._plan.queries[row][0].item.id}" for row in rows]

    @cached_property
    def _tasks(self) -> list[str]:
        return [task.name for task in self._plan.tasks for _ in task.queries]


def plan_pools(root: DataRoot) -> Plan:
    """All local pools and no query, where there is only something to search in.

    Raises:
        DataError: if there is no pool.
    """
    plan = Plan()
    for file in root.pools():
        plan.add_pool(file.path.name, file.path)
    if not plan.pools:
        raise DataError("no pools in cand_pool/local", str(root.path))
    return plan


def plan_test(
    root: DataRoot,
    split: str,
    union: bool,
    tasks: Iterable[int] | None,
    limit: int | None,
    positives: PositiveConfig = PositiveConfig(),
    own_picture: OwnPicture = "keep",
    modality: SearchedModality = "any",
) -> Plan:
    """Every query file of a split with its local pool, and the union pool if asked for.

    The union is the root's own file where there is one, else the local pools without duplicates.

    Of its settings, see :class:`retrievers.data.module.SearchConfig`; ``tasks`` keeps these codes,
    ``limit`` so many queries per data set and task.

    Raises:
        DataError: if the split has no queries or a pool is missing.
    """
    plan = Plan()
    for task in _tasks(root, split, tasks, limit):
        path = root.pool_for(task.dataset, task.task, split)
        plan.add_pool(path.name, path)
        task.pool = path.name
        task.grades = _judged(root, task, split)
        _settle_positives(plan, root, task, path, positives)
        plan.tasks.append(task)
    if union:
        known = [file.path for file in root.union_pools() if file.dataset == f"union_{split}"]
        plan.add_union(known[0] if known else None)
    leave_out_own(plan, root.path, own_picture, root.excluded(split))
    if modality == "asked":
        _keep_asked(plan)
    return plan


def _keep_asked(plan: Plan) -> None:
    """Have every task with a code searched in the candidates of the modality it asks for."""
    modalities = np.array([item.modality for item in plan.catalog.items()])
    for task in plan.tasks:
        if task.task is None:
            continue
        asked, named = TASKS[task.task][1], []
        for pool in (task.pool, task.union):
            named.append(f"{pool}: {asked}")
            if pool in plan.pools:
                rows = plan.pools[pool]
                plan.pools[named[-1]] = rows[modalities[rows] == asked]
        task.pool, task.union = named


def leave_out_own(
    plan: Plan, root: Path, by: OwnPicture, excluded: Mapping[str, Sequence[str]]
) -> None:
    """Fill :attr:`EvalTask.own` of every task of a plan whose pools are complete."""
    for task in plan.tasks:
        qids = [query.item.id for query in task.queries if query.item.id in excluded]
        task.own.update({qid: list(excluded[qid]) for qid in qids})
    if by == "keep":
        return
    queries = [query for task in plan.tasks for query in task.queries]
    found = iter(own_pictures(plan.catalog, queries, root, by))
    for task in plan.tasks:
        for query, dids in zip(task.queries, found, strict=False):
            judged = task.grades.get(query.item.id, {})
            kept = [did for did in dids if judged.get(did, 0) <= 0]
            if kept:
                task.own.setdefault(query.item.id, []).extend(kept)


def own_pictures(
    catalog: Catalog, queries: Sequence[Query], root: Path, by: Literal["file", "content"]
) -> list[list[str]]:
    """The candidates that show each query's own picture, which any encoder finds first.

    They are no answer to "the same, but shorter": CIRR and CIRCO leave them out, M-BEIR's protocol
    does not. What a query names as positive is never among them.

    Args:
        catalog: the candidates.
        queries: those without a picture have no such candidate.
        root: folder that paths of pictures are relative to.
        by: ``file`` compares paths, ``content`` bytes; files of a size that no query's picture has
            are not read. A picture that cannot be read is compared by its path.

    Returns:
        Of each query, in order, ids of candidates.
    """
    name = same_file if by == "file" else _by_content(root, queries)
    showing: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        for image in query.item.images:
            showing.setdefault(name(image), []).append(place)
    found: list[list[str]] = [[] for _ in queries]
    for did, image in catalog.pictures() if showing else ():
        for place in showing.get(name(image), ()):
            if did not in queries[place].positives:
                found[place].append(did)
    return found


def same_file(path: str) -> str:
    """One name for the ways in which data writes the path of a picture, in NFC or in NFD."""
    return normalize("NFC", normpath(path))


def _by_content(root: Path, queries: Iterable[Query]) -> Callable[[str], str]:
    """The hash of a picture; its path if it cannot be read, or is as large as none of a query."""

    def size(path: str) -> int:
        try:
            part = tar_part(path)
            return part.size if part else resolve(root, path).stat().st_size
        except (ImageError, OSError):
            return -1

    sizes = {size(image) for query in queries for image in query.item.images} - {-1}

    @lru_cache(maxsize=200_000)
    def name(path: str) -> str:
        try:
            return content_hash(root, path) if size(path) in sizes else same_file(path)
        except ImageError:
            return same_file(path)

    return name


def _settle_positives(
    plan: Plan, root: DataRoot, task: EvalTask, path: Path, policy: PositiveConfig
) -> None:
    """Apply the policy to a task's judgements, and to its pool if pools are to be combined."""
    pool = open_candidates(path)
    kept = keep_positives(task.grades, policy, lambda did: pool.find(did) is not None)
    task.grades, task.dropped, task.left_out = kept.grades, kept.dropped, len(kept.left_out)
    if policy.dangling != "combine":
        return
    relevant = (did for judged in task.grades.values() for did, g in judged.items() if g > 0)
    dangling = {did for did in relevant if pool.find(did) is None}
    names = [path.name]
    others = sorted(root.pools(), key=lambda file: (file.task != task.task, file.path.name))
    for file in others:
        table = open_candidates(file.path)
        held = {did for did in dangling if table.find(did) is not None}
        if held:
            plan.add_pool(file.path.name, file.path)
            names.append(file.path.name)
            dangling -= held
    task.pool = "+".join(names)
    plan.pools[task.pool] = np.unique(np.concatenate([plan.pools[name] for name in names]))


def plan_validation(
    root: DataRoot, split: str, held_out: list[Query] | None, queries: int, pool: int, seed: int
) -> Plan:
    """A small version of :func:`plan_test`: some queries per task against a sub-pool.

    At most ``queries`` are taken of each task, evenly spaced; ``pool`` distractors are added to
    their positives.

    Raises:
        DataError: if a pool is missing.
    """
    plan = Plan()
    found = _tasks(root, split, None, None) if held_out is None else _grouped(root, held_out)
    for task in found:
        step = max(1, len(task.queries) // queries)
        task.queries = task.queries[::step][:queries]
        path = root.pool_for(task.dataset, task.task, split)
        keep = {did for query in task.queries for did in query.positives}
        ids = open_candidates(path).ids.to_pylist()
        random = Random(f"{seed}:{path.name}")  # noqa: S311
        keep.update(random.sample(ids, min(pool, len(ids))))
        task.pool = task.name
        plan.add_pool(task.pool, path, keep)
        task.grades = {q.item.id: dict.fromkeys(q.positives, 1) for q in task.queries}
        plan.tasks.append(task)
    return plan


def _tasks(
    root: DataRoot, split: str, tasks: Iterable[int] | None, limit: int | None
) -> list[EvalTask]:
    files = root.query_files(split)
    if not files:
        hint = "search, serve and embed need none"
        raise DataError(f"no query files in query/{split}; {hint}", str(root.path))
    wanted = None if tasks is None else set(tasks)
    groups: dict[tuple[str, int | None], list[Query]] = {}
    for file in files:
        for query in open_queries(file.path):
            task = file.task if file.task is not None else query.task
            if wanted is None or task in wanted:
                groups.setdefault((file.dataset, task), []).append(query)
    if not groups:
        raise DataError(f"no query of query/{split} has a task in {sorted(wanted or ())}")
    return [EvalTask(name, task, found[:limit], {}, "") for (name, task), found in groups.items()]


def _grouped(root: DataRoot, held_out: list[Query]) -> list[EvalTask]:
    tables = [(file.dataset, open_queries(file.path)) for file in root.query_files("train")]
    groups: dict[tuple[str, int | None], list[Query]] = {}
    for query in held_out:
        name = next(name for name, table in tables if table.find(query.item.id) is not None)
        groups.setdefault((name, query.task), []).append(query)
    return [EvalTask(name, task, found, {}, "") for (name, task), found in groups.items()]


def _judged(root: DataRoot, task: EvalTask, split: str) -> dict[str, dict[str, int]]:
    """Judgements of the root's qrels; the query's own list where they say nothing about it."""
    judged: dict[str, dict[str, int]] = {}
    for file in root.qrels(split):
        if file.dataset == task.dataset and file.task in (None, task.task):
            judged.update(grades_of(read_qrels(file.path)))
    own = ((query.item.id, dict.fromkeys(query.positives, 1)) for query in task.queries)
    return {qid: judged.get(qid, positives) for qid, positives in own}
