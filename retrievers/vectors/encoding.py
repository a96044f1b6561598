"""Vectors of texts and pictures that are at hand, without a data root or a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from augment.errors import DataError
from augment.records import Side
from retrievers.data.examples import Example, Inputs, make_inputs
from retrievers.training.base import Retriever


class Content(NamedTuple):
    """A text, a picture, or both."""

    text: str | None
    image: Image.Image | None = None


@torch.inference_mode()
def encode(
    retriever: Retriever, contents: Sequence[Content], side: Side, where: str = "item"
) -> Float[Tensor, "items dim"]:
    """Unit vectors of one batch, on the CPU.

    Args:
        retriever: its weights are used as they are, in evaluation mode, on the device they are on.
        contents: the batch, at least one.
        side: query or corpus.
        where: what an item is called in errors.

    Raises:
        DataError: if an item has neither text nor picture.
    """
    examples = []
    for row, content in enumerate(contents):
        text = content.text if content.text and content.text.strip() else None
        if text is None and content.image is None:
            raise DataError("has neither text nor picture; nothing to embed", f"{where} {row}")
        picture = content.image.convert("RGB") if content.image is not None else None
        image = None if picture is None else retriever.processor.image(picture)
        examples.append(Example(row, text, image))
    retriever.eval()
    inputs = make_inputs(examples, retriever.processor)
    moved = Inputs(
        inputs.size,
        *(part.to(retriever.device) for part in inputs[1:]),
    )
    return retriever.encode(moved, side).float().cpu()
