"""Hashes of pictures, kept between runs so that millions of files are not read again.

A hash is remembered under the file's absolute path, size, modification time and inode. If any of
them differs, the file is read. A file that changed in the last seconds is read and not remembered:
within one tick of the clock it could change again unnoticed.
"""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, final

from augment.data.images import content_hash, resolve
from augment.errors import ImageError
from augment.store import Store

#: Seconds after a file's last change from which on its hash is remembered.
SETTLED_SECONDS = 2.0


class Hashed(NamedTuple):
    """A picture's hash.

    Attributes:
        sha256: of its bytes, in hex.
        name: under which to remember it; empty if it is remembered, or must not be.
    """

    sha256: str
    name: str


@final
class PictureHashes:
    """Hashes of the pictures of one root; may be asked from several threads.

    Args:
        root: folder that paths are relative to.
        store: where hashes are remembered.
    """

    def __init__(self, root: Path, store: Store) -> None:
        self._root = root
        self._store = store
        # Many candidates share a picture; its file is looked at once.
        self.hash = lru_cache(maxsize=200_000)(self._hash)

    def _hash(self, path: str) -> Hashed:
        """The hash of a picture.

        Raises:
            ImageError: as :func:`augment.data.images.content_hash`.
        """
        file = resolve(self._root, path)
        try:
            status = file.stat()
        except OSError as error:
            raise ImageError(f"cannot be looked up: {error}", path, "missing") from error
        state = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
        name = hashlib.blake2b(state.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        known = self._store.picture(name)
        if known is not None:
            return Hashed(known, "")
        settled = time.time() - status.st_mtime > SETTLED_SECONDS
        return Hashed(content_hash(self._root, path), name if settled else "")
