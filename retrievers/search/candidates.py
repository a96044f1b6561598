"""The candidates that a search looks through: which pools, and an index of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.errors import DataError
from augment.records import Side
from retrievers.data.datasets import ImageLoader, ItemDataset, Reader
from retrievers.data.examples import Inputs, ItemCollator
from retrievers.data.plan import Embedder, Plan
from retrievers.data.texts import TextRecipe
from retrievers.training.base import Retriever
from retrievers.vectors import make_index
from retrievers.vectors.index import Index, Vectors
from retrievers.vectors.store import EmbeddingStore

_BATCH = 128


@dataclass(frozen=True)
class Candidates:
    """An index, and what a user should know about it."""

    index: Index[Vectors]
    notes: list[str]


def pool_files(root: DataRoot, names: Sequence[str] = ()) -> list[Path]:
    """The files of some local pools.

    Args:
        root: the data.
        names: data sets (``flags``) or single pools (``flags_task0``); none takes all local pools,
            and where the root has none, its union pools.

    Raises:
        DataError: if there are no such pools.
    """
    pools = root.pools()
    files = [file.path for file in pools or root.union_pools()]
    if not files:
        raise DataError(
            "no candidate pool in cand_pool/local or cand_pool/global; check the root with "
            "`python -m augment validate`",
            str(root.path),
        )
    if not names:
        return files
    by_name: dict[str, list[Path]] = {}
    for dataset, task, path in pools:
        for name in {dataset, dataset if task is None else f"{dataset}_task{task}"}:
            by_name.setdefault(name, []).append(path)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise DataError(
            f"no pool named {', '.join(unknown)}; there are {', '.join(sorted(by_name))}",
            str(root.path),
        )
    return list(dict.fromkeys(path for name in names for path in by_name[name]))


def embed(
    retriever: Retriever, recipe: TextRecipe, root: DataRoot, files: Sequence[Path], device: str
) -> Candidates:
    """Embed the candidates of some pools, each id once, and keep the vectors in memory.

    Raises:
        DataError: if there is no candidate, or none that can be embedded.
    """
    plan = Plan()
    for path in files:
        plan.add_pool(path.name, path)
    reader = Reader(recipe, ImageLoader(root.path, retriever.processor), "skip")
    loader = DataLoader(
        ItemDataset(len(plan), Embedder(plan, reader).candidate),
        batch_size=_BATCH,
        collate_fn=ItemCollator(retriever.processor),
    )
    made_by = retriever.fingerprint_for(recipe.fingerprint)
    failed = degraded = 0
    parts: list[Tensor] = []
    rows: list[int] = []
    for batch in tqdm(loader, desc="embedding", unit="batch", leave=False, disable=None):
        failed += len(batch.failed)
        degraded += len(batch.degraded)
        if batch.inputs.size:
            parts.append(encode(retriever, batch.inputs, "corpus"))
            rows.extend(batch.rows.tolist())
    if not rows:
        raise DataError("its pools hold no candidate that can be embedded", str(root.path))
    index = make_index("exact", made_by, device)
    index.add(plan.catalog.names(np.array(rows)), torch.cat(parts), made_by)
    return Candidates(index, _notes(failed, degraded))


def read_embeddings(
    folder: Path, made_by: str, files: Sequence[Path], device: str = "auto"
) -> Candidates:
    """The candidates of some pools with the vectors that ``embed`` left, read where they lie.

    Vectors go by id: a candidate that changed after embedding is found by what it was then.

    Args:
        folder: of ``python -m retrievers embed``, or its ``corpus`` folder.
        made_by: fingerprint of weights and text.
        files: pool files.
        device: of the search.

    Raises:
        StoreError: if there are no embeddings, or unfinished or damaged ones.
        MismatchError: if other weights or text made them.
        DataError: if they hold no candidate of these pools.
    """
    inner = folder / "corpus"
    # Checksums are compared, a second or two per GB: exact search reads every vector anyway.
    store = EmbeddingStore.open(inner if inner.is_dir() else folder, made_by)
    live = store.live
    wanted = pc.unique(pa.chunked_array([c for path in files for c in _ids(path).chunks]))
    found = pc.index_in(wanted, value_set=store.ids(live))
    kept = wanted.filter(pc.is_valid(found))
    if not len(kept):
        raise DataError("holds no vector of these pools; embed the same root", str(store.folder))
    rows = live[found.drop_null().to_numpy()]
    index = make_index("exact", store.made_by, device)
    index.add(kept, store, store.made_by, rows)
    return Candidates(
        index, _notes(len(wanted) - len(kept), int(np.count_nonzero(store.degraded[rows])))
    )


def datasets(files: Sequence[Path]) -> set[str]:
    """Ids of the data sets whose candidates these pools hold."""
    found: set[str] = set()
    for path in files:
        for chunk in _ids(path).chunks:
            numbers = pc.replace_substring_regex(chunk, pattern=":.*$", replacement="")
            found.update(pc.unique(numbers).to_pylist())
    return found


def _ids(path: Path) -> pa.ChunkedArray:
    return open_candidates(path).ids.cast(pa.large_string())


def encode(retriever: Retriever, inputs: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
    """Unit vectors on the CPU."""
    with torch.inference_mode():
        device = retriever.device
        moved = Inputs(inputs.size, *(part.to(device) for part in inputs[1:]))
        return retriever.encode(moved, side).float().cpu()


def _notes(failed: int, degraded: int) -> list[str]:
    kinds = {
        "candidates left out, without a vector: no text, and no picture that can be read": failed,
        "candidates found by their text alone, because their picture cannot be read": degraded,
    }
    return [f"{what}: {number:,}" for what, number in kinds.items() if number]
