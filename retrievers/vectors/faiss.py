"""faiss: any index of its factory, with the recall it really has."""

from __future__ import annotations

import re
from typing import Any, final

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from augment.errors import DataError
from retrievers.vectors.approximate import ApproximateIndex

#: Vectors added at a time.
_BLOCK = 65_536
#: k-means learns little from more points per centroid (faiss's own limit).
_POINTS = 256
#: Vectors that a training reads at most.
_MOST_POINTS = 1_000_000


@final
class FaissIndex(ApproximateIndex):
    """An index made by a factory string of faiss (``IVF1024,PQ64``, ``HNSW32``, ``SQ8``).

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
        super().__init__(f"{factory} {parameters}", made_by, refine, sample)
        self.factory = factory
        self.parameters = parameters
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
            if self.parameters:
                space: Any = faiss.ParameterSpace()
                space.set_index_parameters(index, self.parameters)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise DataError(
                f"faiss cannot make {self.factory!r} {self.parameters!r} of {len(self)} vectors of "
                f"{self.held.dim} dimensions: {last}; PQ needs a divisor of the "
                "dimensions, IVF fewer lists than vectors; parameters are such as nprobe=32"
            ) from error
        self._index = index

    def _changed(self) -> None:
        super()._changed()
        self._index = None

    def _training(self) -> Float32[np.ndarray, "n dim"]:
        """Vectors to train on: all, or as many as k-means makes use of, drawn with a seed."""
        lists = [int(number) for number in re.findall(r"IVF(\d+)", self.factory)]
        wanted = min(len(self), _MOST_POINTS, _POINTS * max([*lists, 256]))
        rows = np.random.default_rng(0).choice(len(self), wanted, replace=False)
        return np.ascontiguousarray(self.held.take(np.sort(rows)), dtype=np.float32)

    def _fetch(self, queries: Tensor, k: int) -> Int64[np.ndarray, "queries k"]:
        rows: np.ndarray = self._index.search(np.ascontiguousarray(queries.numpy()), k)[1]
        return rows
