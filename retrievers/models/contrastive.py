"""What retrievers on an open_clip model share: weights, tuning, text beyond the context."""

from __future__ import annotations

import logging
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Self

from augment.errors import DataError, MismatchError
from retrievers.data.examples import Processor
from retrievers.models.backbone import has_weights, load_clip
from retrievers.models.long_text import LongText, fit_positions, lengthen
from retrievers.models.towers import compile_blocks
from retrievers.training.losses import Objective
from retrievers.training.optim import AdamWCosine
from retrievers.training.pairwise import PairRetriever
from retrievers.training.tuning import Tuning, complete_state, frozen_digest, merge


class ClipRetriever(PairRetriever, ABC):
    """Trains towers of an open_clip model towards an objective on pairs.

    Args:
        model_name: an open_clip model, ``local-dir:FOLDER``, ``hf-hub:NAME``, a model config file
            ending in ``.json``, or ``flagland-clip``, the small one that is packaged.
        pretrained: open_clip's tag or weights file, for model names that have tags.
        random_init: take the architecture and no weights.
        objective: what training minimises.
        chunk: items encoded at a time in training, activations recomputed in the backward
            (GradCache), so that the batch may be as large as its vectors and pictures allow; null
            encodes the batch at once.
        keep_chunks: the last chunks of each side that keep their activations: memory for time.
        compile: compile each transformer block of both towers with ``torch.compile``.
        tuning: what is trained of the towers: all, some layers, or low-rank updates (LoRA).
        text: what becomes of text beyond the model's context.
        truncate_dim: see :class:`retrievers.training.pairwise.PairRetriever`.
        max_logit_scale: the logit scale is held at or below this; CLIP's 100. UniIR never clamps.
        optimizer: AdamW with warm-up and cosine decay.
        init_from: checkpoint whose weights are taken at the start, nothing else of it; UniIR's
            released CLIP models too.
        allow_mismatch: embed text of another recipe than the one trained on.
    """

    #: Whether :meth:`encode` pools the windows of a text; ``text.windows`` is refused where not.
    pools_windows: ClassVar[bool] = False

    def __init__(
        self,
        model_name: str = "flagland-clip",
        pretrained: str | None = None,
        random_init: bool = False,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        chunk: int | None = None,
        keep_chunks: int = 0,
        compile: bool = False,  # noqa: A002 - torch's word
        tuning: Tuning = Tuning(),  # noqa: B008 - frozen
        text: LongText = LongText(),  # noqa: B008 - frozen
        max_logit_scale: float = 100.0,
        optimizer: AdamWCosine = AdamWCosine(),  # noqa: B008 - frozen
        truncate_dim: int | None = None,
        init_from: str | None = None,
        allow_mismatch: bool = False,
    ) -> None:
        super().__init__(
            objective, chunk, keep_chunks, optimizer, truncate_dim, init_from, allow_mismatch
        )
        self._settings: dict[str, Any] = {
            "model_name": model_name,
            "pretrained": pretrained,
            "random_init": random_init,
            "max_logit_scale": max_logit_scale,
            **text.plain(),
        }
        if text.windows > 1 and not self.pools_windows:
            raise DataError(f"text.windows is not for {type(self).__name__}; use text.stretch")
        self.clip, processor = load_clip(model_name, pretrained, random_init)
        positions = self.clip.context_length
        self._processor = lengthen(self.clip, processor, text)
        # Weights of the model as published go into one with stretched positions.
        self.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            lambda _, state, prefix, *__: fit_positions(state, f"{prefix}clip.", text, positions)
        )
        self.prepare_towers()
        self._tune(tuning, init_from is None)
        self.learn_bias()
        if compile:
            compile_blocks(self.clip)
        self._max_log_scale = math.log(max_logit_scale)

    def prepare_towers(self) -> None:
        """Change the towers before anything is frozen; by default nothing."""

    def _tune(self, tuning: Tuning, from_model: bool) -> None:
        """Freeze; leave frozen weights out of checkpoints where the model's name brings them."""
        tuning.apply(self.clip)
        self._partial, self._frozen = False, ""
        if tuning == Tuning():
            return
        self._partial = from_model and has_weights(self._settings)
        self._settings |= {"tuning": asdict(tuning), "partial": self._partial}
        self.register_load_state_dict_pre_hook(complete_state)  # type: ignore[no-untyped-call]

    @property
    def _digest(self) -> str:
        self._frozen = self._frozen or frozen_digest(self)
        return self._frozen

    def trim_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take out what is frozen, if the model's name brings it."""
        if self._partial:
            for name, parameter in self.named_parameters():
                if not parameter.requires_grad:
                    del checkpoint["state_dict"][name]
            checkpoint["retriever"]["frozen"] = self._digest

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse other frozen weights than those of the training.

        Raises:
            MismatchError: names the settings of the training.
        """
        told = checkpoint.get("retriever", {})
        if "frozen" in told and told["frozen"] != self._digest:
            raise MismatchError(
                "the checkpoint holds what was trained and leaves out what was frozen, and this "
                f"model is frozen otherwise; it was trained with {told.get('settings')}"
            )

    def merge_lora(self) -> None:
        """Write low-rank updates into the weights, for export; it cannot be trained on after."""
        merge(self.clip)
        for name in ("tuning", "partial"):
            self._settings.pop(name, None)

    @classmethod
    def deciding(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that decide the architecture, out of what :meth:`describe` told."""
        # The tag says how pictures are prepared; its weights are left out.
        return {
            "model_name": settings["model_name"],
            "pretrained": settings.get("pretrained"),
            "text": LongText.of(settings),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Built without weights, so that nothing is fetched that a checkpoint brings.

        Frozen weights that it leaves out come with the model's name. Only what decides a vector is
        taken, so that settings of training may come and go.
        """
        deciding = cls.deciding(settings)
        partial = bool(settings.get("partial"))
        if "tuning" in settings:
            deciding["tuning"] = Tuning(**settings["tuning"])
        # open_clip warns that the model is random, which it is until the weights come.
        logging.disable(logging.WARNING)
        try:
            retriever = cls(**deciding, random_init=not partial)
        finally:
            logging.disable(logging.NOTSET)
        retriever._settings = dict(settings)
        return retriever

    @property
    def processor(self) -> Processor:
        """The model's own tokenizer and evaluation transform, in training too (as in UniIR)."""
        return self._processor

    def scale(self) -> Float[Tensor, ""]:
        """The exponential of CLIP's parameter."""
        scale: Tensor = self.clip.logit_scale.exp()
        return scale

    def bias(self) -> Float[Tensor, ""] | None:
        """The model's own, or the learned one."""
        own: Tensor | None = getattr(self.clip, "logit_bias", None)
        return self.logit_bias if own is None else own

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold the logit scale (CLIP 2103.00020, section 2.5)."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=self._max_log_scale)
