"""Vectors that an index holds: in memory, or as views of files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError
from retrievers.evaluation.run import DECIMALS

#: Rows that are scored anew at a time: 1,024 x 768 doubles are 6 MB, which the cache holds; sixteen
#: times as many took twice as long.
_RESCORED = 1024


class VectorSource(Protocol):
    """Vectors by row, in memory or in files."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    def __len__(self) -> int: ...

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Vectors of some rows, in 16 or 32 bits."""


@final
class Matrix:
    """Vectors in memory, or mapped."""

    def __init__(self, vectors: Float[np.ndarray, "n dim"]) -> None:
        self._vectors = vectors
        self.dim = int(vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: Int64[np.ndarray, " k"]) -> Float[np.ndarray, "k dim"]:
        """Some rows; a run of them is not copied."""
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self._vectors[rows[0] : rows[-1] + 1]
        return np.asarray(self._vectors[rows])


@final
class Vectors:
    """Vectors by row of an index, in memory or as views of files.

    Attributes:
        dim: dimension; 0 while there are none.
    """

    kind = "vectors"

    def __init__(self) -> None:
        self._parts: list[tuple[int, VectorSource, Int64[np.ndarray, " n"] | None]] = []
        self._size = 0
        self.dim = 0

    def __len__(self) -> int:
        return self._size

    def only(self, rows: Int64[np.ndarray, " n"]) -> Vectors:
        """Some of the rows; nothing is copied."""
        some = Vectors()
        some.append(self, rows)
        return some

    def checked(self, ids: Any, items: Tensor | VectorSource) -> VectorSource:
        """Vectors as a source; those in memory must be finite."""
        if not isinstance(items, Tensor):
            self._refuse_unlike(torch.empty(0, items.dim))
            return items
        self._refuse_unlike(items)
        vectors = items.detach().float().cpu()
        bad = _not_finite(vectors)
        if len(bad) and len(ids) == len(vectors):
            raise DataError(
                f"vector is not finite; {len(bad)} such vectors; look at the model or at its "
                "precision",
                str(ids[bad[0]]),
            )
        return Matrix(np.ascontiguousarray(vectors.numpy()))

    def append(self, items: VectorSource, rows: Int64[np.ndarray, " n"] | None = None) -> None:
        """Keep a source, or some rows of it."""
        self._parts.append((self._size, items, rows))
        self._size += len(items) if rows is None else len(rows)
        self.dim = items.dim

    def queries(self, queries: Tensor) -> Float32[Tensor, "queries dim"]:
        """Queries in single precision on the processor; they must be finite."""
        self._refuse_unlike(queries)
        vectors = queries.detach().float().cpu()
        bad = _not_finite(vectors)
        if len(bad):
            raise DataError(
                f"query vector {bad[0]} is not finite ({len(bad)} such); look at the model or at "
                "its precision"
            )
        return vectors

    def blocks(self, size: int) -> Iterator[tuple[int, Float[np.ndarray, "n dim"]]]:
        """Row of the index and vectors, at most ``size`` at a time."""
        for first, source, rows in self._parts:
            total = len(source) if rows is None else len(rows)
            for start in range(0, total, size):
                stop = min(start + size, total)
                chosen = np.arange(start, stop) if rows is None else rows[start:stop]
                yield first + start, source.take(chosen)

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Vectors of some rows of the index."""
        firsts = np.array([first for first, _, _ in self._parts])
        owner = np.searchsorted(firsts, rows, side="right") - 1
        found: dict[int, np.ndarray] = {}
        for number in np.unique(owner).tolist():
            first, source, chosen = self._parts[number]
            inner = rows[owner == number] - first
            found[number] = source.take(inner if chosen is None else chosen[inner])
        if len(found) == 1:
            return next(iter(found.values()))
        kinds = (part.dtype for part in found.values())
        out = np.empty((len(rows), self.dim), np.result_type(np.float16, *kinds))
        for number, part in found.items():
            out[owner == number] = part
        return out

    def rescore(
        self, vectors: Float32[Tensor, "queries dim"], rows: Int64[np.ndarray, "queries n"]
    ) -> Float[np.ndarray, "queries n"]:
        """Inner products in double precision, rounded; -inf for row -1."""
        queries = vectors.double().numpy()
        scores = np.empty(rows.shape, np.float64)
        step = max(1, _RESCORED // rows.shape[1])
        wide = max(1, min(rows.shape[1], _RESCORED))
        for start in range(0, len(rows), step):
            mine = slice(start, start + step)
            for left in range(0, rows.shape[1], wide):
                part = rows[mine, left : left + wide]
                distinct, place = np.unique(np.maximum(part, 0), return_inverse=True)
                found = self.take(distinct).astype(np.float64)[place.reshape(part.shape)]
                scores[mine, left : left + wide] = (found @ queries[mine, :, None])[..., 0]
        return np.where(rows < 0, -np.inf, np.round(scores, DECIMALS) + 0.0)  # no negative zero

    def _refuse_unlike(self, vectors: Tensor) -> None:
        if not vectors.is_floating_point():
            raise MismatchError(
                f"vectors must be floating point, got {vectors.dtype}; give what the model made"
            )
        if vectors.ndim != 2 or (self._parts and vectors.shape[1] != self.dim):
            raise MismatchError(
                f"vectors of shape {tuple(vectors.shape)} in an index of {self.dim} dimensions; "
                "give (vectors, dimensions) made by the index's model"
            )


def _not_finite(vectors: Tensor) -> list[int]:
    return cast("list[int]", (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist())
