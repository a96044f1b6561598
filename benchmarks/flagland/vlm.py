"""The small VLM: an untrained Qwen3-VL of the real classes of transformers, and its training loss.

:func:`build_qwen3_vl` writes everything that a published checkpoint has: model, image and video
processor, a byte-level BPE tokenizer with Qwen's special tokens, a chat template of our own.
``AutoProcessor`` and ``AutoModelForImageTextToText`` load the folder offline. The loss has
shortcuts that change its cost but no number (tested).
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
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from augment.engines.decoding import cache_argument

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


# -- the loss -------------------------------------------------------------------------------------


def install_shortcuts() -> None:
    """Use the quick forms of the vision tower's attention and patch embedding from now on."""
    setattr(qwen.Qwen3VLVisionAttention, "forward", batched_vision_attention)  # noqa: B010 - mypy
    setattr(qwen.Qwen3VLVisionPatchEmbed, "forward", linear_patch_embedding)  # noqa: B010 - mypy


def attention_in_full_precision() -> None:
    """Under autocast to bfloat16, leave attention in fp32 from now on.

    Products are 1.5 to 2 times as fast in bfloat16 on a CPU with units for it; the gradient of
    attention is 3 times slower there than in fp32 (torch 2.15).
    """
    attention = nn.functional.scaled_dot_product_attention

    def in_full(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), *args, **options)

    setattr(nn.functional, "scaled_dot_product_attention", in_full)  # noqa: B010 - mypy


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


def _answers_loss(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    at = labels != -100
    logits = model.lm_head(hidden[at]).float()
    return nn.functional.cross_entropy(logits, labels[at], reduction="sum")


def shared_prefix_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum of the cross-entropies of the answers; the instruction all rows begin with runs once.

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
        input_ids=ids[:1, :shared], position_ids=positions[:, :1, :shared],
        use_cache=True, **cache_argument(model.model, cache),
    )  # fmt: skip
    for layer in cache.layers:
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    pictures = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
    hidden = model.model(
        input_ids=ids[:, shared:], position_ids=positions[:, :, shared:],
        attention_mask=inputs["attention_mask"], use_cache=True,
        **cache_argument(model.model, cache), **pictures,
    ).last_hidden_state  # fmt: skip
    return _answers_loss(model, hidden[:, :-1], batch["labels"][:, shared + 1 :])
