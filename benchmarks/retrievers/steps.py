"""From rows to steps: trainings, mined negatives, tests; see :mod:`benchmarks.experiments.graph`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from augment.errors import DataError
from benchmarks.experiments.build import Setup, command, view_arguments
from benchmarks.experiments.graph import Step
from benchmarks.experiments.spec import Shown, Text, View
from benchmarks.experiments.texts import Enriching, made_anew
from benchmarks.retrievers.rows import FIRST, Row

Shows = Literal["raw", "vlm", "oracle"]

#: Steps between two checkpoints that a killed training goes on from.
_KEEP = 10


@final
@dataclass(frozen=True)
class Bench:
    """One data set and what all rows have in common.

    Attributes:
        title: for people.
        enriching: the data, and who describes it.
        steps: optimiser steps of each training.
        batch: pairs per step.
        text: published text, or generated text with it: queries replaced, candidates appended to.
        fit: further arguments of trainings, minings and tests.
        pictures: folder that keeps them at the model's size, decoded once for all rows; None
            decodes them in every run. The tensors are the same.
    """

    title: str
    enriching: Enriching
    steps: int
    batch: int
    text: Shows = "raw"
    fit: tuple[str, ...] = ()
    pictures: Path | None = None

    @cached_property
    def shown(self) -> Shown:
        """Views of both sides."""
        if self.text == "raw":
            return Shown(View(), View())
        return Shown(View(self.text, "replace"), View(self.text, "append"))

    @cached_property
    def _texts(self) -> tuple[Step, ...]:
        return tuple(made_anew(Text(n, self.text), self.enriching)  # type: ignore[arg-type]
                     for n in self.shown.texts)  # fmt: skip

    def train(self, row: Row, seed: int) -> Step:
        """The training of a row."""
        mined = (self.mine(seed),) if row.mined else ()
        size = self.steps * row.cost * self.batch / 128
        settings = {**self._settings(row), "seed": seed, "steps": self.steps, "data": row.data}

        def work(folder: Path, made: Sequence[Path]) -> None:
            negatives = [f"--data.negatives.path={made[-1]}"] if mined else []
            latest = folder / "checkpoints" / "latest.ckpt"
            resumed = [f"--ckpt_path={latest}"] if latest.is_file() else []
            command(
                ["fit", *self._arguments(row, seed, made), *row.data, *negatives, *resumed,
                 f"--out={folder.resolve()}", f"--trainer.max_steps={self.steps}",
                 f"--trainer.val_check_interval={self.steps}",
                 # The last checkpoint counts: validation is kept cheap.
                 "--data.validation.queries=8", "--data.validation.pool=64",
                 f"--trainer.log_every_n_steps={max(2, min(10, self.steps // 3))}",
                 f"--trainer.callbacks.every_n_train_steps={min(_KEEP, self.steps)}"]
            )  # fmt: skip
            if not (folder / "checkpoints" / "last.ckpt").is_file():
                raise DataError("the training left no checkpoints/last.ckpt", str(folder))
            latest.unlink(missing_ok=True)  # only a run that was cut short needs it

        needs = (*self._texts, *mined)
        return Step(
            "train", f"{self.title}: {row.title} (seed {seed})", settings, needs, work, size
        )

    def mine(self, seed: int) -> Step:
        """Negatives by the first row's checkpoint."""
        train = self.train(FIRST, seed)

        def work(folder: Path, made: Sequence[Path]) -> None:
            checkpoint = made[-1] / "checkpoints" / "last.ckpt"
            command(["mine", *self._arguments(FIRST, seed, made), f"--ckpt_path={checkpoint}",
                     f"--out={folder.resolve()}"])  # fmt: skip

        title = f"{self.title}: mine negatives (seed {seed})"
        return Step("mine", title, self._settings(FIRST), (*self._texts, train), work)

    def test(self, row: Row, seed: int) -> Step:
        """The test of a row; without training the seed moves nothing."""
        train = (self.train(row, seed),) if row.trained else ()
        seed = seed if row.trained else 0

        def work(folder: Path, made: Sequence[Path]) -> None:
            weights = [f"--ckpt_path={made[-1] / 'checkpoints' / 'last.ckpt'}"] if train else []
            command(["test", *self._arguments(row, seed, made), *weights,
                     f"--out={folder.resolve()}", "--data.test.union=false",
                     "--data.test.depth=10", *row.shown])  # fmt: skip

        title = f"{self.title}: test {row.title} (seed {seed})"
        settings = {**self._settings(row), "shown": row.shown}
        return Step("test", title, settings, (*self._texts, *train), work)

    def _settings(self, row: Row) -> dict[str, Any]:
        config = Setup(self.enriching, row.config).config_digest
        return {
            "root": self.enriching.root_digest, "text": self.text, "batch": self.batch,
            "config": config, "model": row.model, "fit": self.fit,
        }  # fmt: skip

    def _arguments(self, row: Row, seed: int, made: Sequence[Path]) -> list[str]:
        kept = [f"--data.loader.resized={self.pictures.resolve()}"] if self.pictures else []
        return [
            "--config", row.config, f"--data.root={self.enriching.root.resolve()}",
            f"--data.batch_size={self.batch}", f"--data.seed={seed}", f"--seed_everything={seed}",
            "--data.on_bad_image=skip", "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false", *view_arguments(self.shown, made), *row.model,
            *kept, *self.fit,
        ]  # fmt: skip
