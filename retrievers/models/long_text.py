"""Texts beyond a CLIP's context: stretched positions, and windows that are pooled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from open_clip.tokenizer import SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text
from torch import Tensor
from torch.nn import functional

from augment.checks.lengths import split_sentences
from augment.errors import DataError
from retrievers.models.inputs import Processor
from retrievers.models.towers import is_causal, text_tower

#: Where an open_clip model may keep the positions of its text, below the model's own name.
_PLACES = ("positional_embedding", "text.positional_embedding")

#: Texts -> tokens of each, marks included.
Count = Callable[[Sequence[str]], Sequence[int]]


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


def context_of(tokenize: Any) -> int | None:
    """Tokens that a tokenizer pads and cuts to, marks included; None where it does not say."""
    context = getattr(tokenize, "context_length", None)
    return context if isinstance(context, int) else None


def count_tokens(tokenize: Any, texts: Sequence[str]) -> list[int] | None:
    """Tokens of each text before it is cut, start and end marks included, padding not.

    Args:
        tokenize: a tokenizer of open_clip, or anything else with a method ``count(texts)``.
        texts: as they are handed to it.

    Returns:
        A number for each text; None for a tokenizer of an unknown kind.
    """
    if callable(own := getattr(tokenize, "count", None)):
        return [int(number) for number in own(list(texts))]
    if isinstance(tokenize, SimpleTokenizer):
        return [len(tokenize.encode(text)) + 2 for text in texts]
    inner: Any = getattr(tokenize, "tokenizer", None)
    if isinstance(tokenize, SigLipTokenizer):
        cleaned = [canonicalize_text(basic_clean(text)) for text in texts]
    elif callable(inner) and callable(clean := getattr(tokenize, "clean_fn", None)):
        cleaned = [clean(text) for text in texts]
    else:
        return None
    return [len(ids) for ids in inner(cleaned, verbose=False).input_ids] if cleaned else []


def split_windows(text: str, count: Count, context: int) -> list[str]:
    """A text in pieces that fit the context, split at sentence borders.

    Sentences are put together as long as they fit. One that does not fit alone is split between
    words; a single word that does not fit stays whole, and is cut by the tokenizer.

    Args:
        text: any text; one that fits comes back as it is.
        count: of the tokenizer; a text costs a few calls, whatever its length.
        context: tokens that the encoder reads, marks included.
    """
    marks, whole = count(["", text])
    if whole <= context:
        return [text]
    sentences = split_sentences(text)
    pieces: list[str] = []
    for sentence, length in zip(sentences, count(sentences), strict=True):
        pieces += [sentence] if length <= context else sentence.split()
    # A word within a sentence may have other tokens than at its beginning: guess by sums, look.
    sizes = [length - marks for length in count(pieces)]
    packed = _packed(pieces, sizes, context - marks)
    return [window for part in _checked(packed, count, context) for window in part] or [text]


def _packed(pieces: Sequence[str], sizes: Sequence[int], room: int) -> list[list[str]]:
    packed: list[list[str]] = []
    taken = room
    for piece, size in zip(pieces, sizes, strict=True):
        if packed and taken + size <= room:
            packed[-1].append(piece)
            taken += size
        else:
            packed.append([piece])
            taken = size
    return packed


def _checked(packed: Sequence[list[str]], count: Count, context: int) -> Iterator[list[str]]:
    """Windows; those that are too long after all are halved."""
    joined = [" ".join(pieces) for pieces in packed]
    for window, pieces, length in zip(joined, packed, count(joined), strict=True):
        if length <= context or len(pieces) == 1:
            yield [window]
        else:
            middle = len(pieces) // 2
            yield from _checked([pieces[:middle], pieces[middle:]], count, context)


@final
@dataclass(frozen=True)
class Windows:
    """Splits texts into windows of a tokenizer's context; goes into loader processes.

    Attributes:
        tokenize: the tokenizer.
        context: tokens of a window, marks included.
        most: windows of a text; what lies behind them is cut.
    """

    tokenize: Any
    context: int
    most: int

    def __call__(self, text: str) -> list[str]:
        """The first windows of a text; the text itself if it fits."""
        return self.all(text)[: self.most]

    def all(self, text: str) -> list[str]:
        """All windows of a text."""
        return split_windows(
            text, lambda texts: count_tokens(self.tokenize, texts) or [], self.context
        )
