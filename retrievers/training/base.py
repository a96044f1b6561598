"""The contract of a retriever: encode one side, a loss on pairs; everything else is final."""

from __future__ import annotations

import json
from abc import ABC
from pathlib import Path
from typing import Any, final

import lightning
import torch
from torch import Tensor

from augment.errors import DataError
from retrievers.data.examples import Items, Pairs
from retrievers.data.module import MBeirData
from retrievers.data.settings import SearchConfig
from retrievers.data.texts import check_recipe
from retrievers.evaluation.run_files import writing_runs
from retrievers.models.stored import StoredRetriever
from retrievers.search.mining import Tally
from retrievers.training.failures import not_finite
from retrievers.training.losses import hash_id
from retrievers.training.monitor import Throughput
from retrievers.training.origin import origin_of_fit
from retrievers.vectors.embed import Embeddings
from retrievers.vectors.evaluation import Evaluation
from retrievers.vectors.scoring import Results, run_files, write_results


class Retriever(StoredRetriever, ABC):
    """Encodes queries and candidates into one space of unit vectors, under a trainer.

    Args:
        init_from: see :class:`retrievers.models.stored.StoredRetriever`.
        allow_mismatch: embed text of another recipe than the one trained on.
    """

    def __init__(self, init_from: str | None = None, allow_mismatch: bool = False) -> None:
        super().__init__(init_from, allow_mismatch)
        #: Of the command line that runs it; None where Python does.
        self.arguments: list[str] | None = None
        #: What the latest test measured.
        self.results: Results | None = None
        #: What the latest mining did.
        self.tally: Tally | None = None
        #: What the latest test or embedding left in its folder; empty without one.
        self.embedded: list[str] = []
        self._evaluation: Evaluation | None = None

    @property
    def data(self) -> MBeirData:
        """The data module of the running trainer."""
        data: MBeirData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def fingerprint(self) -> str:
        """Hash of weights, settings and the text shown by the running trainer's data."""
        return self.fingerprint_for(self.data.recipe.fingerprint)

    @final
    def made_by(self) -> tuple[str, dict[str, str]]:
        """The fingerprint, and what it stands for as plain strings, to say what differs."""
        told = {name: json.dumps(value, default=str) for name, value in self.describe().items()}
        text = {f"text.{name}": value for name, value in self.data.recipe.fingerprint.items()}
        return self.fingerprint(), {**told, **text, "precision": str(self.trainer.precision)}

    @final
    def on_fit_start(self) -> None:
        """Refuse to resume on other text; remember this one. Initial weights may come from any."""
        shown = self.data.recipe.trained
        if self.trained_on is not None and self.trainer.ckpt_path is not None:
            check_recipe(self.trained_on, shown, self.allow_mismatch, exact=True)
        self.trained_on = shown
        if self.trainer.is_global_zero:
            self.origin = origin_of_fit(self.data, self.arguments)

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Measures speed and memory of training, unless the trainer has such a callback already."""
        return [Throughput()]

    @final
    def on_train_batch_start(self, batch: Pairs, batch_idx: int) -> None:
        """Seed dropout from the place in the run, so that a resumed run draws what it would have.

        Every process has its own draws.
        """
        place = f"{self.data.seed}:{self.global_rank}:{self.trainer.fit_loop.total_batch_idx}"
        torch.manual_seed(hash_id(place))

    @final
    def on_train_start(self) -> None:
        """Go on in the middle of an epoch.

        Lightning 2.6 hands a loader its state only if the loader is made after the checkpoint is
        read; asking for the number of steps makes it before.
        """
        places, self._places = self._places, []
        if places:
            loader: Any = self.trainer.train_dataloader
            if not self.allow_mismatch:
                loader.check_place(places[0])
            loader.load_state_dict(places[0])

    @final
    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            DataError: if the batch is empty or its loss is not finite; names its ids.
        """
        size = batch.queries.size
        if size == 0:
            raise DataError(
                "no pair of a training batch has readable pictures; run `python -m "
                "augment.data.validate` on the data root"
            )
        try:
            parts = self.loss(batch)
        except ValueError as error:
            raise DataError(
                f"{error}; see model.objective, model.chunk and data.negatives"
            ) from error
        if not torch.isfinite(parts["loss"]):
            raise not_finite(batch, parts, self.global_step, self.encode)
        named = {f"train/{name}": value for name, value in parts.items()}
        self.log_dict({**named, "train/dropped": float(batch.dropped)}, batch_size=size)
        self.log("loss", parts["loss"], prog_bar=True, logger=False, batch_size=size)
        return parts["loss"]

    @final
    def on_validation_epoch_start(self) -> None:
        """Make room for the vectors of the validation search."""
        if self.trainer.state.fn == "validate" and self.trained_on is not None:
            check_recipe(self.trained_on, self.data.recipe.fingerprint, self.allow_mismatch)
        plan = self.data.plan
        rooms = [Embeddings(len(plan)), Embeddings(len(plan.queries))]
        self._evaluation = Evaluation(rooms, str(self.device))

    @final
    def validation_step(self, batch: Items, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of candidates (first loader) or queries (second)."""
        self._running.put(batch, dataloader_idx, self.encode)

    @final
    def on_validation_epoch_end(self) -> None:
        """Search and log ``val/recall@k``, ``val/success@k``: means over data sets and tasks."""
        running, self._evaluation = self._running, None
        if not self.data.plan.tasks:
            return
        found = running.search(self.data.plan, "validation", SearchConfig(depth=10))
        results = running.score(self.data.plan, found, "validation")
        names = [name for name in results.mean["local"] if "@" in name]
        self.log_dict({f"val/{name}": results.mean["local"][name] for name in names})
        self.log("R@5", results.mean["local"]["recall@5"], prog_bar=True, logger=False)

    @final
    def on_test_start(self) -> None:
        """Refuse text of another recipe than the one trained on, and several processes."""
        if self.trainer.world_size > 1:
            raise DataError("test embeds in one process; run it with --trainer.devices=1")
        if self.trained_on is not None:
            check_recipe(self.trained_on, self.data.recipe.fingerprint, self.allow_mismatch)

    @final
    def on_test_epoch_start(self) -> None:
        """Make room for the vectors."""
        self._evaluation = Evaluation(self.data.rooms, str(self.device))

    @final
    def test_step(self, batch: Items, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of candidates (first loader) or queries (second)."""
        self._running.put(batch, dataloader_idx, self.encode)

    @final
    def on_test_epoch_end(self) -> None:
        """Search exactly, write runs, judgements and metrics to the trainer's root folder."""
        running, self._evaluation = self._running, None
        folder = Path(self.trainer.default_root_dir)
        self.embedded = running.finish()
        if self.data.only_embed:
            return
        if self.data.mining is not None:
            self.tally = running.mine(self.data, self.data.mining, self.fingerprint(), folder)
            return
        made_by = self.fingerprint()
        found = running.search(self.data.plan, made_by, self.data.test)
        with writing_runs(run_files(folder, found.runs), made_by):
            results = running.score(self.data.plan, found, made_by)
            results.cost = running.cost()
        settings = {"model": self.describe(), "data": self.data.describe()}
        results.settings.update(settings, trained_on=self.trained_on)
        write_results(folder, self.data.plan, results)
        self.results = results

    @property
    def _running(self) -> Evaluation:
        if self._evaluation is None:
            raise RuntimeError("a batch came before its validation or test began")
        return self._evaluation
