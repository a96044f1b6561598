"""One engine made of many workers, each with a copy of the model: processes here, or Ray's actors.

Requests go out in chunks, replies come back as their batches are done; pictures never travel,
because every worker opens them itself. A worker that dies (killed for memory, a lost machine) is
replaced, and what it had not answered is asked again in halves, until a request that kills its
worker stands alone: after the second death it fails, and the rest goes on.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from augment.engines.base import Engine, Replies
from augment.errors import EngineError
from augment.records import Reply, Request, Sampling

#: Batches in a chunk. More keep a worker's decoding ahead of its model; fewer share out better.
CHUNK_BATCHES = 8

#: Workers that may die in a row without a single reply in between. Halving a chunk of 128 down to
#: one request takes 8.
MAX_DEATHS = 12

_LOG = logging.getLogger(__name__)


class Event(NamedTuple):
    """What a worker tells.

    Attributes:
        worker: number of the worker.
        kind: ``ready`` for a chunk, ``replies`` to some of it, ``done`` with it, ``failed`` with
            an error that ended its engine, or ``died``.
        replies: positions within the chunk, with their replies.
        reason: why it failed or died.
    """

    worker: int
    kind: Literal["ready", "replies", "done", "failed", "died"]
    replies: Replies = ()
    reason: str = ""


class Crew(ABC):
    """Workers that answer chunks."""

    @abstractmethod
    def start(self) -> int:
        """Start a worker; its number. It tells when it is ready."""

    @abstractmethod
    def give(self, worker: int, requests: Sequence[Request], sampling: Sampling) -> None:
        """Give a worker that is ready a chunk."""

    @abstractmethod
    def wait(self) -> Sequence[Event]:
        """What the workers have told since the last call; at least one event, in time."""

    @abstractmethod
    def stop(self) -> None:
        """End all workers."""


@dataclass
class _Chunk:
    positions: list[int]
    left: set[int]
    deaths: int = 0


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
        self._ready: set[int] = set()
        self._started = False
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

    def batches(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Replies]:
        """See :class:`Engine`."""
        if not requests:
            return
        if not self._started:
            self._started = True
            for _ in range(self._size):
                self._crew.start()
        finished = False
        try:
            yield from self._share(requests, sampling)
            finished = True
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the workers. The next call of :meth:`batches` starts new ones."""
        self._crew.stop()
        self._ready.clear()
        self._started = False

    def _share(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Replies]:
        # Two chunks each at least, so that the last ones do not wait for a single worker.
        size = max(1, min(self._chunk, -(-len(requests) // (2 * self._size))))
        everything = list(range(len(requests)))
        chunks = deque(
            _Chunk(everything[start : start + size], set(everything[start : start + size]))
            for start in range(0, len(requests), size)
        )
        given: dict[int, _Chunk] = {}
        self._deaths = 0
        while chunks or given:
            while chunks and self._ready:
                worker, chunk = self._ready.pop(), chunks.popleft()
                given[worker] = chunk
                part = [requests[position] for position in chunk.positions]
                self._crew.give(worker, part, sampling)
            for event in self._crew.wait():
                if event.kind == "replies":
                    self._deaths = 0
                    yield _settled(given[event.worker], event.replies)
                elif event.kind in ("ready", "done"):
                    self._ready.add(event.worker)
                    done = given.pop(event.worker, None)
                    if done is not None and done.left:
                        raise EngineError(f"a worker left {len(done.left)} requests unanswered")
                else:
                    self._replace(event)
                    lost = given.pop(event.worker, None)
                    if lost is not None and lost.left:
                        yield _halved(lost, chunks, event.reason)

    def _replace(self, event: Event) -> None:
        """Start another worker in the place of one that ended.

        Raises:
            EngineError: if too many ended in a row.
        """
        self._deaths += 1
        self._ready.discard(event.worker)
        _LOG.warning("worker %d %s: %s", event.worker, event.kind, event.reason)
        if self._deaths > (self._size if event.kind == "failed" else MAX_DEATHS):
            raise EngineError(
                f"{self._deaths} workers ended in a row without a reply, the last one:"
                f" {event.reason}"
            )
        self._crew.start()


def _settled(chunk: _Chunk, replies: Replies) -> Replies:
    settled = [(chunk.positions[position], reply) for position, reply in replies]
    chunk.left.difference_update(position for position, _ in settled)
    return settled


def _halved(lost: _Chunk, chunks: deque[_Chunk], reason: str) -> Replies:
    """Ask again what a dead worker left, in halves; a request that stands alone may fail."""
    left = [position for position in lost.positions if position in lost.left]
    if len(left) == 1 and lost.deaths and len(lost.positions) == 1:
        text = f"engine-died: asked alone, the worker ended twice ({reason})"
        return [(left[0], Reply("", "error", reason=text))]
    middle = (len(left) + 1) // 2
    for half in (left[:middle], left[middle:]):
        if half:
            # A request counts its deaths only once it is asked alone.
            alone = len(half) == len(lost.positions) == 1
            chunks.append(_Chunk(half, set(half), lost.deaths + 1 if alone else 0))
    return []
