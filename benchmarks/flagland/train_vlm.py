"""Trains the packaged small VLM from scratch on Flagland, through the prompts a big model gets.

``python -m benchmarks.flagland.train_vlm draw --out PICTURES`` first: pictures rendered once and
resized as the image processor will, one ``.npy`` of pixels per size and shard with the scene graphs
beside it. Then ``python -m benchmarks.flagland.train_vlm train --pictures PICTURES --out FOLDER
--steps N``; run it again to resume from the last checkpoint. ``publish`` writes the packaged form,
``publish_retriever`` that of a retriever trained from it.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from augment.engines.inputs import chat, to_messages
from augment.files import homes
from augment.prompts import load_prompt
from augment.records import Item
from benchmarks.flagland import atlas, language
from benchmarks.flagland.edits import families, random_edit
from benchmarks.flagland.grammar import Flag
from benchmarks.flagland.render import draw_flat, draw_photo, jpeg_round_trip
from benchmarks.flagland.vlm import build_qwen3_vl

_PROGRAM = "benchmarks.flagland.train_vlm"
#: Image tokens that the small VLM's image processor brings every picture to, least and most.
TOKENS = (40, 56)
#: Side of one image token: patches of 16 pixels, merged two by two.
TOKEN_SIDE = 32
#: Native widths of training pictures.
WIDTHS = (96, 96, 112, 128, 128, 144, 160, 192, 192, 224, 256, 320, 384)
#: The same for photo-like ones, which the worlds draw no smaller.
PHOTO_WIDTHS = (160, 192, 192, 224, 256, 256, 320, 384, 512)
#: job -> share of a batch after the warm-up, in which only pictures are described.
JOBS = {
    "rar/image_query": 0.36,
    "rar/corpus": 0.2,
    "rar/question": 0.2,
    "rar/modification_shown": 0.17,
    "rar/modification": 0.07,
}


def training_flags(seed: int, charged: float = 0.0, small: float = 0.0) -> Iterator[Flag]:
    """The endless stream of training flags; scoring leaves their fact sets out.

    Args:
        seed: of the stream.
        charged: share of the flags without charges that is left out. Charges are what a small
            model confuses longest.
        small: share of the flags without small charges that is left out. Their shape in photos is
            the last thing it learns.
    """
    rng = random.Random(f"flagland-vlm-train-{seed}")
    stream = (flag for flag in families(rng) if flag.charges or rng.random() >= charged)
    if not small:
        return stream
    return (flag for flag in stream
            if any(charge.count > 1 or charge.size == "small" for charge in flag.charges)
            or rng.random() >= small)  # fmt: skip


def native(flag: Flag, rng: random.Random, photo: bool) -> Image.Image:
    """One picture as it would lie on disk: random width, JPEG of random quality."""
    if photo:
        return draw_photo(flag, rng.choice(PHOTO_WIDTHS), rng)
    width = rng.choice(WIDTHS)
    return jpeg_round_trip(draw_flat(flag, width, rng), rng.randint(75, 95))


def snapped(image: Image.Image, tokens: Sequence[int] = TOKENS) -> NDArray[np.uint8]:
    """Resized as Qwen's image processor does (bicubic, sides multiples of 32): [h, w, 3]."""
    least, most = (count * TOKEN_SIDE**2 for count in tokens)
    height, width = smart_resize(image.height, image.width, TOKEN_SIDE, least, most)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def draw(
    out: Path,
    flags: int = 48_000,
    seed: int = 0,
    charged: float = 0.0,
    small: float = 0.0,
    flat: float = 1.0,
    tokens: tuple[int, int] = TOKENS,
    shard: str = "0/1",
) -> None:
    """Render training pictures, each flag photo-like and flat.

    Args:
        out: folder of the pictures.
        flags: how many.
        seed: of the flags and of their pictures.
        charged: share of plain flags that is left out.
        small: share of flags without small charges that is left out.
        flat: share of flags that is drawn flat as well.
        tokens: of a picture, least and most.
        shard: which part of how many, from 0.
    """
    part, parts = map(int, shard.split("/"))
    pixels: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    graphs: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    stream = enumerate(training_flags(seed, charged, small))
    for i, flag in islice(stream, part, flags, parts):
        for photo in (False, True):
            if not photo and random.Random(f"flat-{seed}-{i}").random() >= flat:
                continue
            rng = random.Random(f"{seed}-{i}-{photo}")
            picture = snapped(native(flag, rng, photo), tokens)
            pixels[picture.shape].append(picture)
            graphs[picture.shape].append({"flag": flag.to_dict(), "photo": photo})
        if i % 2000 == part:
            print(i, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    for shape, pictures in pixels.items():
        stem = out / f"{shape[0]}x{shape[1]}-{part}of{parts}"
        np.save(f"{stem}.npy", np.stack(pictures))
        Path(f"{stem}.json").write_text(json.dumps(graphs[shape]), encoding="utf-8")


class Pictures:
    """All training pictures, memory-mapped by size."""

    def __init__(self, folder: Path) -> None:
        self.buckets: dict[tuple[int, int], list[tuple[np.ndarray, list[Any]]]] = {}
        for path in sorted(folder.glob("*.npy")):
            height, width = (int(side) for side in path.stem.split("-")[0].split("x"))
            graphs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            shard = (np.load(path, mmap_mode="r"), graphs)
            self.buckets.setdefault((height, width), []).append(shard)
        self.sizes = sorted(self.buckets)
        self.weights = [sum(len(g) for _, g in self.buckets[s]) for s in self.sizes]
        if not self.sizes:
            raise SystemExit(f"{folder}: no pictures; python -m {_PROGRAM} draw makes them")

    def draw(self, rng: random.Random, count: int) -> tuple[np.ndarray, list[Flag]]:
        """``count`` random pictures of one random size, [count, h, w, 3], and their flags."""
        size = rng.choices(self.sizes, self.weights)[0]
        shards = self.buckets[size]
        pixels, flags = [], []
        for _ in range(count):
            array, graphs = rng.choices(shards, [len(g) for _, g in shards])[0]
            i = rng.randrange(len(graphs))
            pixels.append(array[i])
            flags.append(Flag.from_dict(graphs[i]["flag"]))
        return np.stack(pixels), flags


# -- batches --------------------------------------------------------------------------------------


def job(name: str, flag: Flag, rng: random.Random, names: Any) -> tuple[str | None, str]:
    """The item's text and the wanted answer for one prompt."""
    if name == "rar/image_query":
        return None, language.caption(flag)
    if name == "rar/corpus":
        roll = rng.random()
        country = next(names)
        text = atlas.entry(country) if roll < 0.35 else f"The flag of {country.name}."
        return (None if roll > 0.75 else text), language.caption(flag)
    if name == "rar/question":
        fact = rng.choice(list(language.QUESTIONS))
        asked, frame = language.question(rng, fact, rng.choice(language.REFERENCES))
        return asked, language.resolved(frame, flag)
    edit, twin = random_edit(rng, flag)
    request = language.modification_request(rng, flag, edit)
    if name == "rar/modification":
        return request, language.constraint(flag, edit)
    return request, language.caption(twin)


def tokenizer_texts(seed: int, count: int = 6000) -> list[str]:
    """Prompts and answers of every job, on flags of their own."""
    rng = random.Random(f"tokenizer-{seed}")
    names, flags = atlas.countries(1000 + seed), families(rng)
    texts = []
    for _ in range(count):
        flag = next(flags)
        for name in JOBS:
            text, answer = job(name, flag, rng, names)
            request = load_prompt(name).render(Item("0:1", text, ("x",), "image,text"))
            texts += [request.system, request.text, answer]
    return texts


def patches(pixels: np.ndarray) -> tuple[Tensor, Tensor]:
    """What the image processor makes of pictures that already have its size.

    Args:
        pixels: uint8 [n, h, w, 3] with sides multiples of 32.

    Returns:
        Patch vectors [n * h/16 * w/16, 1536] in merge order, and the grids [n, 3].
    """
    n, h, w, _ = pixels.shape
    x = (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5
    x = x.reshape(n, h // 32, 2, 16, w // 32, 2, 16, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # n, h/32, w/32, 2, 2, channel, 16, 16
    # A still picture is two equal frames.
    x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    flat = x.reshape(n * (h // 16) * (w // 16), -1)
    return flat, torch.tensor([[1, h // 16, w // 16]] * n)


#: Stands in a conversation where the template puts the tokens of a picture.
ANY_PICTURE = Image.new("RGB", (1, 1))


def packed(
    processor: Any, chats: Sequence[str], answers: Sequence[str], given: Sequence[int]
) -> dict[str, Any]:
    """Rows of prompts and answers with their end, padded, and what is to be learnt of them.

    Args:
        processor: of the model.
        chats: prompts, as the template writes them.
        answers: without their end.
        given: tokens of each answer that are not learnt.
    """
    before = processor.tokenizer(list(chats))["input_ids"]
    after = processor.tokenizer([f"{answer}<|im_end|>" for answer in answers])["input_ids"]
    rows = [torch.tensor(a + b) for a, b in zip(before, after, strict=True)]
    wanted = [torch.tensor([-100] * (len(a) + skipped) + b[skipped:])
              for a, b, skipped in zip(before, after, given, strict=True)]  # fmt: skip
    ids = pad_sequence(rows, batch_first=True, padding_value=processor.tokenizer.pad_token_id)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    kinds = (ids == processor.image_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    return {"inputs": inputs,
            "labels": pad_sequence(wanted, batch_first=True, padding_value=-100)}  # fmt: skip


class Batches:
    """Draws batches: the rendered chat, the picture's tokens, the answer with its end token."""

    def __init__(self, pictures: Pictures, processor: Any, seed: int) -> None:
        self.pictures, self.processor = pictures, processor
        self.prompts = {name: load_prompt(name) for name in JOBS}
        self.seed = seed
        self.names = atlas.countries(5000 + seed)

    def _chat(self, name: str, text: str | None, tokens: int) -> str:
        request = self.prompts[name].render(Item("0:1", text, ("x",), "image,text"))
        messages = to_messages(request, None if request.image is None else ANY_PICTURE)
        return chat(self.processor, messages).replace("<|image_pad|>", "<|image_pad|>" * tokens)

    def draw(self, step: int, size: int, warm: bool) -> list[dict[str, Any]]:
        """The batches of one step, one prompt each; the same step gives the same batches."""
        rng = random.Random(f"{self.seed}-{step}")
        if warm:
            return [self._draw(rng, "rar/image_query", size)]
        return [self._draw(rng, name, round(share * size)) for name, share in JOBS.items()]

    def _draw(self, rng: random.Random, name: str, size: int) -> dict[str, Any]:
        pixels, flags = self.pictures.draw(rng, size)
        tokens = pixels.shape[1] * pixels.shape[2] // 32**2
        chats, answers = [], []
        for flag in flags:
            text, answer = job(name, flag, rng, self.names)
            chats.append(self._chat(name, text, tokens))
            answers.append(answer)
        batch = packed(self.processor, chats, answers, [0] * size)
        if self.prompts[name].shows_image:
            shown = patches(pixels)
            batch["inputs"] |= dict(zip(("pixel_values", "image_grid_thw"), shown, strict=True))
        return batch


# -- training -------------------------------------------------------------------------------------


def optimisers(model: nn.Module, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases.

    Muon's steps are scaled to AdamW's size (Moonlight, 2502.16982, equation 4). With a rate of
    nought AdamW takes the matrices, too: Muon's products are in bfloat16, slow on an older CPU.
    """
    if not muon_lr:
        return [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inner if matrix else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    muon = torch.optim.Muon(
        inner, lr=muon_lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adam]


def scale_of(step: int, steps: int, decay: float) -> float:
    """Warm-up of 100 steps, constant, then linear to zero over the last ``decay`` share."""
    start = int(steps * (1 - decay))
    if step < 100:
        return (step + 1) / 100
    return 1.0 if step < start else max(0.0, (steps - step) / max(1, steps - start))


def publish(trained: Path, folder: Path) -> None:
    """Write the weights in half precision, with processor and template, as they are packaged."""
    model = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.float16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(trained).save_pretrained(folder)  # type: ignore[no-untyped-call]


def publish_retriever(checkpoint: Path, folder: Path) -> None:
    """Write what ``flagland_mllm`` or ``flagland_rge`` trained, in half precision, as packaged."""
    from retrievers.models.load import OWN_WEIGHTS, PREFIX, SETTINGS, check_checkpoint

    found = check_checkpoint(checkpoint)
    state = {name.removeprefix(PREFIX): value for name, value in found["state_dict"].items()}
    state.pop("vlm.lm_head.weight", None)  # tied
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in state.items()}, folder / OWN_WEIGHTS)
    told = found["retriever"]
    data = told["origin"]["data"]
    data.update(root=Path(data["root"]).name, written=None)  # a path; written_recipe says what
    (folder / SETTINGS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def average(trained: Sequence[Path], out: Path) -> None:
    """Write the mean of several trainings' weights; the rest is the first's.

    Weights along one path of training average to better ones than either end (Model soups,
    2203.05482; Izmailov et al., 1803.05407).
    """
    states = [load_file(folder / "model.safetensors") for folder in trained]
    mean = {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    shutil.copytree(trained[0], out, ignore=shutil.ignore_patterns("training.pt"))
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})


def _limit(processor: Any, tokens: Sequence[int]) -> None:
    """Let the processor bring pictures to so many tokens."""
    least, most = (count * TOKEN_SIDE**2 for count in tokens)
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"shortest_edge": least, "longest_edge": most}


def answer_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum of the cross-entropies of the answers' tokens."""
    hidden = model.model(**batch["inputs"]).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    logits = model.lm_head(hidden[labels != -100]).float()
    return nn.functional.cross_entropy(logits, labels[labels != -100], reduction="sum")


class Training:
    """Model, optimisers and counters; saved and taken up again as a whole."""

    def __init__(self, folder: Path, lr: float, muon_lr: float, bf16: bool) -> None:
        self.folder, self.bf16, self.file = folder, bf16, folder / "training.pt"
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.optimisers = optimisers(self.model, lr, muon_lr)
        self.rates = [opt.param_groups[0]["lr"] for opt in self.optimisers]
        self.done, self.seconds = 0, 0.0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.done, self.seconds = state["step"], state["seconds"]
            for opt, saved in zip(self.optimisers, state["optimisers"], strict=True):
                opt.load_state_dict(saved)

    def step(self, parts: Sequence[dict[str, Any]], factor: float) -> float:
        """One update on the batches of a step; the mean loss per answer token."""
        total = 0.0
        answered = sum(int((part["labels"] != -100).sum()) for part in parts)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = answer_loss(self.model, part) / answered
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for opt, rate in zip(self.optimisers, self.rates, strict=True):
            # A resumed optimiser carries the momentum of the last run, not its rate.
            opt.param_groups[0]["lr"] = rate * factor
            opt.step()
            opt.zero_grad(set_to_none=True)
        self.done += 1
        return total

    def save(self, seconds: float) -> None:
        """Weights and state; the state last, by rename."""
        self.model.save_pretrained(self.folder)
        states = [opt.state_dict() for opt in self.optimisers]
        partial = self.file.with_suffix(".tmp")
        torch.save({"step": self.done, "seconds": seconds, "optimisers": states}, partial)
        partial.replace(self.file)


def train(
    pictures: Path,
    out: Path,
    steps: int = 4000,
    warm: int = 350,
    batch: int = 64,
    lr: float = 1.5e-3,
    muon_lr: float = 2e-3,
    decay: float = 0.3,
    tokens: tuple[int, int] = TOKENS,
    seed: int = 0,
    threads: int = 2,
    bf16: bool = False,
    every: int = 200,
) -> None:
    """Train, with a checkpoint every few minutes.

    Args:
        pictures: folder that ``draw`` wrote.
        out: the model; taken up where it stands.
        steps: up to which it is trained.
        warm: first steps, with descriptions only.
        batch: samples of a step.
        lr: of AdamW.
        muon_lr: of Muon.
        decay: last share of the steps, in which the rates fall to zero.
        tokens: of a picture, least and most; as the pictures were made.
        seed: of weights, tokenizer and batches.
        threads: of torch.
        bf16: matrix products in bfloat16.
        every: steps between checkpoints.
    """
    torch.set_num_threads(threads)
    if not (out / "config.json").exists():
        build_qwen3_vl(out, tokenizer_texts(seed), seed=seed, vocab_size=1024, vision_width=160)
    training = Training(out, lr, muon_lr, bf16)
    processor = AutoProcessor.from_pretrained(out)  # type: ignore[no-untyped-call]
    _limit(processor, tokens)
    processor.save_pretrained(out)
    batches = Batches(Pictures(pictures), processor, seed)
    parameters = sum(p.numel() for p in training.model.parameters())
    print(f"{parameters:,} parameters, from step {training.done}", flush=True)
    start, first, losses = time.time(), training.done, deque[float](maxlen=25)
    for step in range(first, steps):
        losses.append(
            training.step(batches.draw(step, batch, step < warm), scale_of(step, steps, decay))
        )
        seconds = time.time() - start
        if training.done % 25 == 0:
            mean, rate = sum(losses) / len(losses), (training.done - first) * batch / seconds
            total = training.seconds + seconds
            print(
                f"step {training.done} loss {mean:.4f} {rate:.1f} samples/s {total:.0f} s",
                flush=True,
            )
        if training.done % every == 0 or training.done == steps:
            training.save(training.seconds + seconds)


if __name__ == "__main__":
    verbs: Any = {"draw": draw, "train": train, "average": average, "publish": publish,
                  "publish_retriever": publish_retriever}  # fmt: skip
    prog = f"python -m {_PROGRAM}"
    jsonargparse.auto_cli(verbs, args=homes(sys.argv[1:]), as_positional=False, prog=prog)
