"""CLIP feature fusion (UniIR 2311.17136, section 4): a transformer over both towers' tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import DataError
from augment.records import Side
from retrievers.data.examples import Inputs
from retrievers.models.contrastive import ClipRetriever
from retrievers.models.fusion_layers import FusionLayers, T5Encoder
from retrievers.models.tokens import TextTokens, image_tokens, prepare, text_tokens
from retrievers.models.towers import check_size
from retrievers.training.pairwise import scatter

#: What the fusion transformer reads of an item.
Attention = Literal["masked", "uniir"]

#: All of them.
ATTENTIONS: tuple[Attention, ...] = ("masked", "uniir")


@final
class ClipFeatureFusion(ClipRetriever):
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
        model_name: see :class:`retrievers.models.contrastive.ClipRetriever`, whose other arguments follow.
        fusion: size of the fusion transformer, which starts fresh.
        attention: ``masked``, or ``uniir`` for parity with the published model.
    """

    fresh: ClassVar[tuple[str, ...]] = ("t5_layers.", "text_adapter.", "image_adapter.")

    def __init__(
        self,
        model_name: str = "flagland-clip",
        fusion: FusionLayers = FusionLayers(),  # noqa: B008 - frozen
        attention: Attention = "masked",
        **training: Any,
    ) -> None:
        super().__init__(model_name, **training)
        if attention not in ATTENTIONS:
            raise DataError(f"model.attention must be masked or uniir, got {attention!r}")
        self._settings |= {"fusion": asdict(fusion), "attention": attention}
        self._attention = attention
        sizes = self._sizes
        #: Named as in UniIR's checkpoints.
        self.t5_layers = T5Encoder(sizes.width, fusion)
        self.text_adapter = _adapter(sizes.text, sizes.width)
        self.image_adapter = _adapter(sizes.image, sizes.width)

    def prepare_towers(self) -> None:
        """Make both towers give their tokens."""
        self._sizes = prepare(self.clip)

    @classmethod
    def deciding(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The model, and the fusion."""
        return {
            **super().deciding(settings),
            "fusion": FusionLayers(**settings["fusion"]),
            "attention": settings["attention"],
        }

    def vectors(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors; both sides share the towers and the fusion."""
        if not len(batch.text_rows) and not len(batch.image_rows):
            raise ValueError("a batch needs at least one text or picture")
        if len(batch.image_rows):
            check_size(self.clip, batch.images)
        fused = self._published(batch) if self._attention == "uniir" else self._masked(batch)
        return functional.normalize(fused.float(), dim=-1)

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
        empty = self.processor.tokenize([""]).to(batch.texts.device)
        texts = self._texts(torch.cat([batch.texts, empty]) if len(batch.texts) else empty, True)
        height, width = self.clip.visual.image_size
        zeros = batch.images.new_zeros(1, 3, height, width)
        images = self._images(torch.cat([batch.images, zeros]) if len(batch.images) else zeros)
        states = [
            texts.states[_places(batch.size, batch.text_rows)],
            images[_places(batch.size, batch.image_rows)],
        ]
        x = torch.cat(states, 1)
        fused: Tensor = self.t5_layers(x, torch.arange(x.shape[1], device=x.device)).mean(1)
        return fused

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
