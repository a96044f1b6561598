"""CLIP score fusion (UniIR 2311.17136, section 4) on any open_clip model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from augment.records import Side
from retrievers.data.examples import Inputs
from retrievers.models.contrastive import ClipRetriever
from retrievers.models.long_text import pool_windows
from retrievers.models.towers import check_size, encode_text
from retrievers.training.pairwise import scatter


@final
class ClipScoreFusion(ClipRetriever):
    """``e = m_t * text(x) + m_i * image(x)``, then L2-normalised; masks say what the item has.

    The features are projected and not normalised before the sum, as in UniIR. A tower runs only
    on the items that need it, which gives the same vectors as running both and masking.

    Args:
        model_name: see :class:`retrievers.models.contrastive.ClipRetriever`, whose other arguments follow.
        normalize_towers: normalise each tower's feature before the sum.
    """

    pools_windows = True

    def __init__(
        self,
        model_name: str = "flagland-clip",
        normalize_towers: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(model_name, **training)
        self._settings["normalize_towers"] = normalize_towers
        self._normalize = normalize_towers

    @classmethod
    def deciding(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The model, and what becomes of its features."""
        return {
            **super().deciding(settings),
            "normalize_towers": settings["normalize_towers"],
        }

    def vectors(self, batch: Inputs, side: Side) -> Float[Tensor, "batch dim"]:
        """Unit vectors; both sides share the towers."""
        vectors: Tensor | None = None
        if len(batch.text_rows):
            features = self._feature(encode_text(self.clip, batch.texts))
            features, rows = pool_windows(features, batch.text_rows)
            vectors = scatter(batch.size, rows, features)
        if len(batch.image_rows):
            check_size(self.clip, batch.images)
            features = self._feature(self.clip.encode_image(batch.images))
            images = scatter(batch.size, batch.image_rows, features)
            vectors = images if vectors is None else vectors + images
        if vectors is None:
            raise ValueError("a batch needs at least one text or picture")
        return functional.normalize(vectors, dim=-1)

    def _feature(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        features = features.float()
        return functional.normalize(features, dim=-1) if self._normalize else features
