"""transformers' BLIP (2201.12086) with the tokenizer and image transform that belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import DataError, EngineError
from retrievers.data.examples import Processor


@final
@dataclass(frozen=True)
class BlipTokenizer:
    """BERT's word pieces, padded and cut to a context; goes into loader processes.

    Attributes:
        tokenizer: of transformers.
        context_length: tokens, the marks at both ends included.
    """

    tokenizer: Any
    context_length: int

    def __call__(self, texts: list[str]) -> Int[Tensor, "texts context"]:
        """Token ids; padding is :attr:`pad`."""
        found = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context_length,
            return_tensors="pt",
        )  # fmt: skip
        return cast("Tensor", found.input_ids)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut, marks included."""
        found = self.tokenizer(list(texts), verbose=False).input_ids if texts else []
        return [len(ids) for ids in found]

    @property
    def pad(self) -> int:
        """What fills up; stands in no text."""
        return int(self.tokenizer.pad_token_id)


def load_blip(
    name: str, random_init: bool, image_size: int | None, context: int
) -> tuple[Any, Processor]:
    """A ``BlipForImageTextRetrieval`` in float32 on the CPU and its processor.

    Args:
        name: folder of transformers' form, or a repository on the Hub.
        random_init: take architecture and tokenizer, and no weights.
        image_size: pixels of a side; positions of weights for another size are interpolated. None
            keeps the model's.
        context: tokens of a text, marks included.

    Raises:
        DataError: if it is no BLIP, or size or context do not go with it.
        EngineError: if it cannot be had; says why.
    """
    from transformers import AutoConfig, BertTokenizer, BlipConfig, BlipForImageTextRetrieval
    from transformers.utils import logging as transformers_logging

    told = transformers_logging.get_verbosity()
    # It reports the heads that are not used.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config: Any = AutoConfig.from_pretrained(name)
        if not isinstance(config, BlipConfig):
            raise DataError(f"is a {config.model_type}; name a BLIP model of transformers", name)
        model: Any = (
            BlipForImageTextRetrieval(config)
            if random_init
            else BlipForImageTextRetrieval.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32
            )
        )
        tokenizer = BertTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise EngineError(
            f"cannot load the BLIP model {name!r}: {str(error)[:300]}; name a folder with "
            "config.json, model.safetensors and the tokenizer's files, or a repository on the Hub"
        ) from error
    finally:
        transformers_logging.set_verbosity(told)
    positions = int(model.config.text_config.max_position_embeddings)
    if not 3 <= context <= positions:
        raise DataError(f"model.context must be 3 to {positions} for {name}, got {context}")
    if image_size is not None:
        resize_positions(model.vision_model, image_size)
    size = int(model.config.vision_config.image_size)
    preprocessing = PreprocessCfg(
        size=(size, size), mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD,
        interpolation="bicubic", resize_mode="squash",
    )  # fmt: skip
    image = image_transform_v2(preprocessing, is_train=False)
    return model.train(), Processor(BlipTokenizer(tokenizer, context), image)


def resize_positions(vision: Any, size: int) -> None:
    """Make an image tower take pictures of another size, in place.

    Patch positions are interpolated bicubically, the class token's stays, as in BLIP's own code.

    Args:
        vision: a ``BlipVisionModel``.
        size: pixels of a side.

    Raises:
        DataError: if the size is no multiple of the patch.
    """
    config = vision.config
    if size < config.patch_size or size % config.patch_size:
        raise DataError(
            f"model.image_size must be a multiple of the patch, {config.patch_size}; got {size}"
        )
    embeddings, side = vision.embeddings, size // config.patch_size
    given: Float[Tensor, "1 positions width"] = embeddings.position_embedding.detach()
    old = int((given.shape[1] - 1) ** 0.5)
    if old != side:
        grid = given[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
        embeddings.position_embedding = nn.Parameter(torch.cat([given[:, :1], patches], 1))
        embeddings.num_patches, embeddings.num_positions = side * side, side * side + 1
    embeddings.image_size = config.image_size = size
