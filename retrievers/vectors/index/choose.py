"""The index for the hardware at hand, or the one that was asked for."""

from __future__ import annotations

import torch

from retrievers.vectors.index.approximate import FaissIndex
from retrievers.vectors.index.base import VectorIndex
from retrievers.vectors.index.exact import MatrixIndex


def make_index(
    kind: str = "exact", made_by: str | None = None, device: str = "auto", parameters: str = ""
) -> VectorIndex:
    """Make an empty index.

    Args:
        kind: ``exact`` (blocked matrix product), ``faiss`` (its flat index) or a factory string of
            faiss such as ``IVF1024,Flat``, ``OPQ64,IVF4096,PQ64``, ``HNSW32`` or ``SQ8`` (int8).
        made_by: fingerprint of what makes the vectors.
        device: of the exact one; ``auto`` takes a graphics card where there is one.
        parameters: of faiss, such as ``nprobe=32``.
    """
    if kind == "exact":
        found = "cuda" if torch.cuda.is_available() else "cpu"
        return MatrixIndex(made_by, found if device == "auto" else device)
    return FaissIndex(made_by, "Flat" if kind == "faiss" else kind, parameters)
