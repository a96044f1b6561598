"""AdamW with linear warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class AdamWCosine:
    """AdamW; tensors of fewer than two axes (norms, biases, logit scale) do not decay.

    Defaults are UniIR's CLIP-SF, which has no warm-up and decays to 0.

    Args:
        lr: peak learning rate.
        betas: decay rates of the moments.
        eps: added to the denominator.
        weight_decay: decoupled decay.
        warmup_steps: steps of linear rise.
        floor: share of ``lr`` at the end of the cosine.
        fused: one kernel for all tensors; null leaves the choice to torch.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup_steps: int = 0
    floor: float = 0.0
    fused: bool | None = None

    def build(
        self, parameters: Iterable[tuple[str, torch.nn.Parameter]], steps: int
    ) -> tuple[torch.optim.AdamW, LambdaLR]:
        """The optimiser and its schedule over ``steps`` optimiser steps."""
        trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused
        )
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """Share of ``lr`` at an optimiser step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
