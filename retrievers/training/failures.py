"""What a training step says when its loss is no number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from augment.errors import DataError
from augment.records import Side
from retrievers.data.examples import Inputs, Pairs


@torch.no_grad()
def not_finite(
    batch: Pairs,
    parts: Mapping[str, Tensor],
    step: int,
    encode: Callable[[Inputs, Side], Tensor],
) -> DataError:
    """The error of a batch, with the pairs that are to blame.

    Args:
        batch: whose loss is not finite.
        parts: of the loss.
        step: of the optimiser.
        encode: makes the vectors again, to see which are not finite.
    """
    seen = ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
    finite = torch.ones(batch.queries.size, dtype=torch.bool)
    sides: tuple[tuple[Inputs, Side], ...] = (
        (batch.queries, "query"),
        (batch.candidates, "corpus"),
    )
    for inputs, side in sides:
        finite &= encode(inputs, side).isfinite().all(1).cpu()[: len(finite)]
    bad = [name for name, good in zip(batch.names, finite.tolist(), strict=True) if not good]
    shown = bad or batch.names
    pairs = ", ".join(f"{qid} with {did}" for qid, did in shown[:8])
    what = "pairs without finite vectors" if bad else "no single pair is to blame; the batch"
    return DataError(
        f"the loss is not finite at step {step} ({seen}); {what}: {pairs}"
        f"{' ...' if len(shown) > 8 else ''}. Lower the learning rate, set "
        "trainer.gradient_clip_val, or use precision 32 or bf16-mixed; resume from the latest "
        "checkpoint"
    )
