"""What flows from data to a model: examples, batches, training pairs; of no model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from augment.records import Side

#: Fills the rows of a table of ids; no id hashes to it.
NO_ID = -1


class Example(NamedTuple):
    """One item as it goes into a batch.

    Attributes:
        row: its position in the data set.
        text: rendered, instruction included; None if there is none.
        image: what :meth:`Collator.image` made of its picture; None if there is none. Models that
            take several pictures an item take a tuple of them.
        problem: why its picture is missing; empty if nothing is wrong.
        id: of the item.
        written: what stands before its vector, in training or where a test gives it; empty for
            nothing, None where it is not known.
    """

    row: int
    text: str | None
    image: Any = None
    problem: str = ""
    id: str = ""
    written: str | None = None


class Batch(Protocol):
    """One side of a batch, in whatever form its model reads."""

    @property
    def size(self) -> int:
        """Number of items."""

    def rows(self, start: int, stop: int) -> Self:
        """Items ``start`` to ``stop``; fewer at the end."""

    def to(self, device: Any) -> Self:
        """The same on another device."""


class Collator(Protocol):
    """How a model's items become batches; picklable and without weights: goes to the loader."""

    def image(self, picture: Image.Image, /) -> Any:
        """An RGB picture as an example carries it; the same for the same picture."""

    def __call__(self, examples: Sequence[Example], side: Side, training: bool = False) -> Batch:
        """A batch of one side."""


class Labels(NamedTuple):
    """Who is who in a batch, by :func:`hash_id`.

    Attributes:
        queries: id of each query.
        candidates: id of each candidate; the first ``batch`` are the queries' positives in order,
            the rest are hard negatives or further positives.
        positives: all known positives of each query, padded with :data:`NO_ID`.
    """

    queries: Int[Tensor, " batch"]
    candidates: Int[Tensor, " n"]
    positives: Int[Tensor, "batch most"]


class Groups(NamedTuple):
    """Each query's own candidates and what the teacher gives them.

    Attributes:
        rows: rows of the candidates in the batch, the positive first; -1 fills up.
        scores: the teacher's scores, higher is better; NaN where it gave none.
    """

    rows: Int[Tensor, "batch width"]
    scores: Float[Tensor, "batch width"]


class Pairs(NamedTuple):
    """A training batch: row ``i`` of the candidates is a positive of row ``i`` of the queries.

    Attributes:
        queries: the queries; of a reranker, each with each of its candidates, in the order of
            ``groups``.
        candidates: the positives, as many, and after them hard negatives and further positives; of
            a reranker none.
        labels: hashed ids of all of them.
        groups: each query's own candidates with the scores of the table they were mined with.
        names: (query id, candidate id) of each pair, for messages.
        dropped: pairs left out because a picture could not be read.
    """

    queries: Batch
    candidates: Batch
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

    inputs: Batch
    rows: Int[Tensor, " batch"]
    failed: Int[Tensor, " failed"]
    degraded: Int[Tensor, " degraded"]


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


def hash_id(text: str) -> int:
    """A 63-bit non-negative integer for an id, the same in every process.

    Not UniIR's ``dataset * 10_000_000 + n``, which aliases above its bound.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pad_ids(rows: Iterable[Iterable[int]]) -> Int[Tensor, "batch most"]:
    """Ragged id lists as one table, filled up with :data:`NO_ID`."""
    lists = [torch.tensor(list(row), dtype=torch.int64) for row in rows]
    if not lists:
        return torch.zeros(0, 1, dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=NO_ID)


@dataclass(frozen=True)
class PairCollator:
    """Training pairs to :class:`Pairs`; those with an unreadable picture are dropped, counted."""

    collator: Collator

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
        together = getattr(self.collator, "pairs", None)
        names = [(pair.query.id, pair.positive.id) for pair in kept]
        if together is not None:
            asked = [pair.query for pair, own in zip(kept, rows, strict=True) for _ in own]
            given = [candidates[place] for own in rows for place in own]
            names = [(query.id, one.id) for query, one in zip(asked, given, strict=True)]
            inputs = together(asked, [one.example for one in given]), self.collator([], "corpus")
        else:
            inputs = (
                self.collator([pair.query for pair in kept], "query", True),
                self.collator([candidate.example for candidate in candidates], "corpus", True),
            )
        table = pad_ids(rows)
        scores = torch.tensor([c.score for c in candidates] or [math.nan])
        return Pairs(
            *inputs,
            labels,
            Groups(table, scores[table.clamp(min=0)].masked_fill(table < 0, math.nan)),
            tuple(names),
            len(pairs) - len(kept),
        )


@dataclass(frozen=True)
class ItemCollator:
    """Items of one side to :class:`Items`."""

    collator: Collator
    side: Side

    def __call__(self, examples: Sequence[Example]) -> Items:
        """Collate one batch; items with neither text nor picture go to ``failed``."""
        kept = [e for e in examples if e.text is not None or e.image is not None]
        failed = [e.row for e in examples if e.text is None and e.image is None]
        return Items(
            self.collator(kept, self.side, any(e.written is not None for e in kept)),
            torch.tensor([e.row for e in kept], dtype=torch.int64),
            torch.tensor(failed, dtype=torch.int64),
            torch.tensor([e.row for e in kept if e.problem], dtype=torch.int64),
        )
