"""Training batches for the small VLM: pictures from disk, texts made on the fly, real prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augment.prompts import load_prompt
from augment.records import Item
from benchmarks.flagland import atlas, language
from benchmarks.flagland.edits import families, random_edit
from benchmarks.flagland.grammar import Flag

#: job -> share of a batch after the warm-up, in which only pictures are described.
JOBS = {
    "rar/image_query": 0.36,
    "rar/corpus": 0.2,
    "rar/question": 0.2,
    "rar/modification_shown": 0.17,
    "rar/modification": 0.07,
}


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
            raise SystemExit(
                f"{folder}: no pictures; run python -m benchmarks.flagland.vlm_pictures first"
            )

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
    x = x.unsqueeze(6).expand(
        -1, -1, -1, -1, -1, -1, 2, -1, -1
    )  # a still picture: two equal frames
    flat = x.reshape(n * (h // 16) * (w // 16), -1)
    return flat, torch.tensor([[1, h // 16, w // 16]] * n)


class Batches:
    """Draws batches: the rendered chat, the picture's tokens, the answer with its end token."""

    def __init__(self, pictures: Pictures, processor: Any, seed: int) -> None:
        self.pictures, self.processor = pictures, processor
        self.tokenizer = processor.tokenizer
        self.prompts = {name: load_prompt(name) for name in JOBS}
        self.seed = seed
        self.names = atlas.countries(5000 + seed)

    def _chat(self, name: str, text: str | None, tokens: int) -> str:
        request = self.prompts[name].render(Item("0:1", text, ("x",), "image,text"))
        content: list[dict[str, str]] = [{"type": "text", "text": request.text}]
        if request.image is not None:
            content.append({"type": "image"})
        messages = [
            {"role": "system", "content": [{"type": "text", "text": request.system}]},
            {"role": "user", "content": content},
        ]
        chat: str = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return chat.replace("<|image_pad|>", "<|image_pad|>" * tokens)

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
            answers.append(answer + "<|im_end|>")
        before = self.tokenizer(chats)["input_ids"]
        after = self.tokenizer(answers)["input_ids"]
        width = max(len(a) + len(b) for a, b in zip(before, after, strict=True))
        ids = torch.full((size, width), self.tokenizer.pad_token_id)
        labels = torch.full((size, width), -100)
        mask = torch.zeros((size, width), dtype=torch.long)
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            ids[i, : len(a) + len(b)] = torch.tensor(a + b)
            labels[i, len(a) : len(a) + len(b)] = torch.tensor(b)
            mask[i, : len(a) + len(b)] = 1
        image_id = self.processor.image_token_id
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == image_id).int(),
        }
        if self.prompts[name].shows_image:
            inputs["pixel_values"], inputs["image_grid_thw"] = patches(pixels)
        return {"inputs": inputs, "labels": labels}
