"""Models behind OpenAI-compatible URLs: vLLM, SGLang, ``transformers serve``, a paid service.

Pictures are decoded and resized here, in threads, and sent as data URIs, so that a server needs
neither our files nor a working pixel limit. The ``openai`` package speaks to the servers; what is
ours is which of them is asked, and what happens to a request:

==========================  =====================================================================
200, well-formed            answered
429, 503, 529               the server pauses (``Retry-After``, else growing pauses) and is given
                            half as many requests at a time; the request waits, uncounted
other 5xx, garbage, time-   asked again after a growing pause, four times in all; every such
out                         repetition also counts against the retry budget of the run
connection lost             asked again, uncounted; a request that has lost two is asked with no
                            other in flight there, and fails if it loses two more, so that the one
                            that kills its server is told from those that were merely there
not connected               the request waits, uncounted
400, 404, 413, 422 ...      the item fails at once, with the server's message
401, 403, unknown model     the run ends
==========================  =====================================================================

A server that refuses connections, or loses or leaves unanswered several requests in a row, is
dropped and probed until it is back. The run ends when no server was usable for ``patience``
seconds. Nothing that a server sends is trusted: bodies are bounded, fields are checked.
"""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import logging
import os
import queue
import random
import time
import zlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, final
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx
import openai
from anyio.from_thread import start_blocking_portal
from PIL import Image, ImageDraw

from augment.data.images import open_image
from augment.engines.base import Ask, Asked, Engine, EngineOptions, Pause, Replies
from augment.engines.inputs import MAX_PIXELS, PixelBudget, data_uri, fit
from augment.errors import EngineError, ImageError
from augment.records import Reply, Request, Sampling

#: Seconds between the first two tries of a request; doubled each time, up to the second number.
BACKOFF = (0.5, 30.0)

#: How often a request is tried, all in all.
ATTEMPTS = 4

#: Connections lost in a row, or requests left unanswered, after which a server is dropped.
LOSSES = 3

#: Connections that a request may lose among others, and again when it is asked alone.
SUSPECT = 2

#: Repetitions that a run may make: this share of its requests, and a few for short runs.
BUDGET_SHARE = 0.2
BUDGET_FLOOR = 40

#: Most bytes of an answer, as it is sent and unpacked. The longest texts take a few hundred KiB.
MOST_BYTES = 8 << 20

#: Counts of tokens above this, which is what a store holds, are as good as none.
MOST_TOKENS = 2**31 - 1

#: Seconds within which ``/models`` must answer.
LISTING_SECONDS = 10.0

#: Seconds after which whoever waits for replies is given the chance to stop waiting.
HEARTBEAT = 1.0

#: Statuses of a server that is there and has no room, and those that mean every request alike.
BUSY, FATAL = frozenset({429, 503, 529}), frozenset({401, 403})

_LOG = logging.getLogger(__name__)
_now = time.monotonic

Payload = Mapping[str, Any]


@final
class OpenAIEngine(Engine):
    """A model that one or more servers offer under one name.

    Args:
        name: as the servers call it (``GET /v1/models`` lists the names).
        root: folder that image paths are relative to.
        options: ``urls``, ``concurrency``, ``timeout``, ``patience``, ``encoding``, ``workers``,
            ``canaries``, ``revision`` and the limits of pixels count.
        budget: of pictures, in place of the limits among the options.
        tend: called when a server does not answer, before it is probed; may start it again, must
            return at once, and raises EngineError if that is hopeless. With it, the servers count
            as down until they have answered for the first time.

    Raises:
        EngineError: if there is no URL, one is malformed, or the API key is.
    """

    def __init__(
        self,
        name: str,
        *,
        root: Path,
        options: EngineOptions,
        budget: PixelBudget | None = None,
        tend: Callable[[], None] | None = None,
    ) -> None:
        for url in options.urls or [""]:
            if not url.startswith(("http://", "https://")):
                raise EngineError(f"{url!r} is no URL; expected e.g. http://localhost:8000/v1")
        self.model = name
        self.revision = options.revision or "served"  # servers do not tell
        self._root = root
        self._options = options
        limits = PixelBudget(options.min_pixels or 0, options.max_pixels or MAX_PIXELS)
        self._budget = budget or limits
        self.settings = {
            "min_pixels": self._budget.min_pixels,
            "max_pixels": self._budget.max_pixels,
        }
        if options.encoding != "png":
            self.settings["encoding"] = options.encoding
        self._tend = tend
        self._begun = False
        self._preparing = self._asked = 0
        self._since = 0.0
        _key()

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`. A batch is what has been answered since the last one.

        Empty batches come at least every :data:`HEARTBEAT` seconds, so that who waits for a server
        that hangs can stop.
        """
        source, position = iter(asked), 0
        done: _Done = queue.SimpleQueue()
        under_way: dict[Future[Any], int] = {}
        start: Callable[[Ask], Future[Any]] | None = None
        said: Ask | Pause | None = Pause.BRIEF
        with ExitStack() as stack:
            while under_way or said is not None:
                while said is not None and len(under_way) < self._ahead:
                    said = next(source, None)
                    if not isinstance(said, Ask):
                        break
                    start = start or stack.enter_context(self._asking(done))
                    under_way[start(said)] = position
                    position += 1
                wait = said is not Pause.BRIEF or len(under_way) >= self._ahead
                batch, error = _take(done, under_way, HEARTBEAT if wait and under_way else 0.0)
                yield batch
                if error is not None:
                    raise error

    @property
    def _ahead(self) -> int:
        """Requests under way: as many as the servers take, and more that are made ready.

        Half as many again, since a reply counts until it is taken, and whoever takes it also
        writes it down.
        """
        places = self._options.concurrency * len(self._options.urls)
        return places + places // 2 + 2 * self._options.workers

    @contextmanager
    def _asking(self, done: _Done) -> Iterator[Callable[[Ask], Future[Any]]]:
        """Give what starts to answer a request, in the event loop of another thread.

        All that runs there is a future that comes to ``done``, so that nothing ends in silence.
        """
        self._preparing = self._asked = 0
        pool = ThreadPoolExecutor(self._options.workers, "decode")
        servers = Servers(self._options, self._tend)
        with start_blocking_portal() as portal:

            def start(work: Callable[..., Coroutine[Any, Any, Any]], *given: Any) -> Future[Any]:
                future = portal.start_task_soon(work, *given)
                future.add_done_callback(done.put)
                return future

            begun = asyncio.Event()
            attending = [start(work) for work in servers.attend()]
            attending.append(start(self._begin, servers, begun))
            try:
                yield lambda ask: start(self._answer, ask, servers, pool, begun)
            finally:
                for one in attending:
                    one.cancel()
                portal.call(servers.close)
                pool.shutdown(wait=False, cancel_futures=True)

    async def _answer(
        self, ask: Ask, servers: Servers, pool: ThreadPoolExecutor, begun: asyncio.Event
    ) -> Reply:
        await begun.wait()
        loop = asyncio.get_running_loop()
        self._count_idle(servers.places, preparing=1)
        ready = await loop.run_in_executor(pool, self._prepare, ask.request)
        self._count_idle(servers.places, preparing=-1)
        if isinstance(ready, Reply):
            return ready
        self._count_idle(servers.places, asking=1)
        reply = await servers.ask(self._payload(ask.request.system, ready, ask.sampling))
        self._count_idle(servers.places, asking=-1)
        return reply

    def _count_idle(self, places: int, *, preparing: int = 0, asking: int = 0) -> None:
        """Count place-seconds that stood empty while pictures were made ready, by their places.

        What is not even being made ready is nobody's wait: the run ends, or whoever asks is slow.
        """
        now, free = _now(), places - self._asked
        if self._preparing and free > 0:
            self.waited += (now - self._since) * min(free, self._preparing) / places
        self._since = now
        self._preparing += preparing
        self._asked += asking

    async def _begin(self, servers: Servers, begun: asyncio.Event) -> None:
        """Check the model's name, and ask the canaries."""
        await servers.ready()
        if not self._begun:
            await self._check_name(servers)
            if self._options.canaries:
                ask = partial(self._ask_canary, servers)
                _LOG.info("%s: %s", self.model, await check_server(ask, self._budget))
            self._begun = True
        begun.set()

    async def _check_name(self, servers: Servers) -> None:
        names = await servers.models()
        if not names or self.model in names:
            return
        # Some servers take names that they do not list: a folder, a model not yet loaded.
        probe = await servers.ask(self._payload("", self._parts("Hello."), Sampling(1)))
        if probe.finish == "error":
            raise EngineError(
                f"{self._options.urls[0]} has no model {self.model!r} ({probe.reason}); it has"
                f" {', '.join(names[:20])}"
            )

    async def _ask_canary(
        self, servers: Servers, system: str, text: str, image: Image.Image | None
    ) -> Reply:
        payload = self._payload(system, self._parts(text, image), Sampling(CANARY_TOKENS))
        reply = await servers.ask(payload)
        if reply.finish == "error":
            raise EngineError(
                f"the server cannot answer a simple question ({reply.reason}); nothing was sent of"
                " the data"
            )
        return reply

    def _prepare(self, request: Request) -> _Parts | Reply:
        """Decode, resize and encode; runs in a thread."""
        if request.image is None:
            return self._parts(request.text)
        try:
            image = open_image(self._root, request.image, expected=request.expected)
            return self._parts(request.text, image)
        except ImageError as error:
            return _failed(f"{error.reason}: {error}")
        except (OSError, ValueError, MemoryError) as error:
            return _failed(f"unusable: {request.image}: {error}")

    def _parts(self, text: str, image: Image.Image | None = None) -> _Parts:
        parts: _Parts = [{"type": "text", "text": text}]
        if image is not None:
            uri = data_uri(fit(image, self._budget), self._options.encoding)
            parts.append({"type": "image_url", "image_url": {"url": uri}})
        return parts

    def _payload(self, system: str, parts: _Parts, sampling: Sampling) -> Payload:
        return {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": parts}],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }


make = OpenAIEngine


#: What the user's message is made of.
_Parts = list[dict[str, Any]]

#: What has come to its end in the event loop.
_Done = queue.SimpleQueue["Future[Any]"]


def _take(
    done: _Done, under_way: dict[Future[Any], int], seconds: float
) -> tuple[list[tuple[int, Reply]], BaseException | None]:
    """What is there: replies, and the error behind them if there is one.

    Args:
        done: where they come.
        under_way: futures of replies, with their positions; those taken are taken out.
        seconds: to wait for the first.
    """
    batch: list[tuple[int, Reply]] = []
    with suppress(queue.Empty):
        while True:
            wait = seconds if not batch else 0.0
            future = done.get(timeout=wait) if wait else done.get_nowait()
            if (error := future.exception()) is not None:
                return batch, error
            if future in under_way:
                batch.append((under_way.pop(future), future.result()))
    return batch, None


class Outcome(NamedTuple):
    """What came of asking once.

    Attributes:
        kind: ``answered``; ``busy``; ``unreached``, so that the request was not even read;
            ``lost`` in the middle; ``hung``; or ``failed`` in another way.
        reply: of the server, where it answered.
        reason: why it did not.
        wait: seconds that a busy server asks for; None if it does not say.
    """

    kind: Literal["answered", "busy", "unreached", "lost", "hung", "failed"]
    reply: Reply | None = None
    reason: str = ""
    wait: float | None = None


@dataclass(eq=False)
class _Server:
    url: str
    client: openai.AsyncOpenAI
    allowed: float
    up: bool
    in_flight: int = 0
    reserved: bool = False
    paused_until: float = 0.0
    pauses: int = 0
    losses: int = 0
    hangs: int = 0
    trouble: str = ""

    def places(self) -> int:
        """How many requests it takes at this moment."""
        return max(1, int(self.allowed)) if self.up and self.paused_until <= _now() else 0

    def has_room(self) -> bool:
        """Whether it takes one more."""
        return not self.reserved and self.in_flight < self.places()


@final
class Servers:
    """Asks servers that fail: balanced, patient, and never stuck.

    Args:
        options: see :class:`OpenAIEngine`.
        tend: likewise.
    """

    def __init__(self, options: EngineOptions, tend: Callable[[], None] | None) -> None:
        self._options = options
        self._tend = tend
        self._all = [
            _Server(url, _client(url, options), float(options.concurrency), up=tend is None)
            for url in options.urls
        ]
        self._room = asyncio.Condition()
        self._asked = self._repeated = 0
        self._open: dict[object, float] = {}
        self._usable = _now()

    def attend(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What must run meanwhile, for ever; it fails once the servers are beyond use."""
        return [self._watch, *(partial(self._keep, server) for server in self._all)]

    async def close(self) -> None:
        """Close the connections."""
        for server in self._all:
            await server.client.close()

    @property
    def places(self) -> int:
        """How many requests the servers take together at this moment."""
        return sum(server.places() for server in self._all)

    async def ready(self) -> None:
        """Wait until a server is up."""
        while not any(server.up for server in self._all):
            await asyncio.sleep(0.05)

    async def models(self) -> list[str]:
        """The names that the first server lists which lists any."""
        for server in self._all:
            with suppress(Exception):  # an odd list is as good as none
                listed = json.loads(await _listing(server))["data"]
                return [str(one["id"])[:200] for one in listed]
        return []

    async def ask(self, payload: Payload) -> Reply:
        """Settle one request, however long its turn takes; a reply says why it failed.

        Raises:
            EngineError: if no request can succeed.
        """
        self._asked += 1
        failures = losses = 0
        while True:
            async with self._place(alone=losses >= SUSPECT) as server:
                outcome = await self._once(server, payload)
                self._heed(server, outcome)
            if outcome.reply is not None:
                return outcome.reply
            if outcome.kind == "lost":
                losses += 1
                if losses >= 2 * SUSPECT:
                    return _failed(
                        f"connection-lost: {outcome.reason} (twice with no other request there)"
                    )
                await asyncio.sleep(_growing(losses))
            elif outcome.kind in ("hung", "failed"):
                failures += 1
                if failures >= ATTEMPTS:
                    return _failed(f"{outcome.reason} (tried {failures} times)")
                self._spend(outcome.reason)
                await asyncio.sleep(_growing(failures))

    @asynccontextmanager
    async def _place(self, *, alone: bool) -> AsyncIterator[_Server]:
        """A place at the least busy server; with no other request there, if wanted."""
        async with self._room:
            while not (free := [one for one in self._all if one.has_room()]):
                await self._room.wait()
            server = min(free, key=lambda one: one.in_flight / one.allowed)
            server.in_flight += 1
            server.reserved = alone
        since = object()
        try:
            while alone and server.in_flight > 1:
                await asyncio.sleep(0.01)
            self._open[since] = _now()
            yield server
        finally:
            self._open.pop(since, None)
            server.in_flight -= 1
            server.reserved = server.reserved and not alone
            async with self._room:
                self._room.notify()

    async def _once(self, server: _Server, payload: Payload) -> Outcome:
        """Ask once; whatever happens is an outcome.

        Raises:
            EngineError: if no request can succeed.
        """
        timeout = self._options.timeout
        try:
            # Of the whole exchange; httpx counts from byte to byte.
            with anyio.fail_after(timeout):
                raw = await server.client.chat.completions.with_raw_response.create(**payload)
            return Outcome("answered", read_reply(raw.content))
        except openai.APIStatusError as error:
            return _refusal(server.url, error)
        except ValueError as error:
            return Outcome("failed", reason=f"garbage: {server.url} answered {error}")
        except Exception as error:  # noqa: BLE001  # an answer may do anything to its parsers
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            return _broken_off(server.url, cause or error, timeout)

    # What an outcome means for its server

    def _heed(self, server: _Server, outcome: Outcome) -> None:
        if outcome.kind not in ("hung", "lost", "unreached"):
            server.hangs = 0
        if outcome.kind == "answered":
            server.losses = server.pauses = 0
            more = server.allowed + 1 / server.allowed
            server.allowed = min(more, self._options.concurrency)
            self._usable = _now()
        elif outcome.kind == "busy":
            self._pause(server, outcome)
        elif outcome.kind != "failed":
            server.hangs += outcome.kind == "hung"
            server.losses += outcome.kind == "lost"
            server.trouble = outcome.reason
            if outcome.kind == "unreached" or LOSSES in (server.hangs, server.losses):
                self._drop(server)

    def _pause(self, server: _Server, busy: Outcome) -> None:
        if _now() < server.paused_until:
            return  # one of several that were in flight; the first has been heeded
        server.pauses += 1
        server.allowed = max(1.0, server.allowed / 2)
        server.trouble = busy.reason
        wait = _growing(server.pauses) if busy.wait is None else max(busy.wait, 0.05)
        server.paused_until = _now() + wait
        _LOG.info("%s: %s; pausing %.1f s", server.url, busy.reason, wait)

    def _drop(self, server: _Server) -> None:
        if server.up:
            _LOG.warning("%s: dropped until it answers again (%s)", server.url, server.trouble)
            server.up = False

    async def _keep(self, server: _Server) -> None:
        """Bring a server back whenever it does not answer."""
        tries = 0
        while True:
            if server.up:
                tries = 0
                await asyncio.sleep(0.05)
                continue
            if self._tend is not None:
                self._tend()
            try:
                await _listing(server)
            except openai.APIStatusError as error:
                server.trouble = f"HTTP {error.status_code}"
                server.up = error.status_code < 500
            except Exception as error:  # noqa: BLE001  # whatever it is, it does not answer yet
                cause = error.__cause__ or error
                server.trouble = f"{type(cause).__name__}: {_printable(str(cause))}"
            else:
                server.up = True
            if server.up:
                server.losses = server.hangs = 0
                _LOG.warning("%s: answers again", server.url)
            else:
                tries += 1
                await asyncio.sleep(_growing(tries, most=10.0))

    # What it means for the run

    def _spend(self, reason: str) -> None:
        """Count a repetition.

        Raises:
            EngineError: if there were too many.
        """
        self._repeated += 1
        if self._repeated > BUDGET_FLOOR + BUDGET_SHARE * self._asked:
            raise EngineError(
                f"{self._repeated} of {self._asked} requests had to be repeated, the last one"
                f" because of {reason}; look at the server before going on"
            )

    async def _watch(self) -> None:
        """End the run once no server has been usable for longer than our patience."""
        patience = self._options.patience
        while True:
            await asyncio.sleep(0.1)
            async with self._room:
                self._room.notify_all()  # a pause may be over
            now = _now()
            # A server that paused counts again once it has answered, or is at work.
            working = any(now - since > 1 for since in self._open.values())
            if working or any(server.up and not server.pauses for server in self._all):
                self._usable = now
            pauses = [server.paused_until - now if server.up else 0.0 for server in self._all]
            if now - self._usable > patience or min(pauses) > patience:
                each = "; ".join(f"{server.url}: {server.trouble}" for server in self._all)
                idle = now - self._usable
                raise EngineError(f"no server could be used for {idle:.0f} s ({each})")


def _growing(number: int, most: float | None = None) -> float:
    """Pause before the ``number``-th repetition, with jitter so that clients do not march."""
    first, longest = BACKOFF
    pause = min(first * 2.0 ** min(number - 1, 30), most or longest)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311  # not cryptography


# What is sent, and what comes back


class OddError(Exception):
    """A body that is too long, or not packed as its header says."""


@final
class _Bounded(httpx.AsyncBaseTransport):
    """Reads whole bodies, and no more of them than :data:`MOST_BYTES`, packed or unpacked."""

    def __init__(self, proxy: str | None) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._inner = httpx.AsyncHTTPTransport(proxy=proxy, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx."""
        answer = await self._inner.handle_async_request(request)
        body = bytearray()
        try:
            async for part in answer.aiter_raw():
                body += part
                if len(body) > MOST_BYTES:
                    raise OddError(f"more than {MOST_BYTES:,} bytes")
        finally:
            await answer.aclose()
        packed = answer.headers.pop("Content-Encoding", "identity").strip().lower()
        for name in ("Content-Length", "Transfer-Encoding"):
            answer.headers.pop(name, None)
        return httpx.Response(
            answer.status_code, headers=answer.headers, content=_unpacked(bytes(body), packed)
        )

    async def aclose(self) -> None:
        """See httpx."""
        await self._inner.aclose()


def _unpacked(body: bytes, packed: str) -> bytes:
    if packed == "identity" or not body:
        return body
    if packed not in ("gzip", "deflate"):
        raise OddError(f"a body in the unknown encoding {packed[:40]!r}")
    tool = zlib.decompressobj(wbits=47 if packed == "gzip" else 15)
    try:
        plain = tool.decompress(body, MOST_BYTES)
    except zlib.error as error:
        raise OddError(f"a body that is not the {packed} that it is said to be") from error
    if tool.unconsumed_tail:
        raise OddError(f"more than {MOST_BYTES:,} bytes, unpacked")
    return plain


def _client(url: str, options: EngineOptions) -> openai.AsyncOpenAI:
    """The package's client of one server, which repeats nothing.

    Whether a request is repeated, where, and in what company, is decided in :class:`Servers`: a
    request that kills its server must not be sent there three more times among others.

    Raises:
        EngineError: if the URL or the environment's proxy cannot be used.
    """
    try:
        transport = _Bounded(_proxy(url))
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{url} cannot be reached, by the proxy of the environment: {error}"
        ) from error
    limit = min(10.0, options.timeout)
    # The package also takes httpx's successor, and its annotations name no other.
    http: Any = httpx.AsyncClient(
        transport=transport,
        headers={"Accept-Encoding": "gzip, deflate"},
        timeout=httpx.Timeout(options.timeout, connect=limit),
    )
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=_key() or "none",
        http_client=http,
        max_retries=0,
        timeout=options.timeout,
    )


def _key() -> str:
    """The API key of the environment.

    Raises:
        EngineError: if it cannot be one; the key is not shown.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EngineError("OPENAI_API_KEY holds characters that no key has; set it again")
    return key


def _proxy(url: str) -> str | None:
    """The environment's proxy for a URL; none for this machine itself."""
    address = httpx.URL(url)
    with suppress(ValueError):
        if ipaddress.ip_address(address.host).is_loopback:
            return None
    if address.host == "localhost" or proxy_bypass(address.host):
        return None
    known = getproxies()
    proxy = known.get(address.scheme) or known.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


async def _listing(server: _Server) -> bytes:
    with anyio.fail_after(LISTING_SECONDS):
        return bytes((await server.client.models.with_raw_response.list()).content)


def _refusal(url: str, error: openai.APIStatusError) -> Outcome:
    """The outcome of a status that is no success.

    Raises:
        EngineError: if no request can succeed.
    """
    status = error.status_code
    if status in BUSY:
        wait = retry_after(error.response.headers.get("Retry-After"))
        reason = f"HTTP {status}: too many requests"
        return Outcome("busy", None, reason + (f", Retry-After {wait:g} s" if wait else ""), wait)
    if status in FATAL:
        raise _locked(url, error)
    if status >= 500:
        return Outcome("failed", reason=f"server-error: {_quote(url, error)}")
    return Outcome("answered", _failed(f"request-refused: {_quote(url, error)}"))


def _broken_off(url: str, cause: BaseException, timeout: float) -> Outcome:
    """The outcome of an exchange that brought no answer."""
    what = f"{type(cause).__name__}: {_printable(str(cause))}"
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return Outcome("unreached", reason=what)
    if isinstance(cause, TimeoutError | httpx.TimeoutException):
        return Outcome("hung", reason=f"timeout: {url} gave no answer within {timeout:g} s")
    if isinstance(cause, httpx.TransportError):
        return Outcome("lost", reason=f"{url}: {what}")
    if isinstance(cause, OddError):
        return Outcome("failed", reason=f"garbage: {url} answered {cause}")
    return Outcome("failed", reason=f"garbage: {url}: {what}")


def _failed(reason: str) -> Reply:
    return Reply("", "error", reason=reason)


def read_reply(body: bytes) -> Reply:
    """The reply that a chat completion holds.

    Raises:
        ValueError: if it is none, with what is wrong.
    """
    shown = repr(body[:200].decode("utf-8", "replace"))
    try:
        parsed = json.loads(body)
        choice, usage = parsed["choices"][0], parsed.get("usage")
        content, finish = choice["message"].get("content"), choice.get("finish_reason") or "stop"
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON that can be read: {shown}") from error
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"JSON that is no chat completion: {shown}") from error
    if isinstance(content, list):
        content = "".join(str(part["text"]) for part in content if _is_text(part))
    if not isinstance(content, str | None) or not isinstance(finish, str):
        raise ValueError(f"a chat completion without a text: {shown}")
    if finish not in ("stop", "length") or content is None:
        return _failed(f"no-text: the server ended with {_printable(finish)!r}")
    text = content.encode("utf-8", "replace").decode("utf-8").strip()  # lone surrogates
    return Reply(
        text,
        "length" if finish == "length" else "stop",
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0, which means not known, for anything that cannot be one."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


def retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _quote(url: str, error: openai.APIStatusError) -> str:
    """What a server says about a request that it refuses, whatever form that has."""
    text = error.response.content.decode("utf-8", "replace")
    with suppress(ValueError, RecursionError, KeyError, TypeError):
        said = json.loads(text)["error"]
        message = said["message"] if isinstance(said, dict) else said
        text = message if isinstance(message, str) else text
    return f"{url}: HTTP {error.status_code}: {_printable(text[:300])}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])


def _locked(url: str, error: openai.APIStatusError) -> EngineError:
    return EngineError(
        f"{_quote(url, error)}; set the environment variable OPENAI_API_KEY to a valid key"
    )


# Questions asked before a run. Servers start happily with a wrong chat template, without seeing
# pictures, or with their own idea of how large a picture is; each question finds one such defect.

#: Tokens of an answer to a question.
CANARY_TOKENS = 32

SYSTEM = "You describe pictures."
TEXT = "Describe this picture: its colours, its shapes and where they are."

#: Control tokens of common chat templates; in an answer they mean that the template is wrong.
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "[INST]", "<|eot_id|>", "<start_of_turn>",
)  # fmt: skip

#: Words that cost a token each in every tokenizer, at least.
_PADDING = "one two three four five six seven eight nine ten " * 3

#: A picture may cost this much more than its size allows: marks around it, and row ends.
SLACK, SLACK_TOKENS = 1.1, 16

_AskCanary = Callable[[str, str, "Image.Image | None"], Awaitable[Reply]]


def canary_pictures() -> list[Image.Image]:
    """Four pictures that no description can share: their colours and shapes differ."""
    pictures: list[Image.Image] = []
    for ground, ink in (("red", "yellow"), ("navy", "white"), ("green", "black"), ("white", "red")):
        picture = Image.new("RGB", (256, 192), ground)
        draw = ImageDraw.Draw(picture)
        if len(pictures) % 2:
            draw.rectangle((0, 64, 256, 128), fill=ink)
        else:
            draw.ellipse((88, 56, 168, 136), fill=ink)
        pictures.append(picture)
    return pictures


def _huge(budget: PixelBudget) -> Image.Image:
    """More pixels than the budget, with detail that does not vanish in resizing."""
    dice = random.Random(0)  # noqa: S311  # a picture, not cryptography
    tile = Image.frombytes("RGB", (16, 12), dice.randbytes(16 * 12 * 3))
    side = max(64, int((budget.max_pixels / 12) ** 0.5))
    return tile.resize((side * 8, side * 6), Image.Resampling.NEAREST)


async def check_server(ask: _AskCanary, budget: PixelBudget) -> str:
    """Ask the questions; what was found, in one line.

    Args:
        ask: system message, text and picture to the model's reply; resizes as in the run.
        budget: of the pictures.

    Raises:
        EngineError: if pictures are not seen, the chat template drops what we send or shows in the
            answers, or pictures cost more tokens than their size allows.
    """
    plain = await ask(SYSTEM, TEXT, None)
    shown = [await ask(SYSTEM, TEXT, picture) for picture in canary_pictures()]
    await _check_template(ask, plain, shown)
    cost = shown[0].prompt_tokens - plain.prompt_tokens
    counted = bool(plain.prompt_tokens and shown[0].prompt_tokens)
    if len({reply.text for reply in shown}) == 1 or (counted and cost <= 0):
        raise EngineError(
            f"pictures are not seen: {len(shown)} very different pictures, the first of which costs"
            f" {cost} tokens, got answers such as {shown[0].text[:80]!r}; check that the model is a"
            " vision-language model and that the server's chat template shows pictures to it"
        )
    if not counted:
        return f"pictures are seen ({len(shown)} different ones got different answers)"
    huge = (await ask(SYSTEM, TEXT, _huge(budget))).prompt_tokens - plain.prompt_tokens
    # 14 pixels is the smallest patch in use; models that merge patches cost a quarter of this.
    most = int(SLACK * budget.max_pixels / 14**2) + SLACK_TOKENS
    if huge > most:
        raise EngineError(
            f"resizing has no effect: a large picture costs {huge} tokens, though"
            f" {budget.max_pixels:,} pixels are at most {most}; the server enlarges pictures, check"
            " its processor settings"
        )
    return f"pictures are seen; a small one costs {cost} tokens, the largest {huge}"


async def _check_template(ask: _AskCanary, plain: Reply, shown: Sequence[Reply]) -> None:
    for reply in (plain, *shown):
        if mark := next((mark for mark in MARKS if mark in reply.text), None):
            raise EngineError(
                f"the answer {reply.text[:80]!r} shows the control token {mark}; the server"
                " uses a wrong chat template or does not stop at the model's end token"
            )
    words = len(_PADDING.split())
    for where, system, text in (
        ("system message", f"{SYSTEM} {_PADDING}", TEXT),
        ("user's text", SYSTEM, f"{TEXT} {_PADDING}"),
    ):
        grown = (await ask(system, text, None)).prompt_tokens - plain.prompt_tokens
        if plain.prompt_tokens and grown < words:
            raise EngineError(
                f"the chat template drops the {where}: with {words} words more the prompt grew by"
                f" {grown} tokens; start the server with the model's own chat template"
            )
