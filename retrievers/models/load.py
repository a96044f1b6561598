"""The one way in: an encoder from a checkpoint, a folder, the Hub, open_clip or UniIR."""

from __future__ import annotations

import inspect
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import permutations, product
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from augment.checks.lengths import LENGTHS
from augment.data import DataRoot, TextRule, open_instructions
from augment.engines import base as engines
from augment.errors import DataError, MismatchError
from augment.files import SUMS, check_sums, read_json
from augment.records import Side
from augment.store import Store
from augment.views import MARKS, VIEWS, TextView, judged_under, open_view
from retrievers.data.mixtures import named_views
from retrievers.data.texts import TextRecipe, check_recipe
from retrievers.models.base import Encoder
from retrievers.models.blip import BlipFeatureFusion, BlipScoreFusion
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.models.long_text import LongText
from retrievers.models.mllm.encoder import FAMILIES, Mllm
from retrievers.models.mllm.layout import Layout
from retrievers.models.mllm.reasoning import Reasoning
from retrievers.models.towers import PACKAGED
from retrievers.models.tuning import Tuning, digest_of, is_tuned, merge

#: What an exported folder holds: the encoder's settings and the text it was trained on,
SETTINGS = "retriever.json"
#: open_clip's settings and weights, for models of open_clip,
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
#: weights of encoders that open_clip does not know, and the architecture of a BLIP.
OWN_WEIGHTS, BLIP_CONFIG = "model.safetensors", "config.json"

#: Every encoder, by the name that checkpoints have.
ENCODERS: dict[str, type[Encoder]] = {
    kind.__name__: kind
    for kind in (ClipScoreFusion, ClipFeatureFusion, BlipScoreFusion, BlipFeatureFusion, Mllm)
}

#: Trained encoders that are packaged, as folders beside this file: what ``export`` writes, without
#: frozen weights that a packaged model brings.
TRAINED = ("flagland-mllm", "flagland-rge")

#: Beginnings of model names that need no checkpoint.
_MODELS = ("local-dir:", "hf-hub:")
#: Settings that are objects of a class.
_PARTS = {
    "text": LongText, "fusion": FusionLayers, "layout": Layout, "reasoning": Reasoning,
}  # fmt: skip
#: Arguments that change no vector of given weights.
_TRAINING = ("random_init", "max_logit_scale", "truncate_dim")
#: Where a module of Lightning keeps its encoder.
PREFIX = "encoder."
#: Nothing else is fetched: no pickle, no code.
_FETCHED = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", "README.md", SUMS)

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


def load(
    name: str | Path,
    device: str = "cpu",
    revision: str | None = None,
    token: str | None = None,
) -> Encoder:
    """An encoder in evaluation mode; low-rank updates are written into its weights.

    Args:
        name: a ``.ckpt`` file that ``fit`` wrote, a ``.pth`` file of UniIR's CLIP-SF or CLIP-FF, a
            folder that ``export`` wrote, a repository ``owner/name`` on the Hub, or an open_clip
            model to take as it is: ``flagland-clip`` (packaged, as are ``flagland-vlm`` and the
            trained ``flagland-mllm`` and ``flagland-rge``), ``local-dir:FOLDER``, ``hf-hub:NAME``
            or ``MODEL:TAG`` of its list (without the tag where it has one), such as
            ``ViT-B-16-SigLIP2-256:webli``. A folder or repository of open_clip becomes score
            fusion, one of a multimodal language model an encoder in Qwen3-VL-Embedding's layout.
        device: where it runs.
        revision: branch, tag or commit of a repository.
        token: of the Hub; None takes the one that is logged in.

    Returns:
        The encoder; :attr:`~retrievers.models.base.Encoder.trained_on` and ``origin`` say where its
        weights come from. :func:`open_recipe` opens the text that it was trained on.

    Raises:
        DataError: if there is no such thing, or it is none of this package.
        MismatchError: if weights and settings do not fit each other.
    """
    packaged = Path(__file__).parent / "weights" / str(name)
    path = packaged if str(name) in TRAINED else Path(name)
    if str(name) in PACKAGED or str(name).startswith(_MODELS):
        encoder: Encoder = ClipScoreFusion(str(name))
    elif (published := _published(str(name))) is not None:
        encoder = ClipScoreFusion(published[0], pretrained=published[1])
    elif str(name) in engines.PACKAGED:
        encoder = Mllm(str(name))
    elif path.is_dir():
        encoder = _from_folder(path)
    elif path.is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+(?<!\.ckpt)(?<!\.pth)", str(name)):
        encoder = from_checkpoint(path)
    else:
        encoder = _from_folder(_fetch(str(name), revision, token))
    return encoder.eval().to(torch.device(device))


def loaded(model: Encoder | str) -> Encoder:
    """An encoder, or the one of a name that :func:`load` takes."""
    return load(model) if isinstance(model, str) else model


def _published(name: str) -> tuple[str, str] | None:
    """Model and tag of open_clip's list that a name stands for; None if it is none of them."""
    model, _, tag = name.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tags or (not tag and len(tags) == 1):
        return (model, tags[0]) if tags else None
    if tag not in tags:
        raise DataError(f"open_clip has {model} with other weights; name {model}:TAG, where TAG is "
                        f"one of {', '.join(tags)}", name)  # fmt: skip
    return model, tag


def load_weights(encoder: Encoder, path: str | Path) -> None:
    """Weights of a checkpoint, without its optimiser, settings or step.

    Raises:
        DataError: if there is no such file, or it is neither.
        MismatchError: if it holds another architecture; names the weights.
    """
    _take(encoder, read_checkpoint(path), path)


def _take(
    encoder: Encoder, checkpoint: Mapping[str, Any], path: str | Path, merged: bool = True
) -> None:
    told = checkpoint.get("retriever", {})
    given = checkpoint.get("state_dict", {})
    state = {name[len(PREFIX) :]: given[name] for name in given if name.startswith(PREFIX)}
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    tuned = "tuning" in told and not is_tuned(encoder)
    if tuned:
        Tuning(**told["tuning"]).apply(encoder)
    check_frozen(encoder, checkpoint)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        why = _misfit(encoder.state_dict(), state) or str(error)[:300]
        raise MismatchError(
            f"{path} does not fit this model: {why}; use the model settings it "
            f"was trained with: {told.get('settings')}"
        ) from error
    if tuned and merged:
        merge(encoder)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name in trained)
    recall(encoder, told)


def recall(encoder: Encoder, told: Mapping[str, Any]) -> None:
    """Take what a checkpoint or folder remembers of its training."""
    encoder.trained_on = dict(told.get("text") or {}) or None
    encoder.origin = dict(told.get("origin") or {}) or None


def check_frozen(encoder: Encoder, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that leaves out frozen weights, if this encoder's are others.

    Raises:
        MismatchError: names the settings of the training.
    """
    told, given = checkpoint.get("retriever", {}), checkpoint.get("state_dict", {})
    if "frozen" not in told:
        return
    left_out = [
        (name, value)
        for name, value in encoder.named_parameters()
        if PREFIX + name not in given and name != "logit_bias"
    ]
    if told["frozen"] != digest_of(left_out):
        raise MismatchError(
            "the checkpoint holds what was trained and leaves out what was frozen, and this "
            f"model is frozen otherwise; it was trained with {told.get('settings')}"
        )


def from_checkpoint(path: Path, merged: bool = True) -> Encoder:
    """See :func:`load`; low-rank updates that are not ``merged`` stay beside the weights."""
    if not path.is_file():
        raise DataError(
            f"no such checkpoint; name a .ckpt file that fit wrote (OUT/checkpoints/last.ckpt) or "
            f"a packaged model ({', '.join((*PACKAGED, *TRAINED))})",
            str(path),
        )
    checkpoint = check_checkpoint(path)
    told = checkpoint["retriever"]
    if told["settings"].get("model_name", "") is None:
        raise DataError(
            "holds towers of a size that UniIR did not release; take its weights into a model of "
            "that size with --model.init_from",
            str(path),
        )
    encoder = build(told["class"], told["settings"], str(path), "frozen" in told)
    _take(encoder, checkpoint, path, merged)
    return encoder


def check_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that says what it is; its tensors are mapped.

    Raises:
        DataError: if it is none of this package, or damaged.
    """
    try:
        checkpoint = read_checkpoint(path)
        told = checkpoint["retriever"]
        said = {**told, "class": str(told["class"]), "settings": dict(told["settings"])}
        return {**checkpoint, "retriever": said}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"is no checkpoint of this package ({type(error).__name__}: {str(error)[:200]}); name "
            "one that `python -m retrievers fit` wrote",
            str(path),
        ) from error


def build(kind: str, settings: Mapping[str, Any], where: str, weights: bool = False) -> Encoder:
    """An encoder as :meth:`~retrievers.models.base.Encoder.settings` told it.

    Only what decides a vector is taken, so that settings of training may come and go.

    ``weights`` brings those of the model's name, too; otherwise nothing is fetched.

    Raises:
        DataError: if there is no such class, or it takes no such settings.
    """
    if kind not in ENCODERS:
        raise DataError(f"holds a {kind}; known encoders: {', '.join(sorted(ENCODERS))}", where)
    taken = set(inspect.signature(ENCODERS[kind]).parameters).difference(_TRAINING)
    # open_clip warns that the model is random, which it is until the weights come.
    logging.disable(logging.WARNING)
    try:
        given = {
            name: _PARTS[name](**value) if name in _PARTS else value
            for name, value in settings.items()
            if name in taken
        }
        given["model_name"]  # its default is for those who name nothing
        encoder = ENCODERS[kind](**{**given, "random_init": not weights})
    except (KeyError, TypeError) as error:
        raise DataError(
            f"a {kind} cannot be built from its settings ({error}); use the version of this "
            "package that wrote it, or fit again",
            where,
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    encoder.remember(settings)
    return encoder


def _from_folder(folder: Path) -> Encoder:
    """What :func:`retrievers.export.folder.save` wrote, or a folder of open_clip."""
    if not (folder / SETTINGS).is_file():
        kind = read_json(folder / BLIP_CONFIG) if (folder / BLIP_CONFIG).is_file() else None
        if isinstance(kind, dict) and kind.get("model_type") in FAMILIES:
            if any(folder.glob("*_Dense")):
                why = "has a layer behind the model that sentence-transformers alone reads"
                raise DataError(f"{why}; name the checkpoint it was exported from", str(folder))
            return Mllm(str(folder), preset="qwen3-vl-embedding")
        if not (folder / CONFIG).is_file():
            raise DataError(
                f"holds neither {SETTINGS} nor {CONFIG}; name a folder that "
                "`python -m retrievers export` wrote",
                str(folder),
            )
        if not any(folder.glob("*.safetensors")):
            raise DataError(
                "holds no weights as safetensors, and no other kind is loaded; convert them with "
                "safetensors.torch.save_file, or name a model that has them",
                str(folder),
            )
        return ClipScoreFusion(f"local-dir:{folder}")
    check_sums(folder)
    told = _told(folder / SETTINGS)
    settings = dict(told["settings"])
    here = dict(settings)
    if (folder / CONFIG).is_file():
        here["model_name"] = f"local-dir:{folder}"
        # The folder's model has its positions stretched already; windows are read outside it.
        here["text"] = {"windows": dict(settings.get("text") or {}).get("windows", 1)}
    elif (folder / BLIP_CONFIG).is_file():
        here["model_name"] = str(folder)
    encoder = build(str(told["class"]), here, str(folder / SETTINGS), "frozen" in told)
    _load_folder(encoder, folder, told)
    # What made a vector is what it was, wherever the folder lies.
    encoder.remember(settings)
    recall(encoder, told)
    return encoder


def _load_folder(encoder: Encoder, folder: Path, told: Mapping[str, Any]) -> None:
    score_fusion = isinstance(encoder, ClipScoreFusion)
    path = folder / (WEIGHTS if score_fusion else OWN_WEIGHTS)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot be read ({error}); only safetensors are loaded. Export the checkpoint again",
            str(path),
        ) from error
    if score_fusion:
        state = {f"clip.{key}": value for key, value in state.items()}
    if "frozen" in told:
        named = {PREFIX + key: value for key, value in state.items()}
        check_frozen(encoder, {"retriever": told, "state_dict": named})
        state = {**encoder.state_dict(), **state}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(
            f"{path} does not fit the settings beside it: {str(error)[:300]}; export again"
        ) from error


def _told(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        dict(told["settings"]), str(told["class"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is not what an export writes ({type(error).__name__}: {error}); export the "
            "checkpoint again",
            str(path),
        ) from error
    return dict(told)


def _fetch(name: str, revision: str | None, token: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, token=token, allow_patterns=list(_FETCHED)
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise DataError(
            f"is no file or folder, and cannot be had from the Hub: {str(error)[:300]}; check the "
            "name (owner/name), the network and the token",
            name,
        ) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint in this package's form, on the CPU; nothing in the file is executed.

    Args:
        path: a ``.ckpt`` file that ``fit`` wrote, or a ``.pth`` file of UniIR's CLIP-SF or CLIP-FF.

    Raises:
        DataError: if there is no such file, or it is neither.
    """
    if not Path(path).is_file():
        raise DataError("no such checkpoint", str(path))
    check_bytes(path)
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
    uniir = isinstance(found.get("model"), Mapping) and "state_dict" not in found
    return _from_uniir(found, path) if uniir else found


def check_bytes(path: str | Path) -> None:
    """Compare a checkpoint's bytes with the checksums inside, which torch does not look at.

    Files of torch's older form have none.

    Raises:
        DataError: if they are not those that were written.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        damaged = str(error)
    if damaged:
        raise DataError(
            f"is damaged (checksum of {damaged}); copy it again, or take another checkpoint of "
            "the run: latest.ckpt, last.ckpt, best.ckpt",
            str(path),
        )


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


def _from_uniir(found: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Towers keep OpenAI's names, which are open_clip's; its prefix becomes ours."""
    given: Mapping[str, Tensor] = found["model"]
    state = {
        f"{PREFIX}{name}".replace("clip_model.", "clip.", 1): value
        for name, value in given.items()
        if name not in _NO_WEIGHTS
    }
    first = state.get(f"{PREFIX}clip.visual.conv1.weight")
    if first is None:
        raise DataError(
            "is of UniIR's form and has no clip_model.visual.conv1.weight; only its CLIP-SF and "
            f"CLIP-FF can be read. It has {_some(given)}",
            str(path),
        )
    features = any(name.startswith("t5_layers.") for name in given)
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


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """What keeps given weights from being a model's, in words."""
    kinds = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "of another shape": _misshapen(own, given),
    }
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def _misshapen(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {tuple(given[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]


def check_shapes(encoder: Encoder, checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights of another architecture before Lightning does, without a word of remedy.

    Raises:
        MismatchError: names weights that do not fit.
    """
    own = {
        PREFIX + name: value
        for name, value in encoder.state_dict().items()
        if not name.endswith("positional_embedding")  # may be stretched while they are loaded
    }
    if wrong := _misshapen(own, checkpoint.get("state_dict", {})):
        raise MismatchError(
            f"the checkpoint is of another architecture: {_some(wrong)}; use the model settings it "
            f"was trained with: {checkpoint.get('retriever', {}).get('settings')}"
        )


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return ", ".join(every[:4]) + more


def open_recipe(
    trained_on: Mapping[str, str] | None,
    root: DataRoot,
    store: Path | None = None,
    allow_mismatch: bool = False,
) -> TextRecipe:
    """The text recipe that a checkpoint was trained on, opened on a root and a store.

    Of several recipes and lengths in a store, those of the training are found by their fingerprint.

    Args:
        trained_on: what the checkpoint remembers; None, of an untrained model, shows the
            published text without instructions.
        root: where the instructions are.
        store: folder of generated texts; needed unless both views are raw.
        allow_mismatch: where the store has no such recipe, take the one that is meant otherwise.

    Raises:
        DataError: if a store is needed and none is given.
        StoreError: if the store cannot be read, or has no texts of a side.
        MismatchError: if the store holds texts of other recipes only.
    """
    if trained_on is None:
        raw = (open_view("query"), open_view("corpus"))
        return TextRecipe(*raw, "plain", None)
    name = trained_on["instructions"]
    table = name.rpartition(":")[0]
    own = root.instructions(needed=False) if name == "on" else None
    recipe = TextRecipe(
        _view("query", trained_on["query"], store, allow_mismatch),
        _view("corpus", trained_on["corpus"], store, allow_mismatch),
        cast("TextRule", trained_on["rule"]),
        open_instructions(table) if table else own,
    )
    try:
        check_recipe(trained_on, recipe.fingerprint, allow_mismatch)
    except MismatchError as error:
        raise MismatchError(
            f"{error}. The store looked into is {store}; in a search, --allow-mismatch goes on"
        ) from error
    return recipe


def _view(side: Side, trained: str, store: Path | None, allow_mismatch: bool) -> TextView:
    """The view of the training; another one, to be refused or allowed, where it is not there.

    Of a mixture it is the named view, the one that tests show.
    """
    trained = next(iter(named_views(trained)), trained)
    view = trained.partition(":")[0]
    if view not in VIEWS:
        raise DataError(f"the checkpoint was trained on an unknown {side} view {view!r}")
    if view == "raw" or store is None:
        marked = [open_view(side, view, store, mark=mark) for mark in MARKS]
        return next((one for one in marked if one.name == trained), marked[0])
    opened = Store(store)
    names = [recipe.id for recipe in opened.recipes(side)]
    names += ["+".join(both) for both in permutations(names, 2)]
    for name, length, mark in product(names, LENGTHS, MARKS):
        checks = judged_under(opened, side, name)
        if TextView(side, view, {"id": name}, {}, length, checks, mark).name == trained:
            return open_view(side, view, store, name, length, mark)
    any_other = names[0] if names and not allow_mismatch else None
    return open_view(side, view, store, any_other)
