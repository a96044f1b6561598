"""CLIP score fusion (UniIR 2311.17136, section 4) on any open_clip model."""

from __future__ import annotations

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

from augment.records import Side
from retrievers.backbone import load_clip
from retrievers.base import Retriever
from retrievers.inputs import Inputs, Pairs, Processor
from retrievers.losses import info_nce
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
        symmetric: also the loss from candidate to query; UniIR has query to candidate only.
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
        symmetric: bool = False,
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
            "symmetric": symmetric,
            "max_logit_scale": max_logit_scale,
        }
        self.clip, self._processor = load_clip(model_name, pretrained, random_init)
        self.optimizer = optimizer
        self._normalize = normalize_towers
        self._symmetric = symmetric
        self._max_log_scale = math.log(max_logit_scale)

    @property
    def processor(self) -> Processor:
        """The model's own tokenizer and evaluation transform, in training too (as in UniIR)."""
        return self._processor

    def describe(self) -> dict[str, Any]:
        """Settings as plain values; those of the optimiser do not change a vector."""
        return dict(self._settings)

    def encode(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors; both sides share the towers."""
        vectors: Tensor | None = None
        if len(batch.text_rows):
            features = self._feature(encode_text(self.clip, batch.texts))
            vectors = _scatter(batch.size, batch.text_rows, features)
        if len(batch.image_rows):
            features = self._feature(self.clip.encode_image(batch.images))
            images = _scatter(batch.size, batch.image_rows, features)
            vectors = images if vectors is None else vectors + images
        if vectors is None:
            raise ValueError("a batch needs at least one text or picture")
        return functional.normalize(vectors, dim=-1)

    def loss(self, batch: Pairs) -> Mapping[str, Tensor]:
        """In-batch InfoNCE in which no known positive is a negative."""
        loss = info_nce(
            self.encode(batch.queries, "query"),
            self.encode(batch.candidates, "corpus"),
            batch.candidate_ids,
            batch.positives,
            self.clip.logit_scale.exp(),
            self._symmetric,
        )
        if dist.is_available() and dist.is_initialized():
            # A tower that no item of this process needs must still take part in the all-reduce.
            loss = loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return {"loss": loss, "logit_scale": self.clip.logit_scale.detach().exp()}

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

    def optimizer_settings(self) -> dict[str, Any]:
        """Settings of the optimiser as plain values."""
        return asdict(self.optimizer)

    def _feature(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        features = features.float()
        return functional.normalize(features, dim=-1) if self._normalize else features


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
