"""What retrievers that train on pairs share: objective, chunks, bias, optimiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional

from augment.errors import DataError, MismatchError
from augment.records import Side
from retrievers.data.examples import Inputs, Pairs
from retrievers.training.base import Retriever
from retrievers.training.gradcache import encode_in_chunks
from retrievers.training.losses import Objective
from retrievers.training.optim import AdamWCosine


class PairRetriever(Retriever, ABC):
    """Trains an encoder of both sides towards an objective on pairs.

    Args:
        objective: what training minimises.
        chunk: items encoded at a time in training, activations recomputed in the backward
            (GradCache), so that the batch may be as large as its vectors and pictures allow; null
            encodes the batch at once.
        keep_chunks: the last chunks of each side that keep their activations: memory for time.
        optimizer: AdamW with warm-up and cosine decay.
        truncate_dim: test and embed with so many first numbers of a vector, normalised again, after
            training with ``objective.matryoshka``; null keeps all.
        init_from: checkpoint whose weights are taken at the start, nothing else of it.
        allow_mismatch: embed text of another recipe than the one trained on.
    """

    #: Beginnings of the names of parameters that start without trained weights.
    fresh: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        chunk: int | None = None,
        keep_chunks: int = 0,
        optimizer: AdamWCosine = AdamWCosine(),  # noqa: B008 - frozen
        truncate_dim: int | None = None,
        init_from: str | None = None,
        allow_mismatch: bool = False,
    ) -> None:
        super().__init__(init_from, allow_mismatch)
        self.objective = objective
        self.truncate_dim = truncate_dim
        self.optimizer = optimizer
        self._chunk, self._keep = chunk, keep_chunks
        #: SigLIP's bias, where the model has none.
        self.logit_bias: Tensor | None = None
        # Weights go from one objective to another, and to an embedder that needs no bias.
        self.register_load_state_dict_pre_hook(_reconcile_bias)  # type: ignore[no-untyped-call]

    @abstractmethod
    def vectors(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors of full length; see :meth:`encode`."""

    @final
    def encode(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors, shortened if that is asked for.

        Raises:
            MismatchError: if there are not so many numbers.
        """
        vectors = self.vectors(batch, side)
        size = self.truncate_dim
        if size is None:
            return vectors
        if not 0 < size <= vectors.shape[1]:
            raise MismatchError(
                f"model.truncate_dim is {size}, and vectors have {vectors.shape[1]} numbers"
            )
        return functional.normalize(vectors[:, :size], dim=-1)

    @abstractmethod
    def scale(self) -> Float[Tensor, ""]:
        """What multiplies the cosine in the loss."""

    def bias(self) -> Float[Tensor, ""] | None:
        """What SigLIP's loss adds to the logits."""
        return self.logit_bias

    def learn_bias(self) -> None:
        """Make the bias that SigLIP's loss needs (2303.15343, section 3.2: -10 at the start)."""
        if self.objective.kind == "siglip" and self.bias() is None:
            self.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))

    def describe(self) -> dict[str, Any]:
        """Settings as plain values; those that change no vector of given weights are left out."""
        cut = {} if self.truncate_dim is None else {"truncate_dim": self.truncate_dim}
        return {**self._settings, **cut}

    def training_settings(self) -> dict[str, Any]:
        """Objective and optimiser."""
        return {"objective": asdict(self.objective), "optimizer": asdict(self.optimizer)}

    def loss(self, batch: Pairs) -> Mapping[str, Tensor]:
        """The objective, its parts and the logit scale."""
        scale = self.scale()
        parts = self.objective(
            encode_in_chunks(self.encode, batch.queries, "query", self._chunk, self._keep),
            encode_in_chunks(self.encode, batch.candidates, "corpus", self._chunk, self._keep),
            batch.labels,
            batch.groups,
            scale,
            self.bias(),
        )
        if torch.is_grad_enabled():
            # A tower that no item of this process needs must still take part in the all-reduce; and
            # in one process its gradient must be nought, not absent, or AdamW would leave the tower
            # out of a step in which the masked form, or several processes, carry its momentum on.
            idle = 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
            parts = {**parts, "loss": parts["loss"] + idle}
        return {**parts, "logit_scale": scale.detach()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, one step per batch.

        Raises:
            DataError: if vectors are to be shortened; training needs them whole.
        """
        if self.truncate_dim is not None:
            raise DataError(
                "model.truncate_dim is for test and embed; train prefixes with "
                f"--model.objective.matryoshka=[{self.truncate_dim}]"
            )
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimizer.build(self.named_parameters(), steps, self.fresh)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def scatter(
    size: int, rows: Int[Tensor, " rows"], features: Float[Tensor, "rows dim"]
) -> Float[Tensor, "size dim"]:
    """Features at their rows of a batch, zeros elsewhere."""
    return features.new_zeros(size, features.shape[1]).index_add(0, rows, features)


def _reconcile_bias(module: PairRetriever, state: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}logit_bias"
    if module.logit_bias is None:
        state.pop(name, None)
    else:
        state.setdefault(name, module.logit_bias.detach())
