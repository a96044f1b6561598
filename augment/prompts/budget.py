"""A budget for captions: what a retriever's text encoder will read of them, in words or tokens.

A caption that is longer than the encoder's context is cut without a word, in the middle of the
facts. The cheapest remedy is a shorter caption: the prompt asks for it, the checks refuse what is
longer, and a refused caption leaves the published text in its place.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from augment.data.tokens import MARKS
from augment.errors import DataError
from augment.prompts import Prompt

#: CLIP's tokens to an English word of a caption, punctuation included: a caption of 100 words has
#: about 120 tokens and two marks, so that a context of 77 holds 62 words.
TOKENS_PER_WORD = 1.2

_FORM = re.compile(r"\s*(\d+)\s*(words?|tokens?)\s*", re.IGNORECASE)


class Budget(NamedTuple):
    """Most words, and most CLIP tokens with marks if the budget is one of tokens."""

    words: int
    tokens: int | None = None

    def of(self, prompt: Prompt) -> Prompt:
        """A prompt within the budget; one that rewrites, or is stricter, is left as it is.

        Raises:
            DataError: if the prompt names no limit to its model.
        """
        if prompt.kind != "caption":
            return prompt
        if "max_words" not in prompt.system + prompt.user:
            raise DataError("its text does not use {{ max_words }}; no budget", prompt.name)
        tokens = [number for number in (prompt.max_tokens, self.tokens) if number is not None]
        return replace(
            prompt,
            max_words=min(prompt.max_words, self.words),
            max_tokens=min(tokens, default=None),
        )


def parse_budget(text: str) -> Budget | None:
    """Read ``45 words`` or ``77 tokens``; None if the text is empty.

    Tokens are checked exactly and told to the model as the words that fit
    (:data:`TOKENS_PER_WORD`).

    Raises:
        DataError: if it is neither, or leaves less than one word.
    """
    if not text.strip():
        return None
    match = _FORM.fullmatch(text)
    if match is None:
        raise DataError(f"budget {text!r} is neither '45 words' nor '77 tokens'")
    number = int(match[1])
    if match[2].lower().startswith("word"):
        budget = Budget(number)
    else:
        budget = Budget(int((number - MARKS) / TOKENS_PER_WORD), number)
    if budget.words < 1:
        raise DataError(f"budget {text!r} leaves no word")
    return budget


def within(prompt: Prompt, text: str) -> Prompt:
    """A prompt within a budget as :func:`parse_budget` reads it.

    Raises:
        DataError: see :func:`parse_budget` and :meth:`Budget.of`.
    """
    budget = parse_budget(text)
    return prompt if budget is None else budget.of(prompt)
