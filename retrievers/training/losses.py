"""Losses on unit vectors, known positives kept out of negatives; towards a teacher's scores."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from retrievers.data.examples import Groups
from retrievers.training.gather import Joint, distributed

#: What the other known positives of a query in the batch are: left out; each a positive of its own;
#: or one positive together.
Several = Literal["ignore", "average", "sum"]

#: Stands for no logit at all; finite, because infinities make NaN gradients where a row is empty.
_NOTHING = -1e30


def info_nce(
    joint: Joint,
    logit_scale: Float[Tensor, ""],
    symmetric: bool = False,
    several: Several = "ignore",
    margin: float | None = None,
) -> Float[Tensor, ""]:
    """In-batch InfoNCE (1807.03748) in which no known positive is a negative.

    Args:
        joint: the batch (see :func:`~retrievers.training.gather.join`).
        logit_scale: multiplies the cosine: the exponential of CLIP's parameter.
        symmetric: average with the loss from candidate to query (CLIP 2103.00020, figure 3); hard
            negatives take part from query to candidate only. UniIR has only that direction.
        several: the other known positives in the batch. ``ignore`` leaves them out of numerator
            and denominator; ``average`` takes the mean of the loss over all of them, each against
            the negatives alone; ``sum`` takes the logarithm of their summed probability (MIL-NCE,
            1912.06430, equation 1).
        margin: a candidate whose cosine exceeds the own positive's by more than this is taken for
            a false negative and left out (0.1 in Qwen3-Embedding, 2506.05176). None keeps all.
    """
    loss = _one_way(
        joint.queries, joint.all_candidates, joint.known, joint.target,
        logit_scale, several, margin,
    )  # fmt: skip
    if symmetric:
        back = _one_way(
            joint.candidates, joint.all_queries, joint.known_back, joint.target,
            logit_scale, several, margin,
        )  # fmt: skip
        loss = (loss + back) / 2
    return joint.share * loss


def siglip(
    joint: Joint,
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    several: Several = "ignore",
    margin: float | None = None,
) -> Float[Tensor, ""]:
    """Sigmoid loss (SigLIP 2303.15343, algorithm 1): every pair is a yes-or-no question.

    Args:
        joint: the batch.
        logit_scale: multiplies the cosine.
        logit_bias: added; -10 at the start of SigLIP's training.
        several: ``ignore`` asks nothing about the other known positives; otherwise they are yes.
        margin: see :func:`info_nce`.

    Returns:
        The sum over all pairs, divided by the number of queries.
    """
    cosine = joint.queries @ joint.all_candidates.T
    positive = joint.known
    if several == "ignore":
        positive = torch.zeros_like(positive).scatter_(1, joint.target[:, None], True)
    negative = _negatives(cosine, joint.known, joint.target, margin)
    logits = logit_scale * cosine + logit_bias
    asked = -functional.logsigmoid(torch.where(positive, logits, -logits))
    return joint.share * (asked * (positive | negative)).sum() / len(cosine)


def _one_way(
    rows: Float[Tensor, "batch dim"],
    columns: Float[Tensor, "n dim"],
    known: Bool[Tensor, "batch n"],
    target: Int[Tensor, " batch"],
    scale: Float[Tensor, ""],
    several: Several,
    margin: float | None,
) -> Float[Tensor, ""]:
    cosine = rows @ columns.T
    negative = _negatives(cosine, known, target, margin)
    logits = scale * cosine
    against = logits.masked_fill(~negative, _NOTHING).logsumexp(1)
    # log(1 + exp(against - positive)) is the cross entropy of the positive among the negatives.
    if several == "ignore":
        own = logits.gather(1, target[:, None])[:, 0]
        return functional.softplus(against - own).mean()
    if several == "sum":
        together = logits.masked_fill(~known, _NOTHING).logsumexp(1)
        return functional.softplus(against - together).mean()
    each = functional.softplus(against[:, None] - logits) * known
    return (each.sum(1) / known.sum(1)).mean()


def _negatives(
    cosine: Float[Tensor, "batch n"],
    known: Bool[Tensor, "batch n"],
    target: Int[Tensor, " batch"],
    margin: float | None,
) -> Bool[Tensor, "batch n"]:
    if margin is None:
        return ~known
    cosine = cosine.detach()
    return ~known & (cosine <= cosine.gather(1, target[:, None]) + margin)


def listwise(
    logits: Float[Tensor, "batch width"], groups: Groups, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence from the teacher's distribution over a group to ours.

    Args:
        logits: of each query's own candidates: scaled cosines, or a reranker's scores.
        groups: the teacher's scores of them; a query with fewer than two does not count.
        temperature: divides the teacher's scores; about 0.02 to 0.05 for cosines, 1 for logits.
    """
    scored = (groups.rows >= 0) & groups.scores.isfinite()
    low = torch.finfo(logits.dtype).min
    ours = logits.masked_fill(~scored, low).log_softmax(1)
    teacher = (groups.scores.to(logits.dtype) / temperature).masked_fill(~scored, low)
    target = teacher.log_softmax(1)
    each = functional.kl_div(ours, target, reduction="none", log_target=True)
    return _joint_mean((each * scored).sum(1), scored.sum(1) >= 2)


def pointwise(
    logits: Float[Tensor, "batch width"],
    positive: Bool[Tensor, "batch width"],
    there: Bool[Tensor, "batch width"],
) -> Float[Tensor, ""]:
    """Cross-entropy of yes and no, the mean of each query's own mean."""
    asked = functional.softplus(torch.where(positive, -logits, logits)) * there
    return _joint_mean(asked.sum(1) / there.sum(1).clamp(min=1), there.any(1))


def pairwise(
    logits: Float[Tensor, "batch width"],
    positive: Bool[Tensor, "batch width"],
    there: Bool[Tensor, "batch width"],
) -> Float[Tensor, ""]:
    """Logistic loss of every positive against every other candidate of its query (RankNet)."""
    both = (positive & there)[:, :, None] & (~positive & there)[:, None, :]
    each = functional.softplus(logits[:, None, :] - logits[:, :, None]) * both
    count = both.sum((1, 2))
    return _joint_mean(each.sum((1, 2)) / count.clamp(min=1), count > 0)


def margin_mse(
    cosine: Float[Tensor, "batch width"], groups: Groups, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Squared error of the margins between positive and negatives (Margin-MSE, 2010.02666).

    Args:
        cosine: of each query with its own candidates.
        groups: scored candidates; a query whose positive has no score, or nothing else, does not
            count.
        temperature: divides the teacher's margins, to bring logits to the range of cosines.
    """
    scored = (groups.rows >= 0) & groups.scores.isfinite()
    teacher = groups.scores.to(cosine.dtype).masked_fill(~scored, 0.0) / temperature
    error = (cosine[:, :1] - cosine[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    others = scored[:, 1:]
    each = (error.square() * others).sum(1) / others.sum(1).clamp(min=1)
    return _joint_mean(each, (scored.sum(1) >= 2) & scored[:, 0])


def _joint_mean(
    each: Float[Tensor, " batch"], counted: Bool[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Mean over the counted rows of the joint batch, so that the mean over processes is it."""
    total, world = counted.sum(), 1
    if distributed():
        dist.all_reduce(total)
        world = dist.get_world_size()
    return world * (each * counted).sum() / total.clamp(min=1)
