"""BLIP score and feature fusion (UniIR 2311.17136, section 4) on transformers' BLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from augment.errors import DataError, MismatchError
from augment.records import Side
from retrievers.data.examples import Inputs, Processor
from retrievers.models.blip_backbone import BlipTokenizer, load_blip
from retrievers.models.clip_ff import ATTENTIONS, Attention
from retrievers.training.pairwise import PairRetriever, scatter

#: The temperature at the start, and the range it is held in (UniIR's code).
_TEMPERATURE, _COLDEST, _HOTTEST = 0.07, 0.001, 0.5


class BlipEncoder(nn.Module, ABC):
    """The towers of a BLIP, and how they make vectors; named as in transformers.

    Args:
        model: a ``BlipForImageTextRetrieval``.
        tokenizer: of its texts.
    """

    def __init__(self, model: Any, tokenizer: BlipTokenizer) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.text_encoder = model.text_encoder
        self._pad = tokenizer.pad

    @abstractmethod
    def forward(self, batch: Inputs) -> Float[Tensor, "batch dim"]:
        """Vectors, not normalised."""

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
        """A picture's tokens, the class token first.

        Raises:
            MismatchError: if the pictures are of another size.
        """
        size = self.vision_model.config.image_size
        if tuple(images.shape[-2:]) != (size, size):
            raise MismatchError(
                f"pictures of {images.shape[-2]} x {images.shape[-1]} pixels for a model that "
                f"takes {size} x {size}; preprocess them with this retriever's own processor"
            )
        return cast("Tensor", self.vision_model(pixel_values=images).last_hidden_state)


@final
class ScoreEncoder(BlipEncoder):
    """``m_t * W_t text[CLS] + m_i * W_i image[CLS]``; only the towers that an item needs run.

    Args:
        model: a ``BlipForImageTextRetrieval``.
        tokenizer: of its texts.
        width: of the vectors; where it is not the model's own, the projections start fresh.
    """

    def __init__(self, model: Any, tokenizer: BlipTokenizer, width: int | None) -> None:
        super().__init__(model, tokenizer)
        self.text_proj, self.vision_proj = (
            old if width in (None, old.out_features) else nn.Linear(old.in_features, width)
            for old in (model.text_proj, model.vision_proj)
        )
        # Texts do not look at pictures here.
        for name, parameter in self.text_encoder.named_parameters():
            parameter.requires_grad_("crossattention" not in name)

    def forward(self, batch: Inputs) -> Float[Tensor, "batch dim"]:
        """Vectors, not normalised."""
        parts = []
        if len(batch.text_rows):
            states = self.states(batch.texts).last_hidden_state[:, 0]
            parts.append(scatter(batch.size, batch.text_rows, self.text_proj(states).float()))
        if len(batch.image_rows):
            states = self.tokens(batch.images)[:, 0]
            parts.append(scatter(batch.size, batch.image_rows, self.vision_proj(states).float()))
        return torch.stack(parts).sum(0)


@final
class FeatureEncoder(BlipEncoder):
    """The text encoder looks at the picture's tokens; its pooled ``[CLS]`` is the vector.

    Args:
        model: a ``BlipForImageTextRetrieval``.
        tokenizer: of its texts.
        attention: see :class:`BlipFeatureFusion`.
    """

    empty: Tensor

    def __init__(self, model: Any, tokenizer: BlipTokenizer, attention: Attention) -> None:
        super().__init__(model, tokenizer)
        # BlipForImageTextRetrieval has no pooler; as in UniIR it starts fresh.
        from transformers import BlipTextModel

        pooled = BlipTextModel(model.config.text_config, add_pooling_layer=True)
        pooled.load_state_dict({**pooled.state_dict(), **self.text_encoder.state_dict()})
        self.text_encoder = pooled.train()
        self._attention = attention
        self.register_buffer("empty", tokenizer([""]), persistent=False)

    def forward(self, batch: Inputs) -> Float[Tensor, "batch dim"]:
        """Vectors, not normalised."""
        texts = self.empty.expand(batch.size, -1).clone()
        texts[batch.text_rows] = batch.texts
        images = self.tokens(batch.images) if len(batch.image_rows) else None
        if self._attention == "uniir":
            return self._published(texts, images, batch)
        bare = torch.ones(batch.size, dtype=torch.bool, device=texts.device)
        bare[batch.image_rows] = False
        parts = []
        if images is not None:
            fused = self.states(texts[batch.image_rows], images).pooler_output.float()
            parts.append(scatter(batch.size, batch.image_rows, fused))
        if bool(bare.any()):
            rows = bare.nonzero()[:, 0]
            parts.append(scatter(batch.size, rows, self.states(texts[rows]).pooler_output.float()))
        return torch.stack(parts).sum(0)

    def _published(self, texts: Tensor, images: Tensor | None, batch: Inputs) -> Tensor:
        size = self.vision_model.config.image_size
        blank = self.tokens(self.vision_model.embeddings.position_embedding.new_zeros(
            1, 3, size, size
        ))  # fmt: skip
        places = torch.zeros(batch.size, dtype=torch.int64, device=texts.device)
        places[batch.image_rows] = 1 + torch.arange(len(batch.image_rows), device=texts.device)
        every = blank if images is None else torch.cat([blank, images])
        fused: Tensor = self.states(texts, every[places]).pooler_output.float()
        return fused


class BlipRetriever(PairRetriever, ABC):
    """Trains a BLIP of transformers towards an objective on pairs.

    The temperature is UniIR's parameter: .07 at the start, held between .001 and .5.

    Args:
        model_name: folder or repository of a BLIP in transformers' form, such as
            ``Salesforce/blip-itm-large-coco``; weights as safetensors.
        random_init: take the architecture and no weights.
        image_size: pixels of a side; null keeps the model's. UniIR has 224.
        context: tokens of a text, marks included; UniIR has 100.
        gradient_checkpointing: recompute the image tower's activations in the backward.
        training: see :class:`retrievers.training.pairwise.PairRetriever`.
    """

    #: Settings that decide the architecture, besides the model.
    architecture: ClassVar[tuple[str, ...]] = ("image_size", "context")

    def __init__(
        self,
        model_name: str,
        random_init: bool = False,
        image_size: int | None = None,
        context: int = 100,
        gradient_checkpointing: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self._settings: dict[str, Any] = {
            "model_name": model_name, "random_init": random_init, "image_size": image_size,
            "context": context,
        }  # fmt: skip
        model, self._processor = load_blip(model_name, random_init, image_size, context)
        self._config = model.config
        self.blip = self.make_encoder(model, cast("BlipTokenizer", self._processor.tokenize))
        if gradient_checkpointing:
            self.blip.vision_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.temp = nn.Parameter(torch.tensor(_TEMPERATURE))
        self.learn_bias()

    @abstractmethod
    def make_encoder(self, model: Any, tokenizer: BlipTokenizer) -> BlipEncoder:
        """What makes the vectors."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Built without weights, so that nothing is fetched that a checkpoint brings."""
        given = {name: settings[name] for name in ("model_name", *cls.architecture)}
        retriever = cls(**given, random_init=True)
        retriever._settings = dict(settings)
        return retriever

    def write_architecture(self, folder: Path) -> None:
        """``config.json`` and the tokenizer's files, from which the same architecture is built."""
        self._config.save_pretrained(folder)
        cast("BlipTokenizer", self._processor.tokenize).tokenizer.save_pretrained(folder)

    @property
    def processor(self) -> Processor:
        """Word pieces; pictures squashed to the model's size, in training too.

        UniIR crops, flips and changes colours in training.
        """
        return self._processor

    def vectors(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors; both sides share the towers."""
        if not len(batch.text_rows) and not len(batch.image_rows):
            raise ValueError("a batch needs at least one text or picture")
        return functional.normalize(self.blip(batch), dim=-1)

    def scale(self) -> Float[Tensor, ""]:
        """One by the temperature."""
        return 1 / self.temp

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold the temperature."""
        with torch.no_grad():
            self.temp.clamp_(_COLDEST, _HOTTEST)


@final
class BlipScoreFusion(BlipRetriever):
    """UniIR's BLIP-SF: the sum of both towers' projected class tokens, then L2-normalised.

    A tower runs only on the items that need it.

    Args:
        model_name: see :class:`BlipRetriever`, whose other arguments follow.
        width: of the vectors; null keeps the model's projections, another width than theirs starts
            fresh ones. UniIR has 768.
    """

    fresh = ("blip.vision_proj.", "blip.text_proj.")
    architecture = (*BlipRetriever.architecture, "width")

    def __init__(self, model_name: str, width: int | None = None, **others: Any) -> None:
        self._width = width
        super().__init__(model_name, **others)
        self._settings["width"] = width

    def make_encoder(self, model: Any, tokenizer: BlipTokenizer) -> BlipEncoder:
        """The sum."""
        encoder = ScoreEncoder(model, tokenizer, self._width)
        self._config.image_text_hidden_size = encoder.text_proj.out_features
        return encoder


@final
class BlipFeatureFusion(BlipRetriever):
    """UniIR's BLIP-FF: the text encoder's pooled class token, with cross-attention to the picture.

    ``attention=masked`` runs the image tower on items with a picture only, and texts without one
    look at nothing (BLIP's unimodal text encoder). ``attention=uniir`` is the published form, in
    which they look at a picture of zeros after normalisation. An absent text is an empty one.

    Args:
        model_name: see :class:`BlipRetriever`, whose other arguments follow.
        attention: ``masked``, or ``uniir`` for parity with the published model.
    """

    fresh = ("blip.text_encoder.pooler.",)
    architecture = (*BlipRetriever.architecture, "attention")

    def __init__(self, model_name: str, attention: Attention = "masked", **others: Any) -> None:
        if attention not in ATTENTIONS:
            raise DataError(f"model.attention must be masked or uniir, got {attention!r}")
        self._attention: Attention = attention
        super().__init__(model_name, **others)
        self._settings["attention"] = attention

    def make_encoder(self, model: Any, tokenizer: BlipTokenizer) -> BlipEncoder:
        """The fusion."""
        return FeatureEncoder(model, tokenizer, self._attention)
