"""vLLM on the GPUs of this machine: a server that we start, watch, start again and end.

``vllm serve`` with a copy of the model on each GPU, driven through
:class:`~augment.engines.openai.OpenAIEngine`. Pictures arrive already resized by the model's own
rule, so its pixel limits hold whether the server heeds them or not; the cache of processed pictures
is off, because every picture comes once; and the server's sampling defaults are switched off,
because keys must name all that changes an answer.

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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from augment.engines.base import (
    Asked,
    Engine,
    EngineOptions,
    Replies,
    fingerprint,
    resolve_model,
)
from augment.engines.inputs import MAX_PIXELS, PixelBudget
from augment.engines.openai import OpenAIEngine
from augment.errors import EngineError

#: Seconds within which the server must be up: loading and compiling a large model takes minutes.
START_SECONDS = 1800.0

#: How often the server may be started in a row without answering a single request in between.
STARTS = 5

#: Seconds that a server which no longer answers, though it runs, is given before it is killed.
HUNG_SECONDS = 60.0

#: A server that is down is tended more often than this.
TEND_SECONDS = 15.0

_LOG_LINES = 30
_LOG = logging.getLogger(__name__)


@final
class VLLMEngine(Engine):
    """A model served by a vLLM server of our own, which starts on first use and ends with us.

    Args:
        name: packaged model, folder, or name on the Hugging Face Hub.
        root: folder that image paths are relative to.
        options: ``concurrency``, ``timeout``, ``min_pixels``, ``max_pixels``, ``revision``,
            ``canaries``, ``workers``, ``server_python`` and ``server_args`` count.

    Attributes:
        leash: process that holds the server; None before the first start.
        log: where the server's output goes.

    Raises:
        EngineError: if vLLM is not installed, or the model cannot be found.
    """

    def __init__(self, name: str, *, root: Path, options: EngineOptions) -> None:
        if options.server_python is None and find_spec("vllm") is None:
            raise EngineError(
                "vLLM is not installed here: pip install 'reasoning-augmented-retrieval[vllm]', or"
                " name the interpreter of an environment that has it with --server-python"
            )
        source = Path(resolve_model(name))
        is_folder = source.is_dir()
        source = source if is_folder else _download(name, options.revision)
        self.log = Path(tempfile.mkdtemp(prefix="vllm-")) / "server.log"
        port = _free_port()
        served = source.resolve().name if is_folder else name
        self._command = _command(source, served, port, options)
        self._remote = OpenAIEngine(
            served,
            root=root,
            options=replace(
                options,
                urls=(f"http://127.0.0.1:{port}/v1",),
                # As much as one server took on each GPU.
                concurrency=options.concurrency * max(len(gpus()), 1),
                patience=START_SECONDS,
                encoding="png",
                revision=fingerprint(source) if is_folder else source.name,
            ),
            budget=_budget(source, options),
            tend=self._tend,
        )
        # As transformers' engine calls it, so that both share texts.
        self.model, self.revision = self._remote.model, self._remote.revision
        if options.min_pixels is not None or options.max_pixels is not None:
            self.settings = self._remote.settings
        self.leash: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._was_up = False
        self._silent_since = self._tended = 0.0

    @property
    def waited(self) -> float:  # type: ignore[override]
        """See :class:`Engine`."""
        return self._remote.waited

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`. The server stays up for the next call; :meth:`close` ends it."""
        return self._remote.batches(asked)

    def close(self) -> None:
        """End the server. The next call of :meth:`batches` starts it again."""
        leash, self.leash = self.leash, None
        if leash is not None and leash.stdin is not None:
            leash.stdin.close()
            leash.wait()

    def _tend(self) -> None:
        """Start a server that does not run; kill one that runs and does not answer."""
        now = time.monotonic()
        if now - self._tended > TEND_SECONDS and self.leash is not None:
            # Nobody asked us to tend it for a while, so it did answer.
            self._was_up, self._starts, self._silent_since = True, 0, now
        self._tended = now
        if self.leash is not None and self.leash.poll() is None:
            if now - self._silent_since < (HUNG_SECONDS if self._was_up else START_SECONDS):
                return
            _LOG.warning("the server runs and does not answer; starting it again")
        elif self.leash is not None:
            _LOG.warning("the server ended with code %s; again", self.leash.returncode)
        self.close()
        if self._starts >= STARTS:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            end = "\n".join(text.splitlines()[-_LOG_LINES:])
            raise EngineError(
                f"vLLM was started {self._starts} times in vain; the end of {self.log}:\n{end}"
            )
        with self.log.open("ab") as log:
            self.leash = subprocess.Popen(  # noqa: S603  # our own command
                [sys.executable, "-m", "augment.engines.leash", *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_NO_USAGE_STATS": "1"},
                start_new_session=True,
            )
        self._starts += 1
        self._was_up = False
        self._silent_since = now
        _LOG.info("starting the server; its log is %s", self.log)


make = VLLMEngine


def _command(source: Path, served: str, port: int, options: EngineOptions) -> list[str]:
    given = shlex.split(options.server_args)
    copies = len(gpus())
    if copies > 1 and not any("parallel-size" in word for word in given):
        given += ["--data-parallel-size", str(copies)]
    return [
        options.server_python or sys.executable, "-m", "vllm.entrypoints.cli.main", "serve",
        str(source), "--served-model-name", served, "--host", "127.0.0.1", "--port", str(port),
        "--limit-mm-per-prompt", json.dumps({"image": 1, "video": 0}),
        "--mm-processor-cache-gb", "0", "--generation-config", "vllm", *given,
    ]  # fmt: skip


def gpus() -> Sequence[str]:
    """The GPUs of this machine, as ``CUDA_VISIBLE_DEVICES`` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return listing.stdout.split()


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


def _budget(folder: Path, options: EngineOptions) -> PixelBudget:
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
        return PixelBudget(options.min_pixels or 0, options.max_pixels or MAX_PIXELS)
    high = max(high, low) if options.max_pixels is None else high
    return PixelBudget(min(low, high), high, settings["patch_size"] * settings["merge_size"])
