"""What is trained on and what is embedded: M-BEIR records as pairs and items, decoded on access."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64
from torch.utils.data import Dataset

from augment.data import DataRoot
from augment.data.pools import StoredQueries, open_candidates, open_queries
from augment.errors import DataError, ImageError
from augment.files import say
from augment.records import TASKS, Item, Modality, Query, dataset_of
from retrievers.data.examples import Candidate, Example, PairExample
from retrievers.data.negatives import HardNegatives, NegativesConfig, Scored
from retrievers.data.pictures import ImageLoader
from retrievers.data.samplers import GroupBy
from retrievers.data.texts import TextRecipe, WrittenTexts

OnBadImage = Literal["error", "skip"]
#: Queries whose positives are looked up at once.
_BLOCK = 1 << 16


@final
class CandidateBook:
    """Candidates of several pools by id; of an id that stands in several, the first."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pools = [open_candidates(path) for path in paths]

    def find(self, did: str) -> Item | None:
        """The candidate with this id, or None."""
        for pool in self._pools:
            row = pool.find(did)
            if row is not None:
                return pool[row]
        return None

    def known(self, dids: Sequence[str]) -> Bool[np.ndarray, " dids"]:
        """Whether there is a candidate with each id."""
        there = np.zeros(len(dids), dtype=bool)
        keys = pa.array(dids, pa.large_string())
        for pool in self._pools:
            asked = np.flatnonzero(~there)
            there[asked] = pool.rows_of(keys.take(pa.array(asked))) >= 0
        return there


class Reader(NamedTuple):
    """What turns records into examples: text, pictures, and what to do with broken ones.

    Without ``images`` no picture is opened, for models that read texts alone.
    """

    recipe: TextRecipe
    images: ImageLoader | None
    on_bad_image: OnBadImage

    def candidate(self, item: Item, row: int = 0, draw: str = "") -> Example:
        """A candidate's example; ``draw`` names seed and epoch in training."""
        found = self._example(item, self.recipe.candidate(item, draw), row)
        taught = self._taught(draw)
        return found if taught is None else found._replace(written=taught.of_candidate(item.id))

    def query(
        self,
        query: Query,
        target: Modality,
        random: Random | None = None,
        row: int = 0,
        draw: str = "",
    ) -> Example:
        """A query's example, instruction included; in training, with what is to be written.

        In a test that stands in it only where it is given.
        """
        found = self._example(query.item, self.recipe.query(query, target, random, draw), row)
        taught = self._taught(draw)
        return found if taught is None else found._replace(written=taught.of(query.item.id))

    def _taught(self, draw: str) -> WrittenTexts | None:
        taught = self.recipe.written
        return taught if taught is not None and (draw or taught.given) else None

    def _example(self, item: Item, text: str | None, row: int) -> Example:
        if self.images is None:
            return Example(row, text, None, "", item.id)
        if not item.images:
            problem = "" if text else "has neither text nor picture"
            if problem and self.on_bad_image == "error":
                raise DataError(f"{problem}; nothing to embed", item.id)
            return Example(row, text, None, problem, item.id)
        try:
            return Example(row, text, self._shown(item, self.images), "", item.id)
        except ImageError as error:
            if self.on_bad_image == "error":
                raise ImageError(
                    f"picture of item {item.id}: {error}; or set data.on_bad_image=skip",
                    "",
                    error.reason,
                ) from error
            return Example(row, text, None, error.reason, item.id)

    def _shown(self, item: Item, images: ImageLoader) -> Any:
        """The picture, or all of several for a model that takes them."""
        if images.several and len(item.images) > 1:
            return tuple(images(path) for path in item.images)
        return images(item.image or "")


def target_modality(query: Query, find: Callable[[str], Item | None]) -> Modality:
    """The modality of the wanted candidate: from the task code, else from a positive.

    Positives of the query's own dataset count first.

    Raises:
        DataError: if neither says it.
    """
    if query.task is not None:
        return TASKS[query.task][1]
    own = query.item.dataset
    for did in sorted(query.positives, key=lambda did: dataset_of(did) != own):
        item = find(did)
        if item is not None:
            return item.modality
    raise DataError("no task_id, and none of the positives is in the pool", query.item.id)


@final
class PairDataset(Dataset[PairExample]):
    """Training queries with positives and hard negatives, drawn anew in each epoch.

    Indexed by the keys of :class:`~retrievers.data.samplers.PairBatches`, which say epoch and row,
    so that the draw is the same in whatever process it happens.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        book: CandidateBook,
        reader: Reader,
        seed: int,
        positives: int = 1,
        negatives: HardNegatives | None = None,
    ) -> None:
        self.queries = queries
        self.find = book.find
        self._reader = reader
        self._seed = seed
        self._positives = positives
        self._negatives = negatives

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, key: int) -> PairExample:
        epoch, row = divmod(key, len(self))
        query = self.queries[row]
        draw = self.draw_of(epoch)
        random = Random(f"{draw}:{query.item.id}:{row}")  # noqa: S311
        scored = self._negatives.of(query) if self._negatives is not None else Scored()
        if self._negatives is not None and self._negatives.doubtful == "positive":
            query = replace(query, positives=(*query.positives, *scored.doubtful))
        positives = self._draw(query, random)
        example = self._reader.query(query, positives[0].modality, random, row, draw)
        others = positives[1:]
        if self._negatives is not None:
            names = list(scored.negatives)
            others += self._found(random.sample(names, len(names)), self._negatives.per_query)
        return PairExample(
            example,
            self._candidate(positives[0], scored, row, draw),
            (*query.positives, *scored.doubtful),  # none of them is a negative
            tuple(self._candidate(item, scored, row, draw) for item in others),
        )

    def draw_of(self, epoch: int) -> str:
        """What texts of an epoch are drawn with."""
        return f"{self._seed}:{epoch}"

    def _draw(self, query: Query, random: Random) -> list[Item]:
        shuffled = random.sample(query.positives, len(query.positives))
        found = self._found(shuffled, self._positives)
        if not found:
            raise DataError("none of the positives is in the pool", query.item.id)
        return found

    def _found(self, dids: Iterable[str], most: int) -> list[Item]:
        found = (self.find(did) for did in dids)
        return list(islice((item for item in found if item is not None), most))

    def _candidate(self, item: Item, scored: Scored, row: int, draw: str) -> Candidate:
        score = scored.positives.get(item.id, scored.negatives.get(item.id, math.nan))
        return Candidate(self._reader.candidate(item, row, draw), item.id, score)


def training_queries(
    root: DataRoot,
    tasks: Collection[int] | None,
    limit: int | None,
    held_out: list[Query] | None,
    holdout: float,
    leaves_out: Callable[[str], bool] | None = None,
) -> tuple[CandidateBook, StoredQueries]:
    """Training queries with a positive in a pool, and the pools.

    ``held_out`` receives the share ``holdout`` of the queries, which are not trained on; None holds
    out none. A ``limit`` takes so many, evenly spaced. ``leaves_out`` says of an id whether its
    query is not to be trained on.

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
    lost = skipped = 0
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
            elif leaves_out is not None and leaves_out(query.item.id):
                skipped += 1
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
    told = f", {skipped} whose text was refused" if leaves_out is not None else ""
    _tell(f"{len(queries)} training queries, {lost} left out without a positive in a pool{told}")
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
    _tell(f"{having} of {len(queries)} training queries have hard negatives ({where})")
    return negatives


def group_codes(data: PairDataset, by: GroupBy | Literal["item"]) -> Int64[np.ndarray, " size"]:
    """The group of each training query, or the item it is about, as a number."""
    if by == "none":
        return np.zeros(len(data), dtype=np.int64)
    name = _item_name if by == "item" else partial(_group, by=by)
    names = [name(query, find=data.find) for query in data.queries]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _group(query: Query, by: GroupBy, find: Callable[[str], Item | None]) -> str:
    target = target_modality(query, find)
    task = f"{query.item.modality} -> {target}"
    return {"modality": target, "task": task}.get(by, f"{query.item.dataset} {task}")


def _item_name(query: Query, find: Callable[[str], Item | None]) -> str:
    """What a query is about: the picture of its first positive, else its own, else the positive."""
    wanted = next((item for did in query.positives if (item := find(did)) is not None), None)
    return (wanted and wanted.image) or query.item.image or query.positives[0]


def _held_out(qid: str, share: float) -> bool:
    """Whether a query is held out: by its id alone, so that it is so in every run."""
    digest = hashlib.blake2b(qid.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32


def _tell(line: str) -> None:
    """Say something once, however many processes train on this machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(line, sys.stderr)
