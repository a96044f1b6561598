"""The contract of an index, and what indexes of vectors share: rows, scores, ties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError
from augment.records import Hit
from retrievers.vectors.index.ids import Ids

#: Decimals of a score; those of the run files.
DECIMALS = 6
#: Rounding, and the error of a single-precision inner product with vectors of norm 1 or so.
MARGIN = 4e-6
#: Rows that are scored anew at a time: 1,024 x 768 doubles are 6 MB, which the cache holds; sixteen
#: times as many took twice as long.
_RESCORED = 1024


class Found(NamedTuple):
    """Result of a search: rows of the index and their scores, best first.

    An approximate index that finds fewer than k fills up with row -1 and score -inf.
    """

    rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]


class VectorSource(Protocol):
    """Vectors by row, in memory or in files."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    def __len__(self) -> int: ...

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Vectors of some rows, in 16 or 32 bits."""


@final
class _InMemory:
    def __init__(self, vectors: Float32[np.ndarray, "n dim"]) -> None:
        self._vectors = vectors

    @property
    def dim(self) -> int:
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n dim"]:
        # A run of rows needs no copy.
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self._vectors[rows[0] : rows[-1] + 1]
        picked: np.ndarray = self._vectors[rows]
        return picked


class Index(ABC):
    """Candidates under their ids, found by inner product.

    Args:
        made_by: fingerprint of the model and text recipe that makes the vectors. None takes the
            first one added.
    """

    def __init__(self, made_by: str | None = None) -> None:
        self.made_by = made_by

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Dimension of the vectors; None while empty."""

    @abstractmethod
    def names(self, rows: Int64[np.ndarray, " n"]) -> list[str]:
        """Ids of some rows."""

    @abstractmethod
    def _find(self, vectors: Float32[Tensor, "queries dim"], k: int) -> Found:
        """The best ``k`` (at most the size) of checked queries, ranked."""

    @final
    def search(
        self, vectors: Float32[Tensor, "queries dim"], k: int, made_by: str | None = None
    ) -> Found:
        """The best ``k`` candidates of each query.

        Args:
            vectors: query vectors.
            k: 1 to the size of the index.
            made_by: fingerprint of what made them; None does not check.

        Raises:
            MismatchError: if the vectors are of another fingerprint or dimension.
            DataError: if the index is empty, k is larger, or a query is not finite.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not len(self):
            raise DataError("the index is empty; add candidates first")
        if k > len(self):
            raise DataError(
                f"k = {k} is larger than the index of {len(self)} candidates; ask for at most "
                f"{len(self)}"
            )
        self._check(vectors, made_by or self.made_by or "")
        vectors = vectors.detach().float().cpu()
        bad = _not_finite(vectors)
        if len(bad):
            raise DataError(
                f"query vector {bad[0]} is not finite ({len(bad)} such); look at the model or at "
                "its precision"
            )
        if not len(vectors):
            return Found(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
        return self._find(vectors, k)

    @final
    def run(
        self, qids: Sequence[str], vectors: Float32[Tensor, "queries dim"], k: int, made_by: str
    ) -> dict[str, list[Hit]]:
        """Search and answer with ids: query id -> at most ``k`` hits, best first."""
        found = self.search(vectors, min(k, len(self)) if len(self) else k, made_by)
        dids = np.array(self.names(np.maximum(found.rows, 0).ravel()), dtype=object)
        return {
            qid: [
                Hit(did, score)
                for row, did, score in zip(rows, names, scores, strict=True)
                if row >= 0
            ]
            for qid, rows, names, scores in zip(
                qids,
                found.rows.tolist(),
                dids.reshape(found.rows.shape).tolist(),
                found.scores.tolist(),
                strict=True,
            )
        }

    def _check(self, vectors: Tensor, made_by: str) -> None:
        if self.made_by is not None and made_by != self.made_by:
            raise MismatchError(
                f"vectors made by {made_by!r} do not belong in an index made by {self.made_by!r}; "
                "embed them again with the same checkpoint and text recipe"
            )
        if not vectors.is_floating_point():
            raise MismatchError(
                f"vectors must be floating point, got {vectors.dtype}; give what the model made"
            )
        if vectors.ndim != 2 or (self.dim is not None and vectors.shape[1] != self.dim):
            raise MismatchError(
                f"vectors of shape {tuple(vectors.shape)} in an index of {self.dim} dimensions; "
                "give (vectors, dimensions) made by the index's model"
            )


class VectorIndex(Index):
    """An index that holds vectors in this process, in memory or as views of files."""

    def __init__(self, made_by: str | None = None) -> None:
        super().__init__(made_by)
        self.ids = Ids()
        self._parts: list[tuple[int, VectorSource, Int64[np.ndarray, " n"] | None]] = []
        self._dim: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None while empty."""
        return self._dim

    def names(self, rows: Int64[np.ndarray, " n"]) -> list[str]:
        """Ids of some rows."""
        return self.ids.take(rows)

    @final
    def add(self, ids: Any, vectors: Float32[Tensor, "n dim"], made_by: str) -> None:
        """Add candidates, kept in memory.

        Args:
            ids: one per vector, new to the index: strings or an Arrow array of strings.
            vectors: finite; unit vectors where cosine is meant.
            made_by: fingerprint of what made the vectors.

        Raises:
            MismatchError: if the vectors are of another fingerprint, dimension or kind.
            DataError: if ids repeat or a vector is not finite.
        """
        self._check(vectors, made_by)
        if len(ids) != len(vectors):
            raise DataError(f"{len(ids)} ids for {len(vectors)} vectors; give one id for each")
        vectors = vectors.detach().float().cpu()
        bad = _not_finite(vectors)
        if len(bad):
            raise DataError(
                f"vector is not finite; {len(bad)} such vectors; look at the model or at its "
                "precision",
                str(ids[bad[0]]),
            )
        self._append(Ids(ids), _InMemory(np.ascontiguousarray(vectors.numpy())), None, made_by)

    @final
    def add_source(
        self,
        ids: Any,
        source: VectorSource,
        made_by: str,
        rows: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        """Add candidates whose vectors are read where they lie, block by block.

        Args:
            ids: one per row: strings or an Arrow array of strings.
            source: such as a :class:`retrievers.vectors.embeddings.EmbeddingStore`; finite.
            made_by: fingerprint of what made the vectors.
            rows: rows of the source; None takes all.

        Raises:
            MismatchError: if the vectors are of another fingerprint or dimension.
            DataError: if ids repeat.
        """
        self._check(torch.empty(0, source.dim), made_by)
        size = len(source) if rows is None else len(rows)
        if len(ids) != size:
            raise DataError(f"{len(ids)} ids for {size} vectors; give one id for each")
        self._append(Ids(ids), source, rows, made_by)

    def _append(
        self,
        ids: Ids,
        source: VectorSource,
        rows: Int64[np.ndarray, " n"] | None,
        made_by: str,
    ) -> None:
        twice = self.ids.repeated(ids)
        if twice is not None:
            raise DataError("id stands twice; remove duplicates before indexing", twice)
        if len(ids):
            self._parts.append((len(self), source, rows))
            self.ids.extend(ids.column)
            self._dim = source.dim
        self.made_by = made_by
        self._changed()

    @final
    def share(self, other: VectorIndex) -> None:
        """Hold the vectors and ids of another index, without a copy."""
        self.made_by, self.ids = other.made_by, other.ids
        self._parts, self._dim = other._parts, other._dim
        self._changed()

    def _changed(self) -> None:
        """Called after vectors were added."""

    def _blocks(self, size: int) -> Iterator[tuple[int, Float[np.ndarray, "n dim"]]]:
        """Row of the index and vectors, at most ``size`` at a time."""
        for first, source, rows in self._parts:
            total = len(source) if rows is None else len(rows)
            for start in range(0, total, size):
                stop = min(start + size, total)
                chosen = np.arange(start, stop) if rows is None else rows[start:stop]
                yield first + start, source.take(chosen)

    def _take(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Vectors of some rows of the index."""
        if len(self._parts) == 1:
            _, source, chosen = self._parts[0]
            return source.take(rows if chosen is None else chosen[rows])
        out = np.empty((len(rows), self._dim or 0), np.float32)
        firsts = np.array([first for first, _, _ in self._parts])
        owner = np.searchsorted(firsts, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            first, source, chosen = self._parts[number]
            mine = owner == number
            inner = rows[mine] - first
            out[mine] = source.take(inner if chosen is None else chosen[inner])
        return out

    def _rescore(
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
                found = self._take(distinct).astype(np.float64)[place.reshape(part.shape)]
                scores[mine, left : left + wide] = (found @ queries[mine, :, None])[..., 0]
        return np.where(rows < 0, -np.inf, np.round(scores, DECIMALS) + 0.0)  # no negative zero

    def _rank(
        self, rows: Int64[np.ndarray, "queries n"], scores: Float[np.ndarray, "queries n"]
    ) -> Found:
        """Best first, ties by id."""
        order = np.lexsort((self.ids.ranks()[rows], -scores), axis=1)
        return Found(
            np.take_along_axis(rows, order, axis=1),
            np.take_along_axis(scores, order, axis=1).astype(np.float32),
        )


def may_tie(
    vectors: Float32[Tensor, "queries dim"],
    found: Found,
    last: Float32[np.ndarray, " queries"],
    k: int,
) -> Bool[np.ndarray, " queries"]:
    """Queries of which a candidate that was not fetched may tie with, or beat, the k-th.

    Args:
        vectors: the queries.
        found: all fetched candidates, ranked.
        last: the lowest single-precision score among them.
        k: depth.
    """
    tied: np.ndarray = last >= lowest(vectors, found, k)
    return tied


def lowest(
    vectors: Float32[Tensor, "queries dim"], found: Found, k: int
) -> Float[np.ndarray, " queries"]:
    """The single-precision score below which a candidate cannot rank among the best k."""
    floor: np.ndarray = found.scores[:, k - 1] - MARGIN * np.maximum(
        vectors.norm(dim=1).numpy(), 1.0
    )
    return floor


def _not_finite(vectors: Tensor) -> list[int]:
    rows: list[int] = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    return rows
