"""What flows from a loader into a retriever: batches in which absent modalities take no room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from retrievers.losses import hash_id, pad_ids


@dataclass(frozen=True)
class Processor:
    """How a retriever turns text and pictures into tensors; goes into loader processes.

    Attributes:
        tokenize: texts to token ids, padded and cut to the model's context.
        image: RGB picture to a normalised tensor.
    """

    tokenize: Callable[[list[str]], Tensor]
    image: Callable[[Image.Image], Tensor]


class Inputs(NamedTuple):
    """One side of a batch. Rows without text (picture) are absent from ``texts`` (``images``).

    Attributes:
        size: number of rows.
        texts: token ids of the rows that have text.
        text_rows: which rows these are.
        images: pictures of the rows that have one.
        image_rows: which rows these are.
    """

    size: int
    texts: Int[Tensor, "texts context"]
    text_rows: Int[Tensor, " texts"]
    images: Float[Tensor, "images 3 height width"]
    image_rows: Int[Tensor, " images"]


class Pairs(NamedTuple):
    """A training batch: row ``i`` of the candidates is a positive of row ``i`` of the queries.

    Attributes:
        queries: the queries.
        candidates: as many candidates.
        candidate_ids: hashed candidate ids.
        positives: hashed ids of all known positives of each query, padded.
        dropped: pairs left out because a picture could not be read.
    """

    queries: Inputs
    candidates: Inputs
    candidate_ids: Int[Tensor, " batch"]
    positives: Int[Tensor, "batch most"]
    dropped: int


class Items(NamedTuple):
    """A batch of items to embed.

    Attributes:
        inputs: the items that can be embedded.
        rows: their positions in the data set.
        failed: positions of items with nothing left to embed.
        degraded: positions of items embedded from text alone because the picture is unreadable.
    """

    inputs: Inputs
    rows: Int[Tensor, " batch"]
    failed: Int[Tensor, " failed"]
    degraded: Int[Tensor, " degraded"]


class Example(NamedTuple):
    """One item, text rendered and picture preprocessed.

    ``problem`` says why its picture is missing; empty if nothing is wrong.
    """

    row: int
    text: str | None
    image: Tensor | None
    problem: str = ""


class PairExample(NamedTuple):
    """One training pair with the ids that keep positives out of the negatives."""

    query: Example
    candidate: Example
    candidate_id: str
    positives: tuple[str, ...]


def make_inputs(examples: Sequence[Example], processor: Processor) -> Inputs:
    """Tokenise and stack; no filler for what is absent."""
    text_rows = [row for row, example in enumerate(examples) if example.text is not None]
    image_rows = [row for row, example in enumerate(examples) if example.image is not None]
    texts = [example.text for example in examples if example.text is not None]
    images = [example.image for example in examples if example.image is not None]
    return Inputs(
        len(examples),
        processor.tokenize(texts) if texts else torch.zeros(0, 1, dtype=torch.int64),
        torch.tensor(text_rows, dtype=torch.int64),
        torch.stack(images) if images else torch.zeros(0, 3, 1, 1),
        torch.tensor(image_rows, dtype=torch.int64),
    )


@dataclass(frozen=True)
class PairCollator:
    """Training pairs to :class:`Pairs`; those with an unreadable picture are dropped, counted."""

    processor: Processor

    def __call__(self, pairs: Sequence[PairExample]) -> Pairs:
        """Collate one batch; it may come out empty."""
        kept = [pair for pair in pairs if not (pair.query.problem or pair.candidate.problem)]
        return Pairs(
            make_inputs([pair.query for pair in kept], self.processor),
            make_inputs([pair.candidate for pair in kept], self.processor),
            torch.tensor([hash_id(pair.candidate_id) for pair in kept], dtype=torch.int64),
            pad_ids(map(hash_id, pair.positives) for pair in kept) if kept else torch.zeros(0, 1),
            len(pairs) - len(kept),
        )


@dataclass(frozen=True)
class ItemCollator:
    """Items to :class:`Items`."""

    processor: Processor

    def __call__(self, examples: Sequence[Example]) -> Items:
        """Collate one batch; items with neither text nor picture go to ``failed``."""
        kept = [e for e in examples if e.text is not None or e.image is not None]
        failed = [e.row for e in examples if e.text is None and e.image is None]
        return Items(
            make_inputs(kept, self.processor),
            torch.tensor([e.row for e in kept], dtype=torch.int64),
            torch.tensor(failed, dtype=torch.int64),
            torch.tensor([e.row for e in kept if e.problem], dtype=torch.int64),
        )
