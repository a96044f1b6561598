"""Retrievers as folders of safetensors and JSON, on disk and on the Hugging Face Hub.

The folder of :class:`~retrievers.models.clip.ClipScoreFusion` is an open_clip folder too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from augment.errors import DataError, MismatchError
from augment.files import write_text
from retrievers.export.card import model_card
from retrievers.export.open_clip import (
    CONFIG,
    WEIGHTS,
    save_tensors,
    write_architecture,
    write_weights,
)
from retrievers.models.blip import BlipRetriever
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.loading import build
from retrievers.training.base import Retriever

#: What the retriever is, and which text it was trained on.
SETTINGS = "retriever.json"
#: Weights of retrievers that open_clip does not know.
OWN_WEIGHTS = "model.safetensors"
#: Architecture of a BLIP, as transformers writes it.
BLIP_CONFIG = "config.json"
#: Nothing else is fetched: no pickle, no code.
_FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")


def save(retriever: Retriever, folder: str | Path, card: str | None = None) -> Path:
    """Write a retriever so that :func:`load` and, for score fusion, open_clip read it.

    Args:
        retriever: its weights as they are.
        folder: is made; files of the same names are replaced.
        card: text of ``README.md``; None makes one from what the checkpoint remembers.

    Raises:
        MismatchError: if its tokenizer cannot be saved, or low-rank updates are not merged.
    """
    if "tuning" in retriever.describe():
        raise MismatchError(
            "its towers are tuned in part or by low-rank updates, which no other library reads; "
            "call merge_lora() first, after which it is not trained on"
        )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise DataError("is a file; name a folder", str(target))
    target.mkdir(parents=True, exist_ok=True)
    clip = getattr(retriever, "clip", None)
    if clip is not None:
        write_architecture(clip, retriever.processor, target)
    if isinstance(retriever, BlipRetriever):
        retriever.write_architecture(target)
    if isinstance(retriever, ClipScoreFusion):
        write_weights(retriever.clip, target, retriever.logit_bias)
    else:
        save_tensors(retriever.state_dict(), target / OWN_WEIGHTS)
    told = {
        "class": type(retriever).__qualname__,
        "settings": retriever.describe(),
        "text": retriever.trained_on or {},
        "origin": retriever.origin or {},
    }
    write_text(target / SETTINGS, json.dumps(told, indent=1, default=str) + "\n")
    text = model_card(retriever, target.resolve().name) if card is None else card
    write_text(target / "README.md", text)
    return target


def load(
    name: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Retriever:
    """A retriever from a folder that :func:`save` wrote, or from a repository on the Hub.

    An open_clip folder or repository without ``retriever.json`` becomes a score-fusion retriever
    that was not trained here.

    Args:
        name: folder, or ``owner/name``.
        revision: branch, tag or commit of a repository.
        token: of the Hub; None takes the one that is logged in.
        cache_dir: where repositories are kept.
        local_files_only: take what is in the cache and fetch nothing.

    Raises:
        DataError: if there is no such folder or repository, or it holds no retriever.
        MismatchError: if weights and settings do not fit each other.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _fetched(str(name), revision, token, cache_dir, local_files_only)
    if not (folder / SETTINGS).is_file():
        if not (folder / CONFIG).is_file():
            raise DataError(
                f"holds neither {SETTINGS} nor {CONFIG}; name a folder that save_pretrained or "
                "`python -m retrievers export` wrote",
                str(name),
            )
        if not any(folder.glob("*.safetensors")):
            raise DataError(
                "holds no weights as safetensors, and no other kind is loaded; convert them with "
                "safetensors.torch.save_file, or name a model that has them",
                str(name),
            )
        return ClipScoreFusion(f"local-dir:{folder}").eval()
    told = _settings(folder / SETTINGS)
    settings = dict(told["settings"])
    here = dict(settings)
    if (folder / CONFIG).is_file():
        here["model_name"] = f"local-dir:{folder}"
        # The folder's model has its positions stretched already; windows are read outside it.
        windows = dict(settings.get("text") or {}).get("windows", 1)
        here["text"] = {"windows": windows}
    elif (folder / BLIP_CONFIG).is_file():
        here["model_name"] = str(folder)
    retriever = build(str(told["class"]), here, str(folder / SETTINGS))
    _load_weights(retriever, folder)
    # What made a vector is what it was, wherever the folder lies.
    retriever.remember(settings)
    retriever.trained_on = dict(told.get("text") or {}) or None
    retriever.origin = dict(told.get("origin") or {}) or None
    return retriever.eval()


def push(
    retriever: Retriever,
    repo_id: str,
    card: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload retriever",
) -> str:
    """Upload a retriever; the repository is made if it is not there. Its address.

    Raises:
        DataError: if the Hub refuses; says what it said.
    """
    api = huggingface_hub.HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            if card is None:
                card = model_card(retriever, str(repo.repo_id).rpartition("/")[2])
            save(retriever, folder, card)
            api.upload_folder(
                repo_id=repo.repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(
            f"cannot be uploaded: {str(error)[:300]}; log in with `hf auth login`, and name a "
            "repository of yours as owner/name",
            repo_id,
        ) from error
    return str(repo)


def _fetched(
    name: str,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(_FETCHED),
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise DataError(
            f"is no folder, and cannot be had from the Hub: {str(error)[:300]}; check the name "
            "(owner/name), the network and the token",
            name,
        ) from error


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        dict(told["settings"]), str(told["class"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is not what save_pretrained writes ({type(error).__name__}: {error}); export the "
            "checkpoint again",
            str(path),
        ) from error
    return dict(told)


def _load_weights(retriever: Retriever, folder: Path) -> None:
    score_fusion = isinstance(retriever, ClipScoreFusion)
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
    try:
        retriever.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(
            f"{path} does not fit the settings beside it: {str(error)[:300]}; export again"
        ) from error
