"""What training costs, as ratios taken in one run.

``python -m benchmarks.speed training`` measures, in turns: towers that run on the items that need
them against both towers on every item, at M-BEIR's mix of modalities, for embedding and for a
training step; encoding in chunks against the whole batch; a training step against
sentence-transformers on the same weights and pairs; the loader alone, with and without
``data.loader.resized``, against the step; cost against batch size; and a plain matrix product as
the machine's rate. About eight minutes with ViT-B-32 on two cores; ``--model=flagland-clip
--batch=8 --rounds=1 --pictures=8`` sees in seconds that the parts run.

``python -m benchmarks.speed gradcache`` measures chunks on flagland-clip: their time, and the
memory that a step adds to a fresh process.
"""

from __future__ import annotations

import re
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from augment.errors import ToolkitError
from augment.records import TASKS
from benchmarks.speed.harness import Page, Row, Turns, apart, cost, take_turns
from retrievers.data.examples import Example, Groups, Labels, Pairs
from retrievers.data.pictures import ImageLoader
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.inputs import Inputs
from retrievers.training.module import Contrastive
from retrievers.training.objective import Objective
from retrievers.training.optim import AdamWCosine

Part = Literal["towers", "chunks", "peer", "loader", "growth"]
PARTS: tuple[Part, ...] = ("towers", "chunks", "peer", "loader", "growth")
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


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(("red", "white", "a", "house", "of", "green"), k=count))


def draw_pool(size: int, seed: int) -> Items:
    """Candidates with the modalities of M-BEIR's union pool; a text is a passage half the time."""
    random = Random(seed)
    lengths = (WORDS["caption"], WORDS["passage"])
    return [
        (_words(random, random.choice(lengths)) if "text" in kind else None, "image" in kind)
        for kind in random.choices(list(POOL), list(POOL.values()), k=size)
    ]


def draw_pairs(size: int, seed: int) -> tuple[Items, Items]:
    """Queries, behind their instructions, and candidates with the tasks of M-BEIR's training."""
    random = Random(seed)
    queries, candidates = [], []
    for task in random.choices(list(TRAINING), list(TRAINING.values()), k=size):
        asked, wanted = TASKS[task]
        own = WORDS["caption"] if "text" in asked else 0
        queries.append((_words(random, WORDS["instruction"] + own), "image" in asked))
        length = WORDS["passage" if task in WIKI else "caption"]
        text = _words(random, length) if "text" in wanted else None
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


def make_sides(encoder: ClipScoreFusion, size: int, seed: int) -> tuple[Inputs, Inputs]:
    """Queries and candidates of M-BEIR's tasks."""
    queries, candidates = draw_pairs(size, seed)
    return make_batch(encoder, queries), make_batch(encoder, candidates)


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


def _rows(title: str, turns: dict[str, Turns]) -> Iterator[Row]:
    for name, own in turns.items():
        yield {"what": f"{title}: {name}", "time": f"{own.seconds:.3f} s",
               "ratio": f"{1 / own.ratio:.2f}"}  # fmt: skip


class Parts:
    """The parts of the measurement; each gives rows.

    Args:
        model: name of an open_clip architecture.
        batch: pairs of a step.
        rounds: that are counted.
        pictures: that the loader reads.
    """

    def __init__(self, model: str, batch: int, rounds: int, pictures: int) -> None:
        self.encoder = ClipScoreFusion(model, random_init=True)
        self.fit = Contrastive(self.encoder, Objective(symmetric=False))
        self.batch, self.rounds, self.pictures = batch, rounds, pictures

    def _step(self, pairs: Pairs) -> Step:
        return Step(self.encoder, lambda: self.fit.loss(pairs)["loss"])

    def towers(self) -> Iterator[Row]:
        """Only the needed tower against both."""
        encoder, batch = self.encoder.eval(), self.batch
        inputs = make_batch(encoder, draw_pool(2 * batch, seed=1))
        with torch.inference_mode():
            turns = take_turns(
                {
                    "the needed tower": lambda: encoder.encode(inputs, "corpus").vectors,
                    "both towers": lambda: both_towers(encoder, inputs),
                },
                self.rounds,
            )
            ours, theirs = (own.result for own in turns.values())
            least = float(functional.cosine_similarity(ours, theirs).min())
        yield from _rows(f"embedding {2 * batch} candidates of M-BEIR's union pool", turns)
        sides = make_sides(encoder, batch, seed=2)
        pairs = labelled(*sides)

        def masked() -> Tensor:
            q, c = (both_towers(encoder, side) for side in sides)
            scale = encoder.clip.logit_scale.exp()
            return self.fit.objective(q, c, pairs.labels, pairs.groups, scale)["loss"]

        turns = take_turns(
            {"the needed tower": self._step(pairs), "both towers": Step(encoder, masked)},
            self.rounds,
        )
        yield from _rows(f"training on {batch} pairs of M-BEIR's tasks, with instructions", turns)
        yield {"what": "least cosine between both ways", "time": f"{least:.6f}"}

    def chunks(self) -> Iterator[Row]:
        """Encoding in chunks against the whole batch, on the packaged model."""
        size = 4 * self.batch
        turns = in_chunks(size, max(1, size // 8), self.rounds)
        yield from _rows(f"flagland-clip, {size} pairs", turns)

    def peer(self) -> Iterator[Row]:
        """A step from Pillow pictures and strings, preprocessing included."""
        from retrievers.export.sentence_transformers import write_sentence_transformers

        random = Random(3)
        noise = np.random.default_rng(3).integers(0, 256, (self.batch, 24, 32, 3), dtype=np.uint8)
        pictures = [Image.fromarray(one).resize((340, 256)) for one in noise]
        texts = [_words(random, WORDS["caption"]) for _ in pictures]
        collate = self.encoder.collator()

        def ours() -> Tensor:
            queries = collate([Example(n, text, None) for n, text in enumerate(texts)])
            shown = [Example(n, None, collate.image(one)) for n, one in enumerate(pictures)]
            return self.fit.loss(labelled(queries, collate(shown)))["loss"]

        try:
            with tempfile.TemporaryDirectory() as folder:
                write_sentence_transformers(self.encoder, Path(folder) / "model")
                theirs = _their_step(Path(folder) / "model", texts, pictures)
        except ToolkitError as error:
            yield {"what": f"sentence-transformers: not measured ({error})"}
            return
        ways: dict[str, Callable[[], None]] = {
            "here": Step(self.encoder, ours),
            "sentence-transformers": theirs,
        }
        yield from _rows(
            f"training on {self.batch} text-picture pairs from Pillow and strings",
            take_turns(ways, self.rounds),
        )

    def loader(self) -> Iterator[Row]:
        """Pictures a second of one process, and how many processes a step needs."""
        sides = make_sides(self.encoder, self.batch, seed=6)
        spent = take_turns({"step": self._step(labelled(*sides))}, 1)["step"].seconds
        needed = sum(len(side.image_rows) for side in sides) / spent
        yield {"what": "a step asks for", "time": f"{needed:.0f} pictures/s"}
        with tempfile.TemporaryDirectory() as folder:
            root, random = Path(folder), np.random.default_rng(4)
            for n in range(self.pictures):
                noise = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                noise.resize((1024, 768)).save(root / f"photo{n}.jpg", quality=90)
                # M-BEIR's pictures have a short side of 256.
                noise.resize((341, 256)).save(root / f"mbeir{n}.jpg", quality=90)
            for name, kind, kept in (
                ("JPEG of 1024 x 768", "photo", None),
                ("JPEG of 341 x 256, as M-BEIR's", "mbeir", None),
                ("kept at the model's size (data.loader.resized)", "mbeir", root / "kept"),
            ):
                images = ImageLoader(root, self.encoder.collator(), resized=kept)
                paths = [f"{kind}{n}.jpg" for n in range(self.pictures)]
                read = {name: lambda images=images, paths=paths: [images(path) for path in paths]}
                rate = self.pictures / take_turns(read, 1)[name].seconds
                yield {"what": f"loading: {name}", "time": f"{rate:.0f} pictures/s",
                       "ratio": f"{needed / rate:.2f} processes"}  # fmt: skip

    def growth(self) -> Iterator[Row]:
        """A step at three batch sizes."""
        for size in (self.batch // 4, self.batch // 2, self.batch):
            step = self._step(labelled(*make_sides(self.encoder, size, seed=5)))
            spent = take_turns({"step": step}, self.rounds)["step"].seconds
            yield {"what": f"step of {size} pairs", "time": f"{spent:.3f} s",
                   "ratio": f"{1000 * spent / size:.1f} ms a pair"}  # fmt: skip


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


def measure(
    model: str = "ViT-B-32",
    batch: int = 16,
    rounds: int = 3,
    pictures: int = 200,
    matrix: int = 2048,
    threads: int = 2,
    parts: tuple[Part, ...] = PARTS,
) -> Page:
    """Measure some parts.

    Args:
        model: an open_clip architecture, with random weights.
        batch: pairs of a step.
        rounds: of which the median is shown.
        pictures: that the loader reads.
        matrix: side of the matrices multiplied.
        threads: of torch.
        parts: which.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    measured = Parts(model, batch, rounds, pictures)
    a, b = torch.randn(matrix, matrix), torch.randn(matrix, matrix)
    product = take_turns({"product": lambda: a @ b}, 5)["product"].seconds
    rate = f"{2 * matrix**3 / product / 1e9:.1f} GFLOP/s"
    rows: list[Row] = [{"what": f"matrix product of {matrix}", "time": rate}]
    for part in parts:
        rows += getattr(measured, part)()
    return Page(
        "Speed of training",
        f"{Path(model).stem} with random weights, float32, {threads} threads; medians of {rounds} "
        "rounds in turns. The last column is the ratio to the row above that it belongs to (1.00), "
        "unless it names a unit.",
        {"": rows},
    )


# -- chunks -------------------------------------------------------------------------------------


def _chunked(size: int, chunk: int | None, keep: int = 0) -> Step:
    """A step of the packaged model on texts that ask for pictures of noise."""
    encoder = ClipScoreFusion(normalize_towers=True)
    fit = Contrastive(encoder, Objective(symmetric=True), chunk=chunk, keep_chunks=keep)
    text = "a flag with three horizontal bands of red, white and green"
    queries = make_batch(encoder, [(f"{text} {n}", False) for n in range(size)])
    pairs = labelled(queries, make_batch(encoder, [(None, True)] * size))
    return Step(encoder, lambda: fit.loss(pairs)["loss"])


def in_chunks(size: int, chunk: int, rounds: int) -> dict[str, Turns]:
    """A step on the whole batch, in chunks, and with half of the chunks kept."""
    ways = {
        "plain": _chunked(size, None),
        "chunks": _chunked(size, chunk),
        "chunks, half kept": _chunked(size, chunk, size // chunk // 2),
    }
    return take_turns(ways, rounds)


def _peak(size: int, chunk: int | None, threads: int) -> Row:
    torch.set_num_threads(threads)
    step = _chunked(size, chunk)
    before = _most_memory()
    spent = cost(step).seconds
    added = (_most_memory() - before) / 1024
    return {"pairs": size, "chunk": chunk or "none", "MiB": added, "s": spent}


def _most_memory() -> int:
    """KiB that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the parent's
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_chunks(
    batch: int = 256, chunk: int = 32, large: int = 2048, rounds: int = 5, threads: int = 2
) -> Page:
    """What encoding in chunks costs in time and saves in memory.

    Args:
        batch: pairs of a step.
        chunk: items encoded together.
        large: pairs of one step more; 8192 take four times as long as 2048.
        rounds: of which the median is shown.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    turns = in_chunks(batch, chunk, rounds)
    times = [{"step": n, "s": own.seconds, "against plain": 1 / own.ratio}
             for n, own in turns.items()]  # fmt: skip
    cases = [(batch, None), (batch, chunk), (large, chunk)]
    memory = [apart(_peak, size, some, threads) for size, some in cases]
    return Page(
        "Encoding in chunks (GradCache)",
        f"flagland-clip, {batch} text-picture pairs, chunks of {chunk}; median of {rounds} rounds "
        f"in turns, {threads} threads.",
        {
            "": times,
            "Memory that a step adds to a fresh process (pictures and model not counted):": memory,
        },
    )
