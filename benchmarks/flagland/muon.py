"""Optimisers and schedule of the trainings from scratch: Muon inside, AdamW around."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz towards the nearest orthogonal matrices, [n, rows, columns], in fp32.

    Coefficients of the quintic: K. Jordan, "Muon" (2024). ``torch.optim.Muon`` does the same in
    bfloat16, which a CPU without bfloat16 units emulates a hundred times slower.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; steps scaled to AdamW's size (Moonlight, 2502.16982, eq. 4)."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = []
                for parameter in parameters:
                    state, gradient = self.state[parameter], parameter.grad
                    if gradient is None:
                        continue
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(state["momentum"], group["momentum"]))
                updates = orthogonalised(torch.stack(directions))
                size = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)


def optimisers(model: nn.Module, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inner if matrix else rest).append(parameter)
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(inner, muon_lr), adam]


def scale_of(step: int, steps: int, decay: float) -> float:
    """Warm-up of 100 steps, constant, then linear to zero over the last ``decay`` share."""
    start = int(steps * (1 - decay))
    if step < 100:
        return (step + 1) / 100
    return 1.0 if step < start else max(0.0, (steps - step) / max(1, steps - start))
