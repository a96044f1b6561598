"""From a request to a model's input: the one path that generation, training and servers share.

For a model in this process: :func:`to_messages`, ``qwen_vl_utils.process_vision_info`` (which
resizes), the model's own chat template, the model's own processor. For a server: the picture within
a :class:`PixelBudget`, as a data URI. Resizing here means that a server that ignores its own limit
still costs no more tokens than ours allows; Pillow gives up the interpreter lock while it decodes,
resizes and encodes (``benchmarks/results/engines.md``), so threads keep a server fed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

from PIL import Image

from augment.errors import EngineError
from augment.records import Request

#: PNG is exact, so that every engine sees the same pixels; JPEG takes less time and network.
Encoding = Literal["png", "jpeg"]

#: Limit where none is given: 1,024 tokens of Qwen2.5-VL, 784 of Qwen3-VL.
MAX_PIXELS = 802_816


def to_messages(request: Request, image: Image.Image | None) -> list[dict[str, Any]]:
    """The conversation of a request; the picture stands after the text."""
    user: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    if image is not None:
        user.append({"type": "image", "image": image})
    return [
        {"role": "system", "content": [{"type": "text", "text": request.system}]},
        {"role": "user", "content": user},
    ]


def limit_pixels(processor: Any, low: int | None, high: int | None) -> dict[str, object]:
    """Set the limits of a picture's size in a processor; None leaves its own, moved if need be.

    Args:
        processor: of the model; changed in place.
        low: smaller pictures are enlarged to so many pixels.
        high: larger ones are shrunk.

    Returns:
        ``min_pixels`` and ``max_pixels``; nothing if nothing was set.

    Raises:
        EngineError: if the model takes no such limits, or they contradict each other.
    """
    if low is None and high is None:
        return {}
    images = processor.image_processor
    size = dict(images.size or {})
    if not {"shortest_edge", "longest_edge"} <= set(size):
        raise EngineError("this model does not take limits in pixels")
    least = min(size["shortest_edge"], high or size["shortest_edge"]) if low is None else low
    most = max(size["longest_edge"], least) if high is None else high
    if least > most:
        raise EngineError(f"min_pixels {least} is above max_pixels {most}")
    images.size = {"shortest_edge": least, "longest_edge": most}
    return {"min_pixels": least, "max_pixels": most}


def resized(processor: Any, image: Image.Image) -> Image.Image:
    """The picture as ``process_vision_info`` resizes it, within the processor's own limits.

    ``process_vision_info`` has limits of its own, which differ from the model's; handing it the
    processor's means that a picture is resampled once, and that the processor finds it in shape.

    Returns:
        A picture whose sides are multiples of the merged patch; unchanged for models whose
        processors do not count in pixels.
    """
    size = dict(processor.image_processor.size or {})
    patch = getattr(processor.image_processor, "patch_size", None)
    if not isinstance(patch, int) or not {"shortest_edge", "longest_edge"} <= set(size):
        return image
    if not hasattr(processor.image_processor, "merge_size"):
        return image
    limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    from qwen_vl_utils import process_vision_info  # torch comes with it

    shown = {"role": "user", "content": [{"type": "image", "image": image, **limits}]}
    pictures, _ = process_vision_info([shown], image_patch_size=patch)
    return cast("Image.Image", pictures[0])


def encode(
    processor: Any, requests: Sequence[Request], images: Sequence[Image.Image | None]
) -> Any:
    """The model's input for a batch: everything up to ``generate``, padded on the left.

    Returns:
        The processor's whole output (``BatchFeature``); hand all of it to the model.
    """
    texts = []
    for request, image in zip(requests, images, strict=True):
        system, text = disarmed(processor, request.system), disarmed(processor, request.text)
        plain = replace(request, system=system, text=text)
        texts.append(chat(processor, to_messages(plain, image)))
    shown = [image for image in images if image is not None]
    return processor(
        text=texts, images=shown or None, padding=True, padding_side="left", return_tensors="pt"
    )


def chat(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as the model's own chat template writes it, up to where the model goes on.

    Raises:
        EngineError: if the template cannot be used.
    """
    try:
        text: str = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program, which may fail in any way
        raise EngineError(
            "the model's chat template does not render a system message, a text and a picture"
            f" ({type(error).__name__}: {str(error)[:300]}); take another model, or mend its"
            " chat_template.jinja"
        ) from error
    return text


def disarmed(processor: Any, text: str) -> str:
    """A text with a blank inside whatever this model's tokenizer takes for a control token.

    Only the template may speak in control tokens; prompts take the common ones out of the data
    already (``augment.prompts.fence``), whatever the model.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marked = (str(token) for token in added if token.special or str(token)[:1] in "<[")
    for token in sorted({*tokenizer.all_special_tokens, *marked}, key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


class PixelBudget(NamedTuple):
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


def fit(image: Image.Image, budget: PixelBudget) -> Image.Image:
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
