"""Tokens of a retriever's own tokenizer: how many a text has, and windows that fit the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from open_clip.tokenizer import SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text

from augment.lengths import split_sentences


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


def split_windows(text: str, fits: Callable[[str], bool]) -> list[str]:
    """A text in pieces that fit, split at sentence borders.

    Sentences are put together as long as they fit. One that does not fit alone is split between
    words; a single word that does not fit stays whole, and is cut by the tokenizer.

    Args:
        text: any text; one that fits comes back as it is.
        fits: whether the tokenizer reads all of a text.
    """
    if fits(text):
        return [text]
    pieces: list[str] = []
    for sentence in split_sentences(text):
        pieces += [sentence] if fits(sentence) else _packed(sentence.split(), fits)
    return _packed(pieces, fits) or [text]


def _packed(pieces: Sequence[str], fits: Callable[[str], bool]) -> list[str]:
    packed: list[str] = []
    for piece in pieces:
        joined = f"{packed[-1]} {piece}" if packed else piece
        if packed and fits(joined):
            packed[-1] = joined
        else:
            packed.append(piece)
    return packed


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
        return split_windows(text, self._fits)

    def _fits(self, text: str) -> bool:
        (number,) = count_tokens(self.tokenize, [text]) or [0]
        return number <= self.context
