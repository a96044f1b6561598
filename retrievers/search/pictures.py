"""Pictures that people bring as queries: bounded in bytes, pixels and number, kept for a while."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import final

from PIL import Image

from augment.data.images import open_image
from augment.errors import ImageError

#: Largest file, in bytes.
MAX_BYTES = 20 * 2**20

#: Most pixels: a picture of 50 megapixels takes 150 MB while it is decoded.
MAX_PIXELS = 50_000_000

#: Pictures kept; the one that was longest unused goes first.
KEPT = 64


@final
class QueryPictures:
    """A temporary folder of pictures named by a hash of their bytes.

    Args:
        max_bytes: see :data:`MAX_BYTES`.
        max_pixels: see :data:`MAX_PIXELS`.
        kept: see :data:`KEPT`.
    """

    def __init__(
        self, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, kept: int = KEPT
    ) -> None:
        self.max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._kept = kept
        self._names: OrderedDict[str, None] = OrderedDict()
        # One picture is decoded at a time, which bounds memory however many come at once.
        self._lock = Lock()
        #: Where they lie; removed with this object.
        self.folder = Path(tempfile.mkdtemp(prefix="query-pictures-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def add_file(self, path: str | Path) -> str:
        """Keep a copy of a file; its name here.

        Raises:
            ImageError: see :meth:`add`; ``missing`` if there is no such file.
        """
        file = Path(path)
        try:
            with file.open("rb") as stream:
                data = stream.read(self.max_bytes + 1)
        except OSError as error:
            raise ImageError(
                f"cannot be read: {error.strerror}; name a picture file", str(path), "missing"
            ) from error
        return self.add(data, str(path))

    def add(self, data: bytes, where: str = "the picture") -> str:
        """Keep a picture; its name here.

        Args:
            data: bytes of an image file.
            where: named in errors.

        Raises:
            ImageError: ``too-large`` above the limit of bytes or pixels, ``corrupt`` if it is no
                picture of a known format.
        """
        if len(data) > self.max_bytes:
            raise ImageError(
                f"has more than {self.max_bytes / 2**20:.0f} MiB; make it smaller",
                where,
                "too-large",
            )
        name = hashlib.sha256(data).hexdigest()[:40]
        with self._lock:
            if name not in self._names:
                self._check(name, data, where)
            self._names[name] = None
            self._names.move_to_end(name)
            while len(self._names) > self._kept:
                oldest, _ = self._names.popitem(last=False)
                (self.folder / oldest).unlink(missing_ok=True)
        return name

    def _check(self, name: str, data: bytes, where: str) -> None:
        file = self.folder / name
        file.write_bytes(data)
        try:
            open_image(self.folder, name, self._max_pixels)
        except ImageError as error:
            file.unlink()
            told = (
                f"has more than {self._max_pixels:,} pixels; make it smaller"
                if error.reason == "too-large"
                else "is no picture that can be read; use JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"
            )
            raise ImageError(told, where, error.reason) from error

    def holds(self, name: str) -> bool:
        """Whether a picture of this name is here."""
        return name in self._names

    def open(self, name: str) -> Image.Image:
        """A kept picture as RGB.

        Raises:
            ImageError: ``missing`` if it is not, or no longer, here.
        """
        with self._lock:
            if name not in self._names:
                raise ImageError("is no longer here; add it again", "the picture", "missing")
            self._names.move_to_end(name)
            return open_image(self.folder, name, self._max_pixels)
