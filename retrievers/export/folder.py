"""Retrievers as folders of safetensors and JSON, on disk and on the Hugging Face Hub.

The folder of :class:`~retrievers.models.clip.ClipScoreFusion` is an open_clip folder too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import cast

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from augment.errors import DataError, MismatchError
from augment.files import write_text
from retrievers.export.card import model_card
from retrievers.export.open_clip import (
    save_tensors,
    write_architecture,
    write_weights,
)
from retrievers.models.base import Encoder
from retrievers.models.blip import BlipFeatureFusion, BlipScoreFusion, BlipTokenizer
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.load import OWN_WEIGHTS, SETTINGS


def save(retriever: Encoder, folder: str | Path, card: str | None = None) -> Path:
    """Write a retriever so that :func:`retrievers.models.load.load` and, for score fusion, open_clip read it.

    Args:
        retriever: its weights as they are.
        folder: is made; files of the same names are replaced.
        card: text of ``README.md``; None makes one from what the checkpoint remembers.

    Raises:
        MismatchError: if its tokenizer cannot be saved, or low-rank updates are not merged.
    """
    if any(".lora_" in name for name, _ in retriever.named_parameters()):
        raise MismatchError(
            "its towers have low-rank updates, which no other library reads; fit() and load() give "
            "an encoder that has them in its weights"
        )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise DataError("is a file; name a folder", str(target))
    target.mkdir(parents=True, exist_ok=True)
    if isinstance(retriever, ClipScoreFusion | ClipFeatureFusion):
        write_architecture(retriever.clip, retriever.collator(), target)
    if isinstance(retriever, BlipScoreFusion | BlipFeatureFusion):
        retriever.config.save_pretrained(target)
        cast("BlipTokenizer", retriever.collator().tokenize).tokenizer.save_pretrained(target)
    if isinstance(retriever, ClipScoreFusion):
        write_weights(retriever.clip, target, retriever.logit_bias)
    else:
        save_tensors(retriever.state_dict(), target / OWN_WEIGHTS)
    told = {
        "class": type(retriever).__qualname__,
        "settings": retriever.settings(),
        "text": retriever.trained_on or {},
        "origin": retriever.origin or {},
    }
    write_text(target / SETTINGS, json.dumps(told, indent=1, default=str) + "\n")
    text = model_card(retriever, target.resolve().name) if card is None else card
    write_text(target / "README.md", text)
    return target


def push(
    retriever: Encoder,
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
