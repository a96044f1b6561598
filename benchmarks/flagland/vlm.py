"""The small VLM before its training: an untrained Qwen3-VL of the real classes of transformers.

Everything that a published checkpoint has is there: model, image and video processor, a byte-level
BPE tokenizer with Qwen's special tokens, a chat template of our own. ``AutoProcessor`` and
``AutoModelForImageTextToText`` load the folder offline.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

#: Qwen's special tokens, in the order that gives them their ids here: 0, 1, 2, ...
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PATCH, MERGE = 16, 2
#: Head dimension of the language model; the three sections of its rotary embedding (time, height,
#: width) must add up to half of it.
HEAD_DIM, MROPE_SECTION = 32, (6, 5, 5)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> Tokenizer:
    """Byte-level BPE trained on ``texts``; the special tokens get the first ids."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen's pre-tokenisation."""
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Sequence([split, level])
    tokenizer = train_bpe(texts, vocab_size, SPECIAL_TOKENS, normalizers.NFC(), words)
    model = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def build_processor(
    tokenizer: Qwen2Tokenizer, min_pixels: int, max_pixels: int
) -> Qwen3VLProcessor:
    """Processor of the real class; the limits are pixels of a whole picture."""
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    shape = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    half = [0.5, 0.5, 0.5]
    images = Qwen2VLImageProcessor(size=size, image_mean=half, image_std=half, **shape)
    videos = Qwen3VLVideoProcessor(size=size, image_mean=half, image_std=half, **shape)
    return Qwen3VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=videos,
        chat_template=CHAT_TEMPLATE,
    )


def build_qwen3_vl(
    folder: Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    vocab_size: int = 1200,
    vision_width: int = 128,
    vision_depth: int = 4,
    text_width: int = 192,
    text_depth: int = 4,
    init_std: float = 0.02,
    min_pixels: int = 128 * 96,
    max_pixels: int = 224 * 128,
) -> None:
    """Write a randomly initialised checkpoint to ``folder``.

    Args:
        folder: where ``from_pretrained`` will find it.
        texts: what the tokenizer is trained on.
        seed: of the weights.
        vocab_size: tokens, special ones and the 256 bytes included.
        vision_width: hidden size of the vision tower; a multiple of 32.
        vision_depth: its layers; the features of the middle one go into the first text layer.
        text_width: hidden size of the language model; a multiple of 32.
        text_depth: its layers.
        init_std: standard deviation of the initial weights. At 0.02 a small untrained model writes
            the same whatever it sees; at 0.15 its answer depends on the picture.
        min_pixels: pictures below are enlarged.
        max_pixels: pictures above are reduced.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    ids: dict[str, Any] = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_width,
            "intermediate_size": 4 * vision_width,
            "num_heads": vision_width // 32,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "out_hidden_size": text_width,
            "num_position_embeddings": 14 * 14,
            "deepstack_visual_indexes": [vision_depth // 2 - 1],
            "initializer_range": init_std,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": text_width,
            "intermediate_size": 8 * text_width // 3 // 32 * 32,
            "num_hidden_layers": text_depth,
            "num_attention_heads": text_width // HEAD_DIM,
            "num_key_value_heads": text_width // HEAD_DIM,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": list(MROPE_SECTION),
                "mrope_interleaved": True,
            },
            "initializer_range": init_std,
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=False,
    )
    model.save_pretrained(folder)
    build_processor(tokenizer, min_pixels, max_pixels).save_pretrained(folder)
