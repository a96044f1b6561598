"""The candidates that a search looks through: which pools, embedded and indexed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from augment.errors import DataError
from augment.mbeir import DataRoot
from augment.records import Side
from retrievers.base import Retriever
from retrievers.dataset import ImageLoader, ItemDataset, Reader
from retrievers.index import MatrixIndex
from retrievers.inputs import Inputs, ItemCollator
from retrievers.plan import Embedder, Plan
from retrievers.texts import TextRecipe

_BATCH = 128


def open_pools(root: DataRoot, names: Sequence[str] = ()) -> Plan:
    """The candidates of some local pools, each id once.

    Args:
        root: the data.
        names: data sets (``flags``) or single pools (``flags_task0``); none takes all local pools,
            and where the root has none, its union pools.

    Raises:
        DataError: if there are no such pools or they hold nothing.
    """
    pools = root.pools()
    files = [file.path for file in pools or root.union_pools()]
    if not files:
        raise DataError(
            "no candidate pool in cand_pool/local or cand_pool/global; check the root with "
            "`python -m augment.validate`",
            str(root.path),
        )
    if names:
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
        files = list(dict.fromkeys(path for name in names for path in by_name[name]))
    plan = Plan()
    for path in files:
        plan.add_pool(path.name, path)
    if not len(plan):
        raise DataError("its pools hold no candidate", str(root.path))
    return plan


def embed(
    retriever: Retriever, recipe: TextRecipe, root: DataRoot, plan: Plan
) -> tuple[MatrixIndex, list[str]]:
    """An exact index of all candidates, and what a user should know about it.

    Raises:
        DataError: if none can be embedded.
    """
    reader = Reader(recipe, ImageLoader(root.path, retriever.processor), "skip")
    loader: DataLoader[object] = DataLoader(
        ItemDataset(len(plan), Embedder(plan, reader).candidate),
        batch_size=_BATCH,
        collate_fn=ItemCollator(retriever.processor),
    )
    made_by = retriever.fingerprint_for(recipe.fingerprint)
    index = MatrixIndex(made_by, str(retriever.device))
    ids = plan.ids
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
        raise DataError("no candidate could be embedded", str(root.path))
    index.add([ids[row] for row in rows], torch.cat(parts), made_by)
    return index, _notes(failed, degraded)


def encode(retriever: Retriever, inputs: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
    """Unit vectors on the CPU."""
    with torch.inference_mode():
        device = retriever.device
        moved = Inputs(inputs.size, *(part.to(device) for part in inputs[1:]))
        return retriever.encode(moved, side).float().cpu()


def _notes(failed: int, degraded: int) -> list[str]:
    kinds = {
        "candidates are left out: no text, and no picture that can be read": failed,
        "candidates are found by their text alone: their picture cannot be read": degraded,
    }
    return [f"{number:,} {what}" for what, number in kinds.items() if number]
