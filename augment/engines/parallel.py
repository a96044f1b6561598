"""One engine made of many workers, each with a copy of the model: processes here, or Ray's actors.

Requests go out in chunks, replies come back as their batches are done; pictures never travel,
because every worker opens them itself. A worker is given its next chunk before it is done with the
present one, where its crew can do that, so that its model does not wait in between. A worker that
dies (killed for memory, a lost machine) is replaced, and what it had not answered is asked again in
halves, by a worker that has nothing else to do, until a request that kills its worker stands alone:
after the second death it fails, and the rest goes on.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

from augment.engines.base import Ask, Asked, Engine, Pause, Replies
from augment.errors import EngineError
from augment.records import Reply

#: Batches in a chunk. More keep a worker's decoding ahead of its model; fewer share out better.
CHUNK_BATCHES = 8

#: Workers that may die in a row without a single reply in between. Halving two chunks of 128 down
#: to one request takes 9.
MAX_DEATHS = 14

_LOG = logging.getLogger(__name__)


#: Requests with their numbers, which their replies carry.
Numbered = Sequence[tuple[int, Ask]]


class Event(NamedTuple):
    """What a worker tells.

    Attributes:
        worker: number of the worker.
        kind: ``ready`` for chunks, ``replies`` to some of them, ``failed`` with an error that ended
            its engine, or ``died``.
        replies: numbers of requests, with their replies.
        reason: why it failed or died.
        waited: seconds that its model has waited for pictures since it began.
    """

    worker: int
    kind: Literal["ready", "replies", "failed", "died"]
    replies: Replies = ()
    reason: str = ""
    waited: float = 0.0


class Crew(ABC):
    """Workers that answer chunks.

    Attributes:
        depth: chunks that a worker may be given at a time.
    """

    depth: int = 1

    @abstractmethod
    def start(self) -> int:
        """Start a worker; its number. It tells when it is ready."""

    @abstractmethod
    def give(self, worker: int, chunk: Numbered) -> None:
        """Give a worker a chunk; it has answered all but ``depth - 1`` of those before."""

    @abstractmethod
    def wait(self) -> Sequence[Event]:
        """What the workers have told since the last call; waits for an event, but not for ever."""

    @abstractmethod
    def stop(self) -> None:
        """End all workers."""


@dataclass(eq=False)
class _Chunk:
    """Requests that go out together.

    Attributes:
        asks: by number; those that are answered are taken out.
        suspect: whether it was with a worker that died.
        single: whether it never held more than one request.
        deaths: of workers that had this chunk alone, while it was suspect and single.
    """

    asks: dict[int, Ask]
    suspect: bool = False
    single: bool = False
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    chunks: list[_Chunk] = field(default_factory=list)
    ready: bool = False
    waited: float = 0.0

    def takes(self, chunk: _Chunk, depth: int) -> bool:
        if any(one.suspect for one in self.chunks) or (chunk.suspect and self.chunks):
            return False
        return self.ready and len(self.chunks) < depth


@final
class ParallelEngine(Engine):
    """Shares requests among the workers of a crew, which stay up between calls.

    Args:
        inner: what each worker runs; asked here only for its name, revision and settings.
        crew: the workers, none started yet.
        size: how many to start.
        batch_size: of each worker.
    """

    def __init__(self, inner: Engine, crew: Crew, *, size: int, batch_size: int) -> None:
        self._inner = inner
        self._crew = crew
        self._size = size
        self._chunk = batch_size * CHUNK_BATCHES
        self._workers: dict[int, _Worker] = {}
        self._deaths = 0

    @property
    def model(self) -> str:
        """See :class:`Engine`."""
        return self._inner.model

    @property
    def revision(self) -> str:
        """See :class:`Engine`."""
        return self._inner.revision

    @property
    def settings(self) -> Mapping[str, object]:
        """See :class:`Engine`."""
        return self._inner.settings

    @property
    def waited(self) -> float:  # type: ignore[override]
        """See :class:`Engine`: the mean of the workers."""
        return sum(worker.waited for worker in self._workers.values()) / self._size

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`."""
        finished = False
        try:
            yield from self._share(_Chunks(asked, self._chunk, self._size))
            finished = True
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the workers. The next call of :meth:`batches` starts new ones."""
        self._crew.stop()
        self._workers.clear()

    def _share(self, chunks: _Chunks) -> Iterator[Replies]:
        self._deaths = 0
        while True:
            self._give(chunks)
            if not any(worker.chunks for worker in self._workers.values()) and not chunks.waiting:
                if chunks.ended:
                    return
                yield []
                continue
            if chunks.paused:
                yield []
            for event in self._crew.wait():
                yield from self._heed(event, chunks)

    def _give(self, chunks: _Chunks) -> None:
        """Hand out chunks while somebody takes them."""
        chunks.paused = False
        while chunk := chunks.next():
            while len(self._workers) < self._size:
                self._workers[self._crew.start()] = _Worker()
            able = [n for n, one in self._workers.items() if one.takes(chunk, self._crew.depth)]
            if not able:
                chunks.waiting.appendleft(chunk)
                return
            number = min(able, key=lambda n: sum(len(c.asks) for c in self._workers[n].chunks))
            self._workers[number].chunks.append(chunk)
            self._crew.give(number, list(chunk.asks.items()))

    def _heed(self, event: Event, chunks: _Chunks) -> Iterator[Replies]:
        worker = self._workers[event.worker]
        if event.kind == "ready":
            worker.ready = True
        elif event.kind == "replies":
            self._deaths = 0
            worker.waited = event.waited
            for number, _ in event.replies:
                chunk = next(one for one in worker.chunks if number in one.asks)
                del chunk.asks[number]
            worker.chunks = [chunk for chunk in worker.chunks if chunk.asks]
            yield event.replies
        else:
            self._replace(event)
            yield _halved(worker.chunks, chunks.waiting, event.reason)

    def _replace(self, event: Event) -> None:
        """Start another worker in the place of one that ended.

        Raises:
            EngineError: if too many ended in a row.
        """
        self._deaths += 1
        del self._workers[event.worker]
        _LOG.warning("worker %d %s: %s", event.worker, event.kind, event.reason)
        if self._deaths > (self._size if event.kind == "failed" else MAX_DEATHS):
            raise EngineError(
                f"{self._deaths} workers ended in a row without a reply, the last one:"
                f" {event.reason}"
            )
        self._workers[self._crew.start()] = _Worker()


@final
class _Chunks:
    """The stream of requests in chunks.

    Args:
        asked: the stream.
        most: requests in a chunk.
        workers: that share them. What is left of the stream is cut into two chunks for each, so
            that the last ones do not wait for a single worker.

    Attributes:
        waiting: chunks that are cut and not given to anybody.
        ended: whether the stream is at its end.
        paused: whether the stream had nothing at its last reading.
    """

    def __init__(self, asked: Asked, most: int, workers: int) -> None:
        self.waiting: deque[_Chunk] = deque()
        self.ended = self.paused = False
        self._asked = iter(asked)
        self._most = most
        self._workers = workers
        self._read: deque[tuple[int, Ask]] = deque()
        self._number = 0

    def next(self) -> _Chunk | None:
        """The next chunk; None if there is none at the moment."""
        if self.waiting:
            return self.waiting.popleft()
        while not self.ended and len(self._read) < 2 * self._workers * self._most:
            said = next(self._asked, None)
            self.ended = said is None
            if not isinstance(said, Ask):
                self.paused = isinstance(said, Pause)
                if said is Pause.BRIEF and len(self._read) < self._most:
                    return None
                break
            self._read.append((self._number, said))
            self._number += 1
        if not self._read:
            return None
        size = min(self._most, -(-len(self._read) // (2 * self._workers)))
        return _Chunk(dict(self._read.popleft() for _ in range(size)))


def _halved(lost: Sequence[_Chunk], waiting: deque[_Chunk], reason: str) -> Replies:
    """Ask again what a dead worker left, in halves; a request that stood alone may fail."""
    left = [pair for chunk in lost for pair in chunk.asks.items()]
    deaths = sum(chunk.deaths + 1 for chunk in lost if chunk.suspect and chunk.single)
    if deaths >= 2:
        text = f"engine-died: asked alone, the worker ended twice ({reason})"
        return [(number, Reply("", "error", reason=text)) for number, _ in left]
    middle = (len(left) + 1) // 2
    for half in (left[:middle], left[middle:]):
        if half:
            waiting.append(_Chunk(dict(half), suspect=True, single=len(half) == 1, deaths=deaths))
    return []
