"""Batches of similar size from a stream: which of the requests at hand go together.

Padding makes every request of a batch as long as its longest, so a batch should hold requests of
one size; a window that slides over the stream gives a choice without reading it all. The choice
depends on the order of the stream alone, never on time, so that a run can be repeated.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, final

from PIL import Image

from augment.engines.base import Ask, Asked, Pause
from augment.records import Request, Sampling

#: Requests whose pictures are ready at a time, in batches: those of similar size share a batch.
WINDOW_BATCHES = 8

#: Beyond them, batches whose pictures are being decoded while the model works.
AHEAD_BATCHES = 2


class Ready(NamedTuple):
    """A request that can be put in a batch, or the reason why it cannot.

    Attributes:
        position: its place in the stream.
        request: what is asked.
        sampling: how its reply is decoded; equal within a batch.
        image: its picture, None if it shows none.
        cost: tokens to read, about.
        error: why it cannot be used; empty if it can.
    """

    position: int
    request: Request
    sampling: Sampling
    image: Image.Image | None
    cost: int
    error: str = ""


@final
class Window:
    """Requests that are ready, of which the next batch is chosen.

    Args:
        size: most requests in a batch.
        tokens: most tokens in a batch, padding and new tokens included; a request that alone is
            longer still gets a batch. May be changed.
    """

    def __init__(self, size: int, tokens: int) -> None:
        self._size = size
        self.tokens = tokens
        self._sorted: dict[Sampling, list[Ready]] = {}
        self._ages: dict[int, Ready] = {}

    def __len__(self) -> int:
        return len(self._ages)

    def add(self, one: Ready) -> None:
        """Take up a request. They must come in the order of their positions."""
        self._ages[one.position] = one
        insort(self._sorted.setdefault(one.sampling, []), one, key=attrgetter("cost", "position"))

    def take(self) -> list[Ready]:
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

    def _around(self, ranked: Sequence[Ready], at: int, new: int) -> tuple[int, int]:
        """The stretch around a place that grows the spread of sizes least."""
        low, high = at, at + 1
        while high - low < self._size:
            most = self.tokens // (high - low + 1) - new
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


@final
class Feed:
    """The stream of requests, some way ahead of the model.

    How far is counted in requests, never in time, so that the same stream gives the same batches.
    The window grows from two batches to its full size, so that the model starts early.

    Attributes:
        ended: whether there is no further request.
    """

    def __init__(
        self, asked: Asked, opening: Callable[[int, Ask], Future[Ready]], size: int
    ) -> None:
        self.ended = False
        self._asked = iter(asked)
        self._opening = opening
        self._size = size
        self._want = 2 * size
        self._pause: Pause | None = None
        self._position = 0
        self._coming: deque[Future[Ready]] = deque()

    def read(self, ready: int) -> None:
        """Read the stream as far as the window and what lies ahead of it have room."""
        self._pause = None
        while len(self._coming) + ready < self._want + AHEAD_BATCHES * self._size:
            said = next(self._asked, None)
            if said is None:
                self.ended = True
                return
            if isinstance(said, Pause):
                self._pause = said
                return
            self._coming.append(self._opening(self._position, said))
            self._position += 1

    @property
    def begun(self) -> bool:
        """Whether there was any request."""
        return self._position > 0

    def is_ready(self, ready: int) -> bool:
        """Whether :meth:`fill` would not wait."""
        return all(one.done() for one in islice(self._coming, max(self._want - ready, 0)))

    def fill(self, window: Window) -> list[Ready]:
        """Move what is ready into the window, and return what cannot be used."""
        failed = []
        while self._coming and len(window) < self._want:
            ready = self._coming.popleft().result()
            if ready.error:
                failed.append(ready)
            else:
                window.add(ready)
        return failed

    def takes(self, ready: int) -> bool:
        """Whether a batch is to be made of a window; if so, the next window may be larger."""
        enough = self._size if self._pause is Pause.BRIEF else self._want
        if not ready or (ready < enough and not self.ended and self._pause is not Pause.FLUSH):
            return False
        self._want = min(self._want + 2 * self._size, WINDOW_BATCHES * self._size)
        return True
