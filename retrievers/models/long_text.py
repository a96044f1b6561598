"""Texts beyond a CLIP's context: stretched positions, and windows that are pooled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from augment.errors import DataError
from retrievers.data.examples import Processor
from retrievers.models.towers import is_causal, text_tower
from retrievers.models.windows import Windows, context_of, count_tokens

#: Where an open_clip model may keep the positions of its text, below the model's own name.
_PLACES = ("positional_embedding", "text.positional_embedding")


@dataclass(frozen=True)
class LongText:
    """What becomes of text beyond the model's context. By default it is cut off.

    Args:
        context: use only so many positions of the model; null uses all. Less text, less time.
        stretch: interpolate the positions behind the first ``keep`` by this factor; 1 leaves them.
            Long-CLIP (2403.15378, section 3.2): 4, which makes 248 of CLIP's 77. It wants
            training.
        keep: first positions that stay as they are; Long-CLIP keeps 20.
        windows: outside training, read a text in at most so many windows of the context, split at
            sentence borders, and pool their vectors; 1 cuts it. It needs no training.
    """

    context: int | None = None
    stretch: int = 1
    keep: int = 20
    windows: int = 1

    def __post_init__(self) -> None:
        for name, least in (("stretch", 1), ("keep", 0), ("windows", 1)):
            if getattr(self, name) < least:
                raise DataError(f"text.{name} must be at least {least}, is {getattr(self, name)}")
        if self.context is not None and self.context < 3:
            raise DataError(f"text.context must be at least 3, is {self.context}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> LongText:
        """As :meth:`plain` told it; the default where a checkpoint says nothing of it."""
        return cls(**(settings.get("text") or {}))

    def plain(self) -> dict[str, Any]:
        """For the settings of a checkpoint; empty by default, which changes no fingerprint."""
        return {} if self == LongText() else {"text": vars(self).copy()}

    def positions(self, given: Float[Tensor, "old dim"]) -> Float[Tensor, "new dim"]:
        """The model's own positions, cut and stretched."""
        return stretch_positions(given[: self.context], self.stretch, self.keep)


def stretch_positions(
    positions: Float[Tensor, "old dim"], factor: int, keep: int
) -> Float[Tensor, "new dim"]:
    """Knowledge-preserving stretch: the first positions kept, the others interpolated.

    The step from each position to the next is divided into ``factor`` equal ones; behind the last
    position the last step is continued. So it is in Long-CLIP's code, for 77, 4 and 20. The paper's
    formula, as printed, takes ``PE(floor(pos / 4))`` and ``PE(ceil(pos / 4))`` for positions beyond
    20, which would go back from position 20 to position 5. Its code also holds the first 20 fixed
    in training; here all positions are trained.

    Args:
        positions: of a trained model.
        factor: at least 1.
        keep: at most all of them; what is left to stretch follows them.

    Returns:
        ``keep + factor * (old - keep)`` positions.
    """
    if factor == 1:
        return positions
    keep = min(keep, len(positions))
    steps = positions.diff(dim=0)
    steps = torch.cat([steps, steps[-1:]])[keep:] if len(steps) else torch.zeros_like(positions)
    shares = torch.arange(factor, dtype=positions.dtype, device=positions.device) / factor
    between = positions[keep:, None] + shares[:, None] * steps[:, None]
    return torch.cat([positions[:keep], between.flatten(0, 1)])


def lengthen(clip: Any, processor: Processor, config: LongText) -> Processor:
    """Change the context of an open_clip model in place; the processor that goes with it.

    Args:
        clip: the model.
        processor: of the model as it was.
        config: what is wanted.

    Raises:
        DataError: if the model's text tower cannot be changed so.
    """
    if config.context is not None or config.stretch > 1:
        processor = _resized(clip, processor, config)
    if config.windows == 1:
        return processor
    context = context_of(processor.tokenize)
    if context is None or count_tokens(processor.tokenize, [""]) is None:
        raise DataError(
            f"text.windows needs a tokenizer whose tokens can be counted, not a "
            f"{type(processor.tokenize).__name__}"
        )
    return replace(processor, windows=Windows(processor.tokenize, context, config.windows))


def _resized(clip: Any, processor: Processor, config: LongText) -> Processor:
    tower = text_tower(clip)
    if not is_causal(tower):
        raise DataError(
            "text.stretch and text.context need a causal text tower that reads its end-of-text "
            "token, as CLIP's; SigLIP reads the last of all positions and must be padded to them. "
            "Use text.windows, or a shorter text"
        )
    old = tower.positional_embedding
    if config.context is not None and config.context > len(old):
        raise DataError(
            f"text.context is {config.context}, the model has {len(old)} positions; use "
            "text.stretch to have more"
        )
    tower.positional_embedding = torch.nn.Parameter(config.positions(old.detach()).clone())
    size = len(tower.positional_embedding)
    tower.attn_mask = torch.full((size, size), float("-inf")).triu_(1)
    for holder in {clip, tower}:
        holder.context_length = size
    if hasattr(tower, "num_pos"):
        tower.num_pos = size
    tokenize = copy.copy(processor.tokenize)
    tokenize.context_length = size  # type: ignore[attr-defined]
    return replace(processor, tokenize=tokenize)


def fit_positions(state: dict[str, Any], prefix: str, config: LongText, own: int) -> None:
    """Bring the positions of another checkpoint's weights to this model's, in place.

    Weights of the model as published go into one with stretched positions; others of another shape
    are left as they are, and refused by who loads them.

    Args:
        state: weights by name.
        prefix: of the model in their names.
        config: of this model.
        own: positions that the model has without it.
    """
    for place in _PLACES:
        found = state.get(prefix + place)
        if found is not None and len(found) == own:
            state[prefix + place] = config.positions(found)


def pool_windows(
    features: Float[Tensor, "windows dim"], rows: Int[Tensor, " windows"]
) -> tuple[Float[Tensor, "texts dim"], Int[Tensor, " texts"]]:
    """One vector for each text: the mean direction of its windows, at their mean length.

    Every window is normalised first, so that none outweighs the others, and the mean again; the
    vector of a text in one window is left as it is, to the bit.

    Args:
        features: of each window.
        rows: whose window it is, ascending.
    """
    texts, place, counts = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
    if len(texts) == len(rows):
        return features, rows
    shape = (len(texts), features.shape[1])
    total = features.new_zeros(shape).index_add(0, place, functional.normalize(features, dim=-1))
    lengths = features.new_zeros(len(texts)).index_add(0, place, features.norm(dim=-1))
    pooled = functional.normalize(total, dim=-1) * (lengths / counts)[:, None]
    single = features.new_zeros(shape).index_add(0, place, features)
    return torch.where((counts == 1)[:, None], single, pooled), texts
