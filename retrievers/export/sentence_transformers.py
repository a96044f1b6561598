"""A sentence-transformers folder: ``SentenceTransformer(FOLDER)`` loads it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from augment.errors import DataError, EngineError, MismatchError
from retrievers.export.transformers import to_transformers
from retrievers.models.base import Encoder
from retrievers.models.clip import ClipScoreFusion


def import_sentence_transformers() -> Any:
    """The library.

    Raises:
        EngineError: if it is not installed.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise EngineError(
            "sentence-transformers is not installed; pip install "
            "'reasoning-augmented-retrieval[sentence-transformers]'"
        ) from error
    return sentence_transformers


def write_sentence_transformers(
    retriever: Encoder, folder: Path, prompts: dict[str, str] | None = None
) -> None:
    """Write transformers' ``CLIPModel``, its processor, and the modules around them.

    Vectors are features of one tower, made unit vectors only if the retriever normalises its
    towers: so the sum of a text's and a picture's vector is that of the item with both, up to its
    length, which cosine ignores.

    Args:
        retriever: score fusion.
        folder: is made.
        prompts: name -> beginning of a text, for ``encode(..., prompt_name=)``.

    Raises:
        MismatchError: if the architecture has no counterpart; says why.
        EngineError: if sentence-transformers is not installed.
        DataError: if the folder holds something else.
    """
    if not isinstance(retriever, ClipScoreFusion):
        raise MismatchError(
            f"a {type(retriever).__name__} fuses text and picture in layers that no class of "
            "sentence-transformers has; only score fusion goes there. Export it with --to=open_clip"
        )
    if folder.exists() and any(folder.iterdir()):
        raise DataError("is not empty; name a new folder", str(folder))
    model, tokenizer, image_processor = to_transformers(retriever.clip, retriever.collator())
    library = import_sentence_transformers()
    from transformers import CLIPProcessor

    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        processor = CLIPProcessor(image_processor, tokenizer)  # type: ignore[no-untyped-call]
        processor.save_pretrained(made)
        modules = [library.sentence_transformer.modules.Transformer(made)]
        if retriever.settings()["normalize_towers"]:
            modules.append(library.sentence_transformer.modules.Normalize())
        whole = library.SentenceTransformer(
            modules=modules, prompts=prompts or {}, similarity_fn_name="cosine", device="cpu"
        )
        whole.save_pretrained(str(folder), create_model_card=False)
