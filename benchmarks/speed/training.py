"""What training and embedding cost, as ratios taken in one run.

``python -m benchmarks.speed.training`` measures, in alternation: towers that run on the items that
need them against both towers on every item, at M-BEIR's mix of modalities, for embedding and for a
training step; encoding in chunks against the whole batch; a training step against
sentence-transformers on the same weights and pairs; the loader alone, with and without
``data.loader.resized``, against the step; cost against batch size and corpus size; and a plain
matrix product as the machine's rate. About eight minutes with ViT-B-32 on two cores; ``--tiny``
runs every part once on the packaged small model and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from augment.errors import ToolkitError
from augment.records import TASKS
from benchmarks.speed import gradcache
from retrievers.data.datasets import ImageLoader
from retrievers.data.examples import Example, Groups, Labels, Pairs
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.inputs import Inputs
from retrievers.training.module import Contrastive
from retrievers.training.objective import Objective
from retrievers.training.optim import AdamWCosine
from retrievers.vectors import make_index

_OBJECTIVE = Objective()
RESULTS = Path(__file__).parent.parent / "results" / "training_speed.md"

PARTS = ("towers", "chunks", "peer", "loader", "growth")
#: Training queries of M-BEIR by task code, in thousands (UniIR 2311.17136, Table 1).
TRAINING = {0: 214, 1: 16, 2: 43, 3: 228, 4: 16, 6: 291, 7: 42, 8: 300}
#: Union pool of M-BEIR by modality, in per cent.
POOL = {"text": 44.2, "image": 15.9, "image,text": 39.9}
#: Words of a text: an instruction, a caption or question, a passage of a wiki (WebQA, OVEN,
#: InfoSeek, which CLIP's 77 tokens cut).
WORDS = {"instruction": 12, "caption": 12, "passage": 90}
#: Tasks whose candidates are wiki passages.
WIKI = (1, 6, 8)

Items = Sequence[tuple[str | None, bool]]  # text, and whether there is a picture


def words(random: Random, count: int) -> str:
    """So many words."""
    return " ".join(
        random.choice(("red", "white", "a", "house", "of", "green")) for _ in range(count)
    )


def draw_pool(size: int, seed: int) -> Items:
    """Candidates with the modalities of M-BEIR's union pool; a text is a passage half the time."""
    random = Random(seed)
    kinds = random.choices(list(POOL), list(POOL.values()), k=size)
    return [
        (
            words(random, WORDS[random.choice(("caption", "passage"))]) if "text" in kind else None,
            "image" in kind,
        )
        for kind in kinds
    ]


def draw_pairs(size: int, seed: int) -> tuple[Items, Items]:
    """Queries, behind their instructions, and candidates with the tasks of M-BEIR's training."""
    random = Random(seed)
    queries, candidates = [], []
    for task in random.choices(list(TRAINING), list(TRAINING.values()), k=size):
        asked, wanted = TASKS[task]
        own = WORDS["caption"] if "text" in asked else 0
        queries.append((words(random, WORDS["instruction"] + own), "image" in asked))
        length = WORDS["passage" if task in WIKI else "caption"]
        text = words(random, length) if "text" in wanted else None
        candidates.append((text, "image" in wanted))
    return queries, candidates


def make_batch(retriever: ClipScoreFusion, items: Items) -> Inputs:
    """Items as a loader gives them; pictures are noise."""
    random = torch.Generator().manual_seed(len(items))
    shape = retriever.collator().image(Image.new("RGB", (32, 32))).shape
    examples = [
        Example(n, text, torch.randn(shape, generator=random) if picture else None)
        for n, (text, picture) in enumerate(items)
    ]
    return retriever.collator()(examples)


def both_towers(retriever: ClipScoreFusion, batch: Inputs) -> Tensor:
    """Unit vectors as UniIR makes them: every item through both towers at full length, masked."""
    size, clip = batch.size, retriever.clip
    shape = retriever.collator().image(Image.new("RGB", (32, 32))).shape
    empty = retriever.collator().tokenize([""])
    texts = empty.repeat(size, 1).index_copy(0, batch.text_rows, batch.texts)
    images = torch.zeros(size, *shape)
    if len(batch.image_rows):
        images = images.index_copy(0, batch.image_rows, batch.images)
    has_text = torch.zeros(size, 1).index_fill(0, batch.text_rows, 1.0)
    has_image = torch.zeros(size, 1).index_fill(0, batch.image_rows, 1.0)
    return functional.normalize(
        has_text * clip.encode_text(texts) + has_image * clip.encode_image(images), dim=-1
    )


def labelled(queries: Inputs, candidates: Inputs) -> Pairs:
    """A batch of pairs that are each other's only positives."""
    rows = torch.arange(queries.size)
    groups = Groups(rows[:, None], torch.full((queries.size, 1), float("nan")))
    names = tuple((f"0:{n}", f"0:{n}") for n in range(queries.size))
    return Pairs(queries, candidates, Labels(rows, rows, rows[:, None]), groups, names, 0)


class Step:
    """A training step with AdamW."""

    def __init__(self, retriever: ClipScoreFusion, loss: Callable[[], Tensor]) -> None:
        self._retriever, self._loss = retriever, loss
        self._optimizer, _ = AdamWCosine(lr=0.0).build(retriever.named_parameters(), 10)

    def __call__(self) -> None:
        """One step."""
        self._retriever.train()
        self._loss().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._retriever.zero_grad()


def alternate(
    things: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median seconds of each, and the median over rounds of its ratio to the first one's."""
    taken: dict[str, list[float]] = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            start = time.perf_counter()
            thing()
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - start)
    first = taken[next(iter(things))]
    return {
        name: (
            statistics.median(found),
            statistics.median(a / b for a, b in zip(found, first, strict=True)),
        )
        for name, found in taken.items()
    }


def matrix_rate(size: int, rounds: int) -> float:
    """Billions of floating-point operations per second of a plain float32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    spent = alternate({"product": lambda: a @ b}, rounds)["product"][0]
    return 2 * size**3 / spent / 1e9


def routed(retriever: ClipScoreFusion, batch: int, rounds: int) -> Iterator[str]:
    """Rows: only the needed tower against both."""
    retriever.eval()
    inputs = make_batch(retriever, draw_pool(2 * batch, seed=1))
    with torch.inference_mode():
        ours, theirs = retriever.encode(inputs, "corpus").vectors, both_towers(retriever, inputs)
        least = float(functional.cosine_similarity(ours, theirs).min())
        found = alternate(
            {
                "the needed tower": lambda: retriever.encode(inputs, "corpus").vectors,
                "both towers": lambda: both_towers(retriever, inputs),
            },
            rounds,
        )
    yield from _rows(f"embedding {2 * batch} candidates of M-BEIR's union pool", found)
    sides = [make_batch(retriever, side) for side in draw_pairs(batch, seed=2)]
    pairs = labelled(sides[0], sides[1])

    def masked() -> Tensor:
        q, c = (both_towers(retriever, side) for side in sides)
        scale = retriever.clip.logit_scale.exp()
        return _OBJECTIVE(q, c, pairs.labels, pairs.groups, scale)["loss"]

    found = alternate(
        {
            "the needed tower": Step(
                retriever, lambda: Contrastive(retriever, _OBJECTIVE).loss(pairs)["loss"]
            ),
            "both towers": Step(retriever, masked),
        },
        rounds,
    )
    yield from _rows(f"training on {batch} pairs of M-BEIR's tasks, with instructions", found)
    yield f"| least cosine between both ways | {least:.6f} | |"


def against_sentence_transformers(
    retriever: ClipScoreFusion, batch: int, rounds: int
) -> Iterator[str]:
    """Rows: a step from Pillow pictures and strings, preprocessing included."""
    try:
        from retrievers.export.sentence_transformers import write_sentence_transformers

        with tempfile.TemporaryDirectory() as folder:
            write_sentence_transformers(retriever, Path(folder) / "model")
            theirs = _their_step(Path(folder) / "model", batch)
    except ToolkitError as error:
        yield f"| sentence-transformers: not measured ({error}) | | |"
        return
    texts, pictures = _things(batch)

    def ours() -> Tensor:
        queries = processor([Example(n, t, None) for n, t in enumerate(texts)])
        shown = [Example(n, None, processor.image(p)) for n, p in enumerate(pictures)]
        return Contrastive(retriever, _OBJECTIVE).loss(labelled(queries, processor(shown)))["loss"]

    processor = retriever.collator()
    found = alternate({"here": Step(retriever, ours), "sentence-transformers": theirs}, rounds)
    yield from _rows(f"training on {batch} text-picture pairs from Pillow and strings", found)


def _things(batch: int) -> tuple[list[str], list[Image.Image]]:
    random = Random(3)
    noise = np.random.default_rng(3).integers(0, 256, (batch, 24, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((340, 256)) for one in noise]
    return [words(random, WORDS["caption"]) for _ in range(batch)], pictures


def _their_step(folder: Path, batch: int) -> Callable[[], None]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model: Any = SentenceTransformer(str(folder), device="cpu")
    loss: Any = MultipleNegativesRankingLoss(model, scale=100.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    texts, pictures = _things(batch)

    def step() -> None:
        model.train()
        features = [model.preprocess(things) for things in (texts, pictures)]
        loss(features, torch.zeros(batch)).backward()
        optimizer.step()
        model.zero_grad()

    return step


def loader(retriever: ClipScoreFusion, pictures: int, step_rate: float) -> Iterator[str]:
    """Rows: pictures per second of one process, and how many processes the step above needs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        random = np.random.default_rng(4)
        for n in range(pictures):
            noise = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((1024, 768)).save(root / f"photo{n}.jpg", quality=90)
            # M-BEIR's pictures have a short side of 256.
            Image.fromarray(noise).resize((341, 256)).save(root / f"mbeir{n}.jpg", quality=90)
        for name, kind, kept in (
            ("JPEG of 1024 x 768", "photo", None),
            ("JPEG of 341 x 256, as M-BEIR's", "mbeir", None),
            ("kept at the model's size (data.loader.resized)", "mbeir", root / "kept"),
        ):
            images = ImageLoader(root, retriever.collator(), resized=kept)
            paths = [f"{kind}{n}.jpg" for n in range(pictures)]
            for path in paths if kept else paths[:1]:
                images(path)
            start = time.perf_counter()
            for path in paths:
                images(path)
            rate = pictures / (time.perf_counter() - start)
            yield f"| loading: {name} | {rate:.0f} pictures/s | {step_rate / rate:.2f} processes |"


def growth(retriever: ClipScoreFusion, batch: int, corpus: int, rounds: int) -> Iterator[str]:
    """Rows: a step at three batch sizes, embedding and search at three sizes of a corpus."""
    for size in (batch // 4, batch // 2, batch):
        sides = [make_batch(retriever, side) for side in draw_pairs(size, seed=5)]
        pairs = labelled(sides[0], sides[1])
        loss = Contrastive(retriever, _OBJECTIVE).loss
        step = Step(retriever, lambda pairs=pairs, loss=loss: loss(pairs)["loss"])  # type: ignore[misc]
        spent = alternate({"step": step}, rounds)["step"][0]
        yield f"| step of {size} pairs | {spent:.3f} s | {1000 * spent / size:.1f} ms a pair |"
    dim = int(retriever.encode(make_batch(retriever, [("a", False)]), "query").vectors.shape[1])
    queries = functional.normalize(torch.randn(100, dim), dim=-1)
    for size in (corpus // 100, corpus // 10, corpus):
        index = make_index("exact", "benchmark", "cpu")
        index.add(
            [f"1:{n}" for n in range(size)],
            functional.normalize(torch.randn(size, dim), dim=-1),
            "benchmark",
        )
        search = {"search": lambda index=index: index.search(queries, 10, "benchmark")}
        spent = alternate(search, rounds)["search"][0]
        yield f"| search among {size:,} candidates | {spent:.3f} s | {10 * spent:.3f} ms a query |"


def _rows(title: str, found: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for name, (spent, ratio) in found.items():
        yield f"| {title}: {name} | {spent:.3f} s | {ratio:.2f} |"


def report(args: argparse.Namespace) -> str:
    """The outcome as Markdown."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        named = str(_tiny_model(Path(folder))) if args.tiny else args.model
        retriever = ClipScoreFusion(named, random_init=True)
    named = Path(named).stem
    lines = [
        "# Speed of training", "",
        f"{named} with random weights, float32, {args.threads} threads; medians of {args.rounds} "
        "rounds in alternation. The last column is the ratio to the row above that it belongs to "
        "(1.00), unless it names a unit.", "",
        "| what | time | ratio |", "|---|--:|--:|",
        f"| matrix product of {args.matrix} | {matrix_rate(args.matrix, 5):.1f} GFLOP/s | |",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    parts = {
        "towers": routed(retriever, args.batch, args.rounds),
        "chunks": _chunks(args),
        "peer": against_sentence_transformers(retriever, args.batch, args.rounds),
        "loader": _loading(retriever, args),
        "growth": growth(retriever, args.batch, args.corpus, args.rounds),
    }
    for name in args.parts:
        for line in parts[name]:
            print(line, flush=True)
            lines.append(line)
    lines += ["", f"torch {torch.__version__}, {os.cpu_count()} cores."]
    return "\n".join(lines) + "\n"


def _tiny_model(folder: Path) -> Path:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path = folder / "tiny-clip.json"
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _chunks(args: argparse.Namespace) -> Iterator[str]:
    size = 4 * args.batch
    for name, spent, ratio in gradcache.overhead(size, max(1, size // 8), args.rounds):
        yield f"| flagland-clip, {size} pairs, {name} | {spent:.3f} s | {ratio:.2f} |"


def _loading(retriever: ClipScoreFusion, args: argparse.Namespace) -> Iterator[str]:
    sides = [make_batch(retriever, side) for side in draw_pairs(args.batch, seed=6)]
    pairs = labelled(sides[0], sides[1])
    step = Step(retriever, lambda: Contrastive(retriever, _OBJECTIVE).loss(pairs)["loss"])
    spent = alternate({"step": step}, 1)["step"][0]
    needed = sum(len(side.image_rows) for side in sides) / spent
    yield f"| a step asks for | {needed:.0f} pictures/s | |"
    yield from loader(retriever, args.pictures, needed)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.training", description=__doc__
    )
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip architecture")
    parser.add_argument("--batch", type=int, default=16, help="pairs of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=200, help="that the loader reads")
    parser.add_argument("--corpus", type=int, default=100_000, help="largest one searched")
    parser.add_argument("--matrix", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tiny", action="store_true", help="see that every part runs")
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.name}; none with --tiny")
    args = parser.parse_args()
    if args.tiny:
        args.batch, args.rounds, args.pictures, args.corpus, args.matrix = 8, 1, 8, 1000, 256
    torch.set_num_threads(args.threads)
    text = report(args)
    out = args.out or (None if args.tiny else RESULTS)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
