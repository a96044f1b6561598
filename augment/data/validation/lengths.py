"""Lengths of texts in tokens, over all texts or a fair sample of a stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final


@final
class Reservoir:
    """A uniform sample of a stream whose length is not known (Vitter 1985, algorithm R).

    Args:
        size: how many to keep; None keeps all.
        seed: the sample is the same for the same stream.
    """

    def __init__(self, size: int | None, seed: int = 0) -> None:
        self.kept: list[str] = []
        self.seen = 0
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret

    def offer(self, value: str) -> None:
        """One more value of the stream."""
        self.seen += 1
        if self._size is None or len(self.kept) < self._size:
            self.kept.append(value)
            return
        place = self._random.randrange(self.seen)
        if place < self._size:
            self.kept[place] = value


@final
@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens, start and end marks included.

    Attributes:
        texts: texts in the file.
        measured: texts measured; fewer than ``texts`` means a sample.
        mean: mean length.
        p50: median (nearest rank).
        p95: 95th percentile (nearest rank).
        longest: the longest.
        cut: measured texts longer than the context.
    """

    texts: int
    measured: int
    mean: float
    p50: int
    p95: int
    longest: int
    cut: int


def measure(sample: Reservoir, count: Callable[[str], int], context: int) -> Lengths | None:
    """Measure a sample; None where there is no text."""
    lengths = sorted(count(text) for text in sample.kept)
    if not lengths:
        return None
    return Lengths(
        texts=sample.seen,
        measured=len(lengths),
        mean=round(sum(lengths) / len(lengths), 2),
        p50=_rank(lengths, 50),
        p95=_rank(lengths, 95),
        longest=lengths[-1],
        cut=sum(length > context for length in lengths),
    )


def _rank(ordered: Sequence[int], percent: int) -> int:
    """Nearest-rank percentile: the smallest value with at least that share at or below it."""
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
