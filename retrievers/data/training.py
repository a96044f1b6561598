"""What is trained on: queries with a positive in a pool, their groups and hard negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
from jaxtyping import Int64
from lightning.pytorch.utilities import rank_zero_info

from augment.data import DataRoot
from augment.data.pools import StoredQueries, open_queries
from augment.errors import DataError
from augment.records import Item, Query
from retrievers.data.datasets import CandidateBook, PairDataset, target_modality
from retrievers.data.negatives import HardNegatives, NegativesConfig
from retrievers.data.samplers import GroupBy

#: Queries whose positives are looked up at once.
_BLOCK = 1 << 16


def training_queries(
    root: DataRoot,
    tasks: Collection[int] | None,
    limit: int | None,
    held_out: list[Query] | None,
    holdout: float,
) -> tuple[CandidateBook, StoredQueries]:
    """Training queries with a positive in a pool, and the pools.

    Args:
        root: the data.
        tasks: only these task codes.
        limit: at most so many, evenly spaced.
        held_out: receives a share of the queries, which are not trained on; None holds out none.
        holdout: that share.

    Raises:
        DataError: if nothing is left to train on.
    """
    files = root.query_files("train")
    if not files:
        raise DataError("no query files in query/train", str(root.path))
    union = [file.path for file in root.union_pools() if file.dataset == "union_train"]
    book = CandidateBook([*union, *(file.path for file in root.pools())])
    tables = [open_queries(file.path) for file in files]
    kept: list[list[int]] = []
    lost = 0
    for table in tables:
        kept.append([])
        wanted = (
            (row, query) for row, query in enumerate(table) if tasks is None or query.task in tasks
        )
        for row, query, found in _found(wanted, book):
            if not found:
                lost += 1
            elif held_out is not None and _held_out(query.item.id, holdout):
                held_out.append(query)
            else:
                kept[-1].append(row)
    source = np.repeat(np.arange(len(tables)), [len(own) for own in kept]).astype(np.uint16)
    queries = StoredQueries(tables, source, np.array(list(chain(*kept)), dtype=np.int32))
    if limit:
        queries = queries[:: max(1, len(queries) // limit)][:limit]
    if not queries:
        raise DataError(
            f"no training query with a positive in a pool ({lost} without); check data.tasks "
            "and run `python -m augment validate`",
            str(root.path),
        )
    rank_zero_info(f"{len(queries)} training queries, {lost} left out without a positive in a pool")
    return book, queries


def _found(
    queries: Iterable[tuple[int, Query]], book: CandidateBook
) -> Iterator[tuple[int, Query, bool]]:
    """Rows and queries, and whether a positive of each is in a pool; looked up many at a time."""
    left = iter(queries)
    while block := list(islice(left, _BLOCK)):
        known = book.known([did for _, query in block for did in query.positives])
        owner = np.repeat(np.arange(len(block)), [len(query.positives) for _, query in block])
        counts = np.bincount(owner[known], minlength=len(block))
        for (row, query), count in zip(block, counts.tolist(), strict=True):
            yield row, query, count > 0


def open_negatives(config: NegativesConfig, queries: Sequence[Query]) -> HardNegatives | None:
    """The hard negatives that are asked for, None if none are.

    Raises:
        DataError: if none of the queries has any.
    """
    negatives = config.open()
    if negatives is None:
        return None
    having = sum(bool(negatives.of(query).negatives) for query in queries)
    where = "queries' own lists" if negatives.path is None else str(negatives.path)
    if not having:
        raise DataError(
            "none of the training queries has a hard negative here; mine them on this root "
            "with `python -m retrievers mine`",
            where,
        )
    rank_zero_info(f"{having} of {len(queries)} training queries have hard negatives ({where})")
    return negatives


def training_digest(root: DataRoot) -> str:
    """SHA-256 over the bytes of all pools and training queries."""
    digest = hashlib.sha256()
    for file in [*root.union_pools(), *root.pools(), *root.query_files("train")]:
        digest.update(file.path.name.encode())
        with file.path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def group_codes(data: PairDataset, by: GroupBy) -> Int64[np.ndarray, " size"]:
    """The group of each training query as a number, for :class:`PairBatches`."""
    if by == "none":
        return np.zeros(len(data), dtype=np.int64)
    names = [_group(query, by, data.find) for query in data.queries]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _group(query: Query, by: GroupBy, find: Callable[[str], Item | None]) -> str:
    target = target_modality(query, find)
    task = f"{query.item.modality} -> {target}"
    return {"modality": target, "task": task}.get(by, f"{query.item.dataset} {task}")


def _held_out(qid: str, share: float) -> bool:
    """Whether a query is held out: by its id alone, so that it is so in every run."""
    digest = hashlib.blake2b(qid.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32
