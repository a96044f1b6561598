"""Mine hard negatives of a root's training queries: embed them, search, keep what is hard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from augment.errors import DataError
from retrievers.data.module import MBeirData
from retrievers.models.base import Encoder
from retrievers.search.mining.judge import MiningConfig, Tally
from retrievers.search.mining.plan import plan_mining
from retrievers.search.mining.tables import mine_plan
from retrievers.vectors.embed import embed


def mine_negatives(
    encoder: Encoder,
    data: MBeirData,
    out: str | Path,
    mining: MiningConfig = MiningConfig(),  # noqa: B008 - frozen
    *,
    device: str | torch.device = "auto",
    precision: str = "32-true",
    allow_mismatch: bool = False,
) -> Tally:
    """Write hard negatives of the training queries for ``data.negatives.path``.

    Args:
        encoder: ranks; its weights are used as they are.
        data: the root, what is shown of it, and where vectors are kept and found again.
        out: folder of ``negatives.parquet`` and ``mining.json``.
        mining: which candidates become hard negatives.
        device: auto, cpu, cuda, cuda:N.
        precision: of embedding; 32-true, bf16-mixed or 16-mixed.
        allow_mismatch: show text of another recipe than the one trained on.

    Returns:
        What became of the candidates.

    Raises:
        DataError: if data is missing or malformed.
        MismatchError: if the weights were trained on another text recipe.
    """
    if data.embeddings.parts > 1:
        raise DataError("mining needs all vectors; run it without data.embeddings.parts")
    book, queries = data.training_queries(None if data.root.query_files("val") else [])
    plan = plan_mining(data.root, queries, book.find, mining)
    vectors = embed(
        encoder, data, plan, device=device, precision=precision, allow_mismatch=allow_mismatch
    )
    about = {
        "made_by": vectors.made_by,
        "text": data.recipe.fingerprint,
        "data": data.digest(),
        "mining": asdict(mining),
    }
    return mine_plan(
        plan, vectors.candidates, vectors.queries, mining, Path(out), about, str(encoder.device)
    )
