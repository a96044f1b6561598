"""Checkpoints that a fit goes on from, and the one that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import lightning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn


@final
class LatestCheckpoint(Checkpoint):
    """Writes ``latest.ckpt`` every few steps, ``last.ckpt`` at each validation and at the end.

    Lightning's ``ModelCheckpoint`` writes ``last.ckpt`` only when its monitored value got better
    (2.6), so the end of a fit that was best before would be lost; and a fit that is killed in its
    last validation would have nothing left to do when it goes on, not even that validation. So the
    last step's ``latest.ckpt`` is written after the validation that follows it.

    Args:
        dirpath: folder of both files.
        every_n_train_steps: optimiser steps between two of ``latest.ckpt``.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 100) -> None:
        self._folder = Path(dirpath)
        self._every = every_n_train_steps
        #: Name of a file -> the step that it holds.
        self._written: dict[str, int] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """What a fit goes on from is not written again."""
        self._written = {"latest": trainer.global_step}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every few steps, but not at the last."""
        step = trainer.global_step
        if step % self._every == 0 and step not in (self._written["latest"], trainer.max_steps):
            self._save(trainer, "latest")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The state that was validated."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer, "last")
            if trainer.global_step == trainer.max_steps:
                self._save(trainer, "latest")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The end, if no validation was there to see it."""
        for name in ("last", "latest"):
            if self._written.get(name) != trainer.global_step:
                self._save(trainer, name)

    def _save(self, trainer: lightning.Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # set by a connector
            return
        trainer.save_checkpoint(self._folder / f"{name}.ckpt")
        self._written[name] = trainer.global_step
