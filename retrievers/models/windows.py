"""Tokens of a retriever's own tokenizer: how many a text has, and windows that fit the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from open_clip.tokenizer import SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text

from augment.checks.lengths import split_sentences


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


#: Texts -> tokens of each, marks included.
Count = Callable[[Sequence[str]], Sequence[int]]


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
        return split_windows(text, self._count, self.context)

    def _count(self, texts: Sequence[str]) -> list[int]:
        return count_tokens(self.tokenize, texts) or []
