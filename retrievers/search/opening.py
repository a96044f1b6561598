"""What a searcher opens: texts to read and to show, an index of words, vectors of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from augment.data import DataRoot
from augment.data.pools import Catalog
from augment.errors import DataError
from augment.store import Store
from augment.views import TextView, open_view
from retrievers.data.texts import TextRecipe
from retrievers.search.candidates import Candidates, embed, read_embeddings
from retrievers.training.base import Retriever
from retrievers.vectors.bm25 import Bm25Index
from retrievers.vectors.store import read_manifest


def words_view(store: Path | None) -> TextView:
    """Published text, and generated text behind it where there is some."""
    if store is None or not Store(store).recipes("corpus"):
        return open_view("corpus", "raw")
    return open_view("corpus", "append", store)


def shown_view(read: TextView, store: Path | None) -> TextView:
    """The view that generated texts are shown from: the retriever's, else whatever is there."""
    if read.view != "raw" or store is None or not Store(store).recipes("corpus"):
        return read
    return open_view("corpus", "append", store)


def index_words(files: Sequence[Path], recipe: TextRecipe) -> Bm25Index:
    """All candidates of some pools, by the text that a recipe makes of them."""
    catalog = Catalog()
    for path in files:
        catalog.add(path)
    index = Bm25Index()
    texts = [recipe.candidate(item) or "" for item in catalog.items()]
    index.add(catalog.names(np.arange(len(catalog))), texts, "words")
    index.build()
    return index


def device_named(name: str) -> str:
    """A device of torch; ``auto`` takes a graphics card where there is one.

    Raises:
        DataError: if there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"no device {name!r} here; use auto, cpu, cuda or cuda:N") from error
    return name


def open_vectors(
    retriever: Retriever,
    recipe: TextRecipe,
    data: DataRoot,
    files: Sequence[Path],
    device: str,
    checkpoint: str | Path,
    given: str | Path | None,
) -> Candidates:
    """The candidates' vectors: of the folder given or found beside the checkpoint, else made now.

    Raises:
        StoreError: if the folder given cannot be read.
        MismatchError: if it is not of this checkpoint and text.
    """
    folder = _embeddings(checkpoint, given)
    made_by = retriever.fingerprint_for(recipe.fingerprint)
    found: Candidates | None = None
    if folder is not None and (given is not None or _is_of(folder, made_by)):
        found = read_embeddings(folder, made_by, files, device)
    return found if found is not None else embed(retriever, recipe, data, files, device)


def _embeddings(checkpoint: str | Path, given: str | Path | None) -> Path | None:
    """The folder that ``embed`` fills unless told otherwise: beside that of the checkpoints."""
    if given is not None:
        return Path(given)
    beside = Path(checkpoint).parent.parent / "embeddings"
    return beside if (beside / "corpus").is_dir() else None


def _is_of(folder: Path, made_by: str) -> bool:
    """Whether there are finished embeddings of this checkpoint and text."""
    manifest = read_manifest(folder / "corpus")
    return manifest is not None and manifest.complete and manifest.made_by == made_by
