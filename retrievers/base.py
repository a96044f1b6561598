"""The contract of a retriever: encode one side, a loss on pairs; everything else is final."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import lightning
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Self

from augment.errors import DataError, MismatchError
from augment.records import Side
from retrievers.checkpoints import misfit, read_checkpoint
from retrievers.data import MBeirData
from retrievers.embeddings import Embeddings
from retrievers.inputs import Inputs, Items, Pairs, Processor
from retrievers.losses import hash_id
from retrievers.mining import MiningConfig, Tally, mine_plan
from retrievers.monitor import Throughput
from retrievers.origin import origin_of_fit
from retrievers.scoring import Results, score, search_plan, write_results
from retrievers.texts import check_recipe

_SIDES: tuple[Side, Side] = ("corpus", "query")


class Retriever(lightning.LightningModule, ABC):
    """Encodes queries and candidates into one space of unit vectors.

    Hyper-parameters are not saved in Lightning's way: in 2.6 those of ``--ckpt_path`` would
    override the command line (Lightning issue 20801). The settings stand in the checkpoint under
    ``retriever`` for the record.

    Args:
        init_from: checkpoint whose weights are taken at the start, nothing else of it; UniIR's
            released CLIP models too.
        allow_mismatch: embed text of another recipe than the one trained on.
    """

    def __init__(self, init_from: str | None = None, allow_mismatch: bool = False) -> None:
        super().__init__()
        self.init_from = init_from
        self.allow_mismatch = allow_mismatch
        self._settings: dict[str, Any] = {}
        #: Fingerprint of the text that the weights were trained on; None for untrained ones.
        self.trained_on: dict[str, str] | None = None
        #: Data, command and versions of the fit that made the weights; None for untrained ones.
        self.origin: dict[str, Any] | None = None
        #: Of the command line that runs it; None where Python does.
        self.arguments: list[str] | None = None
        #: What the latest test measured.
        self.results: Results | None = None
        #: What the latest mining did.
        self.tally: Tally | None = None
        self._embeddings: list[Embeddings] = []
        #: What the latest test or embedding left in its folder; empty without one.
        self.embedded: list[str] = []
        self._places: list[dict[str, int]] = []
        self._started, self._encoded = 0.0, 0

    @property
    @abstractmethod
    def processor(self) -> Processor:
        """Tokenizer and image transform that belong to the weights."""

    @abstractmethod
    def encode(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors of a batch.

        Args:
            batch: items of one side.
            side: query or corpus; towers may differ.
        """

    @abstractmethod
    def loss(self, batch: Pairs) -> Mapping[str, Tensor]:
        """Named scalars of a batch; ``loss`` is minimised, all are logged."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Settings of the architecture as plain values, for checkpoints and beside metrics."""

    @abstractmethod
    def training_settings(self) -> dict[str, Any]:
        """How it is trained, as plain values, for the record in checkpoints."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A retriever as :meth:`describe` told it, for weights that are loaded next."""
        return cls(**settings)

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of the training for those of :meth:`describe`."""
        self._settings = dict(settings)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """A retriever from a folder or a repository on the Hub; see :func:`retrievers.hub.load`."""
        from retrievers import hub

        retriever = hub.load(name, revision, token, cache_dir, local_files_only)
        if not isinstance(retriever, cls):
            raise MismatchError(f"{name} holds a {type(retriever).__name__}, not a {cls.__name__}")
        return retriever

    @final
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the retriever to a folder; see :func:`retrievers.hub.save`."""
        from retrievers import hub

        hub.save(self, folder)

    @final
    def push_to_hub(self, repo_id: str, private: bool | None = None, **options: Any) -> str:
        """Upload the retriever to the Hub; its address. See :func:`retrievers.hub.push`."""
        from retrievers import hub

        return hub.push(self, repo_id, private=private, **options)

    @property
    def data(self) -> MBeirData:
        """The data module of the running trainer."""
        data: MBeirData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def fingerprint(self) -> str:
        """Hash of weights, settings and the text shown by the running trainer's data."""
        return self.fingerprint_for(self.data.recipe.fingerprint)

    @final
    def fingerprint_for(self, text: Mapping[str, str]) -> str:
        """Hash of weights, settings and the text shown: what made a vector.

        Args:
            text: fingerprint of a text recipe.
        """
        digest = hashlib.sha256()
        settings = {"retriever": self.describe(), "text": dict(text)}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @final
    def made_by(self) -> tuple[str, dict[str, str]]:
        """The fingerprint, and what it stands for as plain strings, to say what differs."""
        told = {name: json.dumps(value, default=str) for name, value in self.describe().items()}
        text = {f"text.{name}": value for name, value in self.data.recipe.fingerprint.items()}
        return self.fingerprint(), {**told, **text, "precision": str(self.trainer.precision)}

    @final
    def setup(self, stage: str) -> None:
        """Take initial weights from ``init_from``, once."""
        if self.init_from is not None:
            path, self.init_from = self.init_from, None
            self.load_weights(path)

    @final
    def load_weights(self, path: str | Path) -> None:
        """Weights of a checkpoint, without its optimiser, settings or step.

        Args:
            path: a file that ``fit`` wrote, or one of UniIR's CLIP models.

        Raises:
            DataError: if there is no such file, or it is neither.
            MismatchError: if it holds another architecture; names the weights.
        """
        checkpoint = read_checkpoint(path)
        self.check_checkpoint(checkpoint)
        state = checkpoint.get("state_dict", {})
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            told = misfit(self.state_dict(), state) or str(error)[:300]
            raise MismatchError(
                f"{path} does not fit this model: {told}; use the model settings it "
                f"was trained with: {checkpoint.get('retriever', {}).get('settings')}"
            ) from error
        self.trained_on, self.origin = _text_of(checkpoint), _origin_of(checkpoint)

    @final
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store settings and the fingerprint of the text recipe, as plain values."""
        checkpoint["retriever"] = {
            "class": type(self).__qualname__,
            "settings": json.loads(json.dumps(self.describe(), default=str)),
            "training": json.loads(json.dumps(self.training_settings(), default=str)),
            "text": dict(self.trained_on or {}),
            "origin": self.origin,
        }
        self.trim_checkpoint(checkpoint)

    def trim_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take out weights that the settings bring again; by default none."""

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that :meth:`trim_checkpoint` trimmed for other weights."""

    @final
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what :meth:`on_save_checkpoint` stored, and the loader's place in the epoch.

        Raises:
            MismatchError: if the weights are of another architecture.
        """
        self.check_checkpoint(checkpoint)
        _check_shapes(self.state_dict(), checkpoint)
        self.trained_on, self.origin = _text_of(checkpoint), _origin_of(checkpoint)
        loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
        self._places = list(loop.get("combined_loader", []))

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
                "augment.validate` on the data root"
            )
        try:
            parts = self.loss(batch)
        except ValueError as error:
            raise DataError(
                f"{error}; see model.objective, model.chunk and data.negatives"
            ) from error
        if not torch.isfinite(parts["loss"]):
            raise self._not_finite(batch, parts)
        named = {f"train/{name}": value for name, value in parts.items()}
        self.log_dict({**named, "train/dropped": float(batch.dropped)}, batch_size=size)
        self.log("loss", parts["loss"], prog_bar=True, logger=False, batch_size=size)
        return parts["loss"]

    @torch.no_grad()
    def _not_finite(self, batch: Pairs, parts: Mapping[str, Tensor]) -> DataError:
        seen = ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
        finite = torch.ones(batch.queries.size, dtype=torch.bool)
        sides: tuple[tuple[Inputs, Side], ...] = (
            (batch.queries, "query"),
            (batch.candidates, "corpus"),
        )
        for inputs, side in sides:
            finite &= self.encode(inputs, side).isfinite().all(1).cpu()[: len(finite)]
        bad = [name for name, good in zip(batch.names, finite.tolist(), strict=True) if not good]
        shown = bad or batch.names
        pairs = ", ".join(f"{qid} with {did}" for qid, did in shown[:8])
        what = "pairs without finite vectors" if bad else "no single pair is to blame; the batch"
        return DataError(
            f"the loss is not finite at step {self.global_step} ({seen}); {what}: {pairs}"
            f"{' ...' if len(shown) > 8 else ''}. Lower the learning rate, set "
            "trainer.gradient_clip_val, or use precision 32 or bf16-mixed; resume from the latest "
            "checkpoint"
        )

    @final
    def on_validation_epoch_start(self) -> None:
        """Make room for the vectors of the validation search."""
        if self.trainer.state.fn == "validate" and self.trained_on is not None:
            check_recipe(self.trained_on, self.data.recipe.fingerprint, self.allow_mismatch)
        self._make_room()

    @final
    def validation_step(self, batch: Items, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of candidates (first loader) or queries (second)."""
        self._embed(batch, dataloader_idx)

    @final
    def on_validation_epoch_end(self) -> None:
        """Search and log ``val/recall@k``, ``val/success@k``: means over data sets and tasks."""
        if not self.data.plan.tasks:
            return
        _, results = self._score(depth=10, made_by="validation")
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
        self._started, self._encoded = time.monotonic(), 0

    @final
    def on_test_epoch_start(self) -> None:
        """Make room for the vectors."""
        self._embeddings = self.data.rooms

    @final
    def test_step(self, batch: Items, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of candidates (first loader) or queries (second)."""
        self._embed(batch, dataloader_idx)

    @final
    def on_test_epoch_end(self) -> None:
        """Search exactly, write runs, judgements and metrics to the trainer's root folder."""
        embedding = time.monotonic() - self._started
        self.embedded = [self._finish(*side) for side in zip(_SIDES, self._embeddings, strict=True)]
        if self.data.only_embed:
            self._embeddings = []
            return
        if self.data.mining is not None:
            self._mine(self.data.mining)
            return
        test = self.data.test
        runs, results = self._score(
            test.depth, self.fingerprint(), test.index, test.index_parameters
        )
        settings = {"model": self.describe(), "data": self.data.describe()}
        results.settings.update(settings, trained_on=self.trained_on)
        results.cost = {
            "embedding_seconds": round(embedding, 3),
            "search_seconds": round(time.monotonic() - self._started - embedding, 3),
            "items": self._encoded,
            "items_per_second": round(self._encoded / max(embedding, 1e-9), 1),
        }
        write_results(Path(self.trainer.default_root_dir), self.data.plan, runs, results)
        self.results = results

    def _mine(self, config: MiningConfig) -> None:
        data = self.data
        about = {
            "made_by": self.fingerprint(),
            "text": data.recipe.fingerprint,
            "data": data.digest(),
            "mining": asdict(config),
        }
        candidates, queries = self._embeddings
        folder = Path(self.trainer.default_root_dir)
        self.tally = mine_plan(
            data.plan, candidates, queries, config, folder, about, str(self.device)
        )
        self._embeddings = []

    def _make_room(self) -> None:
        plan = self.data.plan
        self._embeddings = [Embeddings(len(plan)), Embeddings(len(plan.queries))]

    def _embed(self, batch: Items, loader: int) -> None:
        store = self._embeddings[loader]
        store.fail(batch.failed.tolist(), batch.degraded.tolist())
        self._encoded += batch.inputs.size
        if batch.inputs.size:
            vectors = self.encode(batch.inputs, _SIDES[loader]).float().cpu()
            store.put(batch.rows.cpu(), vectors, batch.degraded.tolist())

    def _finish(self, side: Side, store: Embeddings) -> str:
        whole = store.finish()
        kept, failed = int(store.done.sum()), len(store.failed)
        return (
            f"{side}: {kept} vectors, {len(store.degraded)} of them without their unreadable "
            f"picture; {failed} items with nothing to embed"
            + ("" if whole else f"; {len(store.done) - kept - failed} left to other processes")
        )

    def _score(
        self, depth: int, made_by: str, kind: str = "exact", parameters: str = ""
    ) -> tuple[Any, Results]:
        candidates, queries = self._embeddings
        found = search_plan(
            self.data.plan,
            candidates,
            queries,
            made_by,
            depth,
            str(self.device),
            kind,
            parameters,
        )
        self._embeddings = []
        results = score(self.data.plan, found.runs, candidates, queries, made_by)
        results.recall = {
            pool: [measured._asdict() for measured in own] for pool, own in found.recall.items()
        }
        return found.runs, results


def _text_of(checkpoint: Mapping[str, Any]) -> dict[str, str] | None:
    return dict(checkpoint.get("retriever", {}).get("text", {})) or None


def _origin_of(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(checkpoint.get("retriever", {}).get("origin") or {}) or None


def _check_shapes(own: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights of another architecture before Lightning does, without a word of remedy."""
    found = checkpoint.get("state_dict", {})
    for name, value in own.items():
        # Positions may be stretched while they are loaded.
        fits = name.endswith("positional_embedding") or name not in found
        if not fits and found[name].shape != value.shape:
            raise MismatchError(
                f"the checkpoint is of another architecture: its {name} is "
                f"{tuple(found[name].shape)}, this model's is {tuple(value.shape)}; use the model "
                "settings it was trained with: "
                f"{checkpoint.get('retriever', {}).get('settings')}"
            )
