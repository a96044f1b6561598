"""Test a retriever from Python, without the command line."""

from __future__ import annotations

from pathlib import Path

import lightning

from retrievers.data.module import MBeirData
from retrievers.training.base import Retriever
from retrievers.vectors.scoring import Results


def evaluate(
    retriever: Retriever,
    data: MBeirData,
    out_dir: str | Path,
    checkpoint: str | Path | None = None,
    accelerator: str = "auto",
    progress: bool = False,
) -> Results:
    """Embed, search and score every query file of the test split.

    Args:
        retriever: its weights are used as they are unless a checkpoint is named.
        data: the data root and the views.
        out_dir: run files, qrels and ``metrics.json`` go here.
        checkpoint: weights to load first.
        accelerator: Lightning's word for the device.
        progress: show a bar.

    Raises:
        MismatchError: if the weights were trained on another text recipe.
        DataError: if files are missing or malformed.
    """
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        use_distributed_sampler=False,
        default_root_dir=str(out_dir),
    )
    path = None if checkpoint is None else str(checkpoint)
    trainer.test(retriever, datamodule=data, ckpt_path=path, verbose=False)
    results = retriever.results
    assert results is not None  # noqa: S101 - on_test_epoch_end sets it
    return results
