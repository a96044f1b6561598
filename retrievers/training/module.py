"""Training of any encoder under Lightning, on pairs: its steps, validation, checkpoints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast, final

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO as Plain
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from augment.errors import DataError, MismatchError
from augment.records import Side
from retrievers.data.datasets import PairDataset
from retrievers.data.examples import Batch, Items, Pairs, hash_id
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.data.plan import Plan
from retrievers.data.texts import check_recipe
from retrievers.evaluation.results import score
from retrievers.evaluation.versions import source_commit, versions
from retrievers.models.audit import Audit, audit_plan, audit_training
from retrievers.models.base import Encoder
from retrievers.models.load import check_frozen, check_shapes, load_weights, recall
from retrievers.models.mllm.conversations import IGNORED, Conversations
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.tuning import Tuning, merge
from retrievers.training.callbacks import (
    CheckpointFiles,
    LatestCheckpoint,
    Throughput,
    leave_out_chatter,
)
from retrievers.training.gradcache import encode_in_chunks
from retrievers.training.objective import Objective, Ranking, TokenLoss
from retrievers.training.optim import AdamWCosine
from retrievers.training.rationales import Diary, Rationales
from retrievers.training.rehearsal import Rehearsal, Rehearsed
from retrievers.vectors.embed import SIDES, Embedded, put
from retrievers.vectors.rows import Embeddings
from retrievers.vectors.search import search


@final
class Loaders(lightning.LightningDataModule):
    """What Lightning asks of data: the loaders of a fit and of its validation.

    Attributes:
        validation: the small search; there after ``setup``.
        cut: what the context of the text encoder cuts off; None where it is not known.
    """

    def __init__(self, data: MBeirData) -> None:
        super().__init__()
        self.data = data
        self.validation = Plan()
        self.cut: Audit | None = None
        self._pairs: PairDataset | None = None

    def setup(self, stage: str) -> None:
        """Open the files of a fit or a validation; say what the context cuts off.

        Raises:
            DataError: if they are missing, or nothing is left to train on.
        """
        collator = self._encoder.collator()
        if getattr(collator, "pairs", None) and self.data.validation.queries > 0:
            raise DataError(
                "a reranker has no vectors to validate by; set data.validation.queries=0, and "
                "rerank a run of the val split with its checkpoints"
            )
        if stage == "fit":
            self._pairs, self.validation = self.data.training(collator)
            self.cut = audit_training(self._pairs, self.data.recipe, collator)
        else:
            self.validation = self.data.validation_plan()
            self.cut = audit_plan(self.validation, self.data.recipe, collator)
        if self.cut is not None:
            rank_zero_info(self.cut.line())
        if self.validation.tasks:
            rank_zero_info(
                f"validates on {len(self.validation.queries)} queries among "
                f"{len(self.validation)} candidates"
            )

    def train_dataloader(self) -> Any:
        """Pairs of this process."""
        assert self._pairs is not None  # noqa: S101 - setup() comes first
        trainer: Any = self.trainer
        return self.data.pairs_loader(
            self._pairs, self._encoder.collator(), trainer.global_rank, trainer.world_size
        )

    def val_dataloader(self) -> list[Any]:
        """Candidates, then queries, of the small validation search."""
        if not self.validation.tasks:
            return []
        collator = self._encoder.collator()
        return [self.data.item_loader(self.validation, side, collator) for side in SIDES]

    @property
    def _encoder(self) -> Encoder:
        trainer: Any = self.trainer
        return cast("Encoder", trainer.lightning_module.encoder)


@final
class Contrastive(lightning.LightningModule):
    """Trains any encoder towards an objective on pairs.

    Hyper-parameters are not saved in Lightning's way: in 2.6 those of ``--ckpt_path`` would
    override the command line (Lightning issue 20801). The settings stand in the checkpoint under
    ``retriever`` for the record.

    Args:
        encoder: what is trained, such as :class:`~retrievers.models.clip.ClipScoreFusion`.
        objective: what training minimises.
        chunk: items encoded at a time in training, activations recomputed in the backward
            (GradCache), so that the batch may be as large as its vectors and pictures allow; null
            encodes the batch at once.
        chunk_tokens: the same by tokens, padding included, of an
            :class:`~retrievers.models.mllm.encoder.Mllm`; beside ``chunk``, both bound.
        keep_chunks: the last chunks of each side that keep their activations: memory for time.
        optimizer: AdamW with warm-up and cosine decay.
        tuning: what is trained of the towers: all, some layers, or low-rank updates (LoRA).
        ranking: what training of a reranker, an Mllm with ``layout.cross``, minimises in place of
            the objective.
        tokens: what the cross-entropy of what an :class:`~retrievers.models.mllm.encoder.Mllm` is
            to write counts, from the same forward.
        rationales: whose words stand before a query's vector, those that are taught or its own.
        rehearsal: conversations beside each batch, so that an Mllm keeps what it knew.
        init_from: checkpoint whose weights are taken at the start, nothing else of it; UniIR's
            released CLIP models too.
        allow_mismatch: go on with text of another recipe than the one trained on.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        chunk: int | None = None,
        chunk_tokens: int | None = None,
        keep_chunks: int = 0,
        optimizer: AdamWCosine = AdamWCosine(),  # noqa: B008 - frozen
        tuning: Tuning = Tuning(),  # noqa: B008 - frozen
        ranking: Ranking = Ranking(),  # noqa: B008 - frozen
        tokens: TokenLoss = TokenLoss(),  # noqa: B008 - frozen
        rationales: Rationales = Rationales(),  # noqa: B008 - frozen
        rehearsal: Rehearsal = Rehearsal(),  # noqa: B008 - frozen
        init_from: str | None = None,
        allow_mismatch: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder.train()
        self.init_from, self.allow_mismatch = init_from, allow_mismatch
        #: Of the command line that runs it; None where Python does.
        self.arguments: list[str] | None = None
        self._places: list[dict[str, int]] = []
        self._vectors: Embedded | None = None
        self.objective = objective
        self.optimizer = optimizer
        self.tuning = tuning
        self.tokens, self.ranking, self.rationales = tokens, ranking, rationales
        self._diary: Diary | None = None
        self.rehearsal = rehearsal
        self._rehearsed: Rehearsed | None = None
        if rehearsal.path and (not isinstance(encoder, Mllm) or encoder.layout.cross is not None):
            raise DataError("model.rehearsal is for an Mllm that embeds")
        self._reranks = isinstance(encoder, Mllm) and encoder.layout.cross is not None
        writes = bool(tokens.weight) or rationales.by == "own"
        if writes and (not isinstance(encoder, Mllm) or encoder.layout.pooling == "last"):
            raise DataError(
                "model.tokens and rationales.by=own are for an Mllm whose vector stands at a mark; "
                "set layout.mark, and layout.pooling to before, at or after"
            )
        after = isinstance(encoder, Mllm) and encoder.layout.pooling == "after"
        if rationales.by == "own" and after:
            raise DataError("rationales.by=own takes layout.pooling before or at")
        if tuning.dora and init_from is not None:
            raise DataError(
                "tuning.dora takes the length of each weight where it begins; export init_from's "
                "weights first and name their folder as model_name"
            )
        self._chunked = partial(encode_in_chunks, size=chunk, keep=keep_chunks, tokens=chunk_tokens)
        self._partial = tuning.apply(encoder) and init_from is None
        self._frozen = ""
        if objective.kind == "siglip":
            encoder.learn_bias()

    @property
    def data(self) -> MBeirData:
        """The data of the running trainer."""
        return self._loaders.data

    @property
    def _loaders(self) -> Loaders:
        loaders: Loaders = self.trainer.datamodule  # type: ignore[attr-defined]
        return loaders

    def setup(self, stage: str) -> None:
        """Take initial weights from ``init_from``, once; look after checkpoint files.

        Raises:
            DataError: if the strategy writes them in its own way, which nothing checks, or the
                precision would change frozen weights, which no checkpoint holds.
        """
        strategy: Any = self._trainer and self.trainer.strategy
        if self._partial and strategy and self.trainer.precision in ("16-true", "bf16-true"):
            raise DataError(
                f"trainer.precision={self.trainer.precision} changes frozen weights, too, so that "
                "no model of these settings would fit the checkpoint; take bf16-mixed, or a model "
                "that has dtype=bfloat16"
            )
        if strategy and type(strategy).save_checkpoint is not Strategy.save_checkpoint:
            raise DataError(
                f"{type(strategy).__name__} shards models and checkpoints, which is not offered: "
                "their files have no checksums; leave trainer.strategy out, or take ddp"
            )
        if strategy and type(strategy.checkpoint_io) is Plain:
            strategy.checkpoint_io = CheckpointFiles()
        if self.init_from is not None:
            path, self.init_from = self.init_from, None
            load_weights(self.encoder, path)
        if stage == "fit" and self.rehearsal.path:
            self._rehearsed = Rehearsed(self.rehearsal, cast("Mllm", self.encoder).collator())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store settings and the fingerprint of the text recipe, as plain values."""
        told = {
            "class": type(self.encoder).__qualname__,
            "settings": self.encoder.settings(),
            "training": self.training_settings(),
            "text": self.encoder.trained_on or {},
            "origin": self.encoder.origin,
        }
        checkpoint["retriever"] = json.loads(json.dumps(told, default=str))
        self._trim(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what :meth:`on_save_checkpoint` stored, and the loader's place in the epoch.

        Raises:
            MismatchError: if the weights are of another architecture, or a fit would go on with
                other settings than those it has in optimiser and schedule.
        """
        told = checkpoint.get("retriever", {})
        check_frozen(self.encoder, checkpoint)
        check_shapes(self.encoder, checkpoint)
        if self.trainer.state.fn == "fit":
            before = {"rehearsal": Rehearsal().settings(), **told.get("training", {})}
            check_settings(before, self.training_settings())
        recall(self.encoder, told)
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        _reopen_epoch(loop)
        self._places = list(loop.get("state_dict", {}).get("combined_loader", []))

    def on_fit_start(self) -> None:
        """Refuse to resume on other text; remember this one. Initial weights may come from any."""
        shown, trained_on = self.data.recipe.trained, self.encoder.trained_on
        if trained_on is not None and self.trainer.ckpt_path is not None:
            check_recipe(trained_on, shown, self.allow_mismatch, exact=True)
        self.encoder.trained_on = shown
        if self.trainer.is_global_zero:
            self.encoder.origin = self._origin()

    def _origin(self) -> dict[str, Any]:
        """Where the weights will come from; hashes every byte of pools and training queries."""
        cut, given = self._loaders.cut, self.arguments
        found = {
            "data": {"cut_text": cut and cut.to_json(), **self.data.describe()},
            "sha256": self.data.digest(),
            "command": given and shlex.join(["python", "-m", "retrievers", *given]),
            "versions": versions(),
            "commit": source_commit(),
        }
        return cast("dict[str, Any]", json.loads(json.dumps(found, default=str)))

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Measures speed and memory of training, unless the trainer has such a callback already."""
        return [Throughput()]

    def on_train_batch_start(self, batch: Pairs, batch_idx: int) -> None:
        """Seed dropout from the place in the run, so that a resumed run draws what it would have.

        Every process has its own draws.
        """
        place = f"{self.data.seed}:{self.global_rank}:{self.trainer.fit_loop.total_batch_idx}"
        torch.manual_seed(hash_id(place))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold parameters that have a range."""
        self.encoder.hold()

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

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            DataError: if the batch is empty or its loss is not finite; names its ids.
        """
        size = batch.queries.size
        if size == 0:
            raise DataError(
                "no pair of a training batch has readable pictures; run `python -m "
                "augment validate` on the data root"
            )
        try:
            parts = self.loss(batch)
        except ValueError as error:
            raise DataError(
                f"{error}; see model.objective, model.chunk and data.negatives"
            ) from error
        if not torch.isfinite(parts["loss"]):
            raise _not_finite(batch, parts, self.global_step, self.encoder)
        named = {f"train/{name}": value for name, value in parts.items()}
        self.log_dict({**named, "train/dropped": float(batch.dropped)}, batch_size=size)
        self.log("loss", parts["loss"], prog_bar=True, logger=False, batch_size=size)
        return parts["loss"]

    def on_validation_epoch_start(self) -> None:
        """Make room for the vectors of the validation search."""
        trained_on = self.encoder.trained_on
        if self.trainer.state.fn == "validate" and trained_on is not None:
            check_recipe(trained_on, self.data.recipe.fingerprint, self.allow_mismatch)
        plan = self._loaders.validation
        self._vectors = Embedded(
            Embeddings(len(plan)), Embeddings(len(plan.queries)), made_by="validation"
        )

    def validation_step(self, batch: Items, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed a batch of candidates (first loader) or queries (second)."""
        assert self._vectors is not None  # noqa: S101 - the epoch has begun
        room = (self._vectors.candidates, self._vectors.queries)[dataloader_idx]
        put(room, batch, self.encoder, SIDES[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Search and log ``val/recall@k``, ``val/success@k``: means over data sets and tasks."""
        vectors, self._vectors = self._vectors, None
        plan = self._loaders.validation
        if not plan.tasks or vectors is None:
            return
        found = search(plan, vectors, SearchConfig(depth=10), self.device)
        means = score(plan, found.runs, *vectors.lost, vectors.made_by).mean["local"]
        scores = {f"val/{name}": means[name] for name in means if "@" in name}
        self.log_dict(scores)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        rank_zero_info(f"step {self.global_step}: {told}")
        self.log("R@5", means["recall@5"], prog_bar=True, logger=False)

    def training_settings(self) -> dict[str, Any]:
        """Objective and optimiser."""
        parts = ("ranking" if self._reranks else "objective", "optimizer", "tokens", "rationales")
        layout = json.loads(json.dumps(self.encoder.settings().get("layout")))
        told = {"layout": layout, **{name: asdict(getattr(self, name)) for name in parts}}
        again = self.rehearsal.settings(self._rehearsed and self._rehearsed.sha256)
        return {**told, "rehearsal": again}

    def _trim(self, checkpoint: dict[str, Any]) -> None:
        """Say what was tuned; take out what is frozen, if the encoder's name brings it."""
        if self.tuning == Tuning():
            return
        told = checkpoint["retriever"]
        told["tuning"] = asdict(self.tuning)
        if self._partial:
            self._frozen = self._frozen or self.tuning.digest(self.encoder)
            told["frozen"] = self._frozen
            state = checkpoint["state_dict"]
            parameters = list(self.encoder.parameters())
            # By place, as a tied weight stands under two names.
            frozen = {p.data_ptr() for p in parameters if not p.requires_grad}
            for name in [name for name in state if state[name].data_ptr() in frozen]:
                del state[name]

    def loss(self, batch: Pairs) -> Mapping[str, Tensor]:
        """The objective, its parts and the logit scale."""
        if self._reranks:
            judge = cast("Mllm", self.encoder).scores
            scores = self._chunked(lambda pairs, _: judge(pairs), batch.queries, "query")
            return self._idle({"loss": self.ranking(scores, batch.labels, batch.groups)})
        scale = self.encoder.scale()
        queries, candidates, written = self._sides(batch, scale)
        told, groups, bias = batch.labels, batch.groups, self.encoder.bias()
        parts = {**self.objective(queries, candidates, told, groups, scale, bias)}
        if written:
            parts = {"contrastive": parts["loss"], **parts, **written}
            parts["loss"] = parts["loss"] + written["tokens"]
        if self._rehearsed is not None:
            cost = self._rehearse(self._rehearsed).mean()
            parts["loss"] = parts["loss"] + self.rehearsal.weight * cost
            parts["rehearsed"] = cost.detach()
        return self._idle({**parts, "logit_scale": scale.detach()})

    def _idle(self, parts: dict[str, Tensor]) -> Mapping[str, Tensor]:
        if torch.is_grad_enabled():
            # A tower that no item of this process needs must still take part in the all-reduce; and
            # in one process its gradient must be nought, not absent, or AdamW would leave the tower
            # out of a step in which the masked form, or several processes, carry its momentum on.
            idle = 0.0 * sum(p.sum() for p in self.encoder.parameters() if p.requires_grad)
            parts["loss"] = parts["loss"] + idle
        return parts

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, one step per batch.

        Raises:
            DataError: if vectors are to be shortened; training needs them whole.
        """
        short = self.encoder.truncate_dim
        if short is not None:
            raise DataError(
                "model.encoder.truncate_dim is for test and embed; train prefixes with "
                f"--model.objective.matryoshka=[{short}]"
            )
        taught = self.data.recipe.written
        views = [] if taught is None else [taught.view, *filter(None, [taught.corpus_view])]
        reasoning = getattr(self.encoder, "reasoning", None)
        if len(views) > 1 and not (reasoning and reasoning.candidates):
            raise DataError(
                "data.written.candidates teaches candidates to write, and without "
                "model.encoder.reasoning.candidates=true nothing would be written before them"
            )
        if (
            any(view.recipe.get("target_seen") for view in views)
            and self.rationales.by == "taught"
            and not self.rationales.allow_oracle_contrast
        ):
            raise DataError(
                "data.written was written with the wanted candidates in sight, and contrast on it "
                "is trivial in training and absent in a test; set model.rationales.by=own (RGE), "
                "or model.rationales.allow_oracle_contrast=true to see what it does"
            )
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimizer.build(
            self.encoder.named_parameters(), steps, self.encoder.fresh
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _sides(self, batch: Pairs, scale: Tensor) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Vectors of queries and candidates, and the loss on what is written, with its parts."""
        queries: Tensor | None = None
        candidates: Tensor | None = None
        written: dict[str, Tensor] = {}
        if self.tokens.weight:
            queries, parts = self._taught(batch.queries, "query")
            written |= parts
            if cast("Conversations", batch.candidates).targets.shape[1]:
                candidates, own = self._taught(batch.candidates, "corpus")
                written |= {f"candidate_{name}": own[name] for name in ("decision", "chain")}
                written["tokens"] = written["tokens"] + own["tokens"]
        asked = batch.queries
        if self.rationales.by == "own":  # another sequence than the one that is taught
            queries, (asked, told) = None, self._own(batch)
            written = {"tokens": scale.new_zeros(()), **written, **told}
        if queries is None:
            queries = self._chunked(self._encode, asked, "query")
        if candidates is None:
            candidates = self._chunked(self._encode, batch.candidates, "corpus")
        return queries, candidates, written

    def _taught(self, batch: Batch, side: Side) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Vectors of a side behind what it is taught to write, and the loss on that."""
        taught = self._chunked(self._teach, batch, side)
        counts = (cast("Conversations", batch).targets != IGNORED).sum(1) - 1
        return taught[:, :-2], self.tokens(taught[:, -2], taught[:, -1], counts)

    def _rehearse(self, rehearsed: Rehearsed) -> Tensor:
        """The mean cross-entropy of each row's answer."""
        place = self.trainer.fit_loop.total_batch_idx
        rows = rehearsed.draw(self.data.seed, place, self.global_rank).to(self.device)
        costs = self._chunked(self._teach, rows, "query")[:, -2:].sum(1)
        return costs / (rows.targets != IGNORED).sum(1)

    def _own(self, batch: Pairs) -> tuple[Conversations, Mapping[str, Tensor]]:
        """The queries with the model's own words behind them, and what is to be told of these."""
        step = self.global_step
        if self._diary is None:
            folder = Path(self.trainer.default_root_dir) if self._trainer else None
            path = None if folder is None else folder / f"rationales-{self.global_rank}.jsonl"
            steps = 1 if folder is None else (
                self.trainer.num_training_batches // self.trainer.accumulate_grad_batches
            )  # fmt: skip
            self._diary = Diary(self.rationales, path, step, max(1, int(steps)))
        asked, qids = cast("Conversations", batch.queries), [qid for qid, _ in batch.names]
        return self._diary.behind(cast("Mllm", self.encoder), asked, qids, step)

    def _encode(self, batch: Batch, side: Side) -> Tensor:
        return self.encoder.encode(batch, side).vectors

    def _teach(self, batch: Conversations, side: Side) -> Tensor:
        """Vectors, and two more columns: the cross-entropy of the first token, and of the rest."""
        vectors, first, rest = cast("Mllm", self.encoder).taught(batch)
        return torch.cat([vectors, first[:, None], rest[:, None]], 1)


def fit(
    model: Contrastive,
    data: MBeirData,
    out: str | Path = "runs/retriever",
    *,
    max_steps: int = 400,
    resume: str | Path | bool = False,
    device: str = "auto",
    callbacks: Sequence[lightning.Callback] = (),
    **trainer: Any,
) -> Encoder:
    """Train an encoder; ``OUT/checkpoints/latest.ckpt`` and ``last.ckpt`` are left.

    Args:
        model: the training, such as :class:`Contrastive`; weights that start fresh are drawn when
            it is made: seed before.
        data: the root and what is shown of it.
        out: folder of checkpoints.
        max_steps: optimiser steps.
        resume: checkpoint to go on from; True takes ``OUT/checkpoints/latest.ckpt``, as after a
            kill, and begins where there is none.
        device: auto, cpu or gpu, as Lightning's ``accelerator`` has them.
        callbacks: of Lightning, beside that of the checkpoints.
        **trainer: further arguments of :class:`lightning.Trainer`.

    Returns:
        The encoder, in evaluation mode, with low-rank updates in its weights.

    Raises:
        DataError: if data is missing or malformed, or a loss is not finite.
        MismatchError: if a checkpoint does not fit.
    """
    leave_out_chatter()
    saving = LatestCheckpoint(str(Path(out) / "checkpoints"))
    given = {"devices": 1, "logger": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    running = lightning.Trainer(
        accelerator=device, max_steps=max_steps, default_root_dir=str(out),
        callbacks=[saving, *callbacks], use_distributed_sampler=False,
        **{**given, **trainer},
    )  # fmt: skip
    latest = Path(out) / "checkpoints" / "latest.ckpt"
    start = latest if resume is True and latest.is_file() else resume
    path = str(start) if start and start is not True else None
    running.fit(model, datamodule=Loaders(data), ckpt_path=path)
    return trained(model)


def trained(model: Contrastive) -> Encoder:
    """The encoder of a training, for use: low-rank updates are written into its weights.

    ``init_from`` is taken first, where no fit has done so.
    """
    model.setup("test")
    merge(model.encoder)
    return model.encoder.eval()


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings: optimiser and schedule keep those of the checkpoint.

    Raises:
        MismatchError: names what differs.
    """
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    differ = [
        f"{name}: trained with {old[name]}, now {new[name]}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    if differ:
        raise MismatchError(
            f"weights go with the settings of their training ({'; '.join(differ)}); leave them "
            "as they were, or begin a new fit with the checkpoint's weights: --model.init_from"
        )


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Names with dots and their values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{before}{name}.") if nested else {f"{before}{name}": value}
    return flat


def _reopen_epoch(loop: Mapping[str, Any]) -> None:
    """Let a fit that ended at ``max_steps`` go on where it stood, in place.

    Lightning (2.6) counts an epoch as completed wherever the fit ended, and goes on with the next,
    without the pairs that were left; after one that did end, it takes the next for done, too.
    """
    epoch = loop.get("epoch_progress")
    if epoch is None or epoch["total"]["completed"] < epoch["total"]["ready"]:
        return
    if loop["epoch_loop.batch_progress"]["is_last_batch"]:
        for name in ("batch_progress", "scheduler_progress"):
            current = loop[f"epoch_loop.{name}"]["current"]
            current.update(dict.fromkeys(current, 0))
    else:
        for counts in epoch.values():
            counts["processed"] = counts["completed"] = counts["ready"] - 1


@torch.no_grad()
def _not_finite(
    batch: Pairs, parts: Mapping[str, Tensor], step: int, encoder: Encoder
) -> DataError:
    """The error of a batch whose loss is not finite, with the pairs that are to blame."""
    seen = ", ".join(f"{name} {float(value):.4g}" for name, value in parts.items())
    finite = torch.ones(batch.queries.size, dtype=torch.bool)
    for side, inputs in zip(SIDES, (batch.candidates, batch.queries), strict=True):
        if not inputs.size:
            continue  # a reranker's, which stand with their queries
        vectors = encoder.encode(inputs, side).vectors
        finite &= vectors.isfinite().all(1).cpu()[: len(finite)]
    bad = [name for name, good in zip(batch.names, finite.tolist(), strict=True) if not good]
    shown = bad or batch.names
    pairs = ", ".join(f"{qid} with {did}" for qid, did in shown[:8])
    what = "pairs without finite vectors" if bad else "no single pair is to blame; the batch"
    if not parts.get("rehearsed", torch.zeros(())).isfinite():
        what = "so is that of the rows of model.rehearsal; the batch"
    return DataError(
        f"the loss is not finite at step {step} ({seen}); {what}: {pairs}"
        f"{' ...' if len(shown) > 8 else ''}. Lower the learning rate, set "
        "trainer.gradient_clip_val, or use precision 32 or bf16-mixed; resume from the latest "
        "checkpoint"
    )
