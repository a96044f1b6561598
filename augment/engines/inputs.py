"""From a request to a model's input: the one path that generation and training share.

:func:`to_messages`, ``qwen_vl_utils.process_vision_info`` (which resizes), the model's own chat
template, the model's own processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from qwen_vl_utils import process_vision_info

from augment.records import Request


def to_messages(
    request: Request, image: Image.Image | None, limits: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """The conversation of a request; the picture stands after the text.

    Args:
        request: what is asked.
        image: its picture, None if the request shows none.
        limits: ``min_pixels`` and ``max_pixels`` for ``process_vision_info``.
    """
    user: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    if image is not None:
        user.append({"type": "image", "image": image, **(limits or {})})
    return [
        {"role": "system", "content": [{"type": "text", "text": request.system}]},
        {"role": "user", "content": user},
    ]


def resized(processor: Any, request: Request, image: Image.Image) -> Image.Image:
    """The picture as ``process_vision_info`` resizes it, within the processor's own limits.

    ``process_vision_info`` has limits of its own, which differ from the model's; handing it the
    processor's means that a picture is resampled once, and that the processor finds it in shape.

    Args:
        processor: of the model.
        request: whose picture it is.
        image: as opened.

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
    messages = to_messages(request, image, limits)
    pictures, _ = process_vision_info(messages, image_patch_size=patch)
    done: Image.Image = pictures[0]
    return done


def encode(
    processor: Any, requests: Sequence[Request], images: Sequence[Image.Image | None]
) -> Any:
    """The model's input for a batch: everything up to ``generate``, padded on the left.

    Args:
        processor: of the model.
        requests: what is asked.
        images: one per request, as :func:`resized` left it; None where none is shown.

    Returns:
        The processor's whole output (``BatchFeature``); hand all of it to the model.
    """
    pairs = zip(requests, images, strict=True)
    texts = [
        processor.apply_chat_template(
            to_messages(_disarmed(processor, request), image),
            tokenize=False,
            add_generation_prompt=True,
        )
        for request, image in pairs
    ]
    shown = [image for image in images if image is not None]
    return processor(
        text=texts, images=shown or None, padding=True, padding_side="left", return_tensors="pt"
    )


def _disarmed(processor: Any, request: Request) -> Request:
    """The request with a blank inside whatever this model's tokenizer takes for a control token.

    Only the template may speak in control tokens; prompts take the common ones out of the data
    already (``augment.prompts.fence``), whatever the model.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marked = (str(token) for token in added if token.special or str(token)[:1] in "<[")
    tokens = sorted({*tokenizer.all_special_tokens, *marked}, key=len, reverse=True)
    return replace(
        request, system=_broken(request.system, tokens), text=_broken(request.text, tokens)
    )


def _broken(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
