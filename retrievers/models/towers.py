"""The towers of open_clip models: text cut where that is exact, sizes checked, blocks compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.transformer import TextTransformer
from torch import Tensor

from augment.errors import MismatchError

#: Ways to read one position of the text, at or before the end-of-text token.
_POOLS = ("argmax", "eos")

#: Share of the positions of a batch of texts that parting it must save, and rows that each part
#: must have: two passes of small products are slower than one of large ones.
_WORTH, _LEAST = 0.15, 4


def text_tower(clip: Any) -> Any:
    """Where an open_clip model keeps its text tower: in itself, or apart (``custom_text``)."""
    return clip if isinstance(clip, open_clip.CLIP) else clip.text


def pool_type(tower: Any) -> str:
    """How one vector is read from the states of a text."""
    own = isinstance(tower, open_clip.CLIP)
    return str(getattr(tower, "text_pool_type" if own else "pool_type", ""))


def is_causal(tower: Any) -> bool:
    """Whether later positions change nothing of what is read."""
    if not isinstance(tower, (open_clip.CLIP, TextTransformer)):
        return False
    plain = tower.attn_mask is not None and getattr(tower, "cls_emb", None) is None
    return plain and pool_type(tower) in _POOLS


def ends(tower: Any, texts: Int[Tensor, "rows context"]) -> Int[Tensor, " rows"]:
    """The position that the tower reads: that of the end-of-text token."""
    if pool_type(tower) == "argmax":
        return texts.argmax(-1)
    eos = int(tower.text_eos_id if isinstance(tower, open_clip.CLIP) else tower.eos_id)
    return (texts == eos).int().argmax(-1)


def causal_states(
    tower: Any, texts: Int[Tensor, "rows context"], length: int
) -> Float[Tensor, "rows length width"]:
    """Last states of the first positions."""
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(texts[:, :length]).to(dtype)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    states: Tensor = tower.ln_final(x)
    return states


def encode_text(clip: Any, texts: Int[Tensor, "rows context"]) -> Float[Tensor, "rows dim"]:
    """Text features, computed only up to the longest text of the batch where that is exact.

    CLIP's own text tower is causal and reads one position, so later positions change nothing.
    Short texts go through apart from long ones where that saves much of the padding.
    Other towers (SigLIP must be padded) go through open_clip as they are.

    Args:
        clip: an open_clip model.
        texts: token ids, padded to the context.
    """
    tower = text_tower(clip)
    if not is_causal(tower):
        features: Tensor = clip.encode_text(texts)
        return features
    end = ends(tower, texts)
    groups = [torch.tensor(rows, device=texts.device) for rows in length_groups(end.tolist())]
    parts = [_pooled(tower, texts[rows], end[rows]) for rows in groups]
    pooled = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(groups).argsort()]
    if tower.text_projection is None:
        return pooled
    linear = isinstance(tower.text_projection, torch.nn.Linear)
    projected: Tensor = tower.text_projection(pooled) if linear else pooled @ tower.text_projection
    return projected


def _pooled(
    tower: Any, texts: Int[Tensor, "rows context"], end: Int[Tensor, " rows"]
) -> Float[Tensor, "rows width"]:
    states = causal_states(tower, texts, int(end.max()) + 1)
    return states[torch.arange(len(states), device=states.device), end]


def length_groups(ends: Sequence[int]) -> list[list[int]]:
    """Rows of a batch in one group, or the short and the long apart.

    Args:
        ends: last position that is read of each row, from 0.

    Returns:
        Rows of each group; all of them in order where parting them saves little.
    """
    size = len(ends)
    order = sorted(range(size), key=ends.__getitem__)
    lengths = [ends[row] + 1 for row in order]
    places = range(_LEAST, size - _LEAST + 1)
    cost = {at: at * lengths[at - 1] + (size - at) * lengths[-1] for at in places}
    at = min(cost, key=cost.__getitem__, default=0)
    if not at or cost[at] > (1 - _WORTH) * size * lengths[-1]:
        return [list(range(size))]
    return [order[:at], order[at:]]


def check_size(clip: Any, images: Float[Tensor, "images 3 height width"]) -> None:
    """Refuse pictures that the image tower cannot take.

    Raises:
        MismatchError: names both sizes.
    """
    wanted = getattr(clip.visual, "image_size", None)
    size = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted or ())
    if size and tuple(images.shape[-2:]) != size:
        raise MismatchError(
            f"pictures of {images.shape[-2]} x {images.shape[-1]} pixels for a model that "
            f"takes {size[0]} x {size[1]}; preprocess them with this retriever's own processor"
        )


def compile_blocks(clip: Any) -> None:
    """Compile block by block, in place: names in checkpoints stay, and blocks share one graph."""
    for module in clip.modules():
        if isinstance(module, open_clip.transformer.ResidualAttentionBlock):
            module.compile()
