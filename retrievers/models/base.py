"""What every model that makes vectors is: the contract, what it remembers, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import MismatchError
from augment.records import Side
from retrievers.data.examples import Batch, Collator
from retrievers.data.writings import Writing


class Encoded(NamedTuple):
    """What an encoder makes of a batch.

    Attributes:
        vectors: unit vectors, in float32 whatever the precision of the towers.
        writings: what the model wrote before each vector; none where it does not write.
        direct: the vectors where nothing is written, from the same pass; None likewise.
    """

    vectors: Float[Tensor, "batch dim"]
    writings: Sequence[Writing] = ()
    direct: Float[Tensor, "batch dim"] | None = None


class Encoder(nn.Module, ABC):
    """Encodes queries and candidates into one space of unit vectors.

    Args:
        settings: what decides a vector besides weights, as plain values.
        truncate_dim: keep so many first numbers of a vector, normalised again; None keeps all.

    Attributes:
        trained_on: fingerprint of the text that the weights were trained on; None of untrained
            ones.
        origin: data, command and versions of the fit that made the weights; None of untrained ones.
        logit_bias: SigLIP's bias, where the model has none of its own and learns one.
    """

    #: Beginnings of the names of parameters that start without trained weights.
    fresh: ClassVar[tuple[str, ...]] = ()
    #: Settings for people, which decide no vector and stand in no fingerprint.
    told: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Mapping[str, Any], truncate_dim: int | None = None) -> None:
        super().__init__()
        self.truncate_dim = truncate_dim
        self.trained_on: dict[str, str] | None = None
        self.origin: dict[str, Any] | None = None
        self.logit_bias: Tensor | None = None
        self._settings = dict(settings)
        # Weights go from one objective to another, and to an encoder that needs no bias.
        self.register_load_state_dict_pre_hook(_reconcile_bias)  # type: ignore[no-untyped-call]

    @abstractmethod
    def collator(self) -> Collator:
        """How items become batches: the same object every time, without weights."""

    @abstractmethod
    def whole(self, batch: Any, side: Side) -> Encoded:
        """Vectors of full length; see :meth:`encode`."""

    @abstractmethod
    def scale(self) -> Float[Tensor, ""]:
        """What multiplies the cosine in a contrastive loss."""

    @abstractmethod
    def hold(self) -> None:
        """Bring parameters back into their range, after every step of training."""

    def bias(self) -> Float[Tensor, ""] | None:
        """What SigLIP's loss adds to the logits; None where there is none."""
        return self.logit_bias

    @final
    def learn_bias(self) -> None:
        """Make the bias that SigLIP's loss needs (2303.15343, section 3.2: -10 at the start)."""
        if self.bias() is None:
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    @final
    def encode(self, batch: Batch, side: Side) -> Encoded:
        """Unit vectors, shortened if that is asked for.

        Args:
            batch: items of one side, as :meth:`collator` makes them, on the device of the weights.
            side: query or corpus; towers may differ.

        Raises:
            MismatchError: if vectors have fewer numbers than are asked for.
        """
        encoded, size = self.whole(batch, side), self.truncate_dim
        if size is None:
            return encoded
        numbers = encoded.vectors.shape[1]
        if not 0 < size <= numbers:
            raise MismatchError(f"truncate_dim is {size}, and vectors have {numbers} numbers")
        short = functional.normalize(encoded.vectors[:, :size], dim=-1)
        direct = encoded.direct
        if direct is not None:
            direct = functional.normalize(direct[:, :size], dim=-1)
        return encoded._replace(vectors=short, direct=direct)

    @final
    def settings(self) -> dict[str, Any]:
        """What decides a vector besides the weights, as plain values."""
        cut = {} if self.truncate_dim is None else {"truncate_dim": self.truncate_dim}
        return {**self._settings, **cut}

    @final
    def deciding(self) -> dict[str, Any]:
        """The settings without what is for people alone."""
        return {name: value for name, value in self.settings().items() if name not in self.told}

    @final
    def remember(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of the training for those of :meth:`settings`."""
        self._settings = dict(settings)

    @final
    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @final
    def fingerprint(self, text: Mapping[str, str]) -> str:
        """Hash of weights, settings and the text shown: what makes a vector; sixteen hex digits."""
        seen = {"retriever": self.deciding(), "text": dict(text)}
        digest = hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def recompute_activations(model: Any) -> None:
    """Let a model of transformers forget activations and make them again in the backward.

    Not reentrant: the other kind loses the gradients of all before the first trained input.
    """
    # transformers 5.24 renamed it; 6 removes the old name.
    old = "gradient_checkpointing_enable"
    new = "activation_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})


def _reconcile_bias(module: Encoder, state: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}logit_bias"
    if module.logit_bias is None:
        state.pop(name, None)
    else:
        state.setdefault(name, module.logit_bias.detach())
