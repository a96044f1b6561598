"""How long a server's places stood empty because pictures were not ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final


@final
class Slots:
    """Counts the time for which a server could have answered more, had it been asked.

    Place-seconds that were free while pictures were decoded, resized or encoded, divided by the
    number of places. Where nothing is being made ready, nothing is counted: the run is at its end,
    or whoever asks is slow.

    Args:
        places: how many requests the servers take at this moment.
        note: is told seconds as they are known.
        clock: in seconds.
    """

    def __init__(
        self,
        places: Callable[[], int],
        note: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._note = note
        self._clock = clock
        self._preparing = self._asking = 0
        self._since = clock()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """While a request is made ready."""
        self._change(preparing=1)
        try:
            yield
        finally:
            self._change(preparing=-1)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While a request is at a server, or waits for its place there."""
        self._change(asking=1)
        try:
            yield
        finally:
            self._change(asking=-1)

    def _change(self, preparing: int = 0, asking: int = 0) -> None:
        now = self._clock()
        places = self._places()
        free = places - self._asking
        if self._preparing and free > 0:
            # What is not even being made ready is nobody's wait.
            self._note((now - self._since) * min(free, self._preparing) / places)
        self._since = now
        self._preparing += preparing
        self._asking += asking
