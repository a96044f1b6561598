"""AdamW with linear warm-up, a hold and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
        hold: share of the steps behind the warm-up that keep ``lr`` before the cosine begins
            (warm-up, stable, decay: MiniCPM, 2404.06395).
        floor: share of ``lr`` at the end of the cosine.
        fused: one kernel for all tensors; null leaves the choice to torch.
        fresh_lr: peak learning rate of layers that start without trained weights, such as the
            fusion's; null takes ``lr``. UniIR's CLIP-FF has 5e-4.
        decay_fresh: decay every tensor of such layers, as UniIR does, norms too.
        decay_all: decay every tensor of the others, too, as UniIR's BLIP does.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup_steps: int = 0
    floor: float = 0.0
    hold: float = 0.0
    fused: bool | None = None
    fresh_lr: float | None = None
    decay_fresh: bool = False
    decay_all: bool = False

    def build(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        steps: int,
        fresh: Sequence[str] = (),
    ) -> tuple[torch.optim.AdamW, LambdaLR]:
        """The optimiser and its schedule over ``steps`` optimiser steps.

        ``fresh`` are beginnings of the names of layers without trained weights.
        """
        trained: list[torch.nn.Parameter] = []
        started: list[torch.nn.Parameter] = []
        for name, parameter in parameters:
            if parameter.requires_grad:
                (started if name.startswith(tuple(fresh)) else trained).append(parameter)
        groups = self._groups(trained, self.lr, self.decay_all)
        if started:
            rate = self.lr if self.fresh_lr is None else self.fresh_lr
            groups += self._groups(started, rate, self.decay_fresh or self.decay_all)
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused
        )
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def _groups(
        self, parameters: Sequence[torch.nn.Parameter], lr: float, all_decay: bool
    ) -> list[dict[str, Any]]:
        decays = [p for p in parameters if all_decay or p.ndim >= 2]
        keeps = [p for p in parameters if not all_decay and p.ndim < 2]
        return [
            {"params": decays, "lr": lr, "weight_decay": self.weight_decay},
            {"params": keeps, "lr": lr, "weight_decay": 0.0},
        ]

    def factor(self, step: int, steps: int) -> float:
        """Share of ``lr`` at an optimiser step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        done = max(0.0, done - self.hold) / max(1 - self.hold, 1e-9)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
