"""An open_clip folder: ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads it.

And the check of every exported folder: whether it gives the vectors of the encoder it was made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from augment.errors import MismatchError
from augment.files import write_text
from retrievers.models.base import Encoder
from retrievers.models.inputs import Processor
from retrievers.models.load import CONFIG, WEIGHTS
from retrievers.vectors.embed import embed_contents

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")

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


def is_open_clip(encoder: Encoder) -> bool:
    """Whether an encoder is the sum of two towers of open_clip, with nothing around them."""
    return "normalize_towers" in encoder.settings()


def write_architecture(clip: Any, processor: Processor, folder: Path) -> None:
    """``open_clip_config.json`` and the tokenizer's files.

    CLIP's own tokenizer is part of open_clip and takes no file.

    Args:
        clip: a model that :func:`retrievers.models.towers.load_clip` made, perhaps changed since.
        processor: its processor.
        folder: is made.

    Raises:
        MismatchError: if its tokenizer is of a kind that open_clip does not open from a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model_config(clip)
    text = model["text_cfg"]
    tokenizer = processor.tokenize
    if isinstance(tokenizer, HFTokenizer | SigLipTokenizer):
        tokenizer.save_pretrained(folder)
        text.setdefault("hf_tokenizer_name", "tokenizer")  # opened from the folder all the same
        if isinstance(tokenizer, SigLipTokenizer):
            text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    elif isinstance(tokenizer, SimpleTokenizer):
        text.pop("hf_tokenizer_name", None)
    else:
        raise MismatchError(
            f"texts are cut up by a {type(tokenizer).__name__}, which open_clip does not open from "
            "a folder; use one of open_clip's tokenizers"
        )
    given = open_clip.get_model_preprocess_cfg(clip)
    config = {
        "model_cfg": model,
        "preprocess_cfg": {name: given[name] for name in _PREPROCESSING if name in given},
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def write_weights(clip: Any, folder: Path, logit_bias: Tensor | None = None) -> None:
    """``open_clip_model.safetensors``.

    Args:
        clip: the model.
        folder: where the architecture is.
        logit_bias: SigLIP's, where the retriever has learned it beside a model without.
    """
    state = {name: value.detach().cpu() for name, value in clip.state_dict().items()}
    if logit_bias is not None:
        state["logit_bias"] = logit_bias.detach().cpu()
        path = folder / CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["init_logit_bias"] = float(logit_bias.detach())
        write_text(path, json.dumps(config, indent=2) + "\n")
    save_tensors(state, folder / WEIGHTS)


def save_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Tensors as safetensors; those that share memory are written twice."""
    save_file({name: value.detach().cpu().clone() for name, value in state.items()}, path)


def model_config(clip: Any) -> dict[str, Any]:
    """open_clip's ``model_cfg`` of a model as it is now: its context may have been stretched."""
    config = deepcopy(clip.open_clip_config)
    config.pop("pretrained", None)
    text = getattr(clip, "text", clip)
    positions = getattr(text, "positional_embedding", None)
    if isinstance(positions, torch.Tensor):
        embeds_class = bool(config["text_cfg"].get("embed_cls"))
        config["text_cfg"]["context_length"] = len(positions) - embeds_class
    size = getattr(clip.visual, "image_size", None)
    if size is not None:
        sides = [size] if isinstance(size, int) else [*map(int, size)]
        config["vision_cfg"]["image_size"] = sides if len({*sides}) > 1 else sides[0]
    # A folder brings all weights; none is fetched for a tower.
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    return dict(config)


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


@torch.inference_mode()
def agreement(encoder: Encoder, others: Encoders) -> dict[str, float]:
    """Least cosine over a few texts and pictures of noise, by what was compared.

    Raises:
        MismatchError: if one is below :data:`AGREEMENT`.
    """
    side = int(encoder.collator().image(Image.new("RGB", (64, 64))).shape[-1])
    cuts = getattr(encoder.collator(), "windows", None) is None
    # The last text is beyond the context, which other libraries cut.
    texts = list(_TEXTS if cuts else _TEXTS[:-1])
    pictures = [noise(w * side, h * side) for w, h in _SHAPES]
    ours = (
        embed_contents(encoder, [(text, None) for text in texts], "corpus"),
        embed_contents(encoder, [(None, picture) for picture in pictures], "corpus"),
    )
    theirs = (others[0](texts), others[1](pictures))
    found = {
        f"{name}: cosine with the checkpoint's vectors at least": float(
            functional.cosine_similarity(own, other.float().cpu()).min()
        )
        for name, own, other in zip(("text", "image"), ours, theirs, strict=True)
    }
    if min(found.values()) < AGREEMENT:
        raise MismatchError(
            f"the exported folder gives other vectors than the checkpoint (least cosine {found}); "
            "it was not kept. Please report it with the model's name and the versions of "
            "open_clip, transformers and sentence-transformers"
        )
    return found


def noise(width: int, height: int) -> Image.Image:
    """A picture of large coloured spots, the same for the same size."""
    random = np.random.default_rng(width)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))
