"""What flows from a loader into a retriever: batches in which absent modalities take no room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from augment.errors import DataError
from retrievers.training.losses import Groups, Labels, hash_id, pad_ids


@dataclass(frozen=True)
class Processor:
    """How a retriever turns text and pictures into tensors; goes into loader processes.

    Attributes:
        tokenize: texts to token ids, padded and cut to the model's context.
        image: RGB picture to a normalised tensor.
        windows: a text in pieces that fit the context, to be pooled outside training; None where
            longer texts are cut.
    """

    tokenize: Callable[[list[str]], Tensor]
    image: Callable[[Image.Image], Tensor]
    windows: Callable[[str], list[str]] | None = None


class Inputs(NamedTuple):
    """One side of a batch. Rows without text (picture) are absent from ``texts`` (``images``).

    Attributes:
        size: number of rows.
        texts: token ids of the rows that have text.
        text_rows: which rows these are, ascending; a row stands several times if its text is read
            in several windows.
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
        candidates: the positives, as many, and after them hard negatives and further positives.
        labels: hashed ids of all of them.
        groups: each query's own candidates with the scores of the table they were mined with.
        names: (query id, candidate id) of each pair, for messages.
        dropped: pairs left out because a picture could not be read.
    """

    queries: Inputs
    candidates: Inputs
    labels: Labels
    groups: Groups
    names: tuple[tuple[str, str], ...]
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
    id: str = ""


class Candidate(NamedTuple):
    """One candidate of a training query; ``score`` is the mining table's, NaN where none is."""

    example: Example
    id: str
    score: float = math.nan


class PairExample(NamedTuple):
    """One training query, its positive, and the ids that keep positives out of the negatives.

    Attributes:
        query: the query.
        positive: the candidate that it is paired with.
        positives: ids of all known positives.
        others: hard negatives and further positives.
    """

    query: Example
    positive: Candidate
    positives: tuple[str, ...]
    others: tuple[Candidate, ...] = ()


def make_inputs(
    examples: Sequence[Example], processor: Processor, training: bool = False
) -> Inputs:
    """Tokenise and stack; no filler for what is absent.

    Args:
        examples: one side of a batch.
        processor: of the retriever.
        training: one window for each text, whatever the processor can do.

    Raises:
        DataError: if pictures differ in size; names two items.
    """
    windows = [
        (row, window)
        for row, example in enumerate(examples)
        if example.text is not None
        for window in _windows(example.text, processor, training)
    ]
    image_rows = [row for row, example in enumerate(examples) if example.image is not None]
    images = [example.image for example in examples if example.image is not None]
    _check_sizes([examples[row] for row in image_rows], images)
    return Inputs(
        len(examples),
        processor.tokenize([window for _, window in windows])
        if windows
        else torch.zeros(0, 1, dtype=torch.int64),
        torch.tensor([row for row, _ in windows], dtype=torch.int64),
        torch.stack(images) if images else torch.zeros(0, 3, 1, 1),
        torch.tensor(image_rows, dtype=torch.int64),
    )


def _windows(text: str, processor: Processor, training: bool) -> list[str]:
    return [text] if training or processor.windows is None else processor.windows(text)


def _check_sizes(examples: Sequence[Example], images: Sequence[Tensor]) -> None:
    for example, image in zip(examples, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"picture becomes a tensor of {tuple(image.shape)}, that of "
                f"{examples[0].id or examples[0].row} one of {tuple(images[0].shape)}; the image "
                "transform must give one size",
                example.id or f"row {example.row}",
            )


def split_inputs(batch: Inputs, size: int) -> list[Inputs]:
    """A batch cut into parts of at most ``size`` rows."""
    return [slice_inputs(batch, start, start + size) for start in range(0, batch.size, size)]


def slice_inputs(batch: Inputs, start: int, stop: int) -> Inputs:
    """Rows ``start`` to ``stop`` of a batch whose rows are in order."""
    stop = min(stop, batch.size)
    bounds = torch.tensor([start, stop])
    text = slice(*torch.searchsorted(batch.text_rows.cpu(), bounds).tolist())
    image = slice(*torch.searchsorted(batch.image_rows.cpu(), bounds).tolist())
    return Inputs(
        stop - start,
        batch.texts[text],
        batch.text_rows[text] - start,
        batch.images[image],
        batch.image_rows[image] - start,
    )


@dataclass(frozen=True)
class PairCollator:
    """Training pairs to :class:`Pairs`; those with an unreadable picture are dropped, counted."""

    processor: Processor

    def __call__(self, pairs: Sequence[PairExample]) -> Pairs:
        """Collate one batch; it may come out empty."""
        kept = [p for p in pairs if not (p.query.problem or p.positive.example.problem)]
        candidates = [pair.positive for pair in kept]
        rows: list[list[int]] = []
        for row, pair in enumerate(kept):
            others = [other for other in pair.others if not other.example.problem]
            rows.append([row, *range(len(candidates), len(candidates) + len(others))])
            candidates += others
        labels = Labels(
            torch.tensor([hash_id(pair.query.id) for pair in kept], dtype=torch.int64),
            torch.tensor([hash_id(candidate.id) for candidate in candidates], dtype=torch.int64),
            pad_ids(map(hash_id, pair.positives) for pair in kept),
        )
        table = pad_ids(rows)
        scores = torch.tensor([c.score for c in candidates] or [math.nan])
        return Pairs(
            make_inputs([pair.query for pair in kept], self.processor, training=True),
            make_inputs([c.example for c in candidates], self.processor, training=True),
            labels,
            Groups(table, scores[table.clamp(min=0)].masked_fill(table < 0, math.nan)),
            tuple((pair.query.id, pair.positive.id) for pair in kept),
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
