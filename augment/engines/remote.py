"""Models behind OpenAI-compatible URLs: vLLM, SGLang, ``transformers serve``, a paid service.

Pictures are decoded and resized here, in threads, and sent as data URIs, so that the server needs
neither our files nor a working pixel limit. :mod:`augment.engines.client` has the rules for servers
that are busy, slow, broken or dead; :mod:`augment.engines.canary` what is tried before the start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, final

from PIL import Image

from augment.data.images import open_image
from augment.engines import canary
from augment.engines.base import Ask, Asked, Engine, EngineOptions, Pause, Replies
from augment.engines.client import Client, Limits, end
from augment.engines.exchange import Answer
from augment.engines.inputs import MAX_PIXELS, Budget, Encoding, data_uri, fit
from augment.engines.slots import Slots
from augment.errors import EngineError, ImageError
from augment.records import Reply, Request, Sampling

#: Tokens of an answer to a canary.
CANARY_TOKENS = 32

_LOG = logging.getLogger(__name__)


@final
class RemoteEngine(Engine):
    """A model that one or more servers offer under one name.

    Args:
        name: as the servers call it (``GET /v1/models`` lists the names).
        urls: base URLs up to ``/v1``; requests are balanced over them.
        root: folder that image paths are relative to.
        limits: concurrency, timeouts and repetitions.
        budget: limits of a picture's size, applied here.
        encoding: ``png``, or ``jpeg`` where the network is narrow.
        workers: threads that decode and resize.
        canaries: ask :mod:`~augment.engines.canary` before the first request.
        revision: of the served model; servers do not tell.
        tend: see :class:`~augment.engines.client.Client`.

    Raises:
        EngineError: if there is no URL, or one is malformed.
    """

    def __init__(
        self,
        name: str,
        *,
        urls: Sequence[str],
        root: Path,
        limits: Limits | None = None,
        budget: Budget | None = None,
        encoding: Encoding = "png",
        workers: int = 4,
        canaries: bool = True,
        revision: str = "served",
        tend: Callable[[str], None] | None = None,
    ) -> None:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise EngineError(f"{url!r} is no URL; expected e.g. http://localhost:8000/v1")
        if not urls:
            raise EngineError("no URL of a server; expected e.g. http://localhost:8000/v1")
        self._name = name
        self._urls = tuple(urls)
        self._root = root
        self._limits = limits or Limits()
        self._budget = budget or Budget()
        self._encoding: Encoding = encoding
        self._workers = workers
        self._canaries = canaries
        self._revision = revision
        self._tend = tend
        self._begun = False

    @property
    def model(self) -> str:
        """See :class:`Engine`: the name that the servers know. Not their address."""
        return self._name

    @property
    def revision(self) -> str:
        """See :class:`Engine`: as given, because servers do not tell."""
        return self._revision

    @property
    def settings(self) -> Mapping[str, object]:
        """See :class:`Engine`: the limits of pictures, and a lossy encoding."""
        limits = {"min_pixels": self._budget.min_pixels, "max_pixels": self._budget.max_pixels}
        return limits if self._encoding == "png" else {**limits, "encoding": self._encoding}

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`. A batch is what has been answered since the last one."""
        source = iter(asked)
        first = next(source, None)
        while isinstance(first, Pause):
            yield []
            first = next(source, None)
        if first is None:
            return
        results: _Results = queue.SimpleQueue()
        inbox: asyncio.Queue[_Numbered | None] = asyncio.Queue()
        work = _Thread(lambda: self._work(inbox, results), results)
        work.start()
        left = True
        try:
            work.call(inbox.put_nowait, (0, first))
            yield from self._feed(source, lambda one: work.call(inbox.put_nowait, one), results)
            left = False
            work.call(inbox.put_nowait, None)
        finally:
            work.end(cancel=left)

    def _feed(
        self, source: Iterator[Ask | Pause], put: Callable[[_Numbered], None], results: _Results
    ) -> Iterator[Replies]:
        """Keep as many requests under way as the servers take; the first is already."""
        under_way, position = 1, 1
        said: Ask | Pause | None = Pause.BRIEF
        while under_way or said is not None:
            while said is not None and under_way < self._ahead:
                said = next(source, None)
                if not isinstance(said, Ask):
                    break
                put((position, said))
                position += 1
                under_way += 1
            wait = said is not Pause.BRIEF or under_way >= self._ahead
            batch, error = _take(results, wait=wait and under_way > 0)
            under_way -= len(batch)
            if batch or isinstance(said, Pause):
                yield batch
            if error is not None:
                raise error

    @property
    def _ahead(self) -> int:
        """Requests under way: as many as the servers take, and more that are made ready.

        Half as many again, since a reply counts until it is taken, and whoever takes it also
        writes it down.
        """
        slots = self._limits.concurrency * len(self._urls)
        return slots + slots // 2 + 2 * self._workers

    async def _work(self, inbox: asyncio.Queue[_Numbered | None], results: _Results) -> None:
        key = os.environ.get("OPENAI_API_KEY", "")
        pool = ThreadPoolExecutor(self._workers, "decode")
        loop = asyncio.get_running_loop()

        async def answer() -> None:
            while (one := await inbox.get()) is not None:
                position, (request, sampling) = one
                with slots.preparing():
                    ready = await loop.run_in_executor(pool, self._prepare, request)
                if isinstance(ready, Reply):
                    results.put((position, ready))
                    continue
                with slots.asking():
                    reply = _reply(await client.ask(self._payload(ready, sampling)))
                results.put((position, reply))
            inbox.put_nowait(None)  # for the others

        try:
            async with Client(
                self._urls, self._limits, key=key, tend=self._tend, check=_check_shape
            ) as client:
                await client.ready()
                if not self._begun:
                    await self._begin(client)
                    self._begun = True
                slots = Slots(lambda: client.slots, self._note)
                await _all(answer() for _ in range(self._ahead))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _note(self, seconds: float) -> None:
        self.waited += seconds

    async def _begin(self, client: Client) -> None:
        """Check the model's name, and ask the canaries."""
        listing = await client.get("/models")
        names = [str(one["id"]) for one in listing["data"]] if _is_listing(listing) else []
        if names and self._name not in names:
            # Some servers take names that they do not list: a folder, a model not yet loaded.
            probe = self._payload(_Ready("", "Hello.", None), Sampling(1))
            if refused := (await client.ask(probe)).error:
                raise EngineError(
                    f"{self._urls[0]} has no model {self._name!r} ({refused}); it has"
                    f" {', '.join(names[:20])}"
                )
        if not self._canaries:
            return

        async def ask(system: str, text: str, image: Image.Image | None) -> Reply:
            uri = None if image is None else data_uri(fit(image, self._budget), self._encoding)
            ready = _Ready(system, text, uri)
            return _reply(await client.ask(self._payload(ready, Sampling(CANARY_TOKENS))))

        _LOG.info("%s: %s", self._name, await canary.check(ask, self._budget))

    def _prepare(self, request: Request) -> _Ready | Reply:
        """Decode, resize and encode; runs in a thread."""
        if request.image is None:
            return _Ready(request.system, request.text, None)
        try:
            image = fit(open_image(self._root, request.image), self._budget)
            return _Ready(request.system, request.text, data_uri(image, self._encoding))
        except ImageError as error:
            return Reply("", "error", reason=f"{error.reason}: {error}")
        except (OSError, ValueError, MemoryError) as error:
            return Reply("", "error", reason=f"unusable: {request.image}: {error}")

    def _payload(self, ready: _Ready, sampling: Sampling) -> dict[str, Any]:
        user: list[dict[str, Any]] = [{"type": "text", "text": ready.text}]
        if ready.uri is not None:
            user.append({"type": "image_url", "image_url": {"url": ready.uri}})
        return {
            "model": self._name,
            "messages": [
                {"role": "system", "content": ready.system},
                {"role": "user", "content": user},
            ],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }


#: A request and its position.
_Numbered = tuple[int, Ask]


class _Ready(NamedTuple):
    """A request whose picture can be sent."""

    system: str
    text: str
    uri: str | None


_Results = queue.SimpleQueue["tuple[int, Reply] | BaseException"]


def _take(results: _Results, *, wait: bool) -> tuple[list[tuple[int, Reply]], BaseException | None]:
    """What is there: replies, and the error after them if there is one.

    Args:
        results: where they arrive.
        wait: for at least one.
    """
    batch: list[tuple[int, Reply]] = []
    while wait or not results.empty():
        result = results.get()
        if isinstance(result, BaseException):
            return batch, result
        batch.append(result)
        wait = False
    return batch, None


@final
class _Thread:
    """Runs a coroutine in an event loop of its own, so that callers may do as they please."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], results: _Results) -> None:
        self._work = work
        self._results = results
        self._stop: Callable[[], object] = lambda: None
        self._call: Callable[..., object] = lambda *unused: None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001  # raised again where the results are read
            self._results.put(error)

    async def _main(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        self._call = loop.call_soon_threadsafe
        if task is not None:
            self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        self._started.set()
        await self._work()

    def call(self, work: Callable[..., object], *arguments: object) -> None:
        """Have something done by the loop; nothing happens if it has ended."""
        with suppress(RuntimeError):
            self._call(work, *arguments)

    def end(self, *, cancel: bool) -> None:
        """Wait for the work to end, or give up what is under way at the servers."""
        if cancel:
            with suppress(RuntimeError):  # it has ended, and its loop is closed
                self._stop()
        self._thread.join()


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at the same time; when one fails, end the others and raise its error."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end(*tasks)


def _is_listing(value: Any) -> bool:
    data = value.get("data") if isinstance(value, dict) else None
    return isinstance(data, list) and all(isinstance(one, dict) and "id" in one for one in data)


def _check_shape(body: Any) -> None:
    """Whether a decoded answer is a chat completion.

    Raises:
        ValueError: if not, with what is wrong.
    """
    try:
        choice = body["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage = body.get("usage") or {}
        counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError("JSON that is no chat completion") from error
    if not isinstance(content, str | None) or not isinstance(finish, str | None):
        raise ValueError("a chat completion without a text")
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("a chat completion whose usage holds no numbers")


def _reply(answer: Answer) -> Reply:
    if answer.error:
        return Reply("", "error", reason=answer.error)
    choice, usage = answer.body["choices"][0], answer.body.get("usage") or {}
    content, finish = choice["message"].get("content"), choice.get("finish_reason") or "stop"
    if finish not in ("stop", "length") or content is None:
        return Reply("", "error", reason=f"no-text: the server ended with {finish!r}")
    read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return Reply(content.strip(), "length" if finish == "length" else "stop", read, written)


def make(name: str, root: Path, options: EngineOptions) -> RemoteEngine:
    """The engine that some options describe.

    Raises:
        EngineError: if a URL is malformed.
    """
    low, high = options.min_pixels or 0, options.max_pixels or MAX_PIXELS
    return RemoteEngine(
        name,
        urls=options.urls,
        root=root,
        limits=Limits(options.concurrency, options.timeout, patience=options.patience),
        budget=Budget(low, high),
        encoding=options.encoding,
        workers=options.workers,
        canaries=options.canaries,
        revision=options.revision or "served",
    )
