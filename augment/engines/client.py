"""A client for OpenAI-compatible servers that fail: balanced, patient, and never stuck.

Each server has as many workers as requests may be in flight there, and all workers take from one
queue, so that a faster server gets more. What happens to a request:

==========================  =====================================================================
200, well-formed            settled
429, 503, 529               the server pauses (``Retry-After``, else growing pauses) and is given
                            half as many requests at a time; the request waits, uncounted
other 5xx, garbage, time-   asked again after a growing pause, at most ``attempts`` times in all;
out                         every such repetition also counts against the retry budget of the run
connection lost             asked again, uncounted; a request that has lost two is asked with no
                            other in flight there, and fails if it loses two more, so that the one
                            that kills its server is told from those that were merely there
not connected               the request waits, uncounted
400, 404, 413, 422 ...      the item fails at once, with the server's message
401, 403, unknown model     the run ends
==========================  =====================================================================

A server that refuses connections, or loses or leaves unanswered several requests in a row, is
dropped and probed until it is back. The run ends when no server was usable for ``patience``
seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, final

import httpx

from augment.engines.exchange import (
    FATAL,
    Answer,
    BusyError,
    HungError,
    LostError,
    Payload,
    RepeatError,
    UnreachedError,
    locked,
    post,
)
from augment.errors import EngineError

#: Seconds between the first two tries of a request; doubled each time, up to the second number.
BACKOFF = (0.5, 30.0)

#: Connections lost in a row, or requests left unanswered, after which a server is dropped.
LOSSES = 3

#: Connections that a request may lose among others, and again when it is asked alone.
SUSPECT = 2

#: Repetitions that a run may make: this share of its requests, and a few for short runs.
BUDGET_SHARE = 0.2
BUDGET_FLOOR = 40

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How hard and how long to try.

    Attributes:
        concurrency: most requests in flight at one server.
        timeout: seconds after which a request without an answer is given up.
        attempts: how often a request is tried, all in all.
        patience: seconds without a usable server after which the run ends.
    """

    concurrency: int = 32
    timeout: float = 300.0
    attempts: int = 4
    patience: float = 120.0


@dataclass(eq=False)
class _Job:
    payload: Payload
    done: asyncio.Future[Answer]
    failures: int = 0
    losses: int = 0


@dataclass(eq=False)
class _Server:
    url: str
    allowed: float
    up: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0
    alone: _Job | None = None
    paused_until: float = 0.0
    pauses: int = 0
    losses: int = 0
    hangs: int = 0
    trouble: str = ""
    hopeless: bool = False
    probing: asyncio.Task[None] | None = None


@final
class Client:
    """Asks servers; an asynchronous context manager, bound to the loop that enters it.

    Args:
        urls: base URLs up to ``/v1``, one or more.
        limits: see :class:`Limits`.
        key: API key, sent as a bearer token; empty sends none.
        tend: called with the URL of a server that does not answer, before it is probed; may start
            it again, must return at once, and raises EngineError if that is hopeless. With it, the
            servers count as down until they have answered for the first time.
        check: a shape test of a decoded answer; raises ValueError with what is wrong.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        limits: Limits,
        *,
        key: str = "",
        tend: Callable[[str], None] | None = None,
        check: Callable[[Any], None] = lambda body: None,
    ) -> None:
        self._limits = limits
        self._check = check
        self._tend = tend
        self._servers = [_Server(url.rstrip("/"), float(limits.concurrency)) for url in urls]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers = headers
        self._asked = self._repeated = 0
        self._open: dict[_Job, float] = {}

    async def __aenter__(self) -> Client:
        limits = self._limits
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._dead: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._usable = time.monotonic()
        self._http = httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(limits.timeout, connect=min(10.0, limits.timeout)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self._tasks = [asyncio.create_task(self._watch())]
        for server in self._servers:
            if self._tend is None:
                server.up.set()
            else:
                server.probing = asyncio.create_task(self._probe(server))
            self._tasks += [
                asyncio.create_task(self._work(server, number))
                for number in range(limits.concurrency)
            ]
        return self

    async def __aexit__(self, *unused: object) -> None:
        probes = [server.probing for server in self._servers if server.probing]
        await end(*self._tasks, *probes)
        await self._http.aclose()
        if self._dead.done():
            self._dead.exception()

    async def get(self, path: str) -> Any:
        """The JSON at a path below the base URL, from the first server that has it; else None."""
        for server in self._servers:
            with suppress(httpx.HTTPError, ValueError):
                reply = await self._http.get(server.url + path, timeout=10.0)
                if reply.status_code in FATAL:
                    raise EngineError(locked(server.url, reply))
                if reply.is_success:
                    return reply.json()
        return None

    async def ask(self, payload: Payload) -> Answer:
        """Settle one request, however long its turn takes.

        Raises:
            EngineError: if the servers are beyond use.
        """
        self._asked += 1
        job = _Job(payload, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(job)
        await asyncio.wait({job.done, self._dead}, return_when=asyncio.FIRST_COMPLETED)
        return (job.done if job.done.done() else self._dead).result()

    @property
    def slots(self) -> int:
        """How many requests the servers take together at this moment."""
        now = time.monotonic()
        usable = [s for s in self._servers if s.up.is_set() and s.paused_until <= now]
        return sum(max(1, int(server.allowed)) for server in usable)

    async def ready(self) -> None:
        """Wait until a server is up.

        Raises:
            EngineError: if none comes up.
        """
        while not any(server.up.is_set() for server in self._servers):
            if self._dead.done():
                self._dead.result()
            await asyncio.sleep(0.05)

    # Workers

    async def _work(self, server: _Server, number: int) -> None:
        while True:
            while (wait := self._closed(server, number)) > 0:
                await asyncio.sleep(wait)
            job = await self._queue.get()
            if self._closed(server, number):
                self._queue.put_nowait(job)
            elif job.losses < SUSPECT:
                await self._try(server, job)
            else:
                server.alone = job
                while server.in_flight:
                    await asyncio.sleep(0.01)
                await self._try(server, job)
                server.alone = None

    def _closed(self, server: _Server, number: int) -> float:
        """Seconds after which to look again whether this worker may ask; 0 if it may now."""
        pause = server.paused_until - time.monotonic()
        busy = server.alone is not None or number >= max(1, int(server.allowed))
        if busy or not server.up.is_set():
            return max(pause, 0.05)
        return max(pause, 0.0)

    async def _try(self, server: _Server, job: _Job) -> None:
        self._open[job] = time.monotonic()
        server.in_flight += 1
        try:
            answer = await post(
                self._http, server.url, job.payload, self._limits.timeout, self._check
            )
        except BusyError as busy:
            server.hangs = 0
            self._pause(server, busy)
            self._queue.put_nowait(job)
        except UnreachedError as error:
            self._drop(server, str(error))
            self._queue.put_nowait(job)
        except LostError as error:
            self._lose(server, str(error))
            job.losses += 1
            if job.losses < 2 * SUSPECT:
                self._later(job, job.losses)
            else:
                self._fail(job, f"connection-lost: {error} (twice with no other request there)")
        except HungError as error:
            self._hang(server)
            self._again(job, str(error))
        except RepeatError as error:
            server.hangs = 0
            self._again(job, str(error))
        except EngineError as error:
            self._die(error)
        else:
            self._thrive(server)
            if not job.done.done():
                job.done.set_result(answer)
        finally:
            server.in_flight -= 1
            self._open.pop(job, None)

    # What a try did to its server

    def _thrive(self, server: _Server) -> None:
        server.losses = server.pauses = server.hangs = 0
        server.allowed = min(server.allowed + 1 / server.allowed, self._limits.concurrency)
        self._usable = time.monotonic()

    def _pause(self, server: _Server, busy: BusyError) -> None:
        now = time.monotonic()
        if now < server.paused_until:
            return  # one of several that were in flight; the first has been heeded
        server.pauses += 1
        server.allowed = max(1.0, server.allowed / 2)
        wait = _growing(server.pauses) if busy.wait is None else max(busy.wait, 0.05)
        server.trouble = f"{busy}: too many requests"
        if busy.wait is not None:
            server.trouble += f", Retry-After {busy.wait:g} s"
        server.paused_until = now + wait
        _LOG.info("%s: %s; pausing %.1f s", server.url, busy, wait)

    def _hang(self, server: _Server) -> None:
        server.hangs += 1
        if server.hangs >= LOSSES:
            self._drop(server, f"{server.hangs} requests in a row without an answer")

    def _lose(self, server: _Server, why: str) -> None:
        server.losses += 1
        server.trouble = why
        if server.losses >= LOSSES:
            self._drop(server, why)

    def _drop(self, server: _Server, why: str) -> None:
        server.trouble = why
        if server.up.is_set():
            _LOG.warning("%s: dropped until it answers again (%s)", server.url, why)
            server.up.clear()
            server.probing = asyncio.create_task(self._probe(server))

    async def _probe(self, server: _Server) -> None:
        tries = 0
        while True:
            try:
                if self._tend is not None:
                    self._tend(server.url)
                reply = await self._http.get(server.url + "/models", timeout=10.0)
                if not reply.is_server_error:
                    break
            except EngineError as error:
                server.hopeless = True
                server.trouble = str(error)
                _LOG.error("%s: given up: %s", server.url, error)
                if all(one.hopeless for one in self._servers):
                    self._die(error)
                return
            except httpx.HTTPError as error:
                server.trouble = f"{type(error).__name__}: {error}"
            tries += 1
            await asyncio.sleep(_growing(tries, most=10.0))
        server.losses = server.hangs = 0
        server.up.set()
        _LOG.warning("%s: answers again", server.url)

    # What it did to the request and to the run

    def _again(self, job: _Job, reason: str) -> None:
        job.failures += 1
        if job.failures >= self._limits.attempts:
            self._fail(job, f"{reason} (tried {job.failures} times)")
            return
        self._repeated += 1
        if self._repeated > BUDGET_FLOOR + BUDGET_SHARE * self._asked:
            self._die(
                EngineError(
                    f"{self._repeated} of {self._asked} requests had to be repeated, the last one"
                    f" because of {reason}; look at the server before going on"
                )
            )
        self._later(job, job.failures)

    def _later(self, job: _Job, tries: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(_growing(tries), self._queue.put_nowait, job)

    def _fail(self, job: _Job, reason: str) -> None:
        if not job.done.done():
            job.done.set_result(Answer({}, reason))

    async def _watch(self) -> None:
        """End the run once no server has been usable for longer than our patience."""
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            waits = [s.paused_until - now if s.up.is_set() else 0.0 for s in self._servers]
            # A server that paused counts again once it has answered, or is at work.
            working = any(now - since > 1 for since in self._open.values())
            if working or any(s.up.is_set() and not s.pauses for s in self._servers):
                self._usable = now
            idle = now - self._usable
            hopeless = min(waits) > self._limits.patience
            if idle > self._limits.patience or hopeless:
                each = "; ".join(f"{s.url}: {s.trouble}" for s in self._servers)
                self._die(EngineError(f"no server could be used for {idle:.0f} s ({each})"))
                return

    def _die(self, error: EngineError) -> None:
        if not self._dead.done():
            self._dead.set_exception(error)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they are done, since a library may swallow one cancellation."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)


def _growing(number: int, most: float = BACKOFF[1]) -> float:
    """Pause before the ``number``-th repetition, with jitter so that clients do not march."""
    pause = min(BACKOFF[0] * 2.0 ** (number - 1), most)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311  # not cryptography
