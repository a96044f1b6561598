"""Encoders as folders of safetensors and JSON, on disk and on the Hugging Face Hub.

The folder of a score fusion of CLIP's towers is an open_clip folder too; nothing below this package
writes one, :func:`retrievers.models.load.load` reads them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from augment.data import DataRoot, format_text
from augment.errors import DataError, MismatchError
from augment.files import new_folder, say, write_sums, write_text
from retrievers.export.card import Form, Place, model_card

if TYPE_CHECKING:
    from retrievers.models.base import Encoder


def save(encoder: Encoder, folder: str | Path, card: str | None = None) -> Path:
    """Write an encoder so that :func:`retrievers.models.load.load` reads it.

    That of a score fusion of CLIP's towers is read by open_clip, too.

    Args:
        encoder: its weights as they are.
        folder: is made; files of the same names are replaced.
        card: text of ``README.md``; None makes one from what the checkpoint remembers.

    Returns:
        The folder.

    Raises:
        DataError: if the folder is a file.
        MismatchError: if its tokenizer cannot be saved, or low-rank updates are not merged.
    """
    from retrievers.export import open_clip
    from retrievers.models.load import OWN_WEIGHTS, SETTINGS
    from retrievers.models.tuning import is_tuned

    if is_tuned(encoder):
        raise MismatchError(
            "its towers have low-rank updates, which no other library reads; fit() and load() give "
            "an encoder that has them in its weights"
        )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise DataError("is a file; name a folder", str(target))
    target.mkdir(parents=True, exist_ok=True)
    clip: Any = getattr(encoder, "clip", None)
    if clip is not None:
        processor: Any = encoder.collator()
        open_clip.write_architecture(clip, processor, target)
    else:  # a model of transformers, with its config and tokenizer
        model: Any = encoder
        model.config.save_pretrained(target)
        collator = model.collator()
        reader = getattr(collator, "processor", None) or collator.tokenize.tokenizer
        reader.save_pretrained(target)
    if open_clip.is_open_clip(encoder):
        open_clip.write_weights(clip, target, encoder.logit_bias)
    else:
        open_clip.save_tensors(encoder.state_dict(), target / OWN_WEIGHTS)
    about = {
        "class": type(encoder).__qualname__,
        "settings": encoder.settings(),
        "text": encoder.trained_on or {},
        "origin": encoder.origin or {},
    }
    write_text(target / SETTINGS, json.dumps(about, indent=1, default=str) + "\n")
    text = model_card(encoder, target.resolve().name) if card is None else card
    write_text(target / "README.md", text)
    write_sums(target)
    return target


def push(
    encoder: Encoder,
    repo_id: str,
    card: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload retriever",
) -> str:
    """Upload an encoder; the repository is made if it is not there. Its address.

    Args:
        encoder: see :func:`save`.
        repo_id: ``owner/name``.
        card: see :func:`save`.
        private: whether a repository that is made is private; None as the Hub's default.
        token: of the Hub; None takes the one that is logged in.
        revision: branch.
        create_pr: open a pull request with the files.
        commit_message: of the upload.

    Raises:
        DataError: if the Hub refuses; says what it said.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = huggingface_hub.HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            if card is None:
                card = model_card(encoder, str(repo.repo_id).rpartition("/")[2])
            save(encoder, folder, card)
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


def export_to(
    encoder: Encoder,
    folder: str | Path,
    form: Form = "open_clip",
    card: str | None = None,
    root: str | Path | None = None,
) -> dict[str, float]:
    """Write a new folder for another library, load it with that library, compare the vectors.

    Args:
        encoder: its weights as they are; for peft an Mllm with its low-rank updates beside them.
        folder: nothing is there yet; it appears when it is whole and agrees.
        form: the library; for a reranker sentence-transformers' ``CrossEncoder``.
        card: see :func:`save`.
        root: data root, whose instructions become sentence-transformers' prompts.

    Returns:
        What was compared, and the least cosine with our own vectors over some texts and pictures,
        or the largest difference of scores; empty where open_clip has no such model and the folder
        is for ``load`` alone.

    Raises:
        DataError: if there is something under the name.
        MismatchError: if the library has no such architecture, or other vectors come out.
        EngineError: if the library is not installed.
    """
    from retrievers.export import language_models, open_clip, sentence_transformers
    from retrievers.models.mllm.encoder import Mllm

    if form == "peft" and not isinstance(encoder, Mllm):
        raise MismatchError("--to=peft is for multimodal language models; leave --to out")
    target = Path(folder)
    text = model_card(encoder, target.resolve().name, form=form) if card is None else card
    with new_folder(target) as partial:
        if form == "open_clip":
            save(encoder, partial, text)
            if not open_clip.is_open_clip(encoder):
                return {}
            return open_clip.agreement(encoder, open_clip.open_clip_encoders(partial))
        if isinstance(encoder, Mllm):
            if form == "peft":
                language_models.write_adapter(encoder, partial)
            else:
                language_models.write_folder(encoder, partial, _prompts(encoder, root))
            write_text(partial / "README.md", text)
            return language_models.agreement(encoder, partial)
        prompts = _prompts(encoder, root)
        sentence_transformers.write_sentence_transformers(encoder, partial, prompts)
        write_text(partial / "README.md", text)
        return open_clip.agreement(encoder, sentence_transformers.encoders_of(partial))


def export(
    out: str,
    checkpoint: Path | None = None,
    to: Literal[Form, Place] = "open_clip",
    embeddings: Path | None = None,
    metrics: Path | None = None,
    root: Path | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    name: str | None = None,
    push: str | None = None,
    private: bool = False,
    factory: str = "Flat",
) -> None:
    """Write a checkpoint as a folder that open_clip, sentence-transformers or peft loads.

    They need nothing of this package. The folder has a model card; its vectors, or a reranker's
    scores, are compared with ours. Or write a pool with its vectors, of ``--embeddings`` and
    ``--root``, as Parquet (LanceDB reads it), for faiss or into Milvus.

    Args:
        checkpoint: written by fit.
        out: new folder; of parquet a file, of milvus a file such as pool.db or an address.
        to: the library that loads it; an open_clip folder also loads here. sentence_transformers
            of a reranker is a CrossEncoder; peft has low-rank updates of a language model alone.
            parquet, faiss and milvus are for vectors.
        embeddings: folder that embed wrote.
        metrics: metrics.json of a test of these weights; default: the one of the checkpoint's run.
            For sentence_transformers of a model that writes, of a test with reasoning.when=never.
        root: data root, whose instructions become sentence-transformers' prompts, or whose pools
            were embedded.
        license: of the weights, as the Hub names it: apache-2.0.
        name: of the model in its card; default: the folder's. Of milvus the collection; pool.
        push: OWNER/NAME, to upload it too (open_clip only).
        private: make the repository private.
        factory: of a faiss index.
    """
    if to == "parquet" or to == "faiss" or to == "milvus":
        from retrievers.export.vectors import write_vectors

        number = write_vectors(embeddings, root, str(out), to, factory, name or "pool")
        say(f"{number:,} candidates with vectors: {out}")
        return
    if checkpoint is None:
        raise DataError("name a checkpoint with --checkpoint")
    if push and to != "open_clip":
        raise DataError("--push uploads the open_clip form; leave --to out")
    folder = Path(out)
    if folder.exists():
        if not folder.is_dir() or any(folder.iterdir()):
            raise DataError("is there already; name a new folder with --out", str(folder))
        folder.rmdir()
    from retrievers.models.load import from_checkpoint, load
    from retrievers.models.mllm.encoder import Mllm

    encoder = load(checkpoint)
    if to == "sentence_transformers" and isinstance(encoder, Mllm) and encoder.silence():
        say("the folder embeds directly; what the model writes before its vectors is left out")
    measured = _metrics(encoder, checkpoint, metrics)
    card = model_card(encoder, name or folder.resolve().name, measured, license, to)
    if to == "peft":
        encoder = from_checkpoint(checkpoint, merged=False)
    for compared, value in export_to(encoder, folder, to, card, root).items():
        say(f"{compared} {value:.6f}")
    say(folder)
    if push:
        say(_upload(encoder, push, card, private=private))


#: :func:`export` has an option of this name.
_upload = push


def _metrics(encoder: Encoder, checkpoint: Path, given: Path | None) -> Mapping[str, Any] | None:
    path = given or checkpoint.parent.parent / "metrics.json"
    if given is None and not path.is_file():
        return None
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_by, text = metrics["made_by"], metrics["settings"]["data"]["text"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is no metrics.json of a test ({type(error).__name__}: {error})", str(path)
        ) from error
    if made_by == encoder.fingerprint(text):
        return metrics
    if given is not None:
        raise MismatchError(
            f"{path} was measured with other weights or text (fingerprint {made_by}); test this "
            "checkpoint, or leave --metrics out"
        )
    return None


def _prompts(encoder: Encoder, root: str | Path | None) -> dict[str, str]:
    """First instruction of each kind of query, by data set and modalities."""
    trained = encoder.trained_on or {}
    if root is None or trained.get("instructions") != "on":
        return {}
    rule: Any = trained.get("rule", "plain")
    rows = DataRoot(Path(root)).instructions().rows
    return {
        f"{row.dataset_name}: {row.query_modality} -> {row.candidate_modality}": format_text(
            row.prompts[0], rule
        )
        + " "
        for row in rows
    }
