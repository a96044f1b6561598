"""The interface of every engine, and the factory.

An engine turns requests into replies. It owns batching; it does not know the store, prompts or
checks. One item's trouble is a :class:`~augment.records.Reply` with ``finish == "error"``; a model
that cannot go on raises :class:`~augment.errors.EngineError`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from augment.errors import EngineError
from augment.files import sha256
from augment.records import Reply, Request, Sampling

#: Replies that became known together: (position of the request, reply), in any order.
Replies = Sequence[tuple[int, Reply]]


class Ask(NamedTuple):
    """A request, and how its reply is to be decoded."""

    request: Request
    sampling: Sampling


class Pause(Enum):
    """What a stream of requests says where it has none at the moment.

    Attributes:
        BRIEF: more will come; hand over what is done, and ask the stream again.
        FLUSH: nothing more comes until everything asked so far is answered.
    """

    BRIEF = "brief"
    FLUSH = "flush"


#: What an engine is asked, as a stream that it reads only some way ahead of its replies.
Asked = Iterable[Ask | Pause]


class Engine(ABC):
    """Answers requests, batch by batch.

    Attributes:
        model: name of the model; part of every key.
        revision: revision or content hash of the model; part of every key. Known before the
            weights are loaded.
        settings: further settings that change answers, JSON-serialisable; part of every key.
        on_start: to be called, through :meth:`starting`, with the requests that are about to enter
            the model, from whatever thread, so that the death of the process can be pinned on them.
        waited: seconds for which the model had nothing to do because pictures were not ready. Of
            several models or slots it is the mean: half of them idle for a second is half a second.
    """

    model: str
    revision: str
    settings: Mapping[str, object] = MappingProxyType({})
    waited: float = 0.0
    on_start: Callable[[Sequence[Request]], None] | None = None

    def starting(self, requests: Sequence[Request]) -> None:
        """Say that these requests enter the model now.

        Every engine calls this whose model lives in this process and may take it down.
        """
        if self.on_start is not None:
            self.on_start(requests)

    @abstractmethod
    def batches(self, asked: Asked) -> Iterator[Replies]:
        """Answer all requests, each once, yielding replies as soon as their batch is done.

        The stream is read by the thread that asks for the next batch, only as far as the model is
        kept busy, so it may be endless, depend on the replies so far, and touch what is not
        thread-safe. Closing the iterator between two batches leaves the rest undone and loses
        nothing.

        Args:
            asked: requests; the first is at position 0, pauses do not count.

        Raises:
            EngineError: if the model cannot be loaded or has died.
        """

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Reply]:
        """The replies in the order of the requests."""
        waiting: dict[int, Reply] = {}
        position = 0
        for batch in self.batches(Ask(request, sampling) for request in requests):
            waiting.update(batch)
            while position in waiting:
                yield waiting.pop(position)
                position += 1
        if waiting or position != len(requests):
            raise EngineError(f"{self.model} answered {position} of {len(requests)} requests")


#: Requests answered together where nobody says how many, and on a GPU, which waits for its next
#: kernel while few rows are written (benchmarks/results/gpu.md).
BATCH, GPU_BATCH = 16, 128


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of all engines; each heeds those that concern it.

    Attributes:
        batch_size: most requests answered together, where batches are made here; null: 16, and 128
            on a GPU.
        min_pixels: pictures with fewer pixels are enlarged; null takes the model's own limit.
        max_pixels: pictures with more pixels are shrunk; null takes the model's own limit, and
            behind a URL 802,816.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``; ``split``
            spreads one model over all GPUs; of several with commas between them, or ``all``, a
            command starts a process for each, and a single engine takes the first.
        threads: of the CPU in torch; null leaves the choice to torch.
        workers: threads that decode and resize pictures.
        urls: base URLs of servers of the OpenAI API, up to ``/v1``; requests are balanced over
            them.
        concurrency: most requests in flight at one server.
        timeout: seconds after which a server's answer is no longer awaited.
        patience: seconds without a usable server after which a run ends.
        encoding: of pictures sent to a server, ``png`` or ``jpeg``.
        revision: of the model, e.g. a commit of the Hub; null takes the newest, and behind a URL
            what is served.
        canaries: try a server with a few pictures before the first request.
        server_python: interpreter of the environment that vLLM is installed in; null is our own.
        server_args: further arguments of ``vllm serve``, as on a command line.
        replicas: shards on a Ray cluster; null is one for each GPU.
    """

    batch_size: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    device: str = "auto"
    threads: int | None = None
    workers: int = 4
    urls: Sequence[str] = ()
    concurrency: int = 32
    timeout: float = 300.0
    patience: float = 120.0
    encoding: Literal["png", "jpeg"] = "png"
    revision: str | None = None
    canaries: bool = True
    server_python: str | None = None
    server_args: str = ""
    replicas: int | None = None


def load_engine(name: str, *, root: Path, **options: Any) -> Engine:
    """An engine by the name of its model.

    ==================  ========================================================================
    ``NAME``            transformers: ``flagland-vlm`` (packaged), a folder written by
                        ``save_pretrained``, or a name on the Hugging Face Hub
    ``NAME`` and URLs   servers that offer this name over the OpenAI API
    ``vllm:NAME``       vLLM on every GPU of this machine, started and ended by us
    ``ocr``             the text in pictures, see :mod:`augment.engines.ocr`
    ``scripted:...``    answers without a model, see :mod:`augment.engines.scripted`
    ``ray:...``         any of these; a command runs its shards on a Ray cluster
    ==================  ========================================================================

    ``options`` are the fields of :class:`EngineOptions`.

    Raises:
        EngineError: if there is no such model.
    """
    chosen = EngineOptions(**options)
    kind, _, rest = name.removeprefix("ray:").partition(":")
    if kind not in ("ocr", "scripted", "vllm"):
        kind, rest = "openai" if chosen.urls else "transformers", name.removeprefix("ray:")
    # By name, so that only those who want a model of transformers wait for torch.
    engine: Engine = import_module(f"augment.engines.{kind}").make(rest, root=root, options=chosen)
    return engine


#: Names that stand for a folder shipped with the package.
_WEIGHTS = Path(__file__).parent / "weights"
PACKAGED = {name: _WEIGHTS / name for name in ("flagland-vlm", "flagland-vlm-atlas")}

#: Files of a model folder that change its answers; cards and logs do not.
_ANSWERING = (".safetensors", ".json", ".jinja", ".txt", ".model")


def fingerprint(files: Path | Iterable[Path]) -> str:
    """Forty hex digits over names and bytes of files; of a model folder, of those that matter."""
    if isinstance(files, Path):
        own = sorted(files.iterdir())
        files = [path for path in own if path.suffix in _ANSWERING and path.is_file()]
    told = "".join(f"{path.name}\0{sha256(path)}\n" for path in files)
    return hashlib.sha256(told.encode()).hexdigest()[:40]


def resolve_model(name: str) -> str:
    """The folder of a packaged model, or the name unchanged (a folder or a hub name)."""
    return str(PACKAGED[name]) if name in PACKAGED else name
