"""BLIP score and feature fusion (UniIR 2311.17136, section 4) by transformers' (2201.12086)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Float, Int
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import DataError, EngineError
from augment.records import Side
from retrievers.models.base import Encoded, Encoder, recompute_activations
from retrievers.models.clip import ATTENTIONS, Attention
from retrievers.models.inputs import Inputs, Processor, scatter

#: The temperature at the start, and the range it is held in (UniIR's code).
_TEMPERATURE, _COLDEST, _HOTTEST = 0.07, 0.001, 0.5


class _Blip:
    """What fusions of a BLIP have in common: its towers and processor, and its temperature."""

    blip: _Towers
    temp: nn.Parameter
    _processor: Processor

    def take(
        self, name: str, random_init: bool, image_size: int | None, context: int, recompute: bool
    ) -> Any:
        """Load the model; it, for what a fusion needs besides."""
        model, self._processor = load_blip(name, random_init, image_size, context)
        self.config = model.config
        self.blip = _Towers(model, self._processor, recompute)
        self.temp = nn.Parameter(torch.tensor(_TEMPERATURE))
        return model

    def collator(self) -> Processor:
        """Word pieces; pictures squashed to the model's size, in training too.

        UniIR crops, flips and changes colours in training.
        """
        return self._processor

    def scale(self) -> Float[Tensor, ""]:
        """One by the temperature."""
        return 1 / self.temp

    def hold(self) -> None:
        """Hold the temperature."""
        with torch.no_grad():
            self.temp.clamp_(_COLDEST, _HOTTEST)


@final
class BlipScoreFusion(_Blip, Encoder):
    """UniIR's BLIP-SF: the sum of both towers' projected class tokens, then L2-normalised.

    ``m_t * W_t text[CLS] + m_i * W_i image[CLS]``; a tower runs only on the items that need it.
    The temperature is UniIR's parameter: .07 at the start, held between .001 and .5.

    Args:
        model_name: folder or repository of a BLIP in transformers' form, such as
            ``Salesforce/blip-itm-large-coco``; weights as safetensors.
        width: of the vectors; null keeps the model's projections, another width than theirs starts
            fresh ones. UniIR has 768.
        random_init: take the architecture and no weights.
        image_size: pixels of a side; null keeps the model's. UniIR has 224.
        context: tokens of a text, marks included; UniIR has 100.
        gradient_checkpointing: recompute the image tower's activations in the backward.
        truncate_dim: embed with so many first numbers of a vector; null keeps all.
    """

    fresh: ClassVar[tuple[str, ...]] = ("blip.vision_proj.", "blip.text_proj.")

    def __init__(
        self,
        model_name: str,
        width: int | None = None,
        random_init: bool = False,
        image_size: int | None = None,
        context: int = 100,
        gradient_checkpointing: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        settings = {
            "model_name": model_name, "random_init": random_init, "image_size": image_size,
            "context": context, "width": width,
        }  # fmt: skip
        super().__init__(settings, truncate_dim)
        model = self.take(model_name, random_init, image_size, context, gradient_checkpointing)
        self.blip.text_proj, self.blip.vision_proj = (
            old if width in (None, old.out_features) else nn.Linear(old.in_features, width)
            for old in (model.text_proj, model.vision_proj)
        )
        self.config.image_text_hidden_size = self.blip.text_proj.out_features
        # Texts do not look at pictures here.
        for name, parameter in self.blip.text_encoder.named_parameters():
            parameter.requires_grad_("crossattention" not in name)

    def whole(self, batch: Inputs, side: Side) -> Encoded:
        """Unit vectors; both sides share the towers."""
        batch.check(int(self.blip.vision_model.config.image_size))
        blip, parts = self.blip, []
        if len(batch.text_rows):
            states = blip.states(batch.texts).last_hidden_state[:, 0]
            parts.append(scatter(batch.size, batch.text_rows, blip.text_proj(states).float()))
        if len(batch.image_rows):
            states = blip.tokens(batch.images)[:, 0]
            parts.append(scatter(batch.size, batch.image_rows, blip.vision_proj(states).float()))
        return Encoded(functional.normalize(torch.stack(parts).sum(0), dim=-1))


@final
class BlipFeatureFusion(_Blip, Encoder):
    """UniIR's BLIP-FF: the text encoder's pooled class token, with cross-attention to the picture.

    ``attention=masked`` runs the image tower on items with a picture only, and texts without one
    look at nothing (BLIP's unimodal text encoder). ``attention=uniir`` is the published form, in
    which they look at a picture of zeros after normalisation. An absent text is an empty one.

    Args:
        model_name: see :class:`BlipScoreFusion`, as all that is not said here.
        attention: ``masked``, or ``uniir`` for parity with the published model.
        random_init: take the architecture and no weights.
        image_size: pixels of a side; null keeps the model's. UniIR has 224.
        context: tokens of a text, marks included; UniIR has 100.
        gradient_checkpointing: recompute the image tower's activations in the backward.
        truncate_dim: embed with so many first numbers of a vector; null keeps all.
    """

    fresh: ClassVar[tuple[str, ...]] = ("blip.text_encoder.pooler.",)
    empty: Tensor

    def __init__(
        self,
        model_name: str,
        attention: Attention = "masked",
        random_init: bool = False,
        image_size: int | None = None,
        context: int = 100,
        gradient_checkpointing: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        settings = {
            "model_name": model_name, "random_init": random_init, "image_size": image_size,
            "context": context, "attention": attention,
        }  # fmt: skip
        super().__init__(settings, truncate_dim)
        if attention not in ATTENTIONS:
            raise DataError(f"attention must be masked or uniir, got {attention!r}")
        self._attention = attention
        model = self.take(model_name, random_init, image_size, context, gradient_checkpointing)
        # BlipForImageTextRetrieval has no pooler; as in UniIR it starts fresh.
        from transformers import BlipTextModel

        pooled = BlipTextModel(model.config.text_config, add_pooling_layer=True)
        pooled.load_state_dict({**pooled.state_dict(), **self.blip.text_encoder.state_dict()})
        self.blip.text_encoder = pooled.train()
        self.register_buffer("empty", self._processor.tokenize([""]), persistent=False)

    def whole(self, batch: Inputs, side: Side) -> Encoded:
        """Unit vectors; both sides share the towers."""
        batch.check(int(self.blip.vision_model.config.image_size))
        texts = self.empty.expand(batch.size, -1).clone()
        texts[batch.text_rows] = batch.texts
        images = self.blip.tokens(batch.images) if len(batch.image_rows) else None
        made = self._published if self._attention == "uniir" else self._masked
        return Encoded(functional.normalize(made(texts, images, batch), dim=-1))

    def _masked(self, texts: Tensor, images: Tensor | None, batch: Inputs) -> Tensor:
        bare = torch.ones(batch.size, dtype=torch.bool, device=texts.device)
        bare[batch.image_rows] = False
        parts = []
        if images is not None:
            fused = self.blip.states(texts[batch.image_rows], images).pooler_output.float()
            parts.append(scatter(batch.size, batch.image_rows, fused))
        if bool(bare.any()):
            rows = bare.nonzero()[:, 0]
            fused = self.blip.states(texts[rows]).pooler_output.float()
            parts.append(scatter(batch.size, rows, fused))
        return torch.stack(parts).sum(0)

    def _published(self, texts: Tensor, images: Tensor | None, batch: Inputs) -> Tensor:
        vision = self.blip.vision_model
        size = vision.config.image_size
        blank = self.blip.tokens(vision.embeddings.position_embedding.new_zeros(1, 3, size, size))
        places = torch.zeros(batch.size, dtype=torch.int64, device=texts.device)
        places[batch.image_rows] = 1 + torch.arange(len(batch.image_rows), device=texts.device)
        every = blank if images is None else torch.cat([blank, images])
        return cast("Tensor", self.blip.states(texts, every[places]).pooler_output.float())


@final
class _Towers(nn.Module):
    """The towers of a BLIP, named as in transformers; projections where the vectors need them.

    Args:
        model: a ``BlipForImageTextRetrieval``.
        processor: with the tokenizer of its texts.
        recompute: activations of the image tower, in the backward.
    """

    text_proj: nn.Linear
    vision_proj: nn.Linear

    def __init__(self, model: Any, processor: Processor, recompute: bool) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.text_encoder = model.text_encoder
        self._pad = cast("BlipTokenizer", processor.tokenize).pad
        if recompute:
            recompute_activations(self.vision_model)

    def states(self, texts: Int[Tensor, "texts context"], images: Tensor | None = None) -> Any:
        """What the text encoder makes of texts, looking at pictures' tokens where there are any.

        BERT is given the mask of its padding, so that texts may be cut at the longest.
        """
        mask = texts != self._pad
        length = int(mask.sum(1).max())
        return self.text_encoder(
            input_ids=texts[:, :length], attention_mask=mask[:, :length].long(),
            encoder_hidden_states=images,
        )  # fmt: skip

    def tokens(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images tokens width"]:
        """A picture's tokens, the class token first."""
        return cast("Tensor", self.vision_model(pixel_values=images).last_hidden_state)


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
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if not isinstance(config, BlipConfig):
            raise DataError(f"is a {config.model_type}; name a BLIP model of transformers", name)
        model: Any = (
            BlipForImageTextRetrieval(config)
            if random_init
            else BlipForImageTextRetrieval.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32
            )
        )
        # Marks in a text, such as [SEP], are ordinary text.
        tokenizer = BertTokenizer.from_pretrained(name, split_special_tokens=True)
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
