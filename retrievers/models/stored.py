"""A retriever apart from any trainer: its contract, settings, weights and checkpoints."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import lightning
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Self

from augment.errors import MismatchError
from augment.records import Side
from retrievers.data.examples import Inputs, Pairs, Processor
from retrievers.models.checkpoints import (
    check_shapes,
    digest_of,
    load_state,
    origin_of,
    read_checkpoint,
    text_of,
)

if TYPE_CHECKING:
    from retrievers.training.base import Retriever


class StoredRetriever(lightning.LightningModule, ABC):
    """What a retriever is: how it encodes, what it is made of, and where its weights come from.

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
        self._places: list[dict[str, int]] = []

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
        """A retriever from a folder or a repository on the Hub; see :func:`retrievers.export.folder.load`."""
        from retrievers.export import folder as hub

        retriever = hub.load(name, revision, token, cache_dir, local_files_only)
        if not isinstance(retriever, cls):
            raise MismatchError(f"{name} holds a {type(retriever).__name__}, not a {cls.__name__}")
        return retriever

    @final
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the retriever to a folder; see :func:`retrievers.export.folder.save`."""
        from retrievers.export import folder as hub

        hub.save(cast("Retriever", self), folder)

    @final
    def push_to_hub(self, repo_id: str, private: bool | None = None, **options: Any) -> str:
        """Upload the retriever to the Hub; its address. See :func:`retrievers.export.folder.push`."""
        from retrievers.export import folder as hub

        return hub.push(cast("Retriever", self), repo_id, private=private, **options)

    @final
    def fingerprint_for(self, text: Mapping[str, str]) -> str:
        """Hash of weights, settings and the text shown: what made a vector.

        Args:
            text: fingerprint of a text recipe.
        """
        settings = {"retriever": self.describe(), "text": dict(text)}
        return digest_of(settings, self.state_dict())

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
        load_state(self, checkpoint, path)
        self.trained_on, self.origin = text_of(checkpoint), origin_of(checkpoint)

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
        check_shapes(self.state_dict(), checkpoint)
        self.trained_on, self.origin = text_of(checkpoint), origin_of(checkpoint)
        loop = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {})
        self._places = list(loop.get("combined_loader", []))
