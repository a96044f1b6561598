"""Candidates under their ids, searched: the contract of indexes, and what those of vectors share.

Scores of vectors are computed anew in double precision for the best candidates and rounded to six
decimals; ties go by id (descending, trec_eval's rule). Equal vectors therefore rank the same on
every machine, whatever device, block size or library found them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError
from retrievers.evaluation.run import DECIMALS, RunTable, descending, repeated

#: Rounding, and the error of a single-precision inner product with vectors of norm 1 or so.
MARGIN = 4e-6
#: Rows that are scored anew at a time: 1,024 x 768 doubles are 6 MB, which the cache holds; sixteen
#: times as many took twice as long.
_RESCORED = 1024


class Nearest(NamedTuple):
    """Result of a search: rows of the index and their scores, best first.

    Where fewer than k were found, row -1 and score -inf fill up.
    """

    rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]


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


class VectorSource(Protocol):
    """Vectors by row, in memory or in files."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    def __len__(self) -> int: ...

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Vectors of some rows, in 16 or 32 bits."""


class Held(Protocol):
    """What an index holds of its candidates: :class:`Vectors`, or texts."""

    #: What its items are called in errors.
    kind: str

    def checked(self, ids: Any, items: Any) -> Any:
        """The items as they are kept, or an error."""

    def append(self, items: Any, rows: Any) -> None:
        """Keep checked items; of those that are read where they lie, some rows."""

    def queries(self, queries: Any) -> Any:
        """The queries as they are searched with, or an error."""


HeldT = TypeVar("HeldT", bound=Held)


class Index(ABC, Generic[HeldT]):
    """Candidates under their ids.

    Args:
        held: receives what the candidates are found by.
        made_by: fingerprint of what makes the items, such as model and text recipe. None takes the
            first one added.

    Attributes:
        ids: of all candidates by row, an Arrow array of strings.
        recall: depth -> what an approximate search was found to lose; empty for an exact one.
    """

    def __init__(self, held: HeldT, made_by: str | None = None) -> None:
        self.made_by = made_by
        self.held = held
        self.ids: Any = pa.array([], pa.large_string())
        self.recall: dict[int, Recall] = {}
        self._ranks: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def _find(self, queries: Any, k: int) -> Nearest:
        """The best ``k`` (at most the size) of checked queries, ranked."""

    def build(self) -> None:
        """Make everything ready now, rather than at the first search."""

    def _changed(self) -> None:
        """Called after candidates were added."""

    @final
    def add(
        self, ids: Any, items: Any, made_by: str, rows: Int64[np.ndarray, " n"] | None = None
    ) -> None:
        """Add candidates.

        Args:
            ids: one per candidate, new to the index: strings or an Arrow array of strings.
            items: texts, for an index of words; else finite vectors ([n, dim], kept in memory), or
                a source of some, such as a :class:`retrievers.vectors.store.EmbeddingStore`, which
                is read where it lies, block by block.
            made_by: fingerprint of what made them.
            rows: rows of the source; None takes all.

        Raises:
            MismatchError: if vectors are of another fingerprint, dimension or kind.
            DataError: if ids repeat, are no strings or too few, or a vector is not finite.
        """
        self._refuse_foreign(made_by)
        checked = self.held.checked(ids, items)
        size = len(checked) if rows is None else len(rows)
        if len(ids) != size:
            raise DataError(f"{len(ids)} ids for {size} {self.held.kind}; give one id for each")
        column = pa.concat_arrays([self.ids, _column(ids)])
        twice = repeated(column)
        if twice is not None:
            raise DataError("id stands twice; remove duplicates before indexing", twice)
        if size:
            self.held.append(checked, rows)
        self.ids, self._ranks, self.made_by = column, None, made_by
        self._changed()

    @final
    def share(self, other: Index[HeldT]) -> None:
        """Hold what another index holds, without a copy."""
        self.made_by, self.ids, self.held = other.made_by, other.ids, other.held
        self._ranks = None
        self._changed()

    @final
    def search(self, queries: Any, k: int, made_by: str | None = None) -> Nearest:
        """The best ``k`` candidates of each query.

        Args:
            queries: vectors ([queries, dim]), or texts.
            k: 1 to the size of the index.
            made_by: fingerprint of what made them; None does not check.

        Raises:
            MismatchError: if vectors are of another fingerprint or dimension.
            DataError: if the index is empty, k is larger, or a query cannot be searched with.
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
        if made_by is not None:
            self._refuse_foreign(made_by)
        asked = self.held.queries(queries)
        if not len(asked):
            return Nearest(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
        return self._find(asked, k)

    @final
    def run(self, qids: Any, queries: Any, k: int, made_by: str) -> RunTable:
        """Search and answer with ids: at most ``k`` hits of each query, best first.

        Args:
            qids: of the queries.
            queries: see :meth:`search`.
            k: from 1; of a smaller index, all of it.
            made_by: see :meth:`search`.
        """
        found = self.search(queries, min(k, len(self)) if len(self) else k, made_by)
        return RunTable.from_search(qids, self.ids, found.rows, found.scores, unique=True)

    def _refuse_foreign(self, made_by: str) -> None:
        if self.made_by is not None and made_by != self.made_by:
            raise MismatchError(
                f"{self.held.kind} made by {made_by!r} do not belong in an index made by "
                f"{self.made_by!r}; embed them again with the same checkpoint and text recipe"
            )

    def _rank(
        self, rows: Int64[np.ndarray, "queries n"], scores: Float[np.ndarray, "queries n"]
    ) -> Nearest:
        """Best first, ties by id."""
        if self._ranks is None:
            self._ranks = descending(self.ids)
        order = np.lexsort((self._ranks[rows], -scores), axis=1)
        return Nearest(
            np.take_along_axis(rows, order, axis=1),
            np.take_along_axis(scores, order, axis=1).astype(np.float32),
        )

    def _digest(self) -> str:
        """SHA-256 of all ids, in order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), 65_536):
            digest.update("\n".join([*self.ids[start : start + 65_536].to_pylist(), ""]).encode())
        return digest.hexdigest()


@final
class _InMemory:
    def __init__(self, vectors: Float32[np.ndarray, "n dim"]) -> None:
        self._vectors = vectors
        self.dim = int(vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n dim"]:
        # A run of rows needs no copy.
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self._vectors[rows[0] : rows[-1] + 1]
        picked: np.ndarray = self._vectors[rows]
        return picked


@final
class Vectors:
    """Vectors by row of an index, in memory or as views of files.

    Attributes:
        dim: dimension; None while there are none.
    """

    kind = "vectors"

    def __init__(self) -> None:
        self._parts: list[tuple[int, VectorSource, Int64[np.ndarray, " n"] | None]] = []
        self._size = 0
        self.dim: int | None = None

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
        return _InMemory(np.ascontiguousarray(vectors.numpy()))

    def append(self, items: VectorSource, rows: Int64[np.ndarray, " n"] | None) -> None:
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
        if len(self._parts) == 1:
            _, source, chosen = self._parts[0]
            return source.take(rows if chosen is None else chosen[rows])
        out = np.empty((len(rows), self.dim or 0), np.float32)
        firsts = np.array([first for first, _, _ in self._parts])
        owner = np.searchsorted(firsts, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            first, source, chosen = self._parts[number]
            mine = owner == number
            inner = rows[mine] - first
            out[mine] = source.take(inner if chosen is None else chosen[inner])
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
        if vectors.ndim != 2 or (self.dim is not None and vectors.shape[1] != self.dim):
            raise MismatchError(
                f"vectors of shape {tuple(vectors.shape)} in an index of {self.dim} dimensions; "
                "give (vectors, dimensions) made by the index's model"
            )


def may_tie(
    vectors: Float32[Tensor, "queries dim"],
    found: Nearest,
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
    vectors: Float32[Tensor, "queries dim"], found: Nearest, k: int
) -> Float[np.ndarray, " queries"]:
    """The single-precision score below which a candidate cannot rank among the best k."""
    floor: np.ndarray = found.scores[:, k - 1] - MARGIN * np.maximum(
        vectors.norm(dim=1).numpy(), 1.0
    )
    return floor


def _not_finite(vectors: Tensor) -> list[int]:
    rows: list[int] = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    return rows


def _column(ids: Any) -> Any:
    """Ids as an Arrow array of strings."""
    try:
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        if isinstance(ids, pa.Array):
            return ids.cast(pa.large_string())
        return pa.array(list(ids), pa.large_string())
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise DataError(f"ids must be strings, as in the pool: {error}") from error
