"""vLLM on the GPUs of this machine: servers that we start, watch, start again and end.

One server a GPU, each with its own port and its own image preprocessing (which is single-threaded
in a server), driven through :class:`~augment.engines.remote.RemoteEngine`. Pictures arrive already
resized by the model's own rule, so its pixel limits hold whether the server heeds them or not; the
cache of processed pictures is off, because every picture comes once; and the server's sampling
defaults are switched off, because keys must name all that changes an answer.

vLLM pins torch and transformers and may live in an environment of its own: ``server_python``.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, final

from augment.engines.base import Asked, Engine, EngineOptions, Replies, fingerprint, resolve_model
from augment.engines.client import Limits
from augment.engines.inputs import MAX_PIXELS, Budget
from augment.engines.remote import RemoteEngine
from augment.errors import EngineError

#: Seconds within which a server must be up: loading and compiling a large model takes minutes.
START_SECONDS = 1800.0

#: How often a server may be started in a row without answering a single request in between.
STARTS = 5

#: Seconds that a server which no longer answers, though it runs, is given before it is killed.
HUNG_SECONDS = 60.0

#: A server that is down is tended more often than this.
TEND_SECONDS = 15.0

_LOG_LINES = 30
_LOG = logging.getLogger(__name__)


@dataclass
class Server:
    """One server, and what is known of it from tending it.

    Attributes:
        url: base URL.
        command: starts it.
        environment: of the process.
        log: where its output goes.
        process: the leash that it runs on, None before the first start.
        starts: starts since it was up.
        was_up: whether this process has answered.
        silent_since: when it was started, or stopped answering.
        tended: when it was tended last.
    """

    url: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    was_up: bool = False
    silent_since: float = 0.0
    tended: float = 0.0


@final
class VLLMEngine(Engine):
    """A model served by vLLM servers of our own. They start on first use and end with us.

    Args:
        name: packaged model, folder, or name on the Hugging Face Hub.
        root: folder that image paths are relative to.
        options: ``concurrency``, ``timeout``, ``min_pixels``, ``max_pixels``, ``revision``,
            ``canaries``, ``workers``, ``server_python`` and ``server_args`` count.

    Attributes:
        servers: one for each GPU, or a single one on the CPU.

    Raises:
        EngineError: if vLLM is not installed, or the model cannot be found.
    """

    def __init__(self, name: str, *, root: Path, options: EngineOptions) -> None:
        self._python = options.server_python or sys.executable
        if options.server_python is None and find_spec("vllm") is None:
            raise EngineError(
                "vLLM is not installed here: pip install 'reasoning-augmented-retrieval[vllm]', or"
                " name the interpreter of an environment that has it with --server-python"
            )
        source = resolve_model(name)
        self._source = Path(source) if Path(source).is_dir() else _download(name, options.revision)
        is_folder = Path(source).is_dir()
        self._name = self._source.resolve().name if is_folder else name
        self._revision = fingerprint(self._source) if is_folder else self._source.name
        self._own_limits = options.min_pixels is None and options.max_pixels is None
        self._budget = _budget(self._source, options)
        self._options = options
        self._logs = Path(tempfile.mkdtemp(prefix="vllm-"))
        self.servers = [self._server(gpu) for gpu in _gpus()]
        self._remote = RemoteEngine(
            self._name,
            urls=[server.url for server in self.servers],
            root=root,
            limits=Limits(options.concurrency, options.timeout, patience=START_SECONDS),
            budget=self._budget,
            workers=options.workers,
            canaries=options.canaries,
            revision=self._revision,
            tend=self._tend,
        )

    @property
    def model(self) -> str:
        """See :class:`Engine`: as transformers' engine calls it, so that both share texts."""
        return self._name

    @property
    def revision(self) -> str:
        """See :class:`Engine`: the Hub's commit, or the fingerprint of a folder."""
        return self._revision

    @property
    def settings(self) -> Mapping[str, object]:
        """See :class:`Engine`: the pixel limits, where they are not the model's own."""
        if self._own_limits:
            return {}
        return {"min_pixels": self._budget.min_pixels, "max_pixels": self._budget.max_pixels}

    @property
    def waited(self) -> float:  # type: ignore[override]
        """See :class:`Engine`."""
        return self._remote.waited

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`. The servers stay up for the next call; :meth:`close` ends them."""
        return self._remote.batches(asked)

    def close(self) -> None:
        """End the servers. The next call of :meth:`batches` starts them again."""
        for server in self.servers:
            _end(server)

    def _server(self, gpu: str | None) -> Server:
        port = _free_port()
        command = [
            self._python, "-m", "vllm.entrypoints.cli.main", "serve", str(self._source),
            "--served-model-name", self._name,
            "--host", "127.0.0.1", "--port", str(port),
            "--limit-mm-per-prompt", json.dumps({"image": 1, "video": 0}),
            "--mm-processor-cache-gb", "0",
            "--generation-config", "vllm",
            *shlex.split(self._options.server_args),
        ]  # fmt: skip
        environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        url = f"http://127.0.0.1:{port}/v1"
        return Server(url, command, environment, self._logs / f"server-{port}.log")

    def _tend(self, url: str) -> None:
        """Start a server that does not run; kill one that runs and does not answer."""
        server = next(one for one in self.servers if one.url == url)
        process, now = server.process, time.monotonic()
        if now - server.tended > TEND_SECONDS and process is not None:
            # Nobody asked us to tend it for a while, so it did answer.
            server.was_up, server.starts, server.silent_since = True, 0, now
        server.tended = now
        if process is not None and process.poll() is None:
            if now - server.silent_since < (HUNG_SECONDS if server.was_up else START_SECONDS):
                return
            _LOG.warning("%s runs and does not answer; starting it again", url)
        elif process is not None:
            _LOG.warning("%s ended with code %s; starting it again", url, process.returncode)
        _end(server)
        if server.starts >= STARTS:
            raise EngineError(
                f"vLLM was started {server.starts} times in vain; the end of {server.log}:\n"
                + _tail(server.log)
            )
        _start(server)


def make(name: str, root: Path, options: EngineOptions) -> VLLMEngine:
    """The engine that some options describe.

    Raises:
        EngineError: if vLLM is not installed, or the model cannot be found.
    """
    return VLLMEngine(name, root=root, options=options)


def _start(server: Server) -> None:
    log: IO[bytes]
    with server.log.open("ab") as log:
        server.process = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-m", "augment.engines.leash", *server.command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=server.environment,
            start_new_session=True,
        )
    server.starts += 1
    server.was_up = False
    server.silent_since = time.monotonic()
    _LOG.info("starting %s; its log is %s", server.url, server.log)


def _end(server: Server) -> None:
    process, server.process = server.process, None
    if process is not None and process.stdin is not None:
        process.stdin.close()
        process.wait()


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-_LOG_LINES:])


def _gpus() -> Sequence[str | None]:
    """GPUs as ``CUDA_VISIBLE_DEVICES`` names them; one None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [part.strip() for part in visible.split(",") if part.strip()]
        return named or [None]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return [None]
    return listing.stdout.split() or [None]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _download(name: str, revision: str | None) -> Path:
    """The folder of a model of the Hub in the local cache; its last part is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EngineError(
            f"cannot find the model {name!r}: {error}; name a folder written by save_pretrained, a"
            " model on the Hugging Face Hub, or flagland-vlm"
        ) from error


def _budget(folder: Path, options: EngineOptions) -> Budget:
    """The limits of the model's own processor, or ours where it does not count in pixels."""
    settings: dict[str, Any] = {}
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            loaded = json.loads((folder / file).read_text(encoding="utf-8"))
            settings.update(loaded.get("image_processor", loaded))
    size = settings.get("size") or {}
    low = options.min_pixels or size.get("shortest_edge") or settings.get("min_pixels") or 0
    high = options.max_pixels or size.get("longest_edge") or settings.get("max_pixels")
    if "patch_size" not in settings or "merge_size" not in settings or high is None:
        return Budget(options.min_pixels or 0, options.max_pixels or MAX_PIXELS)
    high = max(high, low) if options.max_pixels is None else high
    return Budget(min(low, high), high, settings["patch_size"] * settings["merge_size"])
