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
``max_tokens`` refused      asked again with ``max_completion_tokens``, from then on
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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import anyio
import httpx
import openai
from anyio.from_thread import start_blocking_portal
from PIL import Image

from augment.data.images import open_image
from augment.engines.base import Ask, Asked, Engine, EngineOptions, Pause, Replies
from augment.engines.canaries import check_server
from augment.engines.inputs import MAX_PIXELS, PixelBudget, data_uri, fit
from augment.errors import EngineError, ImageError
from augment.records import Reply, Request, Sampling

#: Seconds between the first two tries of a request; doubled each time, up to the second number.
BACKOFF = (0.5, 30.0)

#: How often a request is tried, all in all.
ATTEMPTS = 4

#: Requests in a row that a server loses or leaves unanswered before it is dropped.
LOSSES = 3

#: Connections that a request may lose among others, and again when it is asked alone.
SUSPECT = 2

#: Repetitions that a run may make: this share of its requests, and a few for short runs.
BUDGET_SHARE = 0.2
BUDGET_FLOOR = 40

#: Most bytes of an answer. The longest texts take a few hundred KiB.
MOST_BYTES = 8 << 20

#: Counts of tokens above this, which is what a store holds, are as good as none.
MOST_TOKENS = 2**31 - 1

#: Seconds within which ``/models`` must answer.
LISTING_SECONDS = 10.0

#: Seconds after which whoever waits for replies is given the chance to stop waiting.
HEARTBEAT = 1.0

#: Tokens of an answer to a question asked before the run.
CANARY_TOKENS = 32

#: Statuses of a server that is there and has no room, and those that mean every request alike.
BUSY, FATAL = frozenset({429, 503, 529}), frozenset({401, 403})

_LOG = logging.getLogger(__name__)
_now = time.monotonic

#: What is sent, but for the limit of tokens, whose name differs between servers.
Payload = Mapping[str, Any]

#: What has come to its end in the event loop.
_Done = queue.SimpleQueue["Future[Any]"]


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
            _check_url(url)
        _key()
        self.model = name
        self.revision = options.revision or "served"  # servers do not tell
        self._root = root
        self._options = options
        limits = PixelBudget(options.min_pixels or 0, options.max_pixels or MAX_PIXELS)
        self._budget = budget or limits
        low, high, _ = self._budget
        self.settings = {"min_pixels": low, "max_pixels": high}
        if options.encoding != "png":
            self.settings["encoding"] = options.encoding
        self._tend = tend
        self._begun = False

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`. A batch is what has been answered since the last one.

        Empty batches come at least every :data:`HEARTBEAT` seconds, so that who waits for a server
        that hangs can stop.
        """
        # Half as many as the servers take are made ready meanwhile: a reply counts until it is
        # taken, and whoever takes it also writes it down.
        places = self._options.concurrency * len(self._options.urls)
        ahead = places + places // 2 + 2 * self._options.workers
        source, position = iter(asked), 0
        done: _Done = queue.SimpleQueue()
        under_way: dict[Future[Any], int] = {}
        start: Callable[[Ask], Future[Any]] | None = None
        said: Ask | Pause | None = Pause.BRIEF
        with ExitStack() as stack:
            while under_way or said is not None:
                while said is not None and len(under_way) < ahead:
                    said = next(source, None)
                    if not isinstance(said, Ask):
                        break
                    start = start or stack.enter_context(self._asking(done))
                    under_way[start(said)] = position
                    position += 1
                wait = said is not Pause.BRIEF or len(under_way) >= ahead
                ended = _take(done, HEARTBEAT if wait and under_way else 0.0)
                yield [
                    (under_way.pop(future), future.result())
                    for future in ended
                    if future in under_way and future.exception() is None
                ]
                for future in ended:
                    future.result()  # the run's error, if there is one

    @contextmanager
    def _asking(self, done: _Done) -> Iterator[Callable[[Ask], Future[Any]]]:
        """Give what starts to answer a request, in the event loop of another thread.

        All that runs there is a future that comes to ``done``, so that nothing ends in silence.
        """
        pool = ThreadPoolExecutor(self._options.workers, "decode")
        servers = Servers(self._options, self._tend)
        before = self.waited
        with start_blocking_portal() as portal:

            def start(work: Callable[..., Coroutine[Any, Any, Any]], *given: Any) -> Future[Any]:
                self.waited = before + servers.idle
                future = portal.start_task_soon(work, *given)
                future.add_done_callback(done.put)
                return future

            begun = asyncio.Event()
            attending = [start(work) for work in servers.attend()]
            attending.append(start(self._begin, servers, begun))
            try:
                yield lambda ask: start(self._answer, ask, servers, pool, begun)
            finally:
                self.waited = before + servers.idle
                for one in attending:
                    one.cancel()
                portal.call(servers.close)
                pool.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, servers: Servers, begun: asyncio.Event) -> None:
        """Check the model's name, and ask the canaries."""
        await servers.ready()
        if not self._begun:
            ask = partial(self._ask, servers)
            names = await servers.models()
            if names and self.model not in names:
                # Some servers take names that they do not list: a folder, a model not yet loaded.
                probe = await ask("", "Hello.")
                if probe.finish == "error":
                    raise EngineError(
                        f"{self._options.urls[0]} has no model {self.model!r} ({probe.reason}); it"
                        f" has {', '.join(names[:20])}"
                    )
            if self._options.canaries:
                _LOG.info("%s: %s", self.model, await check_server(ask, self._budget))
            self._begun = True
        begun.set()

    async def _answer(
        self, ask: Ask, servers: Servers, pool: ThreadPoolExecutor, begun: asyncio.Event
    ) -> Reply:
        await begun.wait()
        servers.preparing += 1
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(pool, self._prepare, ask.request)
        servers.preparing -= 1
        if isinstance(picture, Reply):
            return picture
        request = ask.request
        return await self._send(servers, request.system, request.text, picture, ask.sampling)

    def _prepare(self, request: Request) -> str | Reply:
        """Decode, resize and encode; runs in a thread."""
        if request.image is None:
            return ""
        try:
            image = open_image(self._root, request.image, expected=request.expected)
            return self._encoded(image)
        except ImageError as error:
            return _failed(f"{error.reason}: {error}")
        except (OSError, ValueError, MemoryError) as error:
            return _failed(f"unusable: {request.image}: {error}")

    def _encoded(self, image: Image.Image) -> str:
        return data_uri(fit(image, self._budget), self._options.encoding)

    async def _ask(
        self, servers: Servers, system: str, text: str, image: Image.Image | None = None
    ) -> Reply:
        picture = "" if image is None else self._encoded(image)
        return await self._send(servers, system, text, picture, Sampling(CANARY_TOKENS))

    async def _send(
        self, servers: Servers, system: str, text: str, picture: str, sampling: Sampling
    ) -> Reply:
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture:
            parts.append({"type": "image_url", "image_url": {"url": picture}})
        payload = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": parts}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        return await servers.ask(payload, sampling.max_new_tokens)


make = OpenAIEngine


def _take(done: _Done, seconds: float) -> list[Future[Any]]:
    """All that have ended, after waiting some seconds for the first."""
    ended: list[Future[Any]] = []
    with suppress(queue.Empty):
        ended.append(done.get(timeout=seconds) if seconds else done.get_nowait())
        while True:
            ended.append(done.get_nowait())
    return ended


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
    limit: str = "max_tokens"
    in_flight: int = 0
    reserved: bool = False
    paused_until: float = 0.0
    pauses: int = 0
    silences: int = 0
    trouble: str = ""

    def places(self) -> int:
        """How many requests it takes at this moment."""
        return max(1, int(self.allowed)) if self.up and self.paused_until <= _now() else 0


@final
class Servers:
    """Asks servers that fail: balanced, patient, and never stuck.

    Attributes:
        preparing: requests whose pictures are being made ready.
        idle: seconds for which places stood empty meanwhile, by their share of all places.
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
        self.preparing, self.idle = 0, 0.0

    def attend(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What must run meanwhile, for ever; it fails once the servers are beyond use."""
        return [self._watch, *(partial(self._keep, server) for server in self._all)]

    async def close(self) -> None:
        """Close the connections."""
        for server in self._all:
            await server.client.close()

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

    async def ask(self, payload: Payload, tokens: int) -> Reply:
        """Settle one request, however long its turn takes; a reply says why it failed.

        Args:
            payload: what is sent.
            tokens: most that may be written.

        Raises:
            EngineError: if no request can succeed.
        """
        self._asked += 1
        failures = losses = 0
        while True:
            async with self._place(alone=losses >= SUSPECT) as server:
                outcome = await self._once(server, payload, tokens)
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
            while not (
                free := [s for s in self._all if not s.reserved and s.in_flight < s.places()]
            ):
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

    async def _once(self, server: _Server, payload: Payload, tokens: int) -> Outcome:
        """Ask once; whatever happens is an outcome."""
        timeout, limit = self._options.timeout, server.limit
        create: Any = server.client.chat.completions.with_raw_response.create
        try:
            # Of the whole exchange; httpx counts from byte to byte.
            with anyio.fail_after(timeout):
                raw = await create(**payload, **{limit: tokens})
            return Outcome("answered", read_reply(raw.content))
        except openai.APIStatusError as error:
            if limit == "max_tokens" and b"max_completion_tokens" in error.response.content:
                server.limit = "max_completion_tokens"
                return await self._once(server, payload, tokens)
            return _refusal(server.url, error)
        except ValueError as error:
            return Outcome("failed", reason=f"garbage: {server.url} answered {error}")
        except Exception as error:  # noqa: BLE001  # an answer may do anything to its parsers
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            return _broken_off(server.url, cause or error, timeout)

    # What an outcome means for its server

    def _heed(self, server: _Server, outcome: Outcome) -> None:
        if outcome.kind in ("answered", "failed"):
            server.silences = 0
        if outcome.kind == "answered":
            server.pauses = 0
            more = server.allowed + 1 / server.allowed
            server.allowed = min(more, self._options.concurrency)
            self._usable = _now()
        elif outcome.kind == "busy":
            self._pause(server, outcome)
        elif outcome.kind != "failed":
            server.silences += outcome.kind != "unreached"
            server.trouble = outcome.reason
            if server.up and (outcome.kind == "unreached" or server.silences >= LOSSES):
                _LOG.warning("%s: dropped until it answers again (%s)", server.url, outcome.reason)
                server.up = False

    def _pause(self, server: _Server, busy: Outcome) -> None:
        if _now() < server.paused_until:
            return  # one of several that were in flight; the first has been heeded
        server.pauses += 1
        server.allowed = max(1.0, server.allowed / 2)
        server.trouble = busy.reason
        wait = _growing(server.pauses) if busy.wait is None else max(busy.wait, 0.05)
        server.paused_until = _now() + wait
        _LOG.info("%s: %s; pausing %.1f s", server.url, busy.reason, wait)

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
                server.trouble = f"{type(cause).__name__}: {_shown(str(cause))}"
            else:
                server.up = True
            if server.up:
                server.silences = 0
                _LOG.warning("%s: answers again", server.url)
            else:
                tries += 1
                await asyncio.sleep(_growing(tries, most=10.0))

    # What it means for the run

    def _spend(self, reason: str) -> None:
        """Count a repetition."""
        self._repeated += 1
        if self._repeated > BUDGET_FLOOR + BUDGET_SHARE * self._asked:
            raise EngineError(
                f"{self._repeated} of {self._asked} requests had to be repeated, the last one"
                f" because of {reason}; look at the server before going on"
            )

    async def _watch(self) -> None:
        """End the run once no server has been usable for longer than our patience."""
        patience, before = self._options.patience, _now()
        while True:
            await asyncio.sleep(0.1)
            async with self._room:
                self._room.notify_all()  # a pause may be over
            now = _now()
            places = sum(server.places() for server in self._all)
            free = places - sum(server.in_flight for server in self._all)
            # What is not even being made ready is nobody's wait: whoever asks is slow.
            self.idle += (now - before) * min(max(free, 0), self.preparing) / max(places, 1)
            before = now
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
    """A body that is too long, or packed though that was not asked for."""


@final
class _Bounded(httpx.AsyncByteStream):
    """A body of which no more than :data:`MOST_BYTES` are read."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._body:
            size += len(part)
            if size > MOST_BYTES:
                raise OddError(f"more than {MOST_BYTES:,} bytes")
            yield part

    async def aclose(self) -> None:
        """See httpx."""
        await self._body.aclose()


async def _bound(response: httpx.Response) -> None:
    packed = response.headers.pop("Content-Encoding", "identity")
    if packed != "identity" and response.is_success:
        raise OddError(f"a body packed as {packed[:40]!r}, which was not asked for")
    response.stream = _Bounded(response.stream)  # of a refusal, the status says enough


def _client(url: str, options: EngineOptions) -> openai.AsyncOpenAI:
    """The package's client of one server, which repeats nothing.

    Whether a request is repeated, where, and in what company, is decided in :class:`Servers`: a
    request that kills its server must not be sent there three more times among others. Proxies are
    those of the environment, and none for this machine itself.
    """
    try:
        # The package also takes httpx's successor, and its annotations name no other.
        http: Any = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity"},
            timeout=httpx.Timeout(options.timeout, connect=min(10.0, options.timeout)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            event_hooks={"response": [_bound]},
            trust_env=not _is_here(url),
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{url} cannot be reached by the proxy of the environment: {error}; set NO_PROXY for"
            " it, or another proxy"
        ) from error
    return openai.AsyncOpenAI(
        base_url=url, api_key=_key() or "none", http_client=http, max_retries=0
    )


def _check_url(url: str) -> None:
    """Refuse what is no base URL, and one with a secret, which would be shown and stored."""
    if not url.startswith(("http://", "https://")):
        raise EngineError(f"{url!r} is no URL; expected e.g. http://localhost:8000/v1")
    if "@" in url or "?" in url:
        bare = url.partition("?")[0].rpartition("@")[2]
        raise EngineError(
            f"the URL of {bare} holds a user or a query; give the URL alone, and the key as the"
            " environment variable OPENAI_API_KEY"
        )


def _is_here(url: str) -> bool:
    """Whether a URL is one of this machine itself."""
    host = httpx.URL(url).host
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def _key() -> str:
    """The API key of the environment."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EngineError("OPENAI_API_KEY holds characters that no key has; set it again")
    return key


async def _listing(server: _Server) -> bytes:
    with anyio.fail_after(LISTING_SECONDS):
        return bytes((await server.client.models.with_raw_response.list()).content)


def _refusal(url: str, error: openai.APIStatusError) -> Outcome:
    """The outcome of a status that is no success."""
    status = error.status_code
    if status in BUSY:
        wait = retry_after(error.response.headers.get("Retry-After"))
        reason = f"HTTP {status}: too many requests"
        return Outcome("busy", None, reason + (f", Retry-After {wait:g} s" if wait else ""), wait)
    said: Any = error.body
    said = said.get("message") if isinstance(said, Mapping) else said
    text = said if isinstance(said, str) else error.response.content.decode("utf-8", "replace")
    reason = f"{url}: HTTP {status}: {_shown(text)}"
    if status in FATAL:
        raise EngineError(
            f"{reason}; set the environment variable OPENAI_API_KEY to a valid key"
        ) from error
    if status >= 500:
        return Outcome("failed", reason=f"server-error: {reason}")
    return Outcome("answered", _failed(f"request-refused: {reason}"))


def _broken_off(url: str, cause: BaseException, timeout: float) -> Outcome:
    """The outcome of an exchange that brought no answer."""
    what = f"{type(cause).__name__}: {_shown(str(cause))}"
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return Outcome("unreached", reason=what)
    if isinstance(cause, TimeoutError | httpx.TimeoutException):
        return Outcome("hung", reason=f"timeout: {url} gave no answer within {timeout:g} s")
    if isinstance(cause, httpx.TransportError):
        return Outcome("lost", reason=f"{url}: {what}")
    said = f" answered {cause}" if isinstance(cause, OddError) else f": {what}"
    return Outcome("failed", reason=f"garbage: {url}{said}")


def _failed(reason: str) -> Reply:
    return Reply("", "error", reason=reason)


def read_reply(body: bytes) -> Reply:
    """The reply that a chat completion holds; what it has of reasoning is left out.

    Raises:
        ValueError: if it is none, with what is wrong.
    """
    shown = repr(body[:200].decode("utf-8", "replace"))
    try:
        parsed = json.loads(body)
        choice, usage = parsed["choices"][0], parsed.get("usage")
        message, finish = choice["message"], choice.get("finish_reason") or "stop"
        content = message.get("content")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON that can be read: {shown}") from error
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"JSON that is no chat completion: {shown}") from error
    if isinstance(content, list):  # of its parts the text, and neither reasoning nor a refusal
        parts = [part for part in content if isinstance(part, dict)]
        parts = [part for part in parts if part.get("type", "text") in ("text", "output_text")]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    if not isinstance(content, str | None) or not isinstance(finish, str):
        raise ValueError(f"a chat completion without a text: {shown}")
    if finish not in ("stop", "length") or content is None:
        thought = message.get("reasoning") or message.get("reasoning_content")
        why = " while it still reasoned; raise --max-new-tokens" if thought else ""
        return _failed(f"no-text: the server ended with {_shown(finish)!r}{why}")
    text = content.encode("utf-8", "replace").decode("utf-8").strip()  # lone surrogates
    return Reply(
        text,
        "length" if finish == "length" else "stop",
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0, which means not known, for anything that cannot be one."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


def retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    with suppress(ValueError):
        return max(0.0, float(value or ""))
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    return None


def _shown(text: str) -> str:
    """A server's words in one line, without our key, which some repeat."""
    key = _key()
    text = text.replace(key, "***") if key else text
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])
