"""Losses towards a teacher's scores of each query's own candidates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from retrievers.training.losses.joint import distributed


class Groups(NamedTuple):
    """Each query's own candidates and what the teacher gives them.

    Attributes:
        rows: rows of the candidates in the batch, the positive first; -1 fills up.
        scores: the teacher's scores, higher is better; NaN where it gave none.
    """

    rows: Int[Tensor, "batch width"]
    scores: Float[Tensor, "batch width"]


def kl_divergence(
    queries: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "n dim"],
    groups: Groups,
    logit_scale: Float[Tensor, ""],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence from the teacher's distribution over a group to ours.

    Args:
        queries: unit vectors.
        candidates: unit vectors.
        groups: scored candidates; a query with fewer than two scores does not count.
        logit_scale: multiplies our cosine.
        temperature: divides the teacher's scores; about 0.02 to 0.05 for cosines, 1 for logits.
    """
    cosine, scored, counted = _prepare(queries, candidates, groups)
    low = torch.finfo(cosine.dtype).min
    ours = (logit_scale * cosine).masked_fill(~scored, low).log_softmax(1)
    teacher = (groups.scores.to(cosine.dtype) / temperature).masked_fill(~scored, low)
    target = teacher.log_softmax(1)
    each = functional.kl_div(ours, target, reduction="none", log_target=True)
    return _mean((each * scored).sum(1), counted)


def margin_mse(
    queries: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "n dim"],
    groups: Groups,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Squared error of the margins between positive and negatives (Margin-MSE, 2010.02666).

    Args:
        queries: unit vectors.
        candidates: unit vectors.
        groups: scored candidates; a query whose positive has no score, or nothing else, does not
            count.
        temperature: divides the teacher's margins, to bring logits to the range of cosines.
    """
    cosine, scored, counted = _prepare(queries, candidates, groups)
    teacher = groups.scores.to(cosine.dtype).masked_fill(~scored, 0.0) / temperature
    error = (cosine[:, :1] - cosine[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    others = scored[:, 1:]
    each = (error.square() * others).sum(1) / others.sum(1).clamp(min=1)
    return _mean(each, counted & scored[:, 0])


def _prepare(
    queries: Float[Tensor, "batch dim"], candidates: Float[Tensor, "n dim"], groups: Groups
) -> tuple[Float[Tensor, "batch width"], Bool[Tensor, "batch width"], Bool[Tensor, " batch"]]:
    rows = groups.rows.clamp(min=0)
    cosine = torch.einsum("bd,bwd->bw", queries, candidates[rows])
    scored = (groups.rows >= 0) & groups.scores.isfinite()
    return cosine, scored, scored.sum(1) >= 2


def _mean(each: Float[Tensor, " batch"], counted: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean over the counted rows of the joint batch, so that the mean over processes is it."""
    total, world = counted.sum(), 1
    if distributed():
        dist.all_reduce(total)
        world = dist.get_world_size()
    return world * (each * counted).sum() / total.clamp(min=1)
