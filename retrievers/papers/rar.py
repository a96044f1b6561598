"""RAR: reasoning about both sides of retrieval, offline (2602.07125).

A model writes what the words of a query or candidate leave out: candidates with a picture get a
description, which stands behind their published text (append); queries are rewritten by their kind,
and the rewriting stands in their place (replace). A retriever is then trained, and tested, on what
it is shown: one that was trained on published text alone loses by enriched text.

Deviations: the retriever is any encoder of this toolkit, ``flagland-clip`` by default; texts are
checked and kept with their provenance, and published text is never overwritten; the loss is
InfoNCE in which no known positive is a negative.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from retrievers.papers import written_by

if TYPE_CHECKING:
    from augment.engines import Engine
    from augment.enrichment.account import Summary
    from augment.enrichment.pipeline import Options
    from retrievers.evaluation.results import Results
    from retrievers.models.base import Encoder


class RarResult(NamedTuple):
    """What a run of RAR leaves.

    Attributes:
        model: the trained encoder.
        results: its test on enriched text.
        candidates: what became of every candidate.
        queries: what became of every query.
    """

    model: Encoder
    results: Results
    candidates: Summary
    queries: Summary


def rar(
    root: str | Path,
    store: str | Path,
    vlm: str | Engine,
    encoder: Encoder | None = None,
    out: str | Path = "runs/rar",
    *,
    max_steps: int = 400,
    batch_size: int = 128,
    lr: float = 5e-4,
    seed: int = 0,
    options: Options | None = None,
) -> RarResult:
    """Enrich both sides, fit on the enriched views, test.

    Killed, it goes on where it was: texts are in the store, and steps since the last checkpoint are
    made again.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the generated texts.
        vlm: what writes them: a model's name, or an engine.
        encoder: what is trained; None takes ``flagland-clip`` with normalised towers.
        out: folder of checkpoints, runs and metrics.
        max_steps: optimiser steps.
        batch_size: training pairs per step.
        lr: peak learning rate.
        seed: of order, instructions and layers that start fresh.
        options: sampling, limits and checks of the enrichment; None takes the defaults.

    Returns:
        The encoder, the results and the account of both enrichments.

    Raises:
        DataError: if the data cannot be used.
        EngineError: if the model cannot be had.
        StoreError: if the store cannot be read or written.
    """
    import lightning

    from augment import corpus, queries
    from retrievers.data.module import MBeirData
    from retrievers.data.texts import ViewConfig
    from retrievers.models.clip import ClipScoreFusion
    from retrievers.training.module import Contrastive, fit
    from retrievers.training.objective import Objective
    from retrievers.training.optim import AdamWCosine
    from retrievers.vectors.search import test

    texts, asked = Path(store), written_by(vlm, options)
    candidates = corpus.run(Path(root), texts, **asked)
    asking = queries.run(Path(root), texts, **asked)
    data = MBeirData(
        str(root),
        query=ViewConfig("replace", str(texts)),
        corpus=ViewConfig("append", str(texts)),
        batch_size=batch_size,
        seed=seed,
    )
    lightning.seed_everything(seed, verbose=False)
    training = Contrastive(
        encoder or ClipScoreFusion(normalize_towers=True),
        Objective(symmetric=True),
        optimizer=AdamWCosine(lr=lr, weight_decay=0.1, warmup_steps=20),
    )
    model = fit(training, data, out, max_steps=max_steps, resume=True)
    return RarResult(model, test(model, data, out), candidates, asking)
