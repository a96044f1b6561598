"""What an approximate search loses, measured against the exact one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from retrievers.vectors.index.base import VectorIndex
from retrievers.vectors.index.exact import MatrixIndex


class Recall(NamedTuple):
    """True recall@k of an index: the share of the exact top k that it finds.

    Attributes:
        name: of the index.
        k: depth.
        mean: over the queries.
        worst: of the worst query.
        queries: in the sample.
        candidates: in the index.
    """

    name: str
    k: int
    mean: float
    worst: float
    queries: int
    candidates: int

    def __str__(self) -> str:
        return (
            f"{self.name} is approximate: true recall@{self.k} against exact search "
            f"{self.mean:.4f} (worst query {self.worst:.4f}), {self.queries} queries, "
            f"{self.candidates:,} candidates"
        )


def measure_recall(
    index: VectorIndex,
    vectors: Float32[Tensor, "queries dim"],
    k: int,
    name: str = "",
    sample: int = 256,
    device: str = "cpu",
) -> Recall:
    """Compare an index with exact search over the same vectors.

    Args:
        index: what is measured.
        vectors: queries; at most ``sample`` of them, evenly spaced, are searched.
        k: depth, at most the size of the index.
        name: of the index, for people.
        sample: at least 1.
        device: where the exact search runs.
    """
    if sample < 1:
        raise ValueError(f"a sample needs at least one query, got {sample}")
    chosen = vectors[:: max(1, -(-len(vectors) // sample))]
    exact = MatrixIndex(index.made_by, device)
    exact.share(index)
    true = exact.search(chosen, k).rows
    found = index.search(chosen, k).rows
    shares = [np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]
    return Recall(
        name or type(index).__name__,
        k,
        float(np.mean(shares)),
        float(np.min(shares)),
        len(chosen),
        len(index),
    )
