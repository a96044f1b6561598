"""T5's encoder (1910.10683) over vectors that stand at given positions, some of them padding.

Parameters bear the names that transformers gives them in ``T5Stack``, so that weights go across.
That class cannot be used itself: its positions are those of the row, so that padding between two
parts of a sequence would move the second, it keeps the word embeddings of 32,128 words that nobody
reads, and its attention is not fused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import DataError

#: Buckets of relative positions, and the distance from which all are one (1910.10683, section 2.1).
_BUCKETS, _FAR = 32, 128
_EPS = 1e-6


@dataclass(frozen=True)
class FusionLayers:
    """Size of the fusion transformer. Defaults are UniIR's, which are T5-small's but for the heads.

    Args:
        layers: blocks of attention and feed-forward.
        heads: attention heads.
        head_width: numbers per head; heads x head_width need not be the width of the vectors.
        feedforward: inner width of the feed-forward part.
        dropout: of inputs, attention, both parts of a block, and outputs.
    """

    layers: int = 2
    heads: int = 12
    head_width: int = 64
    feedforward: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_width", "feedforward"):
            if getattr(self, name) < 1:
                raise DataError(f"fusion.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise DataError(f"fusion.dropout must be in [0, 1), got {self.dropout}")


@final
class T5Encoder(nn.Module):
    """Blocks of T5's encoder, freshly initialised as T5 is."""

    def __init__(self, width: int, config: FusionLayers) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(width, config, n == 0) for n in range(config.layers))
        self.final_layer_norm = nn.RMSNorm(width, _EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "rows length width"],
        positions: Int[Tensor, " length"],
        mask: Bool[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "rows length width"]:
        """Last states, normalised.

        Args:
            x: the vectors.
            positions: where they stand, the same in all rows.
            mask: what is there; the rest is not attended to. At least one of each row. None takes
                everything.
        """
        first: Any = self.block[0]
        bias = first.layer[0].SelfAttention.bias(positions)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], -math.inf)
        x = self.dropout(x)
        for block in self.block:
            x = block(x, bias)
        return cast("Tensor", self.dropout(self.final_layer_norm(x)))


class _Block(nn.Module):
    def __init__(self, width: int, config: FusionLayers, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Attending(width, config, first), _Forwarding(width, config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.layer[0](x, bias)
        return cast("Tensor", self.layer[1](x))


class _Attending(nn.Module):
    def __init__(self, width: int, config: FusionLayers, first: bool) -> None:
        super().__init__()
        self.SelfAttention = _Attention(width, config, first)
        self.layer_norm = nn.RMSNorm(width, _EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return cast("Tensor", x + self.dropout(self.SelfAttention(self.layer_norm(x), bias)))


class _Attention(nn.Module):
    """Unscaled dot products plus a learned bias of the distance, which all blocks share."""

    def __init__(self, width: int, config: FusionLayers, first: bool) -> None:
        super().__init__()
        self.heads, self._dropout = config.heads, config.dropout
        inner = config.heads * config.head_width
        self.q = _linear(width, inner, (width * config.head_width) ** -0.5)
        self.k = _linear(width, inner, width**-0.5)
        self.v = _linear(width, inner, width**-0.5)
        self.o = _linear(inner, width, inner**-0.5)
        if first:
            self.relative_attention_bias = nn.Embedding(_BUCKETS, config.heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=width**-0.5)

    def bias(self, positions: Int[Tensor, " length"]) -> Float[Tensor, "1 heads length length"]:
        """What is added to the products of two positions."""
        buckets = relative_buckets(positions[None, :] - positions[:, None])
        bias: Tensor = self.relative_attention_bias(buckets)
        return bias.permute(2, 0, 1)[None]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        dropout = self._dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype), dropout, scale=1.0)
        return cast("Tensor", self.o(y.transpose(1, 2).flatten(2)))


class _Forwarding(nn.Module):
    def __init__(self, width: int, config: FusionLayers) -> None:
        super().__init__()
        self.DenseReluDense = _Dense(width, config)
        self.layer_norm = nn.RMSNorm(width, _EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", x + self.dropout(self.DenseReluDense(self.layer_norm(x))))


class _Dense(nn.Module):
    def __init__(self, width: int, config: FusionLayers) -> None:
        super().__init__()
        self.wi = _linear(width, config.feedforward, width**-0.5)
        self.wo = _linear(config.feedforward, width, config.feedforward**-0.5)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.wo(self.dropout(functional.relu(self.wi(x)))))


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    """Initialised as T5 is, whose unscaled products need small queries."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=std)
    return linear


def relative_buckets(distances: Int[Tensor, ...]) -> Int[Tensor, ...]:
    """T5's bucket of a signed distance: exact when near, on a log scale when far (section 2.1).

    Args:
        distances: position attended to, less the attending one.
    """
    half = _BUCKETS // 2
    exact = half // 2
    away = distances.abs()
    share = torch.log(away.clamp(min=1).float() / exact) / math.log(_FAR / exact)
    far = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(away < exact, away, far) + half * (distances > 0)
