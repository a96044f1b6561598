"""Vision-language models of transformers, from a folder or the Hugging Face Hub.

The path of a request up to the model is :mod:`augment.engines.inputs`, shared with training.

Pictures are decoded and resized in threads, and the next batch is encoded while the model writes
the present one. Batches are chosen from a window that slides over the stream of requests
(:mod:`augment.engines.batching`), so the model works from the first request to the last without a
break.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from augment.data.images import open_image
from augment.engines.base import (
    BATCH,
    GPU_BATCH,
    Ask,
    Asked,
    Engine,
    EngineOptions,
    Replies,
    fingerprint,
    resolve_model,
)
from augment.engines.batching import Feed, Ready, Window
from augment.engines.decoding import Decode, decode_with
from augment.engines.inputs import encode, limit_pixels, resized, to_messages
from augment.engines.reasoning import has_mark
from augment.errors import EngineDied, EngineError, ImageError
from augment.records import Reply

__all__ = ["HFEngine", "encode", "fingerprint", "resized", "to_messages"]

#: Most tokens of a batch, padding and new tokens included: a bound for the key-value cache. 65,536
#: tokens take about 9 GiB in Qwen3-VL-8B (36 layers, 8 key-value heads of 128, bf16). On a GPU keys
#: and values fill this share of what the weights leave free.
BATCH_TOKENS = 65_536
_CACHE_SHARE = 0.3

_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Model:
    model: Any
    stops: tuple[int, ...]
    decode: Decode
    tokens: int


@final
class HFEngine(Engine):
    """A vision-language model through ``AutoModelForImageTextToText``. Weights load on first use.

    Args:
        name: packaged model, folder, or name on the Hub.
        root: folder that image paths are relative to.
        **options: ``batch_size``, ``min_pixels``, ``max_pixels``, ``device``, ``threads``,
            ``workers`` and ``revision`` of :class:`EngineOptions` count.

    Raises:
        EngineError: if the model's configuration or processor cannot be loaded.
    """

    def __init__(self, name: str, *, root: Path, **options: Any) -> None:
        chosen = EngineOptions(**options)
        self._source = resolve_model(name)
        folder = Path(self._source)
        self.model = folder.resolve().name if folder.is_dir() else name
        self._root = root
        self._workers = chosen.workers
        device = chosen.device.split(",")[0]
        self._split = device == "split"
        self._device = _device("auto" if device in ("split", "all") else device)
        usual = GPU_BATCH if self._device.type == "cuda" else BATCH
        self._batch_size = chosen.batch_size or usual
        self._loaded: _Model | None = None
        self._wanted = revision = chosen.revision
        if chosen.threads is not None:
            torch.set_num_threads(chosen.threads)
        try:
            config = AutoConfig.from_pretrained(
                self._source, revision=revision, trust_remote_code=False
            )
            self._processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                self._source, revision=revision, trust_remote_code=False
            )
        except _FAILURES as error:
            raise EngineError(_no_model(name, error)) from error
        # The Hub's commit, or of a folder its content.
        self.revision = (
            fingerprint(folder) if folder.is_dir() else str(getattr(config, "_commit_hash", None))
        )
        # A fast tokenizer must not decode in one thread while it encodes in another.
        self._decoder = copy.deepcopy(self._processor.tokenizer)
        # Control tokens are left out of texts, but not those that tell thoughts from answers.
        marks = zip(self._decoder.all_special_ids, self._decoder.all_special_tokens, strict=True)
        self._unsaid = {number for number, token in marks if not has_mark(token)}
        self.settings = limit_pixels(self._processor, chosen.min_pixels, chosen.max_pixels)

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`."""
        # A pool for decoding and one thread for encoding: a batch waits for no later picture.
        with (
            ThreadPoolExecutor(self._workers, "decode") as decoders,
            ThreadPoolExecutor(1, "encode") as encoder,
        ):
            feed = Feed(asked, lambda n, ask: decoders.submit(self._open, n, ask), self._batch_size)
            try:
                yield from self._answer_all(feed, encoder)
            finally:
                decoders.shutdown(wait=False, cancel_futures=True)
                encoder.shutdown(wait=False, cancel_futures=True)

    def _answer_all(self, feed: Feed, encoder: ThreadPoolExecutor) -> Iterator[Replies]:
        window = Window(self._batch_size, BATCH_TOKENS)
        present: tuple[list[Ready], Future[Any]] | None = None
        while True:
            feed.read(len(window))
            loaded = self._load() if feed.begun else None
            if loaded is not None:
                window.tokens = loaded.tokens
            coming = None
            # Rather than wait for a picture, answer what is encoded.
            if present is None or feed.is_ready(len(window)):
                with self._waiting():
                    failed = feed.fill(window)
                if failed:
                    yield [(one.position, Reply("", "error", reason=one.error)) for one in failed]
                if feed.takes(len(window)):
                    batch = window.take()
                    coming = batch, encoder.submit(self._encode, batch)
            if present is not None and loaded is not None:
                batch, encoded = present
                replies = self._answer(loaded, batch, encoded)
                yield [(one.position, reply) for one, reply in zip(batch, replies, strict=True)]
            elif coming is None:
                if feed.ended:
                    return
                yield []
            present = coming

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time for which the model stands still."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.waited += time.monotonic() - start

    def _open(self, position: int, ask: Ask) -> Ready:
        """Decode and resize; runs in a thread."""
        request, sampling = ask
        # About four characters a token; only the order and the bound of batches depend on it.
        cost = (len(request.system) + len(request.text)) // 4
        ready = Ready(position, request, sampling, None, cost)
        if request.image is None:
            return ready
        try:
            image = open_image(self._root, request.image, expected=request.expected)
            image = resized(self._processor, image)
        except ImageError as error:
            return ready._replace(error=f"{error.reason}: {error}")
        except _FAILURES as error:  # e.g. an aspect ratio above 200
            return ready._replace(error=f"unusable: {request.image}: {error}")
        side = 2 * (getattr(self._processor.image_processor, "patch_size", None) or 16)
        return ready._replace(image=image, cost=cost + image.width * image.height // side**2)

    def _encode(self, batch: Sequence[Ready]) -> Any:
        return encode(self._processor, [one.request for one in batch], [one.image for one in batch])

    def _answer(
        self, loaded: _Model, batch: Sequence[Ready], encoded: Future[Any] | None = None
    ) -> list[Reply]:
        """Replies of a batch; one that fails is halved until the item at fault stands alone."""
        self.starting([one.request for one in batch])
        try:
            with self._waiting():
                inputs = encoded.result() if encoded else self._encode(batch)
            inputs = inputs.to(self._device)
            rows = loaded.decode(inputs, batch[0].sampling)
            read = inputs["attention_mask"].sum(dim=1).tolist()
            return [self._reply(loaded, row, count) for row, count in zip(rows, read, strict=True)]
        except _FAILURES as error:
            if "CUDA error" in str(error):
                raise EngineDied(f"{self.model}: {error}") from error
            kind = "out-of-memory" if isinstance(error, torch.OutOfMemoryError) else "engine"
            reason = f"{kind}: {error}".replace("\n", " ")
        # Out of the except block, so that the failed batch's memory is no longer held.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [Reply("", "error", reason=reason)]
        _LOG.info("batch of %d failed (%s), halving it", len(batch), reason)
        half = len(batch) // 2
        first = self._answer(loaded, batch[:half])
        return first + self._answer(loaded, batch[half:])

    def _reply(self, loaded: _Model, row: list[int], read: int) -> Reply:
        end = next((n for n, token in enumerate(row) if token in loaded.stops), None)
        kept = row if end is None else row[:end]
        text = self._decoder.decode([token for token in kept if token not in self._unsaid]).strip()
        written = len(row) if end is None else end + 1
        return Reply(text, "length" if end is None else "stop", int(read), written)

    def _load(self) -> _Model:
        if self._loaded is not None:
            return self._loaded
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self._source,
                revision=self._wanted,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                device_map="auto" if self._split else None,
            )
            model = (model if self._split else model.to(self._device)).eval()
        except _FAILURES as error:
            raise EngineError(_no_model(self._source, error)) from error
        tokenizer = self._decoder
        stops = _ids(model.generation_config.eos_token_id) | _ids(tokenizer.eos_token_id)
        if not stops:
            raise EngineError(f"{self.model} names no end token")
        pad = tokenizer.pad_token_id
        ends = tuple(sorted(stops))
        decode = decode_with(model, ends, min(stops) if pad is None else pad)
        self._loaded = _Model(model, ends, decode, self._most_tokens(model.config))
        return self._loaded

    def _most_tokens(self, config: Any) -> int:
        """Of a batch, see :data:`BATCH_TOKENS`."""
        if self._device.type != "cuda":
            return BATCH_TOKENS
        text = config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size = 2 * text.num_hidden_layers * heads * width * torch.bfloat16.itemsize
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(_CACHE_SHARE * free / size)


def make(name: str, *, root: Path, options: EngineOptions) -> HFEngine:
    """See :func:`augment.engines.load_engine`."""
    return HFEngine(name, root=root, **vars(options))


def _ids(value: int | Sequence[int] | None) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise EngineError(
            f"no device {name!r}; say auto, cpu, cuda, cuda:N, several of them with"
            " commas between, all, or split"
        ) from error


def _no_model(name: str, error: BaseException) -> str:
    return (
        f"cannot load the model {name!r}: {error}; name a folder written by save_pretrained,"
        " a model on the Hugging Face Hub, or flagland-vlm"
    )
