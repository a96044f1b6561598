"""Contrastive losses on embeddings, gathered over processes with gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

#: Fills the rows of a table of known positives; no id hashes to it.
NO_ID = -1


def hash_id(text: str) -> int:
    """A 63-bit non-negative integer for an id, the same in every process.

    Not UniIR's ``dataset * 10_000_000 + n``, which aliases above its bound.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pad_ids(rows: Iterable[Iterable[int]]) -> Int[Tensor, "batch most"]:
    """Ragged id lists as one table, filled up with :data:`NO_ID`."""
    lists = [torch.tensor(list(row), dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=NO_ID)


def known_pairs(
    positives: Int[Tensor, "batch most"], candidate_ids: Int[Tensor, " n"]
) -> Bool[Tensor, "batch n"]:
    """Which candidates are known positives of which query, by id.

    Args:
        positives: hashed ids of all known positives of each query, padded with :data:`NO_ID`.
        candidate_ids: hashed id of each candidate.
    """
    distinct, inverse = torch.unique(candidate_ids, return_inverse=True)
    slot = torch.searchsorted(distinct, positives).clamp(max=len(distinct) - 1)
    found = distinct[slot] == positives
    table = torch.zeros(len(positives), len(distinct), dtype=torch.bool, device=positives.device)
    row = torch.arange(len(positives), device=positives.device)[:, None].expand_as(positives)
    table[row[found], slot[found]] = True
    return table[:, inverse]


def info_nce(
    queries: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "n dim"],
    candidate_ids: Int[Tensor, " n"],
    positives: Int[Tensor, "batch most"],
    logit_scale: Float[Tensor, ""],
    symmetric: bool = False,
) -> Float[Tensor, ""]:
    """In-batch InfoNCE in which no known positive is a negative.

    Row ``i`` of the candidates is the positive of row ``i`` of the queries; rows beyond the batch
    are further negatives. A candidate whose id is another known positive of the query, or the same
    candidate standing elsewhere in the batch, leaves the denominator. UniIR's loss (contract
    section 9) is query to candidate and keeps those as negatives.

    With ``torch.distributed`` initialised, both sides are gathered with gradient, each process
    takes its own rows, and the mean over processes is the loss of the joint batch. Every process
    must then hold equally many rows.

    Args:
        queries: unit vectors.
        candidates: unit vectors, at least as many.
        candidate_ids: :func:`hash_id` of each candidate.
        positives: hashed ids of all known positives of each query (see :func:`pad_ids`).
        logit_scale: multiplies the cosine: the exponential of CLIP's parameter.
        symmetric: average with the loss from candidate to query.

    Raises:
        ValueError: if the batch is empty, or there are fewer candidates than queries.
    """
    batch = len(queries)
    if batch == 0 or len(candidates) < batch:
        raise ValueError(f"{batch} queries need as many candidates, got {len(candidates)}")
    positives = torch.cat([positives, candidate_ids[:batch, None]], dim=1)
    # Each query's own candidate stands first, so that gathered rows keep the pairing.
    own, own_ids = gather(candidates[:batch]), _gather_ids(candidate_ids[:batch])
    rest, rest_ids = gather(candidates[batch:]), _gather_ids(candidate_ids[batch:])
    everything, ids = torch.cat([own, rest]), torch.cat([own_ids, rest_ids])
    target = _rank() * batch + torch.arange(batch, device=queries.device)
    known = known_pairs(positives, ids)
    loss = _cross_entropy(logit_scale * queries @ everything.T, known, target)
    if not symmetric:
        return loss
    known = known_pairs(_gather_ids(positives), candidate_ids[:batch]).T
    logits = logit_scale * candidates[:batch] @ gather(queries).T
    return (loss + _cross_entropy(logits, known, target)) / 2


def _cross_entropy(
    logits: Float[Tensor, "batch n"], known: Bool[Tensor, "batch n"], target: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    own = functional.one_hot(target, logits.shape[1]).bool()
    # In float32 whatever the precision of the towers: bf16 logits tie.
    masked = logits.float().masked_fill(known & ~own, float("-inf"))
    return functional.cross_entropy(masked, target)


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    """All-gather along the first axis; the gradient is summed over processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.size
        return total[start : start + ctx.size]


def gather(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "all dim"]:
    """Rows of all processes in rank order, with gradient; the rows themselves in one process."""
    if not _distributed():
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def _gather_ids(ids: Tensor) -> Tensor:
    """Ids of all processes; a table is widened to the widest process's first."""
    if not _distributed():
        return ids
    if ids.ndim == 2:
        width = torch.tensor(ids.shape[1], device=ids.device)
        dist.all_reduce(width, op=dist.ReduceOp.MAX)
        ids = functional.pad(ids, (0, int(width) - ids.shape[1]), value=NO_ID)
    parts = [torch.empty_like(ids) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ids.contiguous())
    return torch.cat(parts)
