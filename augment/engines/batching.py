"""Batches of similar size from a stream: which of the requests at hand go together.

Padding makes every request of a batch as long as its longest, so a batch should hold requests of
one size; a window that slides over the stream gives a choice without reading it all. The choice
depends on the order of the stream alone, never on time, so that a run can be repeated.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar, final

from augment.records import Sampling


class Sized(Protocol):
    """What can be put in a batch."""

    @property
    def position(self) -> int:
        """Its place in the stream."""

    @property
    def cost(self) -> int:
        """Tokens to read."""

    @property
    def sampling(self) -> Sampling:
        """How its reply is decoded; equal within a batch."""


S = TypeVar("S", bound=Sized)


@final
class Window(Generic[S]):
    """Requests that are ready, of which the next batch is chosen.

    Args:
        size: most requests in a batch.
        tokens: most tokens in a batch, padding and new tokens included; a request that alone is
            longer still gets a batch.
    """

    def __init__(self, size: int, tokens: int) -> None:
        self._size = size
        self._tokens = tokens
        self._sorted: dict[Sampling, list[S]] = {}
        self._ages: dict[int, S] = {}

    def __len__(self) -> int:
        return len(self._ages)

    def add(self, one: S) -> None:
        """Take up a request. They must come in the order of their positions."""
        self._ages[one.position] = one
        insort(self._sorted.setdefault(one.sampling, []), one, key=_place)

    def take(self) -> list[S]:
        """Remove and return the next batch, its longest request first.

        It is the request that has waited longest, so that none waits for ever, and those nearest
        to it in size.
        """
        oldest = next(iter(self._ages.values()))
        ranked = self._sorted[oldest.sampling]
        low, high = self._around(ranked, ranked.index(oldest), oldest.sampling.max_new_tokens)
        batch = ranked[low:high]
        del ranked[low:high]
        if not ranked:
            del self._sorted[oldest.sampling]
        for one in batch:
            del self._ages[one.position]
        return batch[::-1]

    def _around(self, ranked: Sequence[S], at: int, new: int) -> tuple[int, int]:
        """The stretch around a place that grows the spread of sizes least."""
        low, high = at, at + 1
        while high - low < self._size:
            most = self._tokens // (high - low + 1) - new
            down = up = None
            if low > 0 and ranked[high - 1].cost <= most:
                down = ranked[low].cost - ranked[low - 1].cost
            if high < len(ranked) and ranked[high].cost <= most:
                up = ranked[high].cost - ranked[high - 1].cost
            if down is None and up is None:
                break
            if up is None or (down is not None and down <= up):
                low -= 1
            else:
                high += 1
        return low, high


def _place(one: Sized) -> tuple[int, int]:
    return one.cost, one.position
