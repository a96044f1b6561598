"""The key of an item's content: a vector is used again as long as the key stays the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Content(NamedTuple):
    """What an encoder sees of one item.

    Attributes:
        id: unique in its store.
        text: as rendered by the view, instruction included; None if there is none.
        image: path relative to the data root, or None.
    """

    id: str
    text: str | None
    image: str | None


def item_keys(contents: Iterable[Content], root: Path) -> np.ndarray:
    """BLAKE2b of id, text and picture; an array of 16-byte strings.

    A picture counts by path, size and modification time, so that checking a pool reads no pixel;
    a picture replaced by one of the same size and time, to the nanosecond, is not noticed.

    Args:
        contents: the items.
        root: data root.
    """
    return np.fromiter((_key(content, root) for content in contents), dtype="S16")


def _key(content: Content, root: Path) -> bytes:
    seen = (content.id, content.text, content.image and _picture(root, content.image))
    packed = json.dumps(seen).encode()
    return hashlib.blake2b(packed, digest_size=16).digest()


def _picture(root: Path, path: str) -> tuple[str, int, int]:
    try:
        status = (root / path).stat()
    except (OSError, ValueError):  # said by whoever opens it
        return path, -1, -1
    return path, status.st_size, status.st_mtime_ns
