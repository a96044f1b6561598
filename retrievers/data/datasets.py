"""Data sets on M-BEIR records: training pairs and items to embed, pictures decoded on access."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import Dataset

from augment.data.images import open_image
from augment.data.pools import open_candidates
from augment.errors import DataError, ImageError
from augment.records import TASKS, Item, Modality, Query
from retrievers.data.examples import Candidate, Collator, Example, PairExample
from retrievers.data.negatives import HardNegatives, Scored
from retrievers.data.resized import ResizedPictures
from retrievers.data.texts import TextRecipe

OnBadImage = Literal["error", "skip"]


@final
class ImageLoader:
    """Pictures as preprocessed tensors, with a bounded cache of the latest ones.

    Args:
        root: data root.
        collator: its ``image`` is applied; deterministic, so a cached tensor is the same.
        cache_mib: limit of the cache in MiB, per process; 0 keeps nothing.
        resized: folder of pictures at the model's size (see
            :class:`~retrievers.data.resized.ResizedPictures`); None for none.
    """

    def __init__(
        self, root: Path, collator: Collator, cache_mib: int = 0, resized: Path | None = None
    ) -> None:
        self._root = root
        self._image = collator.image
        self._resized = None if resized is None else ResizedPictures(root, collator.image, resized)
        self._room = cache_mib * 2**20
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, path: str) -> Tensor:
        """Load one picture.

        Raises:
            ImageError: if it cannot be used.
        """
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        if self._resized is not None:
            tensor = self._resized(path)
        else:
            tensor = self._image(open_image(self._root, path))
        self._remember(path, tensor)
        return tensor

    def _remember(self, path: str, tensor: Tensor) -> None:
        if tensor.nbytes > self._room:
            return
        self._cache[path] = tensor
        # Pictures of one model have one size.
        while len(self._cache) * tensor.nbytes > self._room:
            self._cache.popitem(last=False)


@final
class CandidateBook:
    """Candidates of several pools by id; of an id that stands in several, the first.

    Args:
        paths: pool files, in order of preference.
    """

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
    """What turns records into examples: text, pictures, and what to do with broken ones."""

    recipe: TextRecipe
    images: ImageLoader
    on_bad_image: OnBadImage

    def candidate(self, item: Item, row: int = 0, draw: str = "") -> Example:
        """A candidate's example; ``draw`` names seed and epoch in training."""
        return self._example(item, self.recipe.candidate(item, draw), row)

    def query(
        self,
        query: Query,
        target: Modality,
        random: Random | None = None,
        row: int = 0,
        draw: str = "",
    ) -> Example:
        """A query's example, instruction included."""
        return self._example(query.item, self.recipe.query(query, target, random, draw), row)

    def _example(self, item: Item, text: str | None, row: int) -> Example:
        if item.image is None:
            problem = "" if text else "has neither text nor picture"
            if problem and self.on_bad_image == "error":
                raise DataError(f"{problem}; nothing to embed", item.id)
            return Example(row, text, None, problem, item.id)
        try:
            return Example(row, text, self.images(item.image), "", item.id)
        except ImageError as error:
            if self.on_bad_image == "error":
                raise ImageError(
                    f"picture of item {item.id}: {error}; or set data.on_bad_image=skip",
                    "",
                    error.reason,
                ) from error
            return Example(row, text, None, error.reason, item.id)


def target_modality(query: Query, find: Callable[[str], Item | None]) -> Modality:
    """The modality of the wanted candidate: from the task code, else from a positive.

    Positives of the query's own dataset count first.

    Raises:
        DataError: if neither says it.
    """
    if query.task is not None:
        return TASKS[query.task][1]
    own = query.item.dataset + ":"
    for did in sorted(query.positives, key=lambda did: not did.startswith(own)):
        item = find(did)
        if item is not None:
            return item.modality
    raise DataError("no task_id, and none of the positives is in the pool", query.item.id)


@final
class PairDataset(Dataset[PairExample]):
    """Training queries with positives and hard negatives, drawn anew in each epoch.

    Indexed by the keys of :class:`~retrievers.data.samplers.PairBatches`, which say epoch and row, so
    that the draw is the same in whatever process it happens.

    Args:
        queries: training queries, each with a positive in the book.
        book: where candidates are looked up.
        reader: renders and loads.
        seed: of the draws.
        positives: positives per query, where it has so many.
        negatives: where hard negatives come from; None for none.
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
        positives = self._draw(query, random)
        example = self._reader.query(query, positives[0].modality, random, row, draw)
        scored = self._negatives.of(query) if self._negatives is not None else Scored()
        others = positives[1:]
        if self._negatives is not None:
            others += self._hard(scored, random, self._negatives.per_query)
        return PairExample(
            example,
            self._candidate(positives[0], scored, row, draw),
            query.positives,
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

    def _hard(self, scored: Scored, random: Random, wanted: int) -> list[Item]:
        names = list(scored.negatives)
        return self._found(random.sample(names, len(names)), wanted)

    def _found(self, dids: Iterable[str], most: int) -> list[Item]:
        found = (self.find(did) for did in dids)
        return list(islice((item for item in found if item is not None), most))

    def _candidate(self, item: Item, scored: Scored, row: int, draw: str) -> Candidate:
        score = scored.positives.get(item.id, scored.negatives.get(item.id, math.nan))
        return Candidate(self._reader.candidate(item, row, draw), item.id, score)


@final
class ItemDataset(Dataset[Example]):
    """Things to embed, in order.

    Args:
        size: how many.
        example: makes the example of a row.
    """

    def __init__(self, size: int, example: Callable[[int], Example]) -> None:
        self._size = size
        self._example = example

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> Example:
        return self._example(int(row))
