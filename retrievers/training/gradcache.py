"""Large batches in bounded memory: encode chunk by chunk, recompute activations in the backward.

GradCache (2101.06983) first encodes everything without a graph, takes the gradient of the loss with
respect to the vectors, and then encodes each chunk again to push that gradient into the weights.
That is activation checkpointing with chunks of the batch as segments, and written that way it is
one ordinary graph: the loss is one tensor with one backward, so that clipping, accumulation, loss
scaling, callbacks and DDP's hooks (each parameter's once, after its last chunk) work as ever, and
the logit scale receives its gradient once, from the whole batch. Random numbers are replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from augment.records import Side
from retrievers.data.examples import Batch

Encode = Callable[[Any, Side], Tensor]


def encode_in_chunks(
    encode: Encode,
    batch: Batch,
    side: Side,
    size: int | None,
    keep: int = 0,
    tokens: int | None = None,
) -> Float[Tensor, "batch dim"]:
    """What ``encode`` gives for the whole batch, with the activations of one chunk at a time.

    Args:
        encode: vectors of a batch of one side; its rows must not depend on each other.
        batch: the items.
        side: query or corpus.
        size: items per chunk; None encodes all at once.
        keep: the last chunks that keep their activations: memory for time. Recomputing costs about
            a third of a step.
        tokens: most tokens of a chunk, padding included; of batches that have ``lengths``. An item
            that is longer is a chunk of its own.

    Raises:
        ValueError: if ``size`` or ``tokens`` is not positive, or the batch has no lengths.
    """
    for what, most in (("item", size), ("token", tokens)):
        if most is not None and most < 1:
            raise ValueError(f"a chunk holds at least 1 {what}, got {most}")
    if tokens is not None and not hasattr(batch, "lengths"):
        raise ValueError("chunks by tokens are for language models; set model.chunk")
    if (size is None and tokens is None) or not torch.is_grad_enabled():
        return encode(batch, side)
    ends = _ends(batch, size or batch.size, tokens)
    if len(ends) < 2:
        return encode(batch, side)
    chunks = [batch.rows(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    vectors = []
    for number, chunk in enumerate(chunks):
        if number >= len(chunks) - keep:
            vectors.append(encode(chunk, side))
        else:
            # Not the reentrant kind, whose inner backward would fire DDP's hooks in every chunk.
            vectors.append(checkpoint(encode, chunk, side, use_reentrant=False))
    return torch.cat(vectors)


def _ends(batch: Any, size: int, tokens: int | None) -> list[int]:
    """Where chunks end: one behind their last items."""
    if tokens is None:
        return [*range(size, batch.size, size), batch.size]
    ends, start, longest = [], 0, 0
    for row, length in enumerate(batch.lengths.tolist()):
        count, longest = row - start + 1, max(longest, length)
        if count > 1 and (count > size or count * longest > tokens):
            ends.append(row)
            start, longest = row, length
    return [*ends, batch.size]
