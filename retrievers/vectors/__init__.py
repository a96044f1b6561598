"""Vectors: made, kept, searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrievers.vectors.held import Vectors
    from retrievers.vectors.index import Index
    from retrievers.vectors.store import EmbeddingStore


def make_index(
    kind: str = "exact", made_by: str | None = None, device: str = "auto", parameters: str = ""
) -> Index[Vectors]:
    """Make an empty index.

    Args:
        kind: ``exact`` (blocked matrix product), a factory string of faiss such as
            ``IVF1024,Flat``, ``OPQ64,IVF4096,PQ64``, ``HNSW32`` or ``SQ8`` (int8), or ``milvus:``
            with a file (``milvus:vectors.db``) or a server (``milvus:http://host:19530``).
        made_by: fingerprint of what makes the vectors.
        device: of the exact one; ``auto`` takes a graphics card where there is one.
        parameters: of an approximate search, such as ``nprobe=32``.
    """
    if kind == "exact":
        import torch

        from retrievers.vectors.exact import MatrixIndex

        found = "cuda" if torch.cuda.is_available() else "cpu"
        return MatrixIndex(made_by, found if device == "auto" else device)
    if kind.startswith("milvus:"):
        from retrievers.vectors.milvus import milvus_index

        return milvus_index(kind.removeprefix("milvus:"), made_by, parameters)
    from retrievers.vectors.faiss import faiss_index

    return faiss_index(made_by, kind, parameters)


def open_index(store: EmbeddingStore) -> Index[Vectors]:
    """An exact index over all current vectors of a store, read where they lie."""
    index = make_index(made_by=store.made_by)
    live = store.live
    index.add(store.ids(live), store, store.made_by, live)
    return index
