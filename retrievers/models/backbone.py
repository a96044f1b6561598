"""open_clip models by name, with the tokenizer and image transform that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2

from augment.errors import DataError, EngineError
from retrievers.data.examples import Processor

#: Packaged models, by the name of their folder under ``retrievers/models``.
PACKAGED = ("flagland-clip",)


def load_clip(
    name: str, pretrained: str | None = None, random_init: bool = False
) -> tuple[Any, Processor]:
    """An open_clip model in float32 on the CPU and its processor.

    Args:
        name: open_clip's name, ``local-dir:FOLDER``, ``hf-hub:NAME``, a ``.json`` model config, or
            one of :data:`PACKAGED`.
        pretrained: open_clip's tag or a weights file.
        random_init: leave weights out.

    Raises:
        DataError: if there is no such folder or config.
        EngineError: if open_clip cannot build the model or get its weights.
    """
    name = _resolve(name)
    try:
        config = _model_config(name)
        model = open_clip.create_model(
            name,
            pretrained=None if random_init else pretrained,
            load_weights=not random_init,
            force_preprocess_cfg=_tag_preprocessing(name, pretrained),
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, ValueError, OSError) as error:
        hint = "see open_clip.list_pretrained() for names and tags"
        raise EngineError(f"cannot load {name!r} ({pretrained}): {error}; {hint}") from error
    model.open_clip_config = config
    preprocessing = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    return model, Processor(tokenizer, image_transform_v2(preprocessing, is_train=False))


def _model_config(name: str) -> dict[str, Any]:
    """What open_clip builds a model from; kept with the model, for export."""
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise ValueError("open_clip knows no such model")
    given = config.get("text_cfg", {}).get("tokenizer_kwargs") or {}
    if given.get("trust_remote_code"):
        raise DataError(
            "its open_clip_config.json asks to run the tokenizer's own code; that is never done. "
            "Take tokenizer_kwargs.trust_remote_code out, if the tokenizer works without",
            name,
        )
    return deepcopy(config)


def _tag_preprocessing(name: str, tag: str | None) -> dict[str, Any]:
    """Size, mean and so on of a tag, which open_clip forgets if it is asked for no weights."""
    found: dict[str, Any] | None = open_clip.get_pretrained_cfg(name, tag) if tag else None
    wanted = ("mean", "std", "interpolation", "resize_mode")
    return {key: found[key] for key in wanted if found.get(key) is not None} if found else {}


def has_weights(settings: Mapping[str, Any]) -> bool:
    """Whether the arguments of :func:`load_clip` bring weights, the same each time."""
    name = str(settings["model_name"])
    named = name in PACKAGED or name.startswith(("local-dir:", "hf-hub:"))
    return not settings["random_init"] and (named or settings["pretrained"] is not None)


def _resolve(name: str) -> str:
    if name in PACKAGED:
        folder = Path(str(resources.files("retrievers"))) / "models" / "weights" / name
        name = f"local-dir:{folder}"
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise DataError("no open_clip_config.json in this folder", str(folder))
    elif name.endswith(".json"):
        if not Path(name).is_file():
            raise DataError("no such model config", name)
        open_clip.add_model_config(name)
        name = Path(name).stem
    return name
