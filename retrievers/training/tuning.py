"""Training less than everything: frozen towers, low-rank updates (LoRA, 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, final

from jaxtyping import Float
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from augment.errors import DataError
from retrievers.models.base import Encoder
from retrievers.models.load import digest_of
from retrievers.models.towers import has_weights, text_tower

Towers = Literal["none", "image", "text", "both"]


@dataclass(frozen=True)
class Tuning:
    """What is trained of the towers. The logit scale and layers that start fresh always are.

    Args:
        freeze: none, image, text or both towers.
        unlock_image: the last layers of a frozen image tower that are trained after all, counted
            as open_clip does: 1 is the projection, 2 the last block with it, and so on.
        unlock_text: the same of a frozen text tower.
        lora_rank: rank of an update to each matrix of attention and feed-forward in the blocks of
            the towers that are not frozen; these matrices and all else of the towers stay as they
            are. 0 trains them outright.
        lora_alpha: the update is scaled by lora_alpha / lora_rank.
    """

    freeze: Towers = "none"
    unlock_image: int = 0
    unlock_text: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0

    def __post_init__(self) -> None:
        for name in ("unlock_image", "unlock_text", "lora_rank"):
            if getattr(self, name) < 0:
                raise DataError(f"tuning.{name} must not be negative, got {getattr(self, name)}")
        for tower, unlocked in (("image", self.unlock_image), ("text", self.unlock_text)):
            if unlocked and not self.freezes(tower):
                raise DataError(
                    f"tuning.unlock_{tower}={unlocked} unlocks layers of a frozen tower; freeze it "
                    f"with tuning.freeze={tower} or both"
                )
        if self.lora_rank and self.freeze == "both":
            raise DataError("tuning.lora_rank updates towers, and tuning.freeze=both leaves none")

    def freezes(self, tower: str) -> bool:
        """Whether a tower, image or text, is frozen."""
        return self.freeze in (tower, "both")

    def apply(self, encoder: Encoder) -> bool:
        """Freeze parameters of a CLIP and add low-rank updates, in place.

        Returns:
            Whether the encoder's settings bring the frozen weights again.

        Raises:
            DataError: if the encoder is no CLIP, or such layers cannot be unlocked.
        """
        if self == Tuning():
            return False
        clip: Any = getattr(encoder, "clip", None)
        if clip is None:
            raise DataError(f"model.tuning is for CLIPs, not for a {type(encoder).__name__}")
        if self.freezes("image") or self.lora_rank:
            self._lock_image(clip)
        if self.freezes("text") or self.lora_rank:
            clip.lock_text_tower(unlocked_layers=self.unlock_text)
        if self.lora_rank:
            towers = [name for name in ("image", "text") if not self.freezes(name)]
            blocks = {"image": _image_blocks(clip.visual), "text": text_tower(clip).transformer}
            for tower in towers:
                for module, name in list(_matrices(blocks[tower])):
                    update = LowRank(getattr(module, name), self.lora_rank, self.lora_alpha)
                    parametrize.register_parametrization(module, name, update)
        encoder.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]
        told = encoder.settings()
        return encoder.trained_on is None and has_weights(
            told["model_name"], told["pretrained"], told["random_init"]
        )

    def digest(self, encoder: Encoder) -> str:
        """Hash of what is frozen."""
        frozen = ((n, p) for n, p in encoder.named_parameters() if not p.requires_grad)
        return digest_of(frozen)

    def _lock_image(self, clip: Any) -> None:
        try:
            clip.lock_image_tower(unlocked_groups=self.unlock_image, freeze_bn_stats=True)
        except (AssertionError, RuntimeError) as error:
            kind = type(clip.visual).__name__
            raise DataError(
                f"tuning.unlock_image: layers of a {kind} cannot be unlocked ({error}); freeze all "
                "of it"
            ) from error
        if not self.unlock_image:
            clip.visual.requires_grad_(False)  # what open_clip adds to models of timm, too


@final
class LowRank(nn.Module):
    """``W + alpha / rank * B A``, with B zero at the start.

    A parametrisation rather than peft's layer: open_clip's attention is torch's, to which peft
    (0.21) adds the update before each forward and subtracts it after, so that rounding moves the
    frozen weight, and which gets the update of its output projection twice.

    Args:
        weight: what is updated.
        rank: of the update.
        alpha: scale.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"], rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.lora_a = nn.Parameter(weight.new_empty(rank, inputs))
        self.lora_b = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self._scale = alpha / rank

    def forward(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """The updated weight."""
        updated: Tensor = weight + self._scale * (self.lora_b @ self.lora_a)
        return updated


def merge(model: nn.Module) -> None:
    """Write low-rank updates into the weights, in place; names become those of a plain model."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast("Any", module).parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                # First among its module's parameters, as in a plain model: the same fingerprint.
                others = dict(module._parameters)
                first = others.pop(name)
                module._parameters.clear()
                module._parameters.update({name: first, **others})


def _image_blocks(visual: Any) -> nn.Module:
    if isinstance(visual, VisionTransformer):
        return cast("nn.Module", visual.transformer)
    trunk = getattr(visual, "trunk", visual)
    return cast("nn.Module", getattr(trunk, "blocks", trunk))


def _matrices(blocks: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in blocks.modules():
        for name in ("in_proj_weight", "weight"):
            found = getattr(module, name, None)
            linear = name == "in_proj_weight" or isinstance(module, nn.Linear)
            if linear and isinstance(found, nn.Parameter) and found.ndim == 2:
                yield module, name


def _complete(model: nn.Module, state: dict[str, Any], prefix: str, *_hook: Any) -> None:
    """Bring a state to a tuned model's names: of a plain model, or without its frozen weights."""
    for name, parameter in model.named_parameters():
        plain, _, rest = name.partition(".parametrizations.")
        matrix, _, part = rest.partition(".")
        given = f"{prefix}{plain}.{matrix}"
        if rest and given in state:
            state[prefix + name] = state[given] if part == "original" else parameter.detach()
    for place, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for matrix in cast("Any", module).parametrizations:
                state.pop(f"{prefix}{place}.{matrix}", None)
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    if not any(prefix + name in state for name, _ in frozen):
        state.update({prefix + name: parameter.detach() for name, parameter in frozen})
