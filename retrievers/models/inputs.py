"""Token ids and pixels: what CLIP and BLIP read; absent texts and pictures take no room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from augment.errors import DataError, MismatchError
from augment.records import Side
from retrievers.data.examples import Example


class Inputs(NamedTuple):
    """One side of a batch. Rows without text (picture) are absent from ``texts`` (``images``).

    Attributes:
        size: number of rows.
        texts: token ids of the rows that have text.
        text_rows: which rows these are, ascending; a row stands several times if its text is read
            in several windows.
        images: pictures of the rows that have one.
        image_rows: which rows these are.
    """

    size: int
    texts: Int[Tensor, "texts context"]
    text_rows: Int[Tensor, " texts"]
    images: Float[Tensor, "images 3 height width"]
    image_rows: Int[Tensor, " images"]

    def rows(self, start: int, stop: int) -> Inputs:
        """Rows ``start`` to ``stop``; fewer at the end."""
        stop = min(stop, self.size)
        bounds = torch.tensor([start, stop])
        text = slice(*torch.searchsorted(self.text_rows.cpu(), bounds).tolist())
        image = slice(*torch.searchsorted(self.image_rows.cpu(), bounds).tolist())
        return Inputs(
            stop - start,
            self.texts[text],
            self.text_rows[text] - start,
            self.images[image],
            self.image_rows[image] - start,
        )

    def to(self, device: Any, **options: Any) -> Inputs:
        """The same on another device; ``options`` as :meth:`torch.Tensor.to` has them."""
        return Inputs(self.size, *(part.to(device, **options) for part in self[1:]))

    def check(self, size: int | Sequence[int] | None) -> None:
        """Refuse a batch with nothing to read, and pictures that the image tower cannot take.

        Args:
            size: height and width that it takes, or both in one; None takes any.

        Raises:
            ValueError: if there is neither text nor picture.
            MismatchError: names both sizes.
        """
        if not len(self.text_rows) and not len(self.image_rows):
            raise ValueError("a batch needs at least one text or picture")
        wanted = (size, size) if isinstance(size, int) else tuple(size or ())
        if len(self.image_rows) and wanted and tuple(self.images.shape[-2:]) != wanted:
            raise MismatchError(
                f"pictures of {self.images.shape[-2]} x {self.images.shape[-1]} pixels for a model "
                f"that takes {wanted[0]} x {wanted[1]}; preprocess them with this retriever's own "
                "processor"
            )


@final
@dataclass(frozen=True)
class Processor:
    """The :class:`~retrievers.data.examples.Collator` of models of token ids and pixels.

    Attributes:
        tokenize: texts to token ids, padded and cut to the model's context.
        image: RGB picture to a normalised tensor; every picture to the same size.
        windows: a text in pieces that fit the context, to be pooled outside training; None where
            longer texts are cut.
    """

    tokenize: Callable[[list[str]], Tensor]
    image: Callable[[Image.Image], Tensor]
    windows: Callable[[str], list[str]] | None = None

    def __call__(
        self, examples: Sequence[Example], side: Side = "query", training: bool = False
    ) -> Inputs:
        """Tokenise and stack; no filler for what is absent.

        Raises:
            DataError: if pictures differ in size; names two items.
        """
        cut = None if training else self.windows
        texts = [
            (row, window)
            for row, example in enumerate(examples)
            if example.text is not None
            for window in ([example.text] if cut is None else cut(example.text))
        ]
        shown = [
            (row, example) for row, example in enumerate(examples) if example.image is not None
        ]
        _check_sizes([example for _, example in shown])
        return Inputs(
            len(examples),
            self.tokenize([window for _, window in texts])
            if texts
            else torch.zeros(0, 1, dtype=torch.int64),
            torch.tensor([row for row, _ in texts], dtype=torch.int64),
            torch.stack([example.image for _, example in shown])
            if shown
            else torch.zeros(0, 3, 1, 1),
            torch.tensor([row for row, _ in shown], dtype=torch.int64),
        )


def _check_sizes(examples: Sequence[Example]) -> None:
    for example in examples:
        first = examples[0]
        if example.image.shape != first.image.shape:
            raise DataError(
                f"picture becomes a tensor of {tuple(example.image.shape)}, that of "
                f"{first.id or first.row} one of {tuple(first.image.shape)}; the image "
                "transform must give one size",
                example.id or f"row {example.row}",
            )


def scatter(
    size: int, rows: Int[Tensor, " rows"], features: Float[Tensor, "rows dim"]
) -> Float[Tensor, "size dim"]:
    """Features at their rows of a batch, zeros elsewhere."""
    return features.new_zeros(size, features.shape[1]).index_add(0, rows, features)
