"""Pictures as preprocessed tensors: the latest in memory, all at the model's size on disk."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

from augment.data.images import holder, open_image
from augment.errors import DataError, StoreWriteError
from retrievers.data.examples import Collator

#: Steps of a transform that turn a picture of the right size into a tensor.
_LAST = (ToTensor, Normalize)


@final
class ImageLoader:
    """Pictures as preprocessed tensors, with a bounded cache of the latest ones.

    ``cache_mib`` is per process; 0 keeps nothing. ``resized`` is a folder of
    :class:`ResizedPictures`.
    """

    def __init__(
        self, root: Path, collator: Collator, cache_mib: int = 0, resized: Path | None = None
    ) -> None:
        self._root = root
        self._image = collator.image
        #: Whether the model takes several pictures an item.
        self.several = bool(getattr(collator, "several", False))
        self._resized = None if resized is None else ResizedPictures(root, collator.image, resized)
        self._room = cache_mib * 2**20
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0

    def __call__(self, path: str) -> Tensor:
        """Load one picture.

        Raises:
            ImageError: if it cannot be used.
        """
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        if self._resized is not None:
            tensor = self._resized(path)
        else:
            tensor = self._image(open_image(self._root, path))
        if tensor.nbytes <= self._room:
            self._cache[path] = tensor
            self._held += tensor.nbytes
        while self._held > self._room:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return tensor


@final
class ResizedPictures:
    """A folder of pictures after the model's resizing, as 8-bit RGB without loss.

    The tensor is bit for bit the one without the cache. A file is found by path, size and
    modification time of the picture and by the resizing, so a changed picture or another model is
    read anew. Any number of processes may share the folder. It takes 3 bytes per pixel: 150 KB a
    picture at 224 pixels.

    The folder may be deleted at any time.

    Raises:
        DataError: if the transform is not made of steps, so that its beginning cannot be told from
            its end.
    """

    def __init__(
        self, root: Path, transform: Callable[[Image.Image], Tensor], folder: Path
    ) -> None:
        steps = list(transform.transforms) if isinstance(transform, Compose) else []
        kinds = [isinstance(s, _LAST) or type(s).__name__ == "MaybeToTensor" for s in steps]
        last = kinds.index(True) if any(kinds) else None
        if last is None:
            raise DataError(
                "data.loader.resized needs a model whose image transform is open_clip's; leave it "
                f"out for a {type(transform).__name__}"
            )
        self._resize, self._finish = Compose(steps[:last]), Compose(steps[last:])
        self._name = repr(self._resize)
        self._root, self._folder = root, folder

    def __call__(self, path: str) -> Tensor:
        """The tensor of one picture.

        Raises:
            ImageError: if it cannot be used.
            StoreWriteError: if the folder cannot be written.
        """
        place = self._place(path)
        kept = None if place is None else _read(place)
        if kept is None:
            picture = cast("Image.Image", self._resize(open_image(self._root, path)))
            kept = np.asarray(picture.convert("RGB"))
            if place is not None:
                _write(place, kept)
        return cast("Tensor", self._finish(Image.fromarray(kept)))

    def _place(self, path: str) -> Path | None:
        """Where a picture is kept; None of one that does not exist, whose error comes later."""
        try:
            found = (self._root / holder(path)).stat()
        except (OSError, ValueError):
            return None
        seen = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0{self._name}"
        name = hashlib.blake2b(seen.encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / f"{name}.npy"


def _read(place: Path) -> np.ndarray[Any, Any] | None:
    try:
        kept = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # absent, or half of it: made again
    good = kept.dtype == np.uint8 and kept.ndim == 3 and kept.shape[2] == 3
    return cast("np.ndarray[Any, Any]", kept) if good else None


def _write(place: Path, picture: np.ndarray[Any, Any]) -> None:
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as stream:
            np.save(stream, picture, allow_pickle=False)
        partial.replace(place)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreWriteError(
            f"{place.parent}: resized pictures cannot be written ({error.strerror}); free space, "
            "or leave data.loader.resized out"
        ) from error
