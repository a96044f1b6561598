"""The rows of the table: what differs from the first one, as arguments of ``fit``.

Losses and batches change ``flagland``, fusions bring the config of their own. Constants that a
paper gives are the paper's; see :mod:`retrievers.training.losses` for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from augment.errors import DataError

_PREFIXES = ("--model.objective.matryoshka=[32,64]",)
_SHORT = ("--model.truncate_dim=32",)
_MINED = ("--data.negatives.per_query=1",)


@final
class Row(NamedTuple):
    """One way to train a retriever.

    Attributes:
        key: on the command line.
        title: in the table.
        model: arguments of training and test.
        data: arguments of training alone.
        shown: arguments of the test alone.
        config: of the retriever.
        mined: whether it reads negatives that the first row's checkpoint of the same seed found,
            with that checkpoint's scores.
        trained: whether it is trained at all.
        cost: of a step, in steps of the first row; for estimates.
    """

    key: str
    title: str
    model: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    config: str = "flagland"
    mined: bool = False
    trained: bool = True
    cost: float = 1.0


ROWS = (
    Row("infonce", "CLIP-SF, InfoNCE both ways"),
    Row("untrained", "the same weights, not trained", trained=False),
    Row("one-way", "InfoNCE from query to candidate (UniIR)",
        ("--model.objective.symmetric=false",)),
    Row("hard-negatives", "one mined negative a query", (), _MINED, mined=True, cost=1.4),
    # Qwen3 Embedding (2506.05176, section 3.1) leaves out what scores .1 above the positive.
    Row("margin", "false-negative mask, margin .1", ("--model.objective.margin=0.1",)),
    Row("hard-margin", "mined negatives and mask", ("--model.objective.margin=0.1",), _MINED,
        mined=True, cost=1.4),
    Row("positives", "two positives a query, loss averaged", ("--model.objective.several=average",),
        ("--data.positives=2",), cost=1.4),
    Row("homogeneous", "batches of one task", (),
        ("--data.sampling.group_by=task", "--data.sampling.homogeneous=true")),
    Row("siglip", "SigLIP's loss", ("--model.objective.kind=siglip",)),
    # Temperature: cosines of a trained retriever differ by hundredths.
    Row("kl", "mined negatives, distillation (KL)",
        ("--model.objective.distillation.kind=kl",
         "--model.objective.distillation.temperature=0.05"), _MINED, mined=True, cost=1.4),
    Row("margin-mse", "mined negatives, distillation (margin MSE)",
        ("--model.objective.distillation.kind=margin_mse",), _MINED, mined=True, cost=1.4),
    Row("matryoshka", "Matryoshka, prefixes of 32 and 64", _PREFIXES),
    Row("matryoshka-32", "Matryoshka, first 32 of 128 numbers", _PREFIXES, shown=_SHORT),
    Row("infonce-32", "the first row, first 32 of 128 numbers", shown=_SHORT),
    Row("gradcache", "GradCache, 16 items at a time", ("--model.chunk=16",), cost=1.3),
    Row("frozen-image", "image tower frozen", ("--model.tuning.freeze=image",), cost=0.8),
    Row("frozen-text", "text tower frozen", ("--model.tuning.freeze=text",), cost=0.6),
    Row("lora", "LoRA of rank 8 in both towers", ("--model.tuning.lora_rank=8",)),
    Row("ff-masked", "CLIP-FF, masked", config="flagland_ff", cost=1.6),
    Row("ff-uniir", "CLIP-FF, as UniIR published it", ("--model.attention=uniir",),
        config="flagland_ff", cost=3.0),
)  # fmt: skip
FIRST = ROWS[0]


def choose(keys: Sequence[str]) -> list[Row]:
    """Rows by their keys, in the order of the table; the first one is always there.

    Args:
        keys: of :data:`ROWS`; empty takes all.

    Raises:
        DataError: if there is no such row.
    """
    known = [row.key for row in ROWS]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise DataError(f"no row {', '.join(unknown)}; there are {', '.join(known)}")
    return [row for row in ROWS if not keys or row.key in keys or row == FIRST]
