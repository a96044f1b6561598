"""Token outputs of both towers of an open_clip model: CLIP, and SigLIP through timm."""

from __future__ import annotations

from typing import Any, NamedTuple

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor

from augment.errors import MismatchError
from retrievers.models.towers import causal_states, ends, is_causal, pool_type, text_tower


class Widths(NamedTuple):
    """Numbers per token of each tower, and of the model's vectors."""

    text: int
    image: int
    width: int


class TextTokens(NamedTuple):
    """States of texts at some positions; columns that no text needs are left out.

    Attributes:
        states: last normalised states, not projected.
        positions: of the columns in the text.
        mask: which of them belong to the text and are no padding.
    """

    states: Float[Tensor, "texts columns width"]
    positions: Int[Tensor, " columns"]
    mask: Bool[Tensor, "texts columns"]


def prepare(clip: Any) -> Widths:
    """Make both towers give their tokens.

    Raises:
        MismatchError: if a tower has none.
    """
    text, visual = text_tower(clip), clip.visual
    known = isinstance(text, (open_clip.CLIP, TextTransformer))
    if not known or getattr(text, "cls_emb", None) is not None:
        raise MismatchError(f"feature fusion cannot read tokens of a {_kind(text)} text tower")
    if isinstance(text, TextTransformer):
        text.output_tokens = True
    # Nothing reads it; weight decay would still move it.
    text.text_projection = None
    width = int(text.token_embedding.embedding_dim)
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        visual.output_tokens = True
        dim = int(visual.proj.shape[1])
        return Widths(width, dim, dim)
    if isinstance(visual, TimmModel):
        height, across = visual.image_size
        with torch.no_grad():
            training = visual.training
            visual.eval()
            dim = int(visual(torch.zeros(1, 3, height, across)).shape[1])
            visual.train(training)
        return Widths(width, int(visual.trunk.num_features), dim)
    raise MismatchError(f"feature fusion cannot read tokens of a {_kind(visual)} image tower")


def _kind(tower: Any) -> str:
    return type(tower).__name__


def text_tokens(clip: Any, texts: Int[Tensor, "texts context"], full: bool = False) -> TextTokens:
    """States of each text's own tokens, start and end of text included.

    A causal tower is run only up to the longest text of the batch. A tower that sees its padding
    (SigLIP) is given all of it; the text's tokens are those before the run of equal ones at the
    end, and the last position, where SigLIP gathers what it pools.

    Args:
        clip: an open_clip model.
        texts: token ids, padded to the context.
        full: all positions, padding too, all of them in the mask.
    """
    tower = text_tower(clip)
    length = texts.shape[1]
    columns = torch.arange(length, device=texts.device)
    if full:
        mask = torch.ones_like(texts, dtype=torch.bool)
    elif is_causal(tower):
        end = ends(tower, texts)
        length = int(end.max()) + 1
        columns = columns[:length]
        mask = columns <= end[:, None]
    else:
        mask = _before_padding(texts)
        mask[:, -1 if pool_type(tower) == "last" else 0] = True
    states = _states(clip, tower, texts, length)
    if not full and length == texts.shape[1]:
        columns = mask.any(0).nonzero()[:, 0]
        states, mask = states[:, columns], mask[:, columns]
    return TextTokens(states, columns, mask)


def _states(clip: Any, tower: Any, texts: Tensor, length: int) -> Tensor:
    if is_causal(tower):
        return causal_states(tower, texts, length)
    if isinstance(tower, open_clip.CLIP):
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(texts).to(dtype) + tower.positional_embedding.to(dtype)
        states: Tensor = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    else:
        states = clip.encode_text(texts)[1]
    return states


def _before_padding(texts: Int[Tensor, "texts context"]) -> Bool[Tensor, "texts context"]:
    """False in the run of equal tokens at the end of each row."""
    same = texts == texts[:, -1:]
    return ~same.flip(1).long().cumprod(1).bool().flip(1)


def image_tokens(
    clip: Any, images: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images tokens width"]:
    """The class token or whatever else is pooled, then the patches, projected where CLIP does."""
    visual = clip.visual
    if isinstance(visual, VisionTransformer):
        pooled, patches = visual(images)
        return torch.cat([pooled[:, None], patches @ visual.proj], 1)
    states = visual.trunk.forward_features(images)
    pooled = visual.head(visual.trunk.forward_head(states))
    flat = states if states.ndim == 3 else states.flatten(2).transpose(1, 2)
    return torch.cat([pooled[:, None], flat], 1) if pooled.shape[1] == flat.shape[2] else flat
