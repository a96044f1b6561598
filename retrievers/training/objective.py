"""What training minimises, as settings: one contrastive loss, prefixes of it, distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrievers.data.examples import Groups, Labels
from retrievers.training.gather import Joint, join
from retrievers.training.losses import (
    Several,
    info_nce,
    listwise,
    margin_mse,
    pairwise,
    pointwise,
    siglip,
)


@dataclass(frozen=True)
class Distillation:
    """How much and how the teacher's scores of mined candidates count.

    Args:
        kind: none, kl (distribution over the positive and its mined negatives) or margin_mse.
        weight: factor beside the contrastive loss.
        temperature: divides the teacher's scores.
        alone: mined candidates are no negatives of the contrastive loss.
    """

    kind: Literal["none", "kl", "margin_mse"] = "none"
    weight: float = 1.0
    temperature: float = 1.0
    alone: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


@dataclass(frozen=True)
class TokenLoss:
    """How much what a model is to write before a vector counts (TRACE, RGE).

    The first token, which decides whether anything is written, counts apart: in one mean over all
    tokens it would be lost among those of the chains. Candidates that are taught to write have a
    loss of their own beside that of the queries, which weighs what it weighs without them.

    Args:
        weight: factor beside the contrastive loss; 0 for none.
        decision: factor of the first token's mean over items, within the former.
        per: of the other tokens, the mean of each item's own mean (sample), or over the tokens of
            the whole batch, all processes together (token).
    """

    weight: float = 0.0
    decision: float = 1.0
    per: Literal["sample", "token"] = "sample"

    def __call__(
        self,
        first: Float[Tensor, " batch"],
        rest: Float[Tensor, " batch"],
        counts: Int[Tensor, " batch"],
    ) -> Mapping[str, Float[Tensor, ""]]:
        """The loss (``tokens``, weighted) and its parts.

        ``first`` is the cross-entropy of each item's first token, ``rest`` the sum of that of its
        ``counts`` other tokens.
        """
        chains = counts if self.per == "token" else (counts > 0).long()
        totals = torch.stack([chains.sum(), chains.new_tensor(len(first))]).float()
        if torch.distributed.is_initialized():  # gradients are averaged over processes
            torch.distributed.all_reduce(totals)
            totals = totals / torch.distributed.get_world_size()
        each = rest if self.per == "token" else rest / counts.clamp(min=1)
        written, items = totals.clamp(min=1e-9)
        decision, chain = first.sum() / items, each.sum() / written
        loss = self.weight * (self.decision * decision + chain)
        return {"tokens": loss, "decision": decision.detach(), "chain": chain.detach()}


@dataclass(frozen=True)
class Ranking:
    """What training of a reranker minimises, over each query's positive and its mined candidates.

    Args:
        kind: pointwise (cross-entropy of yes and no), pairwise (positives above all others) or
            listwise (towards the distribution of the scores of the table of mined negatives).
        temperature: divides the teacher's scores of listwise; about 0.05 for cosines.
    """

    kind: Literal["pointwise", "pairwise", "listwise"] = "pointwise"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def __call__(
        self, scores: Float[Tensor, " pairs"], labels: Labels, groups: Groups
    ) -> Float[Tensor, ""]:
        """The loss.

        Raises:
            ValueError: if no query has a negative, or listwise has no score of a teacher.
        """
        rows, there = groups.rows, groups.rows >= 0
        logits = scores.new_zeros(rows.shape).masked_scatter(there, scores)
        ids = labels.candidates[rows.clamp(min=0)]
        positive = there & (ids[:, :, None] == labels.positives[:, None, :]).any(2)
        positive[:, 0] = True
        if not (there & ~positive).any():
            raise ValueError(
                "no query of the batch has a negative, and a reranker learns from them; mine some "
                "and name them with data.negatives.path"
            )
        if self.kind == "listwise":
            if not groups.scores.isfinite().any():
                raise ValueError("listwise needs a teacher's scores, as `mine` writes them")
            return listwise(logits, groups, self.temperature)
        return (pointwise if self.kind == "pointwise" else pairwise)(logits, positive, there)


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    Args:
        kind: info_nce or siglip.
        symmetric: info_nce also from candidate to query; UniIR has query to candidate only.
        several: what other known positives in the batch are: ignore, average or sum.
        margin: leave out negatives whose cosine exceeds the positive's by more than this.
        matryoshka: also train these prefixes of the vectors (2205.13147); the full length counts
            in any case.
        matryoshka_weight: factor of each prefix's loss.
        distillation: towards the scores of mined candidates.
    """

    kind: Literal["info_nce", "siglip"] = "info_nce"
    symmetric: bool = False
    several: Several = "ignore"
    margin: float | None = None
    matryoshka: tuple[int, ...] = ()
    matryoshka_weight: float = 1.0
    distillation: Distillation = Distillation()

    def __call__(
        self,
        queries: Float[Tensor, "batch dim"],
        candidates: Float[Tensor, "n dim"],
        labels: Labels,
        groups: Groups,
        logit_scale: Float[Tensor, ""],
        logit_bias: Float[Tensor, ""] | None = None,
    ) -> Mapping[str, Float[Tensor, ""]]:
        """The loss and its parts, in float32 whatever the precision of the towers.

        Raises:
            ValueError: if siglip has no bias, or a prefix is not shorter than the vectors.
        """
        # bf16 logits tie; autocast would make them from float32 vectors too.
        with torch.autocast(queries.device.type, enabled=False):
            some = slice(len(queries) if self.distillation.alone else None)  # own positives first
            of_all = labels._replace(candidates=labels.candidates[some])
            joint = join(_single(queries), _single(candidates)[some], of_all)
            full = self._contrastive(joint, logit_scale, logit_bias)
            parts = {"contrastive": full}
            for dim in self.matryoshka:
                if not 0 < dim < queries.shape[1]:
                    raise ValueError(f"prefix {dim} of vectors with {queries.shape[1]} numbers")
                short = self._contrastive(joint.prefix(dim), logit_scale, logit_bias)
                parts[f"contrastive_{dim}"] = short
            loss = full + self.matryoshka_weight * sum(
                (part for name, part in parts.items() if name != "contrastive"), full.new_zeros(())
            )
            if self.distillation.kind != "none":
                own = _single(candidates)[groups.rows.clamp(min=0)]
                cosine = torch.einsum("bd,bwd->bw", _single(queries), own)
                parts["distillation"] = (
                    listwise(logit_scale * cosine, groups, self.distillation.temperature)
                    if self.distillation.kind == "kl"
                    else margin_mse(cosine, groups, self.distillation.temperature)
                )
                loss = loss + self.distillation.weight * parts["distillation"]
        return {"loss": loss, **(parts if len(parts) > 1 else {})}

    def _contrastive(self, joint: Joint, scale: Tensor, bias: Tensor | None) -> Tensor:
        if self.kind == "siglip":
            if bias is None:
                raise ValueError("siglip needs a logit bias")
            return siglip(joint, scale, bias, self.several, self.margin)
        return info_nce(joint, scale, self.symmetric, self.several, self.margin)


def _single(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype in (torch.bfloat16, torch.float16) else vectors
