"""Training less than everything: frozen towers, low-rank updates (LoRA, 2106.09685)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from augment.errors import DataError
from retrievers.models.base import Encoder
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.towers import has_weights, text_tower

Towers = Literal["none", "image", "text", "both"]

#: What peft updates in a language model: never the vision tower, whose layers have the same names.
LANGUAGE = r".*language_model\.layers\.\d+\..*\.(q|k|v|o|gate|up|down)_proj"

#: What low-rank updates put into the names of the weights beneath them.
_WRAPPED = re.compile(
    r"\.(parametrizations|original|base_layer|original_module|token_adapter)(?=\.|$)"
)


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
            are. 0 trains them outright. Of a multimodal language model, matrices of the language
            model alone (:data:`LANGUAGE`), through peft; and its mark's rows in the vocabulary.
        lora_alpha: the update is scaled by lora_alpha / lora_rank.
        lora_dropout: share of what an update reads that is dropped in training (peft only).
        dora: updates of direction and length apart (DoRA, 2402.09353; peft only).
        projector: train what carries a frozen image tower into the language model, too.
    """

    freeze: Towers = "none"
    unlock_image: int = 0
    unlock_text: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    dora: bool = False
    projector: bool = False

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
        """Freeze parameters and add low-rank updates, in place.

        Returns:
            Whether the encoder's settings bring the frozen weights again.

        Raises:
            DataError: if the encoder has no such towers, or such layers cannot be unlocked.
        """
        if self == Tuning():
            return False
        told = encoder.settings()
        if isinstance(encoder, Mllm):
            self._apply_to_language_model(encoder)
            named = not told["random_init"]
        else:
            self._apply_to_towers(encoder)
            named = has_weights(told["model_name"], told["pretrained"], told["random_init"])
        encoder.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]
        return encoder.trained_on is None and named

    def _apply_to_towers(self, encoder: Encoder) -> None:
        clip: Any = getattr(encoder, "clip", None)
        if clip is None:
            kind = type(encoder).__name__
            raise DataError(f"model.tuning is for CLIPs and Mllm, not for a {kind}")
        if self.lora_dropout or self.dora or self.projector:
            raise DataError("tuning.lora_dropout, dora and projector are for Mllm, not for CLIPs")
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

    def _apply_to_language_model(self, encoder: Mllm) -> None:
        if self.unlock_image or self.unlock_text:
            raise DataError("tuning.unlock_image and unlock_text are for CLIPs")
        vlm, visual = encoder.vlm, encoder.vlm.model.visual
        if self.freezes("image"):
            visual.requires_grad_(False)
        if self.freezes("text"):
            vlm.model.language_model.requires_grad_(False)
            vlm.lm_head.requires_grad_(False)
        if self.lora_rank:
            from peft import LoraConfig, inject_adapter_in_model

            rows = {} if encoder.mark is None else {"embed_tokens": [encoder.mark]}
            if rows and vlm.lm_head.weight is not vlm.get_input_embeddings().weight:
                rows["lm_head"] = rows["embed_tokens"]
            config = LoraConfig(
                r=self.lora_rank, lora_alpha=cast("int", self.lora_alpha),
                lora_dropout=self.lora_dropout, use_dora=self.dora, target_modules=LANGUAGE,
                trainable_token_indices=rows or None,
            )  # fmt: skip
            inject_adapter_in_model(config, vlm)
        if hasattr(vlm, "score"):  # the head of a reranker, which may start untrained
            vlm.score.requires_grad_(True)
        if self.projector:
            for name, module in visual.named_modules():
                if "merger" in name:
                    module.requires_grad_(True)

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
        return weight + self._scale * (self.lora_b @ self.lora_a)


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
    if isinstance(model, Mllm) and is_tuned(model):
        _merge_peft(model.vlm)


def _merge_peft(vlm: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in list(vlm.modules()):
        for name, inner in list(module.named_children()):
            if isinstance(inner, BaseTunerLayer):
                inner.merge()
                setattr(module, name, inner.get_base_layer())
            elif isinstance(inner, AuxiliaryTrainingWrapper):
                setattr(module, name, inner.unload_and_optionally_merge_module(True, False, None))
    vlm.__dict__.pop("peft_config", None)


def is_tuned(model: nn.Module) -> bool:
    """Whether a model has low-rank updates."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def digest_of(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of some parameters, in whatever order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters):
        digest.update(name.encode())
        plain = parameter.detach().cpu().contiguous().view(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


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
    own = {prefix + name: value for name, value in model.state_dict().items()}
    plain = {name: _WRAPPED.sub("", name) for name in own}
    bare = not any(name in state for name in own if name != plain[name])
    for name, value in own.items():
        if name != plain[name] and plain[name] in state:
            state[name] = state[plain[name]]
        elif bare and name not in state and re.search(r"lora_|_delta", name):
            state[name] = value.detach()
    for name in set(plain.values()) - set(own):
        state.pop(name, None)
    frozen = [prefix + name for name, p in model.named_parameters() if not p.requires_grad]
    # The same weight under two names, where a head is tied, is left out under both.
    held = {own[name].data_ptr() for name in frozen}
    absent = [name for name in own if own[name].data_ptr() in held and name not in state]
    if not any(name in state for name in frozen):
        state.update({name: own[name].detach() for name in absent})
