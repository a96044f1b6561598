"""Trains the packaged small VLM from scratch on Flagland, through the prompts a big model gets.

``python -m benchmarks.vlm_pictures --out PICTURES`` first, then
``python -m benchmarks.train_vlm --pictures PICTURES --out FOLDER --steps N``; run it again to
resume from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from augment.flagland import atlas, language
from augment.flagland.grammar import Flag, families, random_edit
from augment.models.build import build_qwen3_vl
from augment.prompts import load_prompt
from augment.records import Item

#: job -> share of a batch after the warm-up, in which only pictures are described.
JOBS = {
    "rar_image_query": 0.36,
    "rar_corpus": 0.2,
    "rar_question": 0.2,
    "rar_modification_shown": 0.17,
    "rar_modification": 0.07,
}


def job(name: str, flag: Flag, rng: random.Random, names: Any) -> tuple[str | None, str]:
    """The item's text and the wanted answer for one prompt."""
    if name == "rar_image_query":
        return None, language.caption(flag)
    if name == "rar_corpus":
        roll = rng.random()
        country = next(names)
        text = atlas.entry(country) if roll < 0.35 else f"The flag of {country.name}."
        return (None if roll > 0.75 else text), language.caption(flag)
    if name == "rar_question":
        fact = rng.choice(list(language.QUESTIONS))
        asked, frame = language.question(rng, fact, rng.choice(language.REFERENCES))
        return asked, language.resolved(frame, flag)
    edit, twin = random_edit(rng, flag)
    request = language.modification_request(rng, flag, edit)
    if name == "rar_modification":
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
            request = load_prompt(name).render(Item("0:1", text, "x", "image,text"))
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
            raise SystemExit(f"{folder}: no pictures; run python -m benchmarks.vlm_pictures first")

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


def batched_vision_attention(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any
) -> Tensor:
    """The vision attention for pictures of one size: one call instead of one per picture."""
    length, pictures = hidden_states.shape[0], len(cu_seqlens) - 1
    qkv = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3)
    q, k, v = qkv.unbind(0)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (
        t.reshape(pictures, -1, self.num_heads, t.shape[-1]).transpose(1, 2) for t in (q, k, v)
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v)
    mixed: Tensor = self.proj(out.transpose(1, 2).reshape(length, -1))
    return mixed


def linear_patch_embedding(self: Any, hidden_states: Tensor) -> Tensor:
    """The patch embedding as the matrix product that it is.

    A convolution over single patches costs several times as much backwards on a CPU.
    """
    weight = self.proj.weight
    return nn.functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


class Batches:
    """Draws batches: the rendered chat, the picture's tokens, the answer with its end token."""

    def __init__(self, pictures: Pictures, processor: Any, seed: int) -> None:
        self.pictures, self.processor = pictures, processor
        self.tokenizer = processor.tokenizer
        self.prompts = {name: load_prompt(name) for name in JOBS}
        self.seed = seed
        self.names = atlas.countries(5000 + seed)

    def _chat(self, name: str, text: str | None, tokens: int) -> str:
        request = self.prompts[name].render(Item("0:1", text, "x", "image,text"))
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
            return [self._draw(rng, "rar_image_query", size)]
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


def plain_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum of the cross-entropies of the answers, every row on its own: the slow reference."""
    hidden = model.model(**batch["inputs"]).last_hidden_state[:, :-1]
    return _answers_loss(model, hidden, batch["labels"][:, 1:])


def _answers_loss(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    at = labels != -100
    logits = model.lm_head(hidden[at]).float()
    return nn.functional.cross_entropy(logits, labels[at], reduction="sum")


def shared_prefix_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """The same number as :func:`plain_loss`; the instruction all rows begin with runs once.

    Its keys and values are expanded to the batch, so the gradient flows back into the one pass.
    """
    inputs = batch["inputs"]
    ids = inputs["input_ids"]
    same = (ids == ids[:1]).all(0) & (inputs["mm_token_type_ids"] == 0).all(0)
    same &= (batch["labels"] == -100).all(0)  # a batch of one row is its own prefix
    shared = int(same.long().cumprod(0).sum()) - 1
    positions, _ = model.model.get_rope_index(
        ids, inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=inputs["attention_mask"],
    )  # fmt: skip
    cache: Any = DynamicCache(config=model.config.text_config)
    model.model(
        input_ids=ids[:1, :shared], position_ids=positions[:, :1, :shared], past_key_values=cache,
        use_cache=True,
    )  # fmt: skip
    for layer in cache.layers:
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    pictures = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
    hidden = model.model(
        input_ids=ids[:, shared:], position_ids=positions[:, :, shared:], past_key_values=cache,
        attention_mask=inputs["attention_mask"], use_cache=True, **pictures,
    ).last_hidden_state  # fmt: skip
    return _answers_loss(model, hidden[:, :-1], batch["labels"][:, shared + 1 :])


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz towards the nearest orthogonal matrices, [n, rows, columns], in fp32.

    Coefficients of the quintic: K. Jordan, "Muon" (2024). ``torch.optim.Muon`` does the same in
    bfloat16, which a CPU without bfloat16 units emulates a hundred times slower.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; steps scaled to AdamW's size (Moonlight, 2502.16982, eq. 4)."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = []
                for parameter in parameters:
                    state, gradient = self.state[parameter], parameter.grad
                    if gradient is None:
                        continue
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(state["momentum"], group["momentum"]))
                updates = orthogonalised(torch.stack(directions))
                size = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)


def optimisers(model: nn.Module, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inner if matrix else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(inner, muon_lr), adam]


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--warm", type=int, default=350, help="first steps with descriptions only")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.3, help="last share of steps")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--vision", default="160x4", help="width x depth")
    parser.add_argument("--text", default="192x4", help="width x depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--publish", type=Path, help="write the packaged form here at the end")
    return parser


def _start(args: argparse.Namespace) -> None:
    if not (args.out / "config.json").exists():
        (vw, vd), (tw, td) = (map(int, s.split("x")) for s in (args.vision, args.text))
        build_qwen3_vl(
            args.out, tokenizer_texts(args.seed), seed=args.seed, vocab_size=args.vocab,
            vision_width=vw, vision_depth=vd, text_width=tw, text_depth=td,
        )  # fmt: skip


class Training:
    """Model, optimisers and counters; saved and taken up again as a whole."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder: Path = args.out
        self.file = self.folder / "training.pt"
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32
        )
        self.optimisers = optimisers(self.model, args.lr, args.muon_lr)
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
            loss = shared_prefix_loss(self.model, part) / answered
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


def main() -> None:
    """Train, with a checkpoint every few minutes."""
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    setattr(qwen.Qwen3VLVisionAttention, "forward", batched_vision_attention)  # noqa: B010 - mypy
    setattr(qwen.Qwen3VLVisionPatchEmbed, "forward", linear_patch_embedding)  # noqa: B010 - mypy
    _start(args)
    training = Training(args)
    processor = AutoProcessor.from_pretrained(args.out)  # type: ignore[no-untyped-call]
    batches = Batches(Pictures(args.pictures), processor, args.seed)
    parameters = sum(p.numel() for p in training.model.parameters())
    print(f"{parameters:,} parameters, from step {training.done}", flush=True)
    start, first, losses = time.time(), training.done, deque[float](maxlen=25)
    for step in range(training.done, args.steps):
        parts = batches.draw(step, args.batch, step < args.warm)
        losses.append(training.step(parts, scale_of(step, args.steps, args.decay)))
        seconds = training.seconds + time.time() - start
        if training.done % 25 == 0:
            rate = (training.done - first) * args.batch / (time.time() - start)
            mean = sum(losses) / len(losses)
            print(
                f"step {training.done} loss {mean:.4f} {rate:.1f} samples/s {seconds:.0f} s",
                flush=True,
            )
        if training.done % args.every == 0 or training.done == args.steps:
            training.save(seconds)
    if args.publish:
        publish(args.out, args.publish)


if __name__ == "__main__":
    main()
