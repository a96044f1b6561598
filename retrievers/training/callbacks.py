"""Beside a fit: its speed and what limits it, the checkpoints that it leaves, and what it says."""

from __future__ import annotations

import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any, final

import lightning
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from augment.errors import DataError
from augment.files import replacing_path
from retrievers.data.examples import Pairs
from retrievers.models.load import check_bytes

#: Above this share of waiting, the loader is the bottleneck.
_STARVED = 0.2
#: Below this share of its memory, a GPU has room for a larger batch.
_ROOMY = 0.6
#: Beginnings of what Lightning says that tells users nothing: an advertisement, its own defaults.
_CHATTER = ("💡 Tip", "`weights_only` was not set", "Loading `train_dataloader`", "TPU available")
_SPEAKERS = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector")


@final
class Throughput(lightning.Callback):
    """Logs ``speed/pairs_per_s`` (all processes), ``speed/data_wait``, ``speed/peak_mib``.

    Data wait is the share of the time between two batches spent in the loader. On a GPU, work is
    queued: loading counts as waiting only if the GPU had finished before the batch came. Time in
    validation and checkpoints is left out. After the first interval and at the end, one line says
    what limits the run.
    """

    def __init__(self) -> None:
        self._wait = self._spent = self._began = 0.0
        self._pairs = self._steps = self._stepped = 0
        self._ended: float | None = None
        self._event: torch.cuda.Event | None = None
        self._hinted = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start measuring."""
        self._hinted = False
        self._stepped = trainer.global_step
        self._forget()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Validation is no part of a step."""
        self._ended = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Nor is a checkpoint."""
        self._ended = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Pairs, batch_idx: int
    ) -> None:
        """A batch has come."""
        now = time.perf_counter()
        if self._ended is not None:
            idle = self._event is None or self._event.query()  # type: ignore[no-untyped-call]
            self._wait += now - self._ended if idle else 0.0
            self._spent += now - self._ended
        self._began = now

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Pairs, batch_idx: int
    ) -> None:
        """A batch is done; log once per interval of the trainer."""
        now = self._ended = time.perf_counter()
        if torch.cuda.is_available() and pl_module.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        self._spent += now - self._began
        self._pairs += batch.queries.size
        self._steps += 1
        interval = getattr(trainer, "log_every_n_steps", 0)
        # Loggers are given what is logged in the batch that completes such a step, no other.
        due = trainer.global_step != self._stepped and trainer.global_step % max(interval, 1) == 0
        self._stepped = trainer.global_step
        # The first step pays for compilation and caches.
        if self._steps > 1 and interval and due:
            self._log(trainer, pl_module)
            self._forget()
            self._ended = now

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Say what limited a run that ended before its first interval."""
        if not self._hinted and self._steps > 1:
            self._hint(pl_module, self._wait / self._spent)

    def _log(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        share = self._wait / self._spent
        pl_module.log_dict(
            {
                "speed/pairs_per_s": trainer.world_size * self._pairs / self._spent,
                "speed/data_wait": share,
                "speed/peak_mib": peak_mib(pl_module.device),
            }
        )
        if not self._hinted:
            self._hint(pl_module, share)

    def _hint(self, pl_module: Any, share: float) -> None:
        self._hinted = True
        rank_zero_info(
            f"{self._pairs / self._spent:.1f} pairs/s per process, {100 * share:.0f} % of the time "
            f"waiting for data, peak memory {peak_mib(pl_module.device):.0f} MiB: "
            f"{hint(share, pl_module.device)}"
        )

    def _forget(self) -> None:
        self._wait = self._spent = self._began = 0.0
        self._pairs = self._steps = 0
        self._ended = None


def hint(data_wait: float, device: torch.device) -> str:
    """What limits a run, and what would help.

    Args:
        data_wait: share of the time spent waiting for batches, 0 to 1.
        device: where the model runs.
    """
    if data_wait > _STARVED:
        return (
            "the loader is the bottleneck; raise data.loader.workers, raise data.loader.cache_mib "
            "if the pictures fit, or store them near the model's size"
        )
    if device.type != "cuda":
        return "the model is the bottleneck"
    total = torch.cuda.get_device_properties(device).total_memory
    share = torch.cuda.max_memory_allocated(device) / total
    if share < _ROOMY:
        return (
            f"the model is the bottleneck and {100 * share:.0f} % of the GPU's memory is in use; "
            "raise data.batch_size or model.chunk"
        )
    return "the model is the bottleneck and the GPU's memory is in use"


def peak_mib(device: torch.device) -> float:
    """Highest memory so far in MiB: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@final
class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there, and are looked at before they are used.

    Lightning's own (2.6) collects the bytes in the temporary folder, which may be another file
    system, and copies them over the file before: a kill leaves a part under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the final name, bring to the disk, rename.

        Raises:
            DataError: if it cannot be written; the file before is as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing_path(Path(path), DataError) as partial, partial.open("wb") as stream:
            try:
                torch.save(checkpoint, stream)
            except RuntimeError as error:  # behind it stands what the system said
                raise error.__context__ or error from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Tensors and plain values.

        Raises:
            DataError: if its bytes are not those that were written.
        """
        check_bytes(path)
        return super().load_checkpoint(path, map_location, True)


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
        self._lock = FileLock(self._folder / ".lock")
        self._every = every_n_train_steps
        #: Name of a file -> the step that it holds.
        self._written: dict[str, int] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Keep the folder to one fit at a time.

        Raises:
            DataError: if another one is at work there.
        """
        if trainer.is_global_zero and stage == "fit":
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                told = "another fit writes here; wait for its end, or name another --out"
                raise DataError(told, str(self._folder)) from None

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Let others in."""
        self._lock.release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Likewise."""
        self._lock.release()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """What a fit goes on from is not written again."""
        self._written = {"latest": trainer.global_step}
        if trainer.is_global_zero:  # what a kill in the middle of writing left
            for partial in self._folder.glob(".????????.*.ckpt"):
                partial.unlink(missing_ok=True)

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


def leave_out_chatter() -> None:
    """Let Lightning say only what is of use, in this process."""
    for name in _SPEAKERS:
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_CHATTER)
