"""Checkpoint files: this package's, and those that UniIR released, brought into the same form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from augment.errors import DataError, MismatchError
from retrievers.models.fusion_layers import FusionLayers

#: Width and patch of the image tower of the models that UniIR starts from, with open_clip's names
#: for OpenAI's, which have the quick form of GELU.
_UNIIR_MODELS = {(768, 32): "ViT-B-32-quickgelu", (1024, 14): "ViT-L-14-quickgelu"}

#: What UniIR's files hold besides tensors: settings as OmegaConf objects. They are skipped.
_SKIPPED = ("omegaconf.", "builtins.dict", "builtins.list", "builtins.int", "typing.Any",
            "collections.defaultdict")  # fmt: skip

#: Of OpenAI's files, no weights; and word vectors that the fusion never reads.
_NO_WEIGHTS = (
    "clip_model.input_resolution",
    "clip_model.context_length",
    "clip_model.vocab_size",
    "t5_layers.embed_tokens.weight",
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint in this package's form, on the CPU; nothing in the file is executed.

    Args:
        path: a ``.ckpt`` file that ``fit`` wrote, or a ``.pth`` file of UniIR's CLIP-SF or CLIP-FF.

    Raises:
        DataError: if there is no such file, or it is neither.
    """
    if not Path(path).is_file():
        raise DataError("no such checkpoint", str(path))
    try:
        found = _load(path)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise DataError(
            f"is no checkpoint of this package ({type(error).__name__}: {str(error)[:200]}); name "
            "one that `python -m retrievers fit` wrote, or one of UniIR's CLIP models",
            str(path),
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"holds a {type(found).__name__} and no checkpoint", str(path))
    return _from_uniir(found, path) if _is_uniir(found) else found


class _Skipped:
    """Stands for an object of the file that nobody needs; takes whatever it is given."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...


def _load(path: str | Path) -> Any:
    """Tensors and plain values; of other classes only the listed ones, and as nothing."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        refused = [name for name in names if not name.startswith(_SKIPPED)]
        if refused or not names:
            raise DataError(
                f"asks for {_some(refused) or 'something unknown'}, which could run code; such a "
                "file is not opened. A checkpoint holds tensors and plain values",
                str(path),
            ) from None
    with torch.serialization.safe_globals([(_Skipped, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _is_uniir(found: Mapping[str, Any]) -> bool:
    model = found.get("model")
    return isinstance(model, Mapping) and "state_dict" not in found


def _from_uniir(found: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Towers keep OpenAI's names, which are open_clip's; its prefix becomes ours."""
    given: Mapping[str, Tensor] = found["model"]
    state = {
        name.replace("clip_model.", "clip.", 1): value
        for name, value in given.items()
        if name not in _NO_WEIGHTS
    }
    first = state.get("clip.visual.conv1.weight")
    if first is None:
        raise DataError(
            "is of UniIR's form and has no clip_model.visual.conv1.weight; only its CLIP-SF and "
            f"CLIP-FF can be read. It has {_some(given)}",
            str(path),
        )
    features = any(name.startswith("t5_layers.") for name in state)
    settings: dict[str, Any] = {
        "model_name": _UNIIR_MODELS.get((first.shape[0], first.shape[-1])),
        "pretrained": None,
        "random_init": False,
        "max_logit_scale": 100.0,
    }
    settings |= (
        {"fusion": asdict(FusionLayers()), "attention": "uniir"}
        if features
        else {"normalize_towers": False}
    )
    kind = "ClipFeatureFusion" if features else "ClipScoreFusion"
    return {
        "state_dict": state,
        "retriever": {"class": kind, "settings": settings, "training": {}, "text": {}},
    }


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """What keeps given weights from being a model's, in words.

    Args:
        own: the model's state.
        given: the checkpoint's.
    """
    shapes = [
        f"{name} {tuple(given[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    kinds = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": shapes,
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def load_state(module: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Weights of a checkpoint into a module.

    Args:
        module: takes them.
        checkpoint: in this package's form.
        path: of the file, for the error.

    Raises:
        MismatchError: if it holds another architecture; names the weights.
    """
    state = checkpoint.get("state_dict", {})
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        told = misfit(module.state_dict(), state) or str(error)[:300]
        raise MismatchError(
            f"{path} does not fit this model: {told}; use the model settings it "
            f"was trained with: {checkpoint.get('retriever', {}).get('settings')}"
        ) from error


def check_shapes(own: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights of another architecture before Lightning does, without a word of remedy.

    Raises:
        MismatchError: names the first weight that does not fit.
    """
    found = checkpoint.get("state_dict", {})
    for name, value in own.items():
        # Positions may be stretched while they are loaded.
        fits = name.endswith("positional_embedding") or name not in found
        if not fits and found[name].shape != value.shape:
            raise MismatchError(
                f"the checkpoint is of another architecture: its {name} is "
                f"{tuple(found[name].shape)}, this model's is {tuple(value.shape)}; use the model "
                "settings it was trained with: "
                f"{checkpoint.get('retriever', {}).get('settings')}"
            )


def text_of(checkpoint: Mapping[str, Any]) -> dict[str, str] | None:
    """Fingerprint of the text that the weights were trained on; None of untrained ones."""
    return dict(checkpoint.get("retriever", {}).get("text", {})) or None


def origin_of(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is remembered of the fit that made the weights; None where nothing is."""
    return dict(checkpoint.get("retriever", {}).get("origin") or {}) or None


def digest_of(settings: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Sixteen hex digits over settings and weights."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return ", ".join(every[:4]) + more
