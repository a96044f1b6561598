"""What is measured, each part in its own time: a function from a :class:`Bench` to figures.

Rates are of the product's own classes, from pictures on disk or tensors in memory as each part
says. Models have the published sizes and random weights, so that what they write is of no use and
always as long as it may be.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from augment.engines.base import Ask
from augment.engines.transformers import HFEngine
from augment.prompts import load_prompt
from augment.records import Item, Sampling, Side
from benchmarks.gpu.shapes import drawn_weights, write_model
from benchmarks.speed.training import Step, draw_pairs, labelled, make_batch
from retrievers.data.examples import Example
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.reasoning import Reasoning, reason
from retrievers.models.reranker import Pointwise
from retrievers.models.tuning import Tuning
from retrievers.training.module import Contrastive
from retrievers.training.objective import Objective

Figures = dict[str, float]


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        large: shape of the larger language model, see :data:`benchmarks.gpu.shapes.SHAPES`.
        small: of the smaller one.
        clip: an open_clip architecture.
        picture: width and height in pixels.
        matrix: side of the product that sets the mark.
        written: tokens that a model writes.
        batch: requests answered and items embedded together.
        pairs: of a training step of CLIP; of the language model a quarter.
        chunk: items that GradCache encodes at a time.
    """

    large: str = "qwen3-vl-8b"
    small: str = "qwen3-vl-2b"
    clip: str = "ViT-L-14"
    picture: tuple[int, int] = (640, 480)
    matrix: int = 8192
    written: int = 64
    batch: int = 64
    pairs: int = 512
    chunk: int = 64


SCALES = {
    "full": Scale(),
    "tiny": Scale("tiny", "tiny", "flagland-clip", (64, 64), 64, 4, 4, 8, 4),
}


@dataclass
class Bench:
    """Where parts run.

    Attributes:
        device: of all models.
        scale: how large everything is.
        folder: for pictures and configurations.
        seconds: that a rate is measured for, at least one round in any case.
        matrix_rate: operations a second of the matrix product; 0 until it is measured.
    """

    device: torch.device
    scale: Scale
    folder: Path
    seconds: float
    matrix_rate: float = 0.0

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, work: Callable[[], object], items: int = 1) -> float:
        """Items a second; a round that is not counted goes before."""
        work()
        self.wait()
        rounds, start = 0, time.perf_counter()
        while not rounds or time.perf_counter() - start < self.seconds:
            work()
            self.wait()
            rounds += 1
        return items * rounds / (time.perf_counter() - start)

    def free(self) -> None:
        """Give memory back and begin to count its peak anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> Figures:
        """The most memory held since :meth:`free`; nothing on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {"peak GiB": torch.cuda.max_memory_allocated(self.device) / 2**30}

    def mixed(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda")

    def model(self, shape: str) -> Path:
        """The folder of a shape."""
        folder = self.folder / shape
        return folder if folder.exists() else write_model(folder, shape)

    def pictures(self, count: int = 32) -> list[str]:
        """Paths of pictures of noise, relative to the folder."""
        names = [f"{number}.jpg" for number in range(count)]
        wide, high = self.scale.picture
        for name in names:
            if not (self.folder / name).exists():
                small = Image.frombytes(
                    "RGB", (wide // 8, high // 8), os.urandom(wide * high // 64 * 3)
                )
                small.resize((wide, high)).save(self.folder / name, "JPEG", quality=90)
        return names


def matrix(bench: Bench) -> Figures:
    """The mark for all else: a product of square matrices, and a copy, in memory of the device."""
    kind = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    side = bench.scale.matrix
    one, two = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
    bench.matrix_rate = bench.rate(lambda: [one @ two for _ in range(10)], 10) * 2 * side**3
    copied = one.numel() * one.element_size()
    copies = bench.rate(lambda: [two.copy_(one) for _ in range(10)], 10)
    return {"TFLOP/s": bench.matrix_rate / 1e12, "GB/s": copies * 2 * copied / 1e9}


# -- enrichment -----------------------------------------------------------------------------------


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _enrich(bench: Bench, shape: str) -> Figures:
    """Pictures from disk to texts, through the engine that ``augment.corpus`` uses."""
    scale, names = bench.scale, bench.pictures()
    prompt, sampling = load_prompt("rar/corpus"), Sampling(max_new_tokens=scale.written)
    requests = [
        prompt.render(Item(f"0:{n}", "a flag", (name,), "image,text"))
        for n, name in enumerate(names)
    ]
    engine = HFEngine(
        str(bench.model(shape)), root=bench.folder, batch_size=scale.batch,
        device=str(bench.device), workers=min(16, os.cpu_count() or 1),
    )  # fmt: skip

    def asked(until: float) -> Iterator[Ask]:
        number = 0
        while number < 2 * scale.batch or time.perf_counter() < until:
            yield Ask(requests[number % len(requests)], sampling)
            number += 1

    with drawn_weights(bench.device):
        for _ in engine.batches(
            Ask(requests[n % len(requests)], sampling) for n in range(scale.batch)
        ):
            pass
    waited, start = engine.waited, time.perf_counter()
    replies = [one for some in engine.batches(asked(start + bench.seconds)) for _, one in some]
    seconds = time.perf_counter() - start
    failed = [reply.reason for reply in replies if reply.finish == "error"]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(replies)} requests failed: {failed[0]}")
    read, written = (
        sum(getattr(reply, name) for reply in replies)
        for name in ("prompt_tokens", "output_tokens")
    )
    vlm = engine._load().model.model
    text, vision = _parameters(vlm.language_model.layers), _parameters(vlm.visual)
    wide, high = scale.picture
    patches = len(replies) * (wide // 16) * (high // 16)
    # Two operations a parameter and token; attention itself is left out.
    spent = 2 * (text * (read + written) + vision * patches) / seconds
    share = {"share of the matrix rate": spent / rate} if (rate := bench.matrix_rate) else {}
    return {
        "images/s": len(replies) / seconds,
        "tokens read/s": read / seconds,
        "tokens written/s": written / seconds,
        "share of time without pictures": (engine.waited - waited) / seconds,
        **share,
        **bench.peak(),
    }


def enrich_large(bench: Bench) -> Figures:
    """Enrichment with the larger model."""
    return _enrich(bench, bench.scale.large)


def enrich_small(bench: Bench) -> Figures:
    """Enrichment with the smaller model."""
    return _enrich(bench, bench.scale.small)


# -- CLIP -----------------------------------------------------------------------------------------


def clip(bench: Bench) -> Figures:
    """Embedding and training of CLIP score fusion, from tensors in memory."""
    encoder = ClipScoreFusion(bench.scale.clip, random_init=True).to(bench.device)
    found = {}
    for name, item in {
        "images/s": (None, True),
        "texts/s": ("a flag of red and white", False),
    }.items():
        batch = make_batch(encoder, [item] * bench.scale.batch).to(bench.device)
        with torch.inference_mode(), bench.mixed():
            found[name] = bench.rate(lambda: encoder.encode(batch, "corpus"), batch.size)  # noqa: B023
    pairs = bench.scale.pairs
    sides = [make_batch(encoder, items).to(bench.device) for items in draw_pairs(pairs, seed=2)]
    return {**found, **_train(bench, encoder, sides, pairs, Tuning())}


def _on(bench: Bench, tensors: Any) -> Any:
    return type(tensors)(*(one.to(bench.device) for one in tensors))


def _train(bench: Bench, encoder: Any, sides: Any, count: int, tuning: Tuning) -> Figures:
    """Steps in chunks, as GradCache, and of the batch at once where it fits."""
    found, pairs = {}, labelled(*sides)
    pairs = pairs._replace(labels=_on(bench, pairs.labels), groups=_on(bench, pairs.groups))
    for name, chunk in {"in chunks": bench.scale.chunk, "at once": None}.items():
        bench.free()
        fit = Contrastive(encoder, Objective(symmetric=True), chunk=chunk, tuning=tuning)
        tuning = Tuning()  # low-rank updates are there from the first time on
        step = Step(encoder, lambda: fit.loss(pairs)["loss"])  # noqa: B023
        try:
            with bench.mixed():
                found[f"pairs/s {name}"] = bench.rate(step, count)
        except torch.OutOfMemoryError:
            found[f"out of memory {name}"] = float(count)
        found |= {f"{peak} {name}": value for peak, value in bench.peak().items()}
    return found


# -- language models as retrievers ----------------------------------------------------------------


def _mllm(bench: Bench, preset: str = "trace", **more: Any) -> Mllm:
    kind: Any = "bfloat16" if bench.device.type == "cuda" else "float32"
    folder = str(bench.model(bench.scale.small))
    with torch.device(bench.device):
        return Mllm(folder, preset=preset, random_init=True, dtype=kind, **more)


def _examples(bench: Bench, encoder: Mllm, side: Side, count: int = 0) -> list[Example]:
    """Queries are a question about a picture; candidates a picture and a passage."""
    image, names = encoder.collator().image, bench.pictures()
    shown = [image(Image.open(bench.folder / name).convert("RGB")) for name in names]
    text = "which country has this flag?" if side == "query" else "a flag of red and white " * 16
    numbers = range(count or bench.scale.batch)
    return [Example(n, text, shown[n % len(shown)], id=f"0:{n}") for n in numbers]


def _conversations(bench: Bench, encoder: Mllm, side: Side, count: int = 0) -> Any:
    return encoder.collator()(_examples(bench, encoder, side, count), side).to(bench.device)


def mllm_embed(bench: Bench) -> Figures:
    """Direct vectors of pictures with text, from tensors in memory."""
    encoder = _mllm(bench).eval()
    batch = _conversations(bench, encoder, "corpus")
    with torch.inference_mode():
        found = bench.rate(lambda: encoder.encode(batch, "corpus"), batch.size)
    return {
        "items/s": found,
        "tokens of an item": float(batch.mask.sum() / batch.size),
        **bench.peak(),
    }


def mllm_train(bench: Bench) -> Figures:
    """Steps with low-rank updates, the vision tower frozen and layers recomputed."""
    encoder = _mllm(bench, checkpointing=True)
    pairs = bench.scale.pairs // 4
    sides = [_conversations(bench, encoder, side, pairs) for side in ("query", "corpus")]
    return _train(bench, encoder, sides, pairs, Tuning(freeze="image", lora_rank=16))


def mllm_reason(bench: Bench) -> Figures:
    """Queries a second: nothing written, always as much as may be, and by half of them."""
    encoder = _mllm(bench).eval()
    batch = _conversations(bench, encoder, "query")
    most = bench.scale.written
    with torch.inference_mode():
        mark = reason(encoder, batch, Reasoning("adaptive", 0.0, most)).mark
    ways = {
        "direct": Reasoning("never"),
        "always": Reasoning("always", max_tokens=most),
        "adaptive": Reasoning("adaptive", float(mark.median()), most),
    }
    found = {}
    for name, how in ways.items():
        with torch.inference_mode():
            found[f"queries/s {name}"] = bench.rate(lambda: reason(encoder, batch, how), batch.size)  # noqa: B023
    return found


def rerank(bench: Bench) -> Figures:
    """Pairs of a question with a picture and a candidate with one: log-odds of yes and no."""
    encoder = _mllm(bench, "qwen3-vl-reranker")
    queries, candidates = (_examples(bench, encoder, side) for side in ("query", "corpus"))
    scorer = Pointwise(encoder)
    some = candidates[: bench.scale.batch // 2]
    return {
        "pairs/s": bench.rate(lambda: scorer.score(queries[0], some), len(some)),
        **bench.peak(),
    }


PARTS: Sequence[Callable[[Bench], Figures]] = (
    matrix, enrich_small, clip, mllm_embed, mllm_train, mllm_reason, rerank, enrich_large,
)  # fmt: skip
