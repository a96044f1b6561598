"""Pictures as a server receives them: within a pixel budget, as a data URI.

Resizing here means that a server that ignores its own limit still costs no more tokens than ours
allows. Pillow gives up the interpreter lock while it decodes, resizes and encodes (measured by
``benchmarks/engines.py``), so threads keep a server fed.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Literal, NamedTuple

from PIL import Image

#: PNG is exact, so that every engine sees the same pixels; JPEG takes less time and network.
Encoding = Literal["png", "jpeg"]

#: Limit where none is given: 1,024 tokens of Qwen2.5-VL, 784 of Qwen3-VL.
MAX_PIXELS = 802_816


class Budget(NamedTuple):
    """Limits of a picture's size.

    Attributes:
        min_pixels: smaller pictures are enlarged.
        max_pixels: larger pictures are shrunk.
        multiple: both sides become multiples of it, so that the model's processor need not
            resample again: patch size times merge size, 28 for Qwen2.5-VL and 32 for Qwen3-VL.
    """

    min_pixels: int = 0
    max_pixels: int = MAX_PIXELS
    multiple: int = 1

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height within the budget, the aspect ratio kept as far as the multiple allows.

        The rule of Qwen2-VL (2409.12191, section 2.1), as its processor in transformers has it.
        """
        step = self.multiple
        wide, high = (max(step, round(side / step) * step) for side in (width, height))
        if wide * high > self.max_pixels:
            scale = math.sqrt(width * height / self.max_pixels)
            wide, high = (
                max(step, math.floor(side / scale / step) * step) for side in (width, height)
            )
        elif wide * high < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            wide, high = (math.ceil(side * scale / step) * step for side in (width, height))
        return wide, high


def fit(image: Image.Image, budget: Budget) -> Image.Image:
    """The picture within its budget, resampled (bicubic) only if its size changes."""
    size = budget.size(*image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def data_uri(image: Image.Image, encoding: Encoding = "png") -> str:
    """The picture as ``data:image/...;base64,...``."""
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return f"data:image/{encoding};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
