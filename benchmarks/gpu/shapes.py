"""Models of published sizes with weights drawn at random: what they cost, not what they know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

from benchmarks.flagland.vlm import SPECIAL_TOKENS, build_processor, train_tokenizer

#: Name -> sizes of the language model and of the vision tower; see the file.
SHAPES: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("shapes.yaml").read_text(encoding="utf-8")
)
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
