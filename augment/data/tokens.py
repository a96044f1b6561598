"""Tokens, counted: CLIP's own, or those of a model of transformers.

Apart from the rest because CLIP's tokenizer ships with open_clip, whose import brings torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from augment.errors import DataError, EngineError

#: Start and end marks that CLIP puts around every text.
MARKS = 2


@cache
def clip_token_counter() -> Callable[[str], int]:
    """A function that counts the byte-pair tokens of a text, start and end marks included.

    The vocabulary is that of CLIP (49,408 entries, Radford et al. 2021), as bundled with
    open_clip; nothing is downloaded.

    Raises:
        EngineError: if open_clip cannot be imported.
    """
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except (ImportError, OSError) as error:
        raise EngineError(
            f"text lengths need open_clip, which cannot be imported ({error}); install "
            "open_clip_torch or leave lengths out"
        ) from error
    tokenizer = SimpleTokenizer()

    def count(text: str) -> int:
        return len(tokenizer.encode(text)) + MARKS

    return count


@cache
def token_counter(name: str) -> Callable[[str], int]:
    """Counts tokens without marks.

    Args:
        name: of a tokenizer, folder or on the Hub; empty counts CLIP's.

    Raises:
        DataError: if there is no such tokenizer.
    """
    if not name:
        return lambda text: clip_token_counter()(text) - MARKS
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"limits.tokenizer: {name!r} holds no tokenizer ({str(error)[:200]}); name the folder "
            "or the Hub's name of the model that writes, or leave it empty"
        ) from error
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
