"""Losses on unit vectors, exact over processes: contrastive, sigmoid, distillation, prefixes."""

from retrievers.training.losses.contrastive import Several, info_nce, siglip
from retrievers.training.losses.distillation import Groups, kl_divergence, margin_mse
from retrievers.training.losses.ids import NO_ID, hash_id, known_pairs, pad_ids
from retrievers.training.losses.joint import Joint, Labels, gather, join
from retrievers.training.losses.objective import Distillation, Objective

__all__ = [
    "NO_ID",
    "Distillation",
    "Groups",
    "Joint",
    "Labels",
    "Objective",
    "Several",
    "gather",
    "hash_id",
    "info_nce",
    "join",
    "kl_divergence",
    "known_pairs",
    "margin_mse",
    "pad_ids",
    "siglip",
]
