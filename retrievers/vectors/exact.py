"""Exact search: blocked matrix product and top-k."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from retrievers.vectors.held import Vectors
from retrievers.vectors.index import Index, Nearest

#: Rounding, and the error of a single-precision inner product with vectors of norm 1 or so.
_MARGIN = 4e-6
#: Candidates fetched beyond k; all rows are looked at again only when ties may reach beyond them.
_SPARE = 16
#: Neighbouring candidates whose maximum is compared with what a query has already.
_GROUP = 64
#: Queries with ties that are settled in one pass.
_TIED = 64
#: Candidates per product; more of them leave the processor's cache.
_BLOCK = 4096


@final
class MatrixIndex(Index[Vectors]):
    """Exact search that reads each block of candidates once for all queries.

    A block's product is compared with each query's k-th best so far by groups of 64 candidates, and
    only groups that can change the answer are looked into. What is fetched is scored anew and
    ranked here, and where ties may reach beyond it all rows are looked at again, so the answer is
    the same on every device.

    Products run on the ``device``; vectors stay where they are and move block by block.
    """

    def __init__(
        self,
        made_by: str | None = None,
        device: str = "cpu",
        query_block: int = 2048,
        candidate_block: int = _BLOCK,
    ) -> None:
        super().__init__(Vectors(), made_by)
        self._device = device
        self._query_block = query_block
        self._candidate_block = candidate_block

    def _find(self, queries: Tensor, k: int) -> Nearest:
        wide = min(k + _SPARE, len(self))
        rows, raw = self._fetch(queries, wide)
        found = self._rank(rows, self.held.rescore(queries, rows))
        if wide < len(self):
            self._settle_ties(queries, found, raw[:, -1], k)
        return Nearest(found.rows[:, :k], found.scores[:, :k])

    def _fetch(
        self, vectors: Float32[Tensor, "queries dim"], k: int
    ) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        """Rows and single-precision scores of the best ``k``, best first."""
        queries = vectors.to(self._device)
        best = torch.full((len(queries), k), -torch.inf, device=self._device)
        rows = torch.zeros(len(queries), k, dtype=torch.int64, device=self._device)
        # One place for all products: fresh memory for each takes a processor long.
        wide = min(self._candidate_block, len(self))
        space = torch.empty(min(self._query_block, len(queries)), wide, device=self._device)
        with full_precision():
            for start, block in self._on_device():
                for first in range(0, len(queries), self._query_block):
                    part = slice(first, first + self._query_block)
                    product = space[: len(queries[part]), : len(block)]
                    torch.mm(queries[part], block.T, out=product)
                    _keep_best(product, start, best[part], rows[part])
        return rows.cpu().numpy(), best.cpu().numpy()

    def _on_device(self) -> Iterator[tuple[int, Float32[Tensor, "n dim"]]]:
        for start, block in self.held.blocks(self._candidate_block):
            yield start, torch.from_numpy(block).to(self._device).float()

    def _settle_ties(
        self,
        vectors: Tensor,
        found: Nearest,
        last: Float32[np.ndarray, " queries"],
        k: int,
    ) -> None:
        """Look at all rows where candidates that were not fetched may tie with the k-th."""
        # Below it in single precision, a candidate cannot rank among the best k.
        floor = found.scores[:, k - 1] - _MARGIN * np.maximum(vectors.norm(dim=1).numpy(), 1.0)
        tied = np.nonzero(last >= floor)[0]
        for start in range(0, len(tied), _TIED):
            some = tied[start : start + _TIED]
            for query, rows in zip(some, self._above(vectors[some], floor[some]), strict=True):
                scores = self.held.rescore(vectors[query : query + 1], rows[None])
                whole = self._rank(rows[None], scores)
                width = min(found.rows.shape[1], whole.rows.shape[1])
                found.rows[query, :width] = whole.rows[0, :width]
                found.scores[query, :width] = whole.scores[0, :width]

    def _above(
        self, vectors: Float32[Tensor, "queries dim"], floor: np.ndarray
    ) -> list[Int64[np.ndarray, " n"]]:
        """Rows of each query with at least some score."""
        queries = vectors.to(self._device)
        least = torch.from_numpy(floor.astype(np.float32)).to(self._device)
        rows: list[list[np.ndarray]] = [[] for _ in range(len(queries))]
        with full_precision():
            for start, block in self._on_device():
                hits = (queries @ block.T >= least[:, None]).nonzero().cpu().numpy()
                for query in np.unique(hits[:, 0]).tolist():
                    rows[query].append(hits[hits[:, 0] == query, 1] + start)
        return [np.concatenate(parts) for parts in rows]


def _keep_best(
    product: Float32[Tensor, "queries n"],
    start: int,
    best: Float32[Tensor, "queries k"],
    rows: Int64[Tensor, "queries k"],
) -> None:
    """Merge a block's scores into the best so far (sorted, in place)."""
    k = best.shape[1]
    over = -product.shape[1] % _GROUP
    if over:
        product = functional.pad(product, (0, over), value=-torch.inf)
    groups = product.view(len(product), -1, _GROUP)
    highest = groups.amax(-1)
    # The k best of a row lie in its k best groups, and in none that stays below the k-th so far.
    most = min(int((highest > best[:, -1:]).sum(1).max()), k)
    if not most:
        return
    chosen = highest.topk(most, dim=1).indices
    scores = groups.gather(1, chosen[..., None].expand(-1, -1, _GROUP)).flatten(1)
    places = chosen[..., None] * _GROUP + torch.arange(_GROUP, device=product.device) + start
    kept = torch.cat([best, scores], dim=1).topk(k, dim=1)
    rows.copy_(torch.cat([rows, places.flatten(1)], dim=1).gather(1, kept.indices))
    best.copy_(kept.values)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of 32-bit numbers in 32 bits, whatever shortcut (TF32) the process allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
