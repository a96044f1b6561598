"""CLIP score and feature fusion (UniIR 2311.17136, section 4) on any open_clip model."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import DataError
from augment.records import Side
from retrievers.models.base import Encoded, Encoder
from retrievers.models.fusion_layers import FusionLayers, T5Encoder
from retrievers.models.inputs import Inputs, Processor, scatter
from retrievers.models.long_text import LongText, fit_positions, lengthen, pool_windows
from retrievers.models.towers import (
    TextTokens,
    compile_blocks,
    encode_text,
    give_tokens,
    image_tokens,
    load_clip,
    text_tokens,
)

#: What the fusion transformer reads of an item.
Attention = Literal["masked", "uniir"]

#: All of them.
ATTENTIONS: tuple[Attention, ...] = ("masked", "uniir")


class OpenClip:
    """What fusions of an open_clip model have in common: its processor, logit scale and bias."""

    clip: Any
    logit_bias: Tensor | None
    _processor: Processor

    def take(
        self,
        model_name: str,
        pretrained: str | None,
        random_init: bool,
        text: LongText,
        max_logit_scale: float,
    ) -> None:
        """Load the model and change its context; weights as published go into a changed one."""
        self.clip, processor = load_clip(model_name, pretrained, random_init)
        self._max_log_scale = math.log(max_logit_scale)
        positions = self.clip.context_length
        cast("Encoder", self).register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            lambda _, state, prefix, *__: fit_positions(state, f"{prefix}clip.", text, positions)
        )
        self._processor = lengthen(self.clip, processor, text)

    def collator(self) -> Processor:
        """The model's own tokenizer and evaluation transform, in training too (as in UniIR)."""
        return self._processor

    def scale(self) -> Float[Tensor, ""]:
        """The exponential of CLIP's parameter."""
        return cast("Tensor", self.clip.logit_scale.exp())

    def bias(self) -> Float[Tensor, ""] | None:
        """The model's own, or the learned one."""
        own: Tensor | None = getattr(self.clip, "logit_bias", None)
        return self.logit_bias if own is None else own

    def hold(self) -> None:
        """Hold the logit scale (CLIP 2103.00020, section 2.5)."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=self._max_log_scale)


@final
class ClipScoreFusion(OpenClip, Encoder):
    """``e = m_t * text(x) + m_i * image(x)``, then L2-normalised; masks say what the item has.

    The features are projected and not normalised before the sum, as in UniIR. A tower runs only
    on the items that need it, which gives the same vectors as running both and masking.

    Args:
        model_name: an open_clip model, ``local-dir:FOLDER``, ``hf-hub:NAME``, a model config file
            ending in ``.json``, or ``flagland-clip``, the small one that is packaged.
        normalize_towers: normalise each tower's feature before the sum.
        pretrained: open_clip's tag or weights file, for model names that have tags.
        random_init: take the architecture and no weights.
        text: what becomes of text beyond the model's context.
        max_logit_scale: the logit scale is held at or below this; CLIP's 100. UniIR never clamps.
        compile: compile each transformer block of both towers with ``torch.compile``.
        truncate_dim: embed with so many first numbers of a vector, normalised again, after
            training with ``objective.matryoshka``; null keeps all.
    """

    def __init__(
        self,
        model_name: str = "flagland-clip",
        normalize_towers: bool = False,
        pretrained: str | None = None,
        random_init: bool = False,
        text: LongText = LongText(),  # noqa: B008 - frozen
        max_logit_scale: float = 100.0,
        compile: bool = False,  # noqa: A002 - torch's word
        truncate_dim: int | None = None,
    ) -> None:
        settings = {
            "model_name": model_name, "pretrained": pretrained, "random_init": random_init,
            "max_logit_scale": max_logit_scale, **text.plain(),
            "normalize_towers": normalize_towers,
        }  # fmt: skip
        super().__init__(settings, truncate_dim)
        self._normalize = normalize_towers
        self.take(model_name, pretrained, random_init, text, max_logit_scale)
        if compile:
            compile_blocks(self.clip)

    def whole(self, batch: Inputs, side: Side) -> Encoded:
        """Unit vectors; both sides share the towers."""
        batch.check(getattr(self.clip.visual, "image_size", None))
        vectors: Tensor | None = None
        if len(batch.text_rows):
            features = self._feature(encode_text(self.clip, batch.texts))
            features, rows = pool_windows(features, batch.text_rows)
            vectors = scatter(batch.size, rows, features)
        if len(batch.image_rows):
            features = self._feature(self.clip.encode_image(batch.images))
            images = scatter(batch.size, batch.image_rows, features)
            vectors = images if vectors is None else vectors + images
        return Encoded(functional.normalize(cast("Tensor", vectors), dim=-1))

    def _feature(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        features = features.float()
        return functional.normalize(features, dim=-1) if self._normalize else features


@final
class ClipFeatureFusion(OpenClip, Encoder):
    """Tokens of the text, then of the picture, through T5's encoder; the mean of its states.

    ``attention=masked`` reads what an item has and nothing else: no padding, no stand-in for an
    absent text or picture; the text begins at position 0 and the picture where a text of full
    length would end, so that an item's vector depends on that item alone. A tower runs only on the
    items that need it, and the fusion on short sequences where there is no picture.

    ``attention=uniir`` is the published one (code at TIGER-AI-Lab/UniIR@98dc570, where the masks
    are commented out): an absent text is an empty one, an absent picture one of zeros after
    normalisation, and everything is attended to and averaged, padding too.

    On CLIP, the text's tokens are the last normalised states, not projected, and the picture's are
    normalised and projected, the class token first. On SigLIP, whose towers pool by attention and
    at the last position, the picture's pooled vector comes first and the text's last position is
    kept. Tokens of another width than the model's vectors go through a fresh linear layer.

    Args:
        model_name: see :class:`ClipScoreFusion`, as all that is not said here.
        fusion: size of the fusion transformer, which starts fresh.
        attention: ``masked``, or ``uniir`` for parity with the published model.
        pretrained: open_clip's tag or weights file, for model names that have tags.
        random_init: take the architecture and no weights.
        text: what becomes of text beyond the model's context; windows are not for this class.
        max_logit_scale: the logit scale is held at or below this.
        compile: compile each transformer block of both towers with ``torch.compile``.
        truncate_dim: embed with so many first numbers of a vector; null keeps all.
    """

    fresh: ClassVar[tuple[str, ...]] = ("t5_layers.", "text_adapter.", "image_adapter.")

    def __init__(
        self,
        model_name: str = "flagland-clip",
        fusion: FusionLayers = FusionLayers(),  # noqa: B008 - frozen
        attention: Attention = "masked",
        pretrained: str | None = None,
        random_init: bool = False,
        text: LongText = LongText(),  # noqa: B008 - frozen
        max_logit_scale: float = 100.0,
        compile: bool = False,  # noqa: A002 - torch's word
        truncate_dim: int | None = None,
    ) -> None:
        settings = {
            "model_name": model_name, "pretrained": pretrained, "random_init": random_init,
            "max_logit_scale": max_logit_scale, **text.plain(),
            "fusion": asdict(fusion), "attention": attention,
        }  # fmt: skip
        super().__init__(settings, truncate_dim)
        if attention not in ATTENTIONS:
            raise DataError(f"attention must be masked or uniir, got {attention!r}")
        if text.windows > 1:
            raise DataError("text.windows is not for ClipFeatureFusion; use text.stretch")
        self._attention = attention
        self.take(model_name, pretrained, random_init, text, max_logit_scale)
        sizes = give_tokens(self.clip)
        if compile:
            compile_blocks(self.clip)
        #: Named as in UniIR's checkpoints.
        self.t5_layers = T5Encoder(sizes.width, fusion)
        self.text_adapter = _adapter(sizes.text, sizes.width)
        self.image_adapter = _adapter(sizes.image, sizes.width)

    def whole(self, batch: Inputs, side: Side) -> Encoded:
        """Unit vectors; both sides share the towers and the fusion."""
        batch.check(getattr(self.clip.visual, "image_size", None))
        fused = self._published(batch) if self._attention == "uniir" else self._masked(batch)
        return Encoded(functional.normalize(fused.float(), dim=-1))

    def _masked(self, batch: Inputs) -> Float[Tensor, "batch dim"]:
        texts = self._texts(batch.texts) if len(batch.text_rows) else None
        images = self._images(batch.images) if len(batch.image_rows) else None
        fused = []
        for rows, text, image in _kinds(batch):
            parts = []
            if texts is not None and len(text):
                parts.append((texts.states[text], texts.positions, texts.mask[text]))
            if images is not None and len(image):
                parts.append(self._placed(images[image]))
            states, places, masks = zip(*parts, strict=True)
            mask = torch.cat(masks, 1)
            padded = mask if len(text) else None  # pictures have no padding
            out = self.t5_layers(torch.cat(states, 1), torch.cat(places), padded)
            share = mask[..., None] / mask.sum(1)[:, None, None]
            fused.append(scatter(batch.size, rows, (out.float() * share).sum(1)))
        return torch.stack(fused).sum(0)

    def _published(self, batch: Inputs) -> Float[Tensor, "batch dim"]:
        empty = self._processor.tokenize([""]).to(batch.texts.device)
        texts = self._texts(torch.cat([batch.texts, empty]) if len(batch.texts) else empty, True)
        height, width = self.clip.visual.image_size
        zeros = batch.images.new_zeros(1, 3, height, width)
        images = self._images(torch.cat([batch.images, zeros]) if len(batch.images) else zeros)
        states = [
            texts.states[_places(batch.size, batch.text_rows)],
            images[_places(batch.size, batch.image_rows)],
        ]
        x = torch.cat(states, 1)
        return cast("Tensor", self.t5_layers(x, torch.arange(x.shape[1], device=x.device)).mean(1))

    def _texts(self, texts: Int[Tensor, "texts context"], full: bool = False) -> TextTokens:
        found = text_tokens(self.clip, texts, full)
        return found._replace(states=self.text_adapter(found.states))

    def _images(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images tokens dim"]:
        return cast("Tensor", self.image_adapter(image_tokens(self.clip, images)))

    def _placed(
        self, states: Float[Tensor, "rows tokens dim"]
    ) -> tuple[Tensor, Int[Tensor, " tokens"], Bool[Tensor, "rows tokens"]]:
        """A picture's tokens stand where a text of full length would end, all of them there."""
        places = torch.arange(states.shape[1], device=states.device) + self.clip.context_length
        return states, places, states.new_ones(states.shape[:2], dtype=torch.bool)


def _adapter(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)


def _kinds(batch: Inputs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Rows with only a text, only a picture, or both; and the places of their texts, pictures."""
    texts = torch.isin(batch.text_rows, batch.image_rows)
    images = torch.isin(batch.image_rows, batch.text_rows)
    none = batch.text_rows[:0]
    parts = [
        (batch.text_rows[~texts], (~texts).nonzero()[:, 0], none),
        (batch.image_rows[~images], none, (~images).nonzero()[:, 0]),
        (batch.text_rows[texts], texts.nonzero()[:, 0], images.nonzero()[:, 0]),
    ]
    return [part for part in parts if len(part[0])]


def _places(size: int, rows: Int[Tensor, " rows"]) -> Int[Tensor, " size"]:
    """Where each row's own entry stands; rows without one take the last, which is the stand-in."""
    places = rows.new_full((size,), len(rows))
    places[rows] = torch.arange(len(rows), device=rows.device)
    return places
