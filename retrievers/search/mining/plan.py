"""What mining embeds and searches: training queries, and the candidates they may be confused with.

M-BEIR's local pools of MSCOCO hold no training candidates, so that the union pool of the training
split is searched where there is one, cut to the query's data set and the wanted modality.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from augment.data import DataRoot
from augment.errors import DataError
from augment.records import Item, Modality, Query
from retrievers.data.datasets import target_modality
from retrievers.data.plan import EvalTask, Plan
from retrievers.search.mining.judge import MiningConfig

_ALL = "all"


def plan_mining(
    root: DataRoot,
    queries: Iterable[Query],
    find: Callable[[str], Item | None],
    config: MiningConfig,
) -> Plan:
    """Training queries, each once, by data set, task and wanted modality; and their pools.

    Args:
        root: the data.
        queries: training queries, each with a positive in a pool.
        find: a candidate by id.
        config: says which candidates are searched.

    Raises:
        DataError: if a query has no candidate to be searched in.
    """
    plan = Plan()
    union = [file.path for file in root.union_pools() if file.dataset == "union_train"]
    for path in union or [file.path for file in root.pools()]:
        plan.add_pool(path.name, path)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(plan.catalog.items()):
        rows[_pool(item.dataset, item.modality, config)].append(row)
    plan.pools = {name: np.array(found, dtype=np.int64) for name, found in rows.items()}
    groups: dict[tuple[str, int | None, Modality], dict[str, Query]] = defaultdict(dict)
    for query in queries:
        target = target_modality(query, find)
        groups[query.item.dataset, query.task, target].setdefault(query.item.id, query)
    for (dataset, task, target), found in groups.items():
        pool = _pool(dataset, target, config)
        if pool not in plan.pools:
            raise DataError(
                f"no {target} candidate of data set {dataset} to mine from; mining.scope=all "
                "searches those of all data sets",
                next(iter(found)),
            )
        plan.tasks.append(EvalTask(dataset, task, list(found.values()), {}, pool))
    return plan


def _pool(dataset: str, modality: Modality, config: MiningConfig) -> str:
    scope = dataset if config.scope == "dataset" else _ALL
    return f"{scope}: {modality if config.same_modality else _ALL}"
