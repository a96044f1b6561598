"""Whether an exported folder gives the vectors of the retriever it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from augment.errors import MismatchError
from retrievers.export.sentence_transformers import import_sentence_transformers
from retrievers.models.base import Encoder
from retrievers.vectors.embed import embed_contents

#: Cosine between our vector and that of the exported folder, at least.
AGREEMENT = 0.9999

_TEXTS = (
    "a photo of a dog", "Which currency is used in the country with this flag?",
    "it's 5 o'clock; \u201cquoted\u201d caf\u00e9 & co.", "word " * 400,
)  # fmt: skip
#: Sides of the pictures in sides of the model's. transformers cuts the middle out one pixel off
#: where 3, 7, 11, ... pixels are too many (it cuts fractions off, torchvision rounds to even); an
#: even number of sides never has so many.
_SHAPES = ((1, 1), (2, 1), (2, 4), (4, 4))

Encoders = tuple[Callable[[list[str]], Tensor], Callable[[list[Image.Image]], Tensor]]


def open_clip_encoders(folder: Path) -> Encoders:
    """Text and picture encoders of an open_clip folder, by open_clip alone."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    return (
        lambda texts: model.encode_text(tokenizer(texts)),
        lambda pictures: model.encode_image(torch.stack([preprocess(p) for p in pictures])),
    )


def sentence_transformers_encoders(folder: Path) -> Encoders:
    """The same of a sentence-transformers folder, by sentence-transformers alone."""
    model: Any = import_sentence_transformers().SentenceTransformer(str(folder), device="cpu")

    def encode_all(things: list[Any]) -> Tensor:
        found: Tensor = model.encode(things, convert_to_tensor=True, show_progress_bar=False)
        return found

    return encode_all, encode_all


@torch.inference_mode()
def agreement(retriever: Encoder, encoders: Encoders) -> dict[str, float]:
    """Least cosine over a few texts and pictures of noise, for each modality.

    Raises:
        MismatchError: if one is below :data:`AGREEMENT`.
    """
    side = _side(retriever)
    cuts = getattr(retriever.collator(), "windows", None) is None
    # The last text is beyond the context, which other libraries cut.
    texts = list(_TEXTS if cuts else _TEXTS[:-1])
    pictures = [_picture(w * side, h * side) for w, h in _SHAPES]
    ours = (
        embed_contents(retriever, [(text, None) for text in texts], "corpus"),
        embed_contents(retriever, [(None, picture) for picture in pictures], "corpus"),
    )
    theirs = (encoders[0](texts), encoders[1](pictures))
    found = {
        name: _least_cosine(*pair)
        for name, pair in zip(("text", "image"), zip(ours, theirs, strict=True), strict=True)
    }
    if min(found.values()) < AGREEMENT:
        raise MismatchError(
            f"the exported folder gives other vectors than the checkpoint (least cosine {found}); "
            "it was not kept. Please report it with the model's name and the versions of "
            "open_clip, transformers and sentence-transformers"
        )
    return found


def _side(retriever: Encoder) -> int:
    blank = Image.new("RGB", (64, 64))
    return int(retriever.collator().image(blank).shape[-1])


def _least_cosine(ours: Float[Tensor, "n dim"], theirs: Float[Tensor, "n dim"]) -> float:
    return float(functional.cosine_similarity(ours, theirs.float().cpu()).min())


def _picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))
