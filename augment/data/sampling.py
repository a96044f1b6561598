"""A uniform sample of a stream whose length is not known."""

from __future__ import annotations

import random
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Reservoir(Generic[T]):
    """Keeps a sample (Vitter 1985, algorithm R).

    A ``size`` of None keeps all.
    """

    def __init__(self, size: int | None, seed: int = 0) -> None:
        self.kept: list[T] = []
        self.seen = 0
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret

    def offer(self, value: T) -> None:
        """One more value of the stream."""
        self.seen += 1
        if self._size is None or len(self.kept) < self._size:
            self.kept.append(value)
        elif (place := self._random.randrange(self.seen)) < self._size:
            self.kept[place] = value
