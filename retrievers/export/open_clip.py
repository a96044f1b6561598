"""An open_clip folder: ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` loads it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor

from augment.errors import MismatchError
from augment.files import write_text
from retrievers.models.inputs import Processor
from retrievers.models.load import CONFIG, WEIGHTS

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


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
        config["vision_cfg"]["image_size"] = size if isinstance(size, int) else _plain(size)
    # A folder brings all weights; none is fetched for a tower.
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    return dict(config)


def _plain(size: Any) -> int | list[int]:
    height, width = (int(side) for side in size)
    return height if height == width else [height, width]
