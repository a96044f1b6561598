"""faiss: any index of its factory, with the recall it really has."""

from __future__ import annotations

from typing import Any, final

import faiss
import numpy as np
from jaxtyping import Float32
from torch import Tensor

from augment.errors import DataError
from retrievers.vectors.exact import tell_recall
from retrievers.vectors.held import Vectors
from retrievers.vectors.index import Index, Nearest

#: Candidates fetched beyond k.
_SPARE = 16
#: Vectors added at a time.
_BLOCK = 65_536
#: k-means learns little from more points per centroid (faiss's own limit).
_POINTS = 256
#: Vectors that a training reads at most.
_MOST_POINTS = 1_000_000


@final
class FaissIndex(Index[Vectors]):
    """An index made by a factory string of faiss (``IVF1024,PQ64``, ``HNSW32``, ``SQ8``).

    It fetches ``refine * k`` candidates and scores those again from the vectors
    themselves, so a score is always exact; what may be missing are candidates. At the first search
    of each depth the true recall is measured against exact search and printed.

    Args:
        made_by: see :class:`retrievers.vectors.index.Index`.
        factory: of faiss's ``index_factory``; int8 is ``SQ8``.
        parameters: of faiss's ``ParameterSpace``, such as ``nprobe=32`` or ``efSearch=128``.
        refine: candidates fetched per wanted one.
        sample: queries that measure the recall.
    """

    def __init__(
        self,
        made_by: str | None = None,
        factory: str = "HNSW32",
        parameters: str = "",
        refine: int = 4,
        sample: int = 256,
    ) -> None:
        super().__init__(Vectors(), made_by)
        if refine < 1 or sample < 1:
            raise ValueError(f"refine and sample must be at least 1, got {refine} and {sample}")
        self.factory = factory
        self.parameters = parameters
        self._refine = refine
        self._sample = sample
        self._index: Any = None

    def build(self) -> None:
        """Train and fill now, rather than at the first search.

        Raises:
            DataError: if the factory string, its parameters or the number of vectors do not do.
        """
        if self._index is not None:
            return
        if not len(self):
            raise DataError("the index is empty; add candidates first")
        try:
            index = faiss.index_factory(self.held.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(self._training())
            for _, block in self.held.blocks(_BLOCK):
                index.add(np.ascontiguousarray(block, dtype=np.float32))
            self._set_parameters(index)
        except RuntimeError as error:
            raise DataError(
                f"faiss cannot make {self.factory!r} {self.parameters!r} of {len(self)} vectors of "
                f"{self.held.dim} dimensions: {_last_line(error)}; PQ needs a divisor of the "
                "dimensions, IVF fewer lists than vectors; parameters are such as nprobe=32"
            ) from error
        self._index = index

    def _changed(self) -> None:
        self._index = None
        self.recall = {}

    def _training(self) -> Float32[np.ndarray, "n dim"]:
        """Vectors to train on: all, or as many as k-means makes use of, drawn with a seed."""
        lists = [int(n) for n in _numbers(self.factory)] or [256]
        wanted = min(len(self), _MOST_POINTS, max(_POINTS * max(*lists, 256), 65_536))
        rows = np.random.default_rng(0).choice(len(self), wanted, replace=False)
        return np.ascontiguousarray(self.held.take(np.sort(rows)), dtype=np.float32)

    def _set_parameters(self, index: Any) -> None:
        if self.parameters:
            space: Any = faiss.ParameterSpace()
            space.set_index_parameters(index, self.parameters)

    def _find(self, queries: Tensor, k: int) -> Nearest:
        self.build()
        told = f"{self.factory} {self.parameters}".strip()
        tell_recall(self, queries, k, told, self._sample)
        wide = min(max(self._refine * k, k + _SPARE), len(self))
        rows = self._index.search(np.ascontiguousarray(queries.numpy()), wide)[1]
        found = self._rank(rows, self.held.rescore(queries, rows))
        return Nearest(found.rows[:, :k], found.scores[:, :k])


def _numbers(factory: str) -> list[str]:
    """Numbers of inverted lists in a factory string."""
    return [p[3:].split("_")[0] for p in factory.split(",") if p.startswith("IVF") and p[3:4] != ""]


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
