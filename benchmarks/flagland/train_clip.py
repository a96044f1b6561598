"""Pretrains the packaged small CLIP on Flagland: pictures with human wordings, names with passages.

``python -m benchmarks.flagland.train_vlm draw --out PICTURES`` first, then
``python -m benchmarks.flagland.train_clip --pictures PICTURES --out FOLDER --steps N``. The folder
loads as ``local-dir:FOLDER`` in open_clip.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import jsonargparse
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize
from transformers import PreTrainedTokenizerFast

from augment.files import homes
from benchmarks.flagland import atlas, language
from benchmarks.flagland.edits import families, random_edit
from benchmarks.flagland.grammar import Flag
from benchmarks.flagland.train_vlm import Pictures, optimisers, scale_of
from benchmarks.flagland.vlm import train_bpe
from benchmarks.flagland.world import INSTRUCTIONS
from retrievers.models.towers import encode_text

#: Height and width after the (aspect-changing) resize: a centre crop would cut hoist and fly off.
IMAGE_SIZE = (96, 144)
CONTEXT = 160
_SPECIALS = ("<pad>", "<start>", "<end>")
MEAN = STD = (0.5, 0.5, 0.5)


def tokenizer_texts(seed: int, count: int = 4000) -> list[str]:
    """What the tokenizer learns from: wordings, entries, requests, captions, instructions."""
    rng = random.Random(f"clip-tokenizer-{seed}")
    countries, flags = atlas.countries(2000 + seed), families(rng)
    texts = [text for prompts in INSTRUCTIONS.values() for text in prompts] * 20
    for _ in range(count):
        flag, country = next(flags), next(countries)
        edit, _twin = random_edit(rng, flag)
        fact = rng.choice(list(language.QUESTIONS))
        asked, frame = language.question(rng, fact, rng.choice(language.REFERENCES))
        texts += [
            language.human_description(rng, flag), language.caption(flag), atlas.entry(country),
            language.modification_request(rng, flag, edit), asked, language.resolved(frame, flag),
            f"The flag of {country.name} shows it.",
        ]  # fmt: skip
    return texts


def build_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, lower case, framed by a start and an end token."""
    tokenizer = train_bpe(
        texts,
        vocab_size,
        _SPECIALS,
        normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
    )
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ids
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>"
    )


def build_clip(folder: Path, seed: int) -> None:
    """Write an untrained open_clip folder: config, tokenizer, random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(tokenizer_texts(seed), vocab_size=1280)
    tokenizer.save_pretrained(folder)
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": list(IMAGE_SIZE), "patch_size": 16, "width": 128, "layers": 4,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": CONTEXT, "vocab_size": len(tokenizer), "width": 128, "heads": 4,
                "layers": 3, "hf_tokenizer_name": "tokenizer", "pool_type": "eos",
                "eos_id": _SPECIALS.index("<end>"), "pad_id": 0,
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def draw(pictures: Pictures, rng: random.Random, size: int) -> tuple[Tensor, list[Flag]]:
    """A batch of pictures, normalised, [size, 3, h, w], and their flags."""
    images, flags = [], []
    for _ in range(4):
        pixels, some = pictures.draw(rng, size // 4)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        x = interpolate(x, IMAGE_SIZE, mode="bicubic", antialias=True).clamp(0, 1)
        images.append((x - 0.5) / 0.5)
        flags += some
    return torch.cat(images), flags


def named_texts(countries: Any, rng: random.Random, size: int) -> tuple[list[str], list[str]]:
    """Questions by name and the passages that answer them: CLIP knows that a name is a name."""
    asked, passages = [], []
    for _ in range(size):
        country = next(countries)
        fact = rng.choice(list(language.QUESTIONS))
        asked.append(language.question(rng, fact, country.name)[0])
        passages.append(atlas.HALVES[fact](country))
    return asked, passages


def contrastive(a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, float]:
    """CLIP's symmetric loss (2103.00020, figure 3), and the share of rows ranked first."""
    scores = scale * normalize(a, dim=-1) @ normalize(b, dim=-1).T
    target = torch.arange(len(scores))
    loss = (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
    return loss, (scores.argmax(1) == target).float().mean().item()


def train(
    pictures: Path,
    out: Path,
    steps: int = 230,
    batch: int = 160,
    lr: float = 1.5e-3,
    muon_lr: float = 2e-3,
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Pretrain.

    Args:
        pictures: folder of the training pictures.
        out: folder of the model.
        steps: optimiser steps.
        batch: pictures of a step, and four times the named texts.
        lr: of AdamW.
        muon_lr: of Muon.
        seed: of weights, tokenizer and batches.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    build_clip(out, seed)
    model: Any = open_clip.create_model(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    opts = optimisers(model, lr, muon_lr)
    bases = [opt.param_groups[0]["lr"] for opt in opts]
    drawn = Pictures(pictures)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    countries = atlas.countries(3000 + seed)
    start, right, right_named = time.time(), 0.0, 0.0
    for step in range(steps):
        rng = random.Random(f"clip-{seed}-{step}")
        images, flags = draw(drawn, rng, batch)
        texts = tokenizer([language.human_description(rng, flag) for flag in flags])
        scale = model.logit_scale.exp()
        loss, share = contrastive(model.encode_image(images), encode_text(model, texts), scale)
        asked, passages = (tokenizer(t) for t in named_texts(countries, rng, batch // 4))
        named, named_share = contrastive(
            encode_text(model, asked), encode_text(model, passages), scale
        )
        (loss + 0.3 * named).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt, base in zip(opts, bases, strict=True):
            opt.param_groups[0]["lr"] = base * scale_of(step, steps, 0.5)
            opt.step()
            opt.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        right, right_named = right + share, right_named + named_share
        if (step + 1) % 20 == 0:
            seconds = time.time() - start
            print(
                f"step {step + 1} loss {loss.item():.3f} top1 {right / 20:.3f} "
                f"names {right_named / 20:.3f} "
                f"{(step + 1) * batch / seconds:.0f} pairs/s {seconds:.0f} s",
                flush=True,
            )
            right = right_named = 0.0
    save_file(model.state_dict(), out / "open_clip_model.safetensors")


if __name__ == "__main__":
    prog = "python -m benchmarks.flagland.train_clip"
    jsonargparse.auto_cli(train, args=homes(sys.argv[1:]), as_positional=False, prog=prog)
