"""What a frozen vision tower makes of a picture, computed once and kept."""

from __future__ import annotations

import hashlib
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from augment.errors import DataError


@final
class SeenPictures:
    """Stands in front of a vision tower and asks it about pictures that it has not yet seen.

    Kept is all that the language model reads of a picture: its merged tokens and those of every
    level of the deepstack. A picture is known by its patches and their grid, so by its content and
    all that the processor did to it. When there is no more room, pictures that are not kept are
    computed each time: where all are read in turn, throwing out the oldest would throw out what is
    needed next. Other weights, another device or precision empty it.

    Args:
        visual: the tower with its projector; its ``forward`` is taken over.
        mib: room for features.
    """

    def __init__(self, visual: Any, mib: int) -> None:
        self._visual, self._forward = visual, visual.forward
        self._room = self._left = mib * 2**20
        self._kept: dict[bytes, list[Tensor]] = {}
        self._weights: object = None
        self._kind: Any = None
        visual.forward = self

    def __call__(
        self,
        patches: Float[Tensor, "patches numbers"],
        grid_thw: Int[Tensor, "pictures 3"],
        **options: Any,
    ) -> Any:
        """The tower's output, without a graph and without the states before the projector.

        Raises:
            DataError: if the tower or its projector are trained.
        """
        self._check()
        pictures = torch.split(patches, grid_thw.prod(-1).tolist())
        keys = [_key(*both) for both in zip(pictures, grid_thw, strict=True)]
        places = {key: place for place, key in enumerate(keys) if key not in self._kept}
        new: dict[bytes, list[Tensor]] = {}
        if places:
            rows = list(places.values())
            with torch.no_grad():
                output = self._forward(
                    torch.cat([pictures[row] for row in rows]), grid_thw=grid_thw[rows], **options
                )
            self._kind = type(output)
            new = dict(zip(places, self._parts(output, grid_thw[rows]), strict=True))
        found = [new.get(key) or self._kept[key] for key in keys]
        self._keep(new)
        merged, *levels = (torch.cat(level) for level in zip(*found, strict=True))
        more = {"deepstack_features": levels} if levels else {}
        return self._kind(pooler_output=merged, **more)

    def _parts(self, output: Any, grids: Tensor) -> list[list[Tensor]]:
        """Merged tokens and levels of each picture, in memory of their own."""
        sizes = (grids.prod(-1) // self._visual.spatial_merge_size**2).tolist()
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        split = [torch.split(level, sizes) for level in levels]
        return [[part.clone() for part in parts] for parts in zip(*split, strict=True)]

    def _keep(self, new: dict[bytes, list[Tensor]]) -> None:
        for key, parts in new.items():
            size = sum(part.nbytes for part in parts)
            if size <= self._left:
                self._kept[key] = parts
                self._left -= size

    def _check(self) -> None:
        parameters = list(self._visual.named_parameters())
        trained = [name for name, parameter in parameters if parameter.requires_grad]
        if trained and torch.is_grad_enabled():
            raise DataError(
                "encoder.features_mib keeps what a frozen vision tower makes of pictures, and "
                f"{trained[0]} is trained; set model.tuning.freeze=image and leave "
                "tuning.projector out, or encoder.features_mib=0"
            )
        first = parameters[0][1]
        kind = first.device, first.dtype, torch.is_autocast_enabled(first.device.type)
        weights = *kind, *(parameter._version for _, parameter in parameters)
        if weights != self._weights:
            self._weights, self._left = weights, self._room
            self._kept.clear()


def _key(patches: Tensor, grid: Tensor) -> bytes:
    found = hashlib.sha256(grid.cpu().numpy().tobytes())
    found.update(patches.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.digest()
