"""Exact search by inner product: one contract, two indexes.

Scores are rounded to six decimals before ranking and ties go by id (descending, trec_eval's rule),
so that equal vectors rank the same on every machine although their products differ in the last bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import faiss
import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError
from augment.records import Hit

_DECIMALS = 6
#: Candidates fetched beyond k; the whole row is looked at only when ties reach beyond them.
_SPARE = 16


class Found(NamedTuple):
    """Result of a search: rows of the index and their scores, best first."""

    rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]


class Index(ABC):
    """Vectors of candidates under their ids.

    Args:
        made_by: fingerprint of the model and text recipe that makes the vectors. None takes the
            first one added.
    """

    def __init__(self, made_by: str | None = None) -> None:
        self.made_by = made_by
        self.ids: list[str] = []
        self._tie: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[str], vectors: Float32[Tensor, "n dim"], made_by: str) -> None:
        """Add candidates.

        Args:
            ids: one per vector, new to the index.
            vectors: finite; unit vectors where cosine is meant.
            made_by: fingerprint of what made the vectors.

        Raises:
            MismatchError: if the vectors are of another fingerprint or dimension.
            DataError: if ids repeat or a vector is not finite.
        """
        self._check(vectors, made_by)
        if len(ids) != len(vectors):
            raise DataError(f"{len(ids)} ids for {len(vectors)} vectors")
        if len(set(ids)) + len(self.ids) != len(set(ids).union(self.ids)) or len(set(ids)) != len(
            ids
        ):
            raise DataError("an id stands twice; remove duplicates before indexing")
        bad = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise DataError(f"vector is not finite; {len(bad)} such vectors", ids[bad[0]])
        self._add(vectors.detach().float().cpu())
        self.ids.extend(ids)
        self.made_by = made_by
        self._tie = None

    def search(
        self, vectors: Float32[Tensor, "queries dim"], k: int, made_by: str | None = None
    ) -> Found:
        """The best ``k`` candidates of each query, or all if there are fewer.

        Args:
            vectors: query vectors.
            k: at least 1.
            made_by: fingerprint of what made them; None does not check.

        Raises:
            MismatchError: if the vectors are of another fingerprint or dimension.
            DataError: if the index is empty.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not self.ids:
            raise DataError("the index is empty; add candidates first")
        self._check(vectors, made_by or self.made_by or "")
        vectors = vectors.detach().float().cpu()
        wide = min(k + _SPARE, len(self))
        found = self._rank(*self._top(vectors, wide))
        if wide < len(self):
            self._settle_ties(vectors, found, min(k, len(self)))
        return Found(found.rows[:, :k], found.scores[:, :k])

    def run(
        self, qids: Sequence[str], vectors: Float32[Tensor, "queries dim"], k: int, made_by: str
    ) -> dict[str, list[Hit]]:
        """Search and answer with ids: query id -> hits, best first."""
        found = self.search(vectors, k, made_by)
        return {
            qid: [Hit(self.ids[row], score) for row, score in zip(rows, scores, strict=True)]
            for qid, rows, scores in zip(
                qids, found.rows.tolist(), found.scores.tolist(), strict=True
            )
        }

    @abstractmethod
    def _add(self, vectors: Float32[Tensor, "n dim"]) -> None:
        """Append vectors, already checked."""

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """Dimension of the vectors; None while empty."""

    @abstractmethod
    def _top(
        self, vectors: Float32[Tensor, "queries dim"], k: int
    ) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        """Rows and scores of the best ``k`` (at most the size), in any order."""

    def _check(self, vectors: Tensor, made_by: str) -> None:
        if self.made_by is not None and made_by != self.made_by:
            raise MismatchError(
                f"vectors made by {made_by!r} do not belong in an index made by {self.made_by!r}; "
                "embed them again with the same checkpoint and text recipe"
            )
        if vectors.ndim != 2 or (self.dim is not None and vectors.shape[1] != self.dim):
            raise MismatchError(
                f"vectors of shape {tuple(vectors.shape)} in an index of {self.dim}"
            )

    def _ties(self) -> Int64[np.ndarray, " n"]:
        """Rank of each row's id in descending order."""
        if self._tie is None:
            order = sorted(range(len(self.ids)), key=self.ids.__getitem__, reverse=True)
            self._tie = np.empty(len(order), dtype=np.int64)
            self._tie[order] = np.arange(len(order))
        return self._tie

    def _rank(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        rounded = np.round(scores.astype(np.float64), _DECIMALS).astype(np.float32)
        order = np.lexsort((self._ties()[rows], -rounded), axis=1)
        return Found(
            np.take_along_axis(rows, order, axis=1), np.take_along_axis(rounded, order, axis=1)
        )

    def _settle_ties(self, vectors: Tensor, found: Found, k: int) -> None:
        """Look at whole rows where candidates that were not fetched may tie with the k-th."""
        for query in np.nonzero(found.scores[:, -1] >= found.scores[:, k - 1])[0].tolist():
            rows, scores = self._top(vectors[query : query + 1], len(self))
            full = self._rank(rows, scores)
            found.rows[query] = full.rows[0, : found.rows.shape[1]]
            found.scores[query] = full.scores[0, : found.scores.shape[1]]


@final
class MatrixIndex(Index):
    """Blocked matrix product and top-k in torch; three times faster than faiss on CPU.

    Args:
        made_by: see :class:`Index`.
        device: where the products run; vectors stay on the CPU and move block by block.
        query_block: queries per product.
        candidate_block: candidates per product.
    """

    def __init__(
        self,
        made_by: str | None = None,
        device: str = "cpu",
        query_block: int = 256,
        candidate_block: int = 65_536,
    ) -> None:
        super().__init__(made_by)
        self._device = device
        self._query_block = query_block
        self._candidate_block = candidate_block
        self._blocks: list[Tensor] = []

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None while empty."""
        return self._blocks[0].shape[1] if self._blocks else None

    def _add(self, vectors: Tensor) -> None:
        self._blocks.extend(torch.split(vectors, self._candidate_block) if len(vectors) else ())

    def _top(self, vectors: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._top_block(part, k) for part in torch.split(vectors, self._query_block)]
        return (
            torch.cat([rows for rows, _ in parts]).numpy(),
            torch.cat([scores for _, scores in parts]).numpy(),
        )

    def _top_block(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = queries.to(self._device)
        scores = torch.empty(len(queries), 0, device=self._device)
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=self._device)
        start = 0
        for block in self._blocks:
            product = queries @ block.to(self._device).T
            best = product.topk(min(k, len(block)), dim=1)
            scores = torch.cat([scores, best.values], dim=1)
            rows = torch.cat([rows, best.indices + start], dim=1)
            keep = scores.topk(min(k, scores.shape[1]), dim=1)
            scores, rows = keep.values, rows.gather(1, keep.indices)
            start += len(block)
        return rows.cpu(), scores.cpu()


@final
class FaissIndex(Index):
    """faiss ``IndexFlatIP``: exact, and the form that other tools read.

    Args:
        made_by: see :class:`Index`.
    """

    def __init__(self, made_by: str | None = None) -> None:
        super().__init__(made_by)
        self._index: faiss.IndexFlatIP | None = None

    @property
    def dim(self) -> int | None:
        """Dimension of the vectors; None while empty."""
        return self._index.d if self._index is not None else None

    def _add(self, vectors: Tensor) -> None:
        if self._index is None:
            self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors.numpy()))

    def _top(self, vectors: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert self._index is not None  # noqa: S101 - search() refuses an empty index
        scores, rows = self._index.search(np.ascontiguousarray(vectors.numpy()), k)
        return rows, scores
