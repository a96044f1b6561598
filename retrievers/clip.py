"""CLIP score fusion (UniIR 2311.17136, section 4) on any open_clip model."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, final

import open_clip
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional

from augment.errors import MismatchError
from augment.records import Side
from retrievers.backbone import load_clip
from retrievers.base import Retriever
from retrievers.gradcache import encode_in_chunks
from retrievers.inputs import Inputs, Pairs, Processor
from retrievers.losses import Objective
from retrievers.optim import AdamWCosine

#: Ways to read one position of the text, at or before the end-of-text token.
_POOLS = ("argmax", "eos")


@final
class ClipScoreFusion(Retriever):
    """``e = m_t * text(x) + m_i * image(x)``, then L2-normalised; masks say what the item has.

    The features are projected and not normalised before the sum, as in UniIR. A tower runs only
    on the items that need it, which gives the same vectors as running both and masking.

    Args:
        model_name: an open_clip model, ``local-dir:FOLDER``, ``hf-hub:NAME``, a model config file
            ending in ``.json``, or ``flagland-clip``, the small one that is packaged.
        pretrained: open_clip's tag or weights file, for model names that have tags.
        random_init: take the architecture and no weights.
        normalize_towers: normalise each tower's feature before the sum.
        objective: what training minimises.
        chunk: items encoded at a time in training, activations recomputed in the backward
            (GradCache), so that the batch may be as large as its vectors and pictures allow; null
            encodes the batch at once.
        keep_chunks: the last chunks of each side that keep their activations: memory for time.
        compile: compile each transformer block of both towers with ``torch.compile``.
        max_logit_scale: the logit scale is held at or below this; CLIP's 100. UniIR never clamps.
        optimizer: AdamW with warm-up and cosine decay.
        init_from: checkpoint whose weights are taken at the start, nothing else of it.
        allow_mismatch: embed text of another recipe than the one trained on.
    """

    def __init__(
        self,
        model_name: str = "flagland-clip",
        pretrained: str | None = None,
        random_init: bool = False,
        normalize_towers: bool = False,
        objective: Objective = Objective(),  # noqa: B008 - frozen
        chunk: int | None = None,
        keep_chunks: int = 0,
        compile: bool = False,  # noqa: A002 - torch's word
        max_logit_scale: float = 100.0,
        optimizer: AdamWCosine = AdamWCosine(),  # noqa: B008 - frozen
        init_from: str | None = None,
        allow_mismatch: bool = False,
    ) -> None:
        super().__init__(init_from, allow_mismatch)
        self._settings = {
            "model_name": model_name,
            "pretrained": pretrained,
            "random_init": random_init,
            "normalize_towers": normalize_towers,
            "max_logit_scale": max_logit_scale,
        }
        self.clip, self._processor = load_clip(model_name, pretrained, random_init)
        self.optimizer = optimizer
        self._normalize = normalize_towers
        self.objective = objective
        self._chunk, self._keep = chunk, keep_chunks
        #: SigLIP's bias (2303.15343, section 3.2: -10 at the start), where the model has none.
        self.logit_bias: Tensor | None = None
        if objective.kind == "siglip" and getattr(self.clip, "logit_bias", None) is None:
            self.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
        # Weights go from one objective to another, and to an embedder that needs no bias.
        self.register_load_state_dict_pre_hook(_reconcile_bias)  # type: ignore[no-untyped-call]
        if compile:
            _compile_blocks(self.clip)
        self._max_log_scale = math.log(max_logit_scale)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ClipScoreFusion:
        """Built without weights, so that nothing is fetched that a checkpoint brings.

        Only what decides a vector is taken, so that settings of training may come and go.
        """
        deciding = {name: settings[name] for name in ("model_name", "normalize_towers")}
        # open_clip warns that the model is random, which it is until the weights come.
        logging.disable(logging.WARNING)
        try:
            retriever = cls(**deciding, random_init=True)
        finally:
            logging.disable(logging.NOTSET)
        retriever._settings = dict(settings)
        return retriever

    @property
    def processor(self) -> Processor:
        """The model's own tokenizer and evaluation transform, in training too (as in UniIR)."""
        return self._processor

    def describe(self) -> dict[str, Any]:
        """Settings as plain values; those that change no vector of given weights are left out."""
        return dict(self._settings)

    def training_settings(self) -> dict[str, Any]:
        """Objective and optimiser."""
        return {"objective": asdict(self.objective), "optimizer": asdict(self.optimizer)}

    def encode(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors; both sides share the towers."""
        vectors: Tensor | None = None
        if len(batch.text_rows):
            features = self._feature(encode_text(self.clip, batch.texts))
            vectors = _scatter(batch.size, batch.text_rows, features)
        if len(batch.image_rows):
            self._check_size(batch.images)
            features = self._feature(self.clip.encode_image(batch.images))
            images = _scatter(batch.size, batch.image_rows, features)
            vectors = images if vectors is None else vectors + images
        if vectors is None:
            raise ValueError("a batch needs at least one text or picture")
        return functional.normalize(vectors, dim=-1)

    def loss(self, batch: Pairs) -> Mapping[str, Tensor]:
        """The objective, its parts and the logit scale."""
        scale = self.clip.logit_scale.exp()
        parts = self.objective(
            encode_in_chunks(self.encode, batch.queries, "query", self._chunk, self._keep),
            encode_in_chunks(self.encode, batch.candidates, "corpus", self._chunk, self._keep),
            batch.labels,
            batch.groups,
            scale,
            self.logit_bias if self.logit_bias is not None else self.clip.logit_bias,
        )
        if dist.is_available() and dist.is_initialized():
            # A tower that no item of this process needs must still take part in the all-reduce.
            idle = 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
            parts = {**parts, "loss": parts["loss"] + idle}
        return {**parts, "logit_scale": scale.detach()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold the logit scale (CLIP 2103.00020, section 2.5)."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=self._max_log_scale)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, one step per batch."""
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimizer.build(self.named_parameters(), steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _check_size(self, images: Tensor) -> None:
        wanted = getattr(self.clip.visual, "image_size", None)
        size = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted or ())
        if size and tuple(images.shape[-2:]) != size:
            raise MismatchError(
                f"pictures of {images.shape[-2]} x {images.shape[-1]} pixels for a model that "
                f"takes {size[0]} x {size[1]}; preprocess them with this retriever's own processor"
            )

    def _feature(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        features = features.float()
        return functional.normalize(features, dim=-1) if self._normalize else features


def _reconcile_bias(module: ClipScoreFusion, state: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}logit_bias"
    if module.logit_bias is None:
        state.pop(name, None)
    else:
        state.setdefault(name, module.logit_bias.detach())


def _compile_blocks(clip: Any) -> None:
    """Compile block by block, in place: names in checkpoints stay, and blocks share one graph."""
    for module in clip.modules():
        if isinstance(module, open_clip.transformer.ResidualAttentionBlock):
            module.compile()


def _scatter(
    size: int, rows: Int[Tensor, " rows"], features: Float[Tensor, "rows dim"]
) -> Float[Tensor, "size dim"]:
    return features.new_zeros(size, features.shape[1]).index_add(0, rows, features)


def encode_text(clip: Any, texts: Int[Tensor, "rows context"]) -> Float[Tensor, "rows dim"]:
    """Text features, computed only up to the longest text of the batch where that is exact.

    CLIP's own text tower is causal and reads one position, so later positions change nothing.
    Other towers (SigLIP must be padded) go through open_clip as they are.

    Args:
        clip: an open_clip model.
        texts: token ids, padded to the context.
    """
    pool = getattr(clip, "text_pool_type", "")
    if not isinstance(clip, open_clip.CLIP) or clip.attn_mask is None or pool not in _POOLS:
        features: Tensor = clip.encode_text(texts)
        return features
    end = texts.argmax(-1) if pool == "argmax" else (texts == clip.text_eos_id).int().argmax(-1)
    length = int(end.max()) + 1
    dtype = clip.transformer.get_cast_dtype()
    x = clip.token_embedding(texts[:, :length]).to(dtype)
    x = x + clip.positional_embedding[:length].to(dtype)
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    pooled: Tensor = x[torch.arange(len(x), device=x.device), end]
    if clip.text_projection is None:
        return pooled
    linear = isinstance(clip.text_projection, torch.nn.Linear)
    projected: Tensor = clip.text_projection(pooled) if linear else pooled @ clip.text_projection
    return projected
