"""Models of published sizes with weights drawn at random: what they cost, not what they know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from benchmarks.flagland.vlm import SPECIAL_TOKENS, build_processor, train_tokenizer

#: Sizes as in the ``config.json`` of Qwen/Qwen3-VL-2B-Instruct and -8B-Instruct; what they share is
#: in :func:`config_of`. ``tiny`` tries the program on a CPU.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3-vl-2b": {
        "text": {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151_936,
        },
        "vision": {
            "hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "num_heads": 16,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    "qwen3-vl-8b": {
        "text": {
            "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151_936,
        },
        "vision": {
            "hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
    "tiny": {
        "text": {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "vocab_size": 1200,
        },
        "vision": {
            "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2,
            "deepstack_visual_indexes": [0],
        },
    },
}  # fmt: skip
#: Thirds of a rotary embedding for time, height and width, by the head's dimension.
_SECTIONS = {128: [24, 20, 20], 32: [6, 5, 5]}

_WORDS = (
    "a flag with horizontal bands of red, white and blue, one large yellow star in the centre",
    "Describe the picture. Which country is this? The same, but in green. Represent the user's",
    *["yes", "no"] * 9,
)


def config_of(shape: str, ids: dict[str, int]) -> Qwen3VLConfig:
    """The configuration of a shape.

    Args:
        shape: of :data:`SHAPES`.
        ids: of the special tokens.
    """
    text, vision = SHAPES[shape]["text"], SHAPES[shape]["vision"]
    # The 8B model's vocabulary stands twice in its weights.
    tied = shape != "qwen3-vl-8b"
    return Qwen3VLConfig(
        vision_config={
            "patch_size": 16, "spatial_merge_size": 2, "num_position_embeddings": 48 * 48,
            "out_hidden_size": text["hidden_size"], **vision,
        },
        text_config={
            "max_position_embeddings": 262_144, "tie_word_embeddings": tied,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5_000_000.0, "mrope_interleaved": True,
                "mrope_section": _SECTIONS[text["head_dim"]],
            },
            **text,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )  # fmt: skip


def write_model(folder: Path, shape: str) -> Path:
    """Configuration and processor of a shape, without weights; the folder."""
    tokenizer = train_tokenizer(_WORDS, 400)
    ids: dict[str, Any] = {one: tokenizer.convert_tokens_to_ids(one) for one in SPECIAL_TOKENS}
    config_of(shape, ids).save_pretrained(folder)
    build_processor(tokenizer, 4 * 32 * 32, 1024 * 32 * 32).save_pretrained(folder)
    return folder


@contextmanager
def drawn_weights(device: torch.device) -> Iterator[None]:
    """Draw a model's weights on the device wherever they would be read from a folder."""

    def draw(source: str, dtype: torch.dtype, **_: Any) -> Any:
        with torch.device(device):
            config = Qwen3VLConfig.from_pretrained(source)
            return AutoModelForImageTextToText.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]

    with mock.patch.object(AutoModelForImageTextToText, "from_pretrained", draw):
        yield
