"""A batch beside those of all processes: gathered with gradient, who is whose positive by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from retrievers.data.examples import NO_ID, Labels


class Joint(NamedTuple):
    """What a loss sees: this process's rows, and the columns of all processes.

    Attributes:
        queries: unit vectors of this process.
        candidates: unit vectors of the positives of these queries.
        all_queries: of all processes, in rank order.
        all_candidates: of all processes: the positives in rank order, then all further ones.
        target: column of each query's own positive (and of each positive's own query).
        known: which of all candidates are known positives of a query, its own included.
        known_back: of which of all queries a positive is a known positive, its own included.
        share: factor that makes the mean over processes the mean over the joint batch; 1 where
            every process has equally many rows.
    """

    queries: Float[Tensor, "batch dim"]
    candidates: Float[Tensor, "batch dim"]
    all_queries: Float[Tensor, "all_batch dim"]
    all_candidates: Float[Tensor, "all_n dim"]
    target: Int[Tensor, " batch"]
    known: Bool[Tensor, "batch all_n"]
    known_back: Bool[Tensor, "batch all_batch"]
    share: float = 1.0

    def prefix(self, dim: int) -> Joint:
        """The same with vectors cut to their first ``dim`` numbers and made unit vectors again."""
        return self._replace(
            queries=_cut(self.queries, dim),
            candidates=_cut(self.candidates, dim),
            all_queries=_cut(self.all_queries, dim),
            all_candidates=_cut(self.all_candidates, dim),
        )


def join(
    queries: Float[Tensor, "batch dim"], candidates: Float[Tensor, "n dim"], labels: Labels
) -> Joint:
    """Gather a batch over processes and find out who is whose positive.

    A candidate is a known positive of a query if its id is in the query's list, if it is the same
    candidate as the query's own, or if it is the own candidate of the same query elsewhere in the
    joint batch (upsampled files repeat queries). UniIR's loss keeps all of these as negatives.

    With ``torch.distributed`` initialised, both sides are gathered with gradient; processes may
    hold different numbers of rows. DDP's mean of the processes' gradients is then the gradient of
    the joint batch.

    The queries' own positives stand first among the candidates.

    Raises:
        ValueError: if the batch is empty, or there are fewer candidates than queries.
    """
    batch, extra = len(queries), len(candidates) - len(queries)
    if batch == 0 or extra < 0:
        raise ValueError(f"{batch} queries need as many candidates, got {len(candidates)}")
    positives = torch.cat([labels.positives, labels.candidates[:batch, None]], dim=1)
    sizes = _sizes([batch, extra, positives.shape[1]], queries.device)
    batches, extras, width = [s[0] for s in sizes], [s[1] for s in sizes], max(s[2] for s in sizes)
    positives = functional.pad(positives, (0, width - positives.shape[1]), value=NO_ID)
    start = sum(batches[: dist.get_rank() if distributed() else 0])
    target = start + torch.arange(batch, device=queries.device)
    own, own_ids = candidates[:batch], labels.candidates[:batch]
    ids = torch.cat([gather(own_ids, batches), gather(labels.candidates[batch:], extras)])
    same = labels.queries[:, None] == gather(labels.queries, batches)
    known = known_pairs(positives, ids)
    known[:, : same.shape[1]] |= same
    return Joint(
        queries,
        own,
        gather(queries, batches),
        torch.cat([gather(own, batches), gather(candidates[batch:], extras)]),
        target,
        known,
        known_pairs(gather(positives, batches), own_ids).T | same,
        batch * len(batches) / sum(batches),
    )


def known_pairs(
    positives: Int[Tensor, "batch most"], candidate_ids: Int[Tensor, " n"]
) -> Bool[Tensor, "batch n"]:
    """Which candidates are known positives of which query, by id."""
    distinct, inverse = torch.unique(candidate_ids, return_inverse=True)
    slot = torch.searchsorted(distinct, positives).clamp(max=len(distinct) - 1)
    found = distinct[slot] == positives
    table = torch.zeros(len(positives), len(distinct), dtype=torch.bool, device=positives.device)
    row = torch.arange(len(positives), device=positives.device)[:, None].expand_as(positives)
    table[row[found], slot[found]] = True
    return table[:, inverse]


def gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all processes in rank order, with gradient; the rows themselves in one process."""
    if not distributed():
        return rows
    return cast("Tensor", _Gather.apply(rows, list(sizes)))


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sizes(own: list[int], device: torch.device) -> list[list[int]]:
    """The same numbers of every process."""
    if not distributed():
        return [own]
    mine = torch.tensor(own, device=device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return [list(map(int, part.tolist())) for part in parts]


def _cut(vectors: Float[Tensor, "n dim"], dim: int) -> Float[Tensor, "n short"]:
    return functional.normalize(vectors[:, :dim], dim=-1)


class _Gather(torch.autograd.Function):
    """All-gather along the first axis, padded to the largest; gradients are summed over processes.

    ``torch.distributed.nn`` has an all-gather with gradient, but only for equal sizes.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        most = max(sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: dist.get_rank()])
        return total[start : start + ctx.sizes[dist.get_rank()]], None
