"""TRACE: one model that reasons where it must and then embeds (2603.02929).

A query's vector is the state that predicts the mark ``<|emb|>``. For an easy query the mark is the
first token; for a hard one the model writes a chain first. No gate decides but the first token.
Candidates are embedded directly. One forward gives both losses, ``L = weight * L_gen + L_ret``.

Deviations, and what the paper leaves open: ``L_gen`` as printed is empty for direct queries and
would not teach whom to write for; here the first token counts for every query, in a mean of its
own (:class:`~retrievers.training.objective.TokenLoss`). The temperature is not published: 0.05, of
LamRA (2412.01720), whose backbone is the same family. Judge, writers and verifiers of the chains
are prompts of our own (``augment/prompts/trace``). The small recipe trains the packaged VLM
outright, without LoRA, behind a head that begins as the identity. No hard negatives, as in the
paper. More: ``docs/trace.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievers.papers import written_by

if TYPE_CHECKING:
    from augment.engines import Engine
    from augment.enrichment.account import Summary
    from augment.enrichment.pipeline import Options
    from retrievers.evaluation.results import Results
    from retrievers.models.base import Encoder

#: Kind of query -> what writes its chain, for models of some billions of parameters.
CHAIN_PROMPTS: Mapping[str, str | None] = {
    "image": "trace/visual",
    "question": "trace/knowledge",
    "modification": "trace/composed",
    "text": None,
}
#: The same for the packaged VLM, which writes what it was trained to write: results without a
#: chain. A picture alone is easy here.
FLAGLAND_PROMPTS: Mapping[str, str | None] = {
    "image": None,
    "question": "rar/question",
    "modification": "rar/modification_shown",
    "text": None,
}


class TraceResult(NamedTuple):
    """What a run of TRACE leaves.

    Attributes:
        model: the trained encoder, which writes where its first token is not the mark.
        results: its test; ``results.writing`` says who wrote how much.
        chains: what became of every training query.
    """

    model: Encoder
    results: Results
    chains: Summary


def trace(
    root: str | Path,
    store: str | Path,
    vlm: str | Engine = "flagland-vlm",
    encoder: Encoder | None = None,
    out: str | Path = "runs/trace",
    *,
    prompts: Mapping[str, str | None] = FLAGLAND_PROMPTS,
    only: str | Path | None = None,
    weight: float = 1.0,
    max_steps: int = 200,
    batch_size: int = 80,
    lr: float = 1e-3,
    seed: int = 0,
    options: Options | None = None,
) -> TraceResult:
    """Have chains written for training queries, fit on both losses, test adaptively.

    Killed, it goes on where it was.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the chains.
        vlm: what writes them: a model's name, or an engine.
        encoder: what is trained; None takes the packaged VLM.
        out: folder of checkpoints, runs and metrics.
        prompts: kind of query -> prompt, None for those that are taught to write nothing;
            :data:`CHAIN_PROMPTS` for larger models.
        only: file of the ids of queries that are to write, as ``python -m augment route`` makes it;
            None takes all that have a prompt.
        weight: of the loss on what is written; the paper's best is 1.
        max_steps: optimiser steps.
        batch_size: training pairs per step.
        lr: peak learning rate.
        seed: of order, instructions and layers that start fresh.
        options: sampling, limits and checks of the writing; None takes the defaults.

    Raises:
        DataError: if the data cannot be used.
        EngineError: if the model cannot be had.
        StoreError: if the store cannot be read or written.
    """
    import lightning

    from augment import queries
    from retrievers.data.module import MBeirData
    from retrievers.data.texts import WrittenConfig
    from retrievers.models.mllm.encoder import Mllm
    from retrievers.models.mllm.reasoning import Reasoning
    from retrievers.models.tuning import Tuning
    from retrievers.training.module import Contrastive, fit
    from retrievers.training.objective import TokenLoss
    from retrievers.training.optim import AdamWCosine
    from retrievers.vectors.search import test

    chains = queries.run(
        Path(root), Path(store), split=("train",), only=None if only is None else Path(only),
        **(written_by(vlm, options) | {f"{kind}_prompt": one for kind, one in prompts.items()}),
    )  # fmt: skip
    told = WrittenConfig(str(store), only=None if only is None else str(only))
    data = MBeirData(str(root), written=told, batch_size=batch_size, seed=seed)
    lightning.seed_everything(seed, verbose=False)
    training = Contrastive(
        encoder or Mllm(reasoning=Reasoning("adaptive", max_tokens=90), head=True),
        optimizer=AdamWCosine(lr=lr, weight_decay=0.01, warmup_steps=20),
        tuning=Tuning(freeze="image"),
        tokens=TokenLoss(weight),
    )
    model = fit(training, data, out, max_steps=max_steps, resume=True, gradient_clip_val=1.0)
    return TraceResult(model, test(model, data, out), chains)
