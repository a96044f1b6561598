"""What a training step costs, as ratios taken in one run.

``python -m benchmarks.speed training``: towers that run on the items that need them against both
towers on every item, as UniIR trains, at the mix of M-BEIR's training; and a step from pictures and
strings against sentence-transformers on the same weights and pairs. Some four minutes with ViT-B-32
on two cores.

``python -m benchmarks.speed gradcache``: encoding in chunks against the whole batch on
flagland-clip, time and the memory that a step adds to a fresh process.

``python -m benchmarks.speed mllm``: a step of flagland-vlm from loaded pictures and strings, which
sees each picture once, compiled or not, against one that sees it every time.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from augment.records import TASKS
from benchmarks.speed.harness import Page, Row, apart, cost, rows_of, take_turns
from retrievers.data.examples import Example, Groups, Labels, Pairs
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.inputs import Inputs
from retrievers.training.module import Contrastive
from retrievers.training.objective import Objective
from retrievers.training.optim import AdamWCosine

#: Training queries of M-BEIR by task code, in thousands (UniIR 2311.17136, Table 1).
TRAINING = {0: 214, 1: 16, 2: 43, 3: 228, 4: 16, 6: 291, 7: 42, 8: 300}
#: Words of an instruction, of a caption or question, and of a passage of a wiki, which CLIP's 77
#: tokens cut.
INSTRUCTION, CAPTION, PASSAGE = 12, 12, 90
#: Tasks whose candidates are wiki passages (WebQA, OVEN, InfoSeek).
WIKI = (1, 6, 8)

Items = Sequence[tuple[str | None, bool]]  # text, and whether there is a picture


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(("red", "white", "a", "house", "of", "green"), k=count))


def draw_pairs(size: int, seed: int) -> tuple[Items, Items]:
    """Queries, behind their instructions, and candidates with the tasks of M-BEIR's training."""
    random = Random(seed)
    queries, candidates = [], []
    for task in random.choices(list(TRAINING), list(TRAINING.values()), k=size):
        asked, wanted = TASKS[task]
        own = CAPTION if "text" in asked else 0
        queries.append((_words(random, INSTRUCTION + own), "image" in asked))
        text = _words(random, PASSAGE if task in WIKI else CAPTION) if "text" in wanted else None
        candidates.append((text, "image" in wanted))
    return queries, candidates


def make_batch(encoder: ClipScoreFusion, items: Items) -> Inputs:
    """Items as a loader gives them; pictures are noise."""
    random, collate = torch.Generator().manual_seed(len(items)), encoder.collator()
    shape = collate.image(Image.new("RGB", (32, 32))).shape
    return collate(
        [
            Example(n, text, torch.randn(shape, generator=random) if picture else None)
            for n, (text, picture) in enumerate(items)
        ]
    )


def labelled(queries: Inputs, candidates: Inputs) -> Pairs:
    """A batch of pairs that are each other's only positives."""
    rows = torch.arange(queries.size)
    groups = Groups(rows[:, None], torch.full((queries.size, 1), float("nan")))
    names = tuple((f"0:{n}", f"0:{n}") for n in range(queries.size))
    return Pairs(queries, candidates, Labels(rows, rows, rows[:, None]), groups, names, 0)


class Step:
    """A training step with AdamW, whose rate is 0."""

    def __init__(self, encoder: torch.nn.Module, loss: Callable[[], Tensor]) -> None:
        self._encoder, self._loss = encoder, loss
        self._optimizer, _ = AdamWCosine(lr=0.0).build(encoder.named_parameters(), 10)

    def __call__(self) -> None:
        """One step."""
        self._encoder.train()
        self._loss().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._encoder.zero_grad()


def both_towers(encoder: ClipScoreFusion, batch: Inputs) -> Tensor:
    """Unit vectors as UniIR makes them: every item through both towers at full length, masked."""
    size, clip, collate = batch.size, encoder.clip, encoder.collator()
    texts = collate.tokenize([""]).repeat(size, 1).index_copy(0, batch.text_rows, batch.texts)
    images = torch.zeros(size, *collate.image(Image.new("RGB", (32, 32))).shape)
    if len(batch.image_rows):
        images = images.index_copy(0, batch.image_rows, batch.images)
    has_text = torch.zeros(size, 1).index_fill(0, batch.text_rows, 1.0)
    has_image = torch.zeros(size, 1).index_fill(0, batch.image_rows, 1.0)
    return functional.normalize(
        has_text * clip.encode_text(texts) + has_image * clip.encode_image(images), dim=-1
    )


def _towers(fit: Contrastive, encoder: ClipScoreFusion, batch: int, rounds: int) -> list[Row]:
    """Steps on the mix of M-BEIR's training: the towers that items need, and both."""
    sides = [make_batch(encoder, items) for items in draw_pairs(batch, seed=2)]
    pairs = labelled(*sides)

    def masked() -> Tensor:
        q, c = (both_towers(encoder, side) for side in sides)
        scale = encoder.clip.logit_scale.exp()
        return fit.objective(q, c, pairs.labels, pairs.groups, scale)["loss"]

    with torch.inference_mode():
        encoder.eval()
        ours = encoder.encode(sides[1], "corpus").vectors
        if functional.cosine_similarity(ours, both_towers(encoder, sides[1])).min() < 0.9999:
            raise ValueError("the two ways make different vectors")
    ways = {
        "the towers that items need": Step(encoder, lambda: fit.loss(pairs)["loss"]),
        "both towers": Step(encoder, masked),
    }
    return rows_of(take_turns(ways, rounds), batch, "pairs")


def _peer(fit: Contrastive, encoder: ClipScoreFusion, batch: int, rounds: int) -> list[Row]:
    """Steps from Pillow pictures and strings, preprocessing included."""
    from retrievers.export.sentence_transformers import write_sentence_transformers

    random = Random(3)
    noise = np.random.default_rng(3).integers(0, 256, (batch, 24, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((340, 256)) for one in noise]
    texts = [_words(random, CAPTION) for _ in pictures]
    collate = encoder.collator()

    def ours() -> Tensor:
        queries = collate([Example(n, text, None) for n, text in enumerate(texts)])
        shown = [Example(n, None, collate.image(one)) for n, one in enumerate(pictures)]
        return fit.loss(labelled(queries, collate(shown)))["loss"]

    with tempfile.TemporaryDirectory() as folder:
        write_sentence_transformers(encoder, Path(folder) / "model")
        theirs = _their_step(Path(folder) / "model", texts, pictures)
    ways: dict[str, Callable[[], None]] = {
        "here": Step(encoder, ours),
        "sentence-transformers": theirs,
    }
    return rows_of(take_turns(ways, rounds), batch, "pairs")


def _their_step(folder: Path, texts: list[str], pictures: list[Image.Image]) -> Callable[[], None]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model: Any = SentenceTransformer(str(folder), device="cpu")
    loss: Any = MultipleNegativesRankingLoss(model, scale=100.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        model.train()
        features = [model.preprocess(things) for things in (texts, pictures)]
        loss(features, torch.zeros(len(texts))).backward()
        optimizer.step()
        model.zero_grad()

    return step


def measure(model: str = "ViT-B-32", batch: int = 16, rounds: int = 3, threads: int = 2) -> Page:
    """Measure steps.

    Args:
        model: an open_clip architecture, with random weights.
        batch: pairs of a step.
        rounds: of which the median is shown.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder = ClipScoreFusion(model, random_init=True)
    fit = Contrastive(encoder, Objective(symmetric=False))
    return Page(
        "Speed of training",
        f"{Path(model).stem} with random weights, float32, {threads} threads, {batch} pairs; "
        f"medians of {rounds} rounds in turns; ours is the first line of each table.",
        {
            "Pairs of M-BEIR's tasks, with instructions:": _towers(fit, encoder, batch, rounds),
            "Texts and pictures, from strings and Pillow:": _peer(fit, encoder, batch, rounds),
        },
    )


# -- chunks -------------------------------------------------------------------------------------


def _chunked(size: int, chunk: int | None) -> Step:
    """A step of the packaged model on texts that ask for pictures of noise."""
    encoder = ClipScoreFusion(normalize_towers=True)
    fit = Contrastive(encoder, Objective(symmetric=True), chunk=chunk)
    text = "a flag with three horizontal bands of red, white and green"
    queries = make_batch(encoder, [(f"{text} {n}", False) for n in range(size)])
    pairs = labelled(queries, make_batch(encoder, [(None, True)] * size))
    return Step(encoder, lambda: fit.loss(pairs)["loss"])


def _peak(size: int, chunk: int | None, threads: int) -> Row:
    torch.set_num_threads(threads)
    step = _chunked(size, chunk)
    before = _most_memory()
    seconds = cost(step).seconds
    added = (_most_memory() - before) / 1024
    return {"pairs": size, "chunk": chunk or "none", "MiB": added, "s": seconds}


def _most_memory() -> int:
    """KiB that this process has had at most; what getrusage says begins with the parent's."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) if found else 0


def measure_chunks(
    batch: int = 256, chunk: int = 32, large: int = 2048, rounds: int = 5, threads: int = 2
) -> Page:
    """What encoding in chunks costs in time and saves in memory; needs Linux.

    Args:
        batch: pairs of a step.
        chunk: items encoded together.
        large: pairs of one step more; 8192 take four times as long as 2048.
        rounds: of which the median is shown.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    ways = {"chunks": _chunked(batch, chunk), "whole batch": _chunked(batch, None)}
    turns = take_turns(ways, rounds)
    cases = [(batch, None), (batch, chunk), (large, chunk)]
    return Page(
        "Encoding in chunks (GradCache)",
        f"flagland-clip, {batch} text-picture pairs, chunks of {chunk}; median of {rounds} rounds "
        f"in turns, {threads} threads.",
        {
            "": rows_of(turns, batch, "pairs"),
            "Memory that a step adds to a fresh process (pictures and model not counted):": [
                apart(_peak, size, some, threads) for size, some in cases
            ],
        },
    )


# -- multimodal language models -----------------------------------------------------------------


def measure_mllm(countries: int = 200, batch: int = 80, rounds: int = 3, threads: int = 1) -> Page:
    """What it saves to see pictures once, and to compile; pictures have been seen, layers compiled.

    Args:
        countries: of the Flagland that pairs are drawn from.
        batch: pairs of a step.
        rounds: of which the median is shown.
        threads: of torch.
    """
    from benchmarks.flagland.world import WorldConfig, write_world
    from retrievers.training.parts import read_parts

    torch.set_num_threads(threads)
    ways = {"pictures kept": (1024, False), "pictures kept, compiled": (1024, True),
            "neither": (0, False)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder) / "world", WorldConfig(countries, 1))

        def step(features_mib: int, compiled: bool) -> Step:
            arguments = {"features_mib": features_mib, "compile": compiled}
            fit, data, *_ = read_parts([
                "--config=flagland_mllm", f"--data.root={folder}/world",
                f"--data.batch_size={batch}",
                *(f"--model.encoder.init_args.{name}={value}" for name, value in arguments.items()),
            ], 0)  # fmt: skip
            collate = fit.encoder.collator()
            pairs, _ = data.training(collate)
            drawn = data.pairs_loader(pairs, collate, 0, 1)
            return Step(fit.encoder, lambda: fit.loss(next(iter(drawn)))["loss"])

        turns = take_turns({name: step(*way) for name, way in ways.items()}, rounds)
    return Page(
        "Training of a small multimodal language model",
        f"flagland-vlm, vision tower frozen, float32, {threads} threads, {batch} pairs of all "
        f"tasks of Flagland, loaded and preprocessed; medians of {rounds} rounds in turns.",
        {"": rows_of(turns, batch, "pairs")},
    )
