"""Pretrains the packaged small CLIP on Flagland: pictures with human wordings, names with passages.

``python -m benchmarks.flagland.vlm_pictures --out PICTURES`` first, then
``python -m benchmarks.flagland.train_clip --pictures PICTURES --out FOLDER --steps N``. The folder loads as
``local-dir:FOLDER`` in open_clip.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize
from transformers import PreTrainedTokenizerFast

from benchmarks.flagland import atlas, language
from benchmarks.flagland.edits import families, random_edit
from benchmarks.flagland.grammar import Flag
from benchmarks.flagland.muon import optimisers, scale_of
from benchmarks.flagland.vlm_data import Pictures
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
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ids
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>"
    )


def build_clip(folder: Path, seed: int, vocab_size: int, width: int, layers: int) -> None:
    """Write an untrained open_clip folder: config, tokenizer, random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(tokenizer_texts(seed), vocab_size)
    tokenizer.save_pretrained(folder)
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": list(IMAGE_SIZE), "patch_size": 16, "width": width,
                "layers": layers, "head_width": 32,
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


def main() -> None:
    """Pretrain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=230)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--vocab", type=int, default=1280)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    build_clip(args.out, args.seed, args.vocab, args.width, args.layers)
    model: Any = open_clip.create_model(f"local-dir:{args.out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.out}")
    opts = optimisers(model, args.lr, args.muon_lr)
    bases = [opt.param_groups[0]["lr"] for opt in opts]
    pictures = Pictures(args.pictures)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    countries = atlas.countries(3000 + args.seed)
    start, right, right_named = time.time(), 0.0, 0.0
    for step in range(args.steps):
        rng = random.Random(f"clip-{args.seed}-{step}")
        images, flags = draw(pictures, rng, args.batch)
        texts = tokenizer([language.human_description(rng, flag) for flag in flags])
        factor = scale_of(step, args.steps, 0.5)
        for opt, base in zip(opts, bases, strict=True):
            opt.param_groups[0]["lr"] = base * factor
        scale = model.logit_scale.exp()
        loss, share = contrastive(model.encode_image(images), encode_text(model, texts), scale)
        asked, passages = (tokenizer(t) for t in named_texts(countries, rng, args.batch // 4))
        named, named_share = contrastive(
            encode_text(model, asked), encode_text(model, passages), scale
        )
        (loss + 0.3 * named).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        right += share
        right_named += named_share
        if (step + 1) % 20 == 0:
            seconds = time.time() - start
            rate = (step + 1) * args.batch / seconds
            print(
                f"step {step + 1} loss {loss.item():.3f} top1 {right / 20:.3f} "
                f"names {right_named / 20:.3f} "
                f"{rate:.0f} pairs/s {seconds:.0f} s",
                flush=True,
            )
            right = right_named = 0.0
    save_file(model.state_dict(), args.out / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
