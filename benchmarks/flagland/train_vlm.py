"""Trains the packaged small VLM from scratch on Flagland, through the prompts a big model gets.

``python -m benchmarks.flagland.vlm_pictures --out PICTURES`` first, then
``python -m benchmarks.flagland.train_vlm --pictures PICTURES --out FOLDER --steps N``; run it again to
resume from the last checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.flagland.build_vlm import build_qwen3_vl
from benchmarks.flagland.muon import optimisers, scale_of
from benchmarks.flagland.vlm_data import Batches, Pictures, tokenizer_texts
from benchmarks.flagland.vlm_loss import (
    attention_in_full_precision,
    install_shortcuts,
    shared_prefix_loss,
)
from benchmarks.flagland.vlm_pictures import TOKEN_SIDE, TOKENS


def publish(trained: Path, folder: Path) -> None:
    """Write the weights in half precision, with processor and template, as they are packaged."""
    model = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.float16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(trained).save_pretrained(folder)  # type: ignore[no-untyped-call]


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
    parser.add_argument("--tokens", type=int, nargs=2, default=TOKENS,
                        help="of a picture, least and most; as the pictures were made")  # fmt: skip
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--vision", default="160x4", help="width x depth")
    parser.add_argument("--text", default="192x4", help="width x depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
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


def _limit(processor: Any, tokens: Sequence[int]) -> None:
    """Let the processor bring pictures to so many tokens."""
    least, most = (count * TOKEN_SIDE**2 for count in tokens)
    for part in (processor.image_processor, processor.video_processor):
        part.size = {"shortest_edge": least, "longest_edge": most}


class Training:
    """Model, optimisers and counters; saved and taken up again as a whole."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder: Path = args.out
        self.bf16: bool = args.bf16
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
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
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
    install_shortcuts()
    if args.bf16:
        attention_in_full_precision()
    _start(args)
    training = Training(args)
    processor = AutoProcessor.from_pretrained(args.out)  # type: ignore[no-untyped-call]
    _limit(processor, args.tokens)
    processor.save_pretrained(args.out)
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
