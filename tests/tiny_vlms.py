"""Untrained vision-language models of the real classes, and pictures for them."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers as tf
from PIL import Image

from benchmarks.flagland.vlm import build_qwen3_vl


def pictures(root: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """``N.png`` for every size, with patches of random colours."""
    dice = random.Random(0)
    for number, size in enumerate(sizes):
        image = Image.new("RGB", size, tuple(dice.randrange(256) for _ in range(3)))
        for _ in range(4):
            spot = [dice.randrange(max(side // 2, 1)) for side in size]
            patch = Image.new("RGB", (size[0] // 3 + 1, size[1] // 3 + 1), dice.randrange(1 << 24))
            image.paste(patch, tuple(spot))
        image.save(root / f"{number}.png")
    return root


def qwen3(folder: Path, texts: Sequence[str]) -> Path:
    """Qwen3-VL, whose answers depend on the picture; its tokenizer knows the texts."""
    build_qwen3_vl(
        folder,
        list(texts) * 3,
        seed=1,
        vocab_size=300,
        vision_width=32,
        vision_depth=2,
        text_width=64,
        text_depth=2,
        init_std=0.15,
        min_pixels=32 * 32,
        max_pixels=128 * 128,
    )
    return folder


def qwen2_5(folder: Path, other: Path) -> Path:
    """Qwen2.5-VL: another architecture, patch 14 instead of 16; tokenizer of another model."""
    qwen3 = tf.AutoProcessor.from_pretrained(other)
    shape = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 28 * 28, "longest_edge": 120 * 120}
    tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(size=size, **shape),
        tokenizer=qwen3.tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(size=size, **shape),
        chat_template=qwen3.chat_template,
    ).save_pretrained(folder)
    tokenizer = qwen3.tokenizer
    names = ("image", "video", "vision_start", "vision_end")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(names, tokens, strict=True)
    }
    torch.manual_seed(0)
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "initializer_range": 0.15,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
            },
            "initializer_range": 0.15,
        },
        **ids,
    )
    model = tf.Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


def qwen2(folder: Path, other: Path) -> Path:
    """Qwen2-VL, likewise."""
    qwen2_5(folder, other)
    config = tf.AutoConfig.from_pretrained(folder)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    text = config.text_config.to_dict()
    text.pop("model_type")
    ids = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    torch.manual_seed(0)
    model = tf.Qwen2VLForConditionalGeneration(
        tf.Qwen2VLConfig(vision_config=vision, text_config=text, **ids)
    )
    processor = tf.Qwen2VLProcessor.from_pretrained(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
