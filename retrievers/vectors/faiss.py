"""faiss: any index of its factory."""

from __future__ import annotations

import re
from typing import Any, cast

import faiss
import numpy as np
from jaxtyping import Int64
from torch import Tensor

from augment.errors import DataError
from retrievers.vectors.approximate import ApproximateIndex, Fetch
from retrievers.vectors.held import Vectors

#: Vectors added at a time.
_BLOCK = 65_536
#: k-means learns little from more points per centroid (faiss's own limit).
_POINTS = 256
#: Vectors that a training reads at most.
_MOST_POINTS = 1_000_000


def faiss_index(
    made_by: str | None = None, factory: str = "HNSW32", parameters: str = ""
) -> ApproximateIndex:
    """An index made by a factory string of faiss (``IVF1024,PQ64``, ``HNSW32``, ``SQ8``).

    Args:
        made_by: see :class:`retrievers.vectors.index.Index`.
        factory: of faiss's ``index_factory``; int8 is ``SQ8``.
        parameters: of faiss's ``ParameterSpace``, such as ``nprobe=32`` or ``efSearch=128``.

    Returns:
        An empty index. Its ``build`` raises :class:`~augment.errors.DataError` if the factory
        string, its parameters or the number of vectors do not do.
    """

    def make(held: Vectors, _: str) -> Fetch:
        index = built(held, factory, parameters)

        def fetch(queries: Tensor, k: int) -> Int64[np.ndarray, "queries k"]:
            return cast("np.ndarray", index.search(np.ascontiguousarray(queries.numpy()), k)[1])

        return fetch

    return ApproximateIndex(f"{factory} {parameters}", make, made_by)


def built(held: Vectors, factory: str, parameters: str = "") -> Any:
    """An index of faiss over vectors; see :func:`faiss_index`."""
    try:
        index = faiss.index_factory(held.dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            # All vectors, or as many as k-means makes use of, drawn with a seed.
            lists = [int(number) for number in re.findall(r"IVF(\d+)", factory)]
            wanted = min(len(held), _MOST_POINTS, _POINTS * max([*lists, 256]))
            rows = np.random.default_rng(0).choice(len(held), wanted, replace=False)
            index.train(np.ascontiguousarray(held.take(np.sort(rows)), dtype=np.float32))
        for _first, block in held.blocks(_BLOCK):
            index.add(np.ascontiguousarray(block, dtype=np.float32))
        if parameters:
            space: Any = faiss.ParameterSpace()
            space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(
            f"faiss cannot make {factory!r} {parameters!r} of {len(held)} vectors of "
            f"{held.dim} dimensions: {last}; PQ needs a divisor of the dimensions, IVF fewer "
            "lists than vectors; parameters are such as nprobe=32"
        ) from error
    return index
