"""RGE: embeddings guided by the model's own rationale (2511.16150; code at MCG-NJU/RGE@6074444).

For a query the model writes a rationale, closed by a mark whose state is the vector; candidates
write nothing. It is taught rationales that were written with the target in sight, and contrast
reads those that it writes itself at that moment: over the former it would be trivial, and a test
has none. Two sequences a query, then, and one a candidate.

Deviations. Who wrote the paper's oracle rationales, with what prompt and filter, when own ones were
refreshed, batch, rate and steps are not published: here any model or engine writes the former
through ``augment.queries``, and own ones are as old as ``refresh_every`` allows. Both losses count
1; with AdamW only their ratio matters, which is ``w_ar``. The first token's cross-entropy is a mean
of its own and counts as one of about a hundred tokens. A mark that does not come within
``max_tokens`` is forced, and counted, where the paper's code pools whatever token came last.
Queries are written in batches, and their vectors taken on the way. Prompts, and the instructions
that ask for inference (``rge``), are written afresh.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from retrievers.commands.leaks import LeakAudit
    from retrievers.evaluation.results import Results
    from retrievers.models.mllm.encoder import Mllm


class RgeResult(NamedTuple):
    """What a run of RGE leaves.

    Attributes:
        model: the trained encoder.
        results: its test with own rationales.
        audit: how much of the targets the taught rationales tell.
    """

    model: Mllm
    results: Results
    audit: LeakAudit


def rge(
    root: str | Path,
    store: str | Path,
    encoder: Mllm,
    out: str | Path = "runs/rge",
    *,
    recipe: str | None = None,
    w_ar: float = 1.0,
    refresh_every: int | Literal["epoch"] | None = 1,
    written_tokens: int = 256,
    max_steps: int = 400,
    batch_size: int = 64,
    chunk: int | None = None,
    lr: float = 1e-4,
    lora_rank: int = 16,
    instructions: bool | str = True,
    tasks: list[int] | None = None,
    seed: int = 0,
) -> RgeResult:
    """Look at the taught rationales, fit, test.

    Killed, it goes on where it was: own rationales of finished steps are in
    ``OUT/rationales-0.jsonl``, and those behind the last checkpoint are written again, the same.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the oracle rationales, as ``augment.queries`` wrote them by ``rge/oracle``.
        encoder: whose layout pools at a mark, and whose reasoning is ``always``.
        out: folder of checkpoints, runs and metrics.
        recipe: id of the oracle rationales; None takes the one that is meant.
        w_ar: weight of the cross-entropy on them, beside contrast.
        refresh_every: steps after which own rationales are written anew; epoch: once a pass over
            the data; None keeps the first.
        written_tokens: most tokens of own rationales in training.
        max_steps: optimiser steps.
        batch_size: training pairs per step.
        chunk: items whose activations are held at a time.
        lr: peak learning rate.
        lora_rank: of DoRA updates with alpha four times as large; 0 trains the language model.
        instructions: the root's own, or a table such as ``rge``.
        tasks: only these task codes.
        seed: of order and instructions.

    Raises:
        DataError: if the data or the encoder cannot be used.
        StoreError: if the store cannot be read.
    """
    import lightning

    from retrievers.commands.leaks import audit_leaks
    from retrievers.data.module import MBeirData, ValidationConfig
    from retrievers.data.texts import WrittenConfig
    from retrievers.models.tuning import Tuning
    from retrievers.training.module import Contrastive, fit
    from retrievers.training.objective import TokenLoss
    from retrievers.training.optim import AdamWCosine
    from retrievers.training.rationales import Rationales
    from retrievers.vectors.search import test

    told = Path(out) / "leaks.json"
    audit = audit_leaks(Path(root), Path(store), recipe, tasks=tasks, out=told)
    data = MBeirData(
        str(root), written=WrittenConfig(str(store), recipe), instructions=instructions,
        tasks=tasks, batch_size=batch_size, validation=ValidationConfig(queries=0), seed=seed,
    )  # fmt: skip
    lightning.seed_everything(seed, verbose=False)
    lora = Tuning("image", lora_rank=lora_rank, lora_alpha=4 * lora_rank, lora_dropout=0.1,
                  dora=True)  # fmt: skip
    training = Contrastive(
        encoder,
        chunk=chunk,
        optimizer=AdamWCosine(lr=lr, weight_decay=0.01, warmup_steps=20),
        tuning=lora if lora_rank else Tuning("image"),
        tokens=TokenLoss(w_ar, decision=0.01),
        rationales=Rationales("own", refresh_every, written_tokens),
    )
    fit(training, data, out, max_steps=max_steps, resume=True)
    return RgeResult(encoder, test(encoder, data, out), audit)
