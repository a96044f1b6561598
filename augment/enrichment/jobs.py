"""What is asked: items with their prompts, and what of them sends the very same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from augment.checks import Forbidden
from augment.prompts import Prompt
from augment.records import Item, Request, Sampling

#: Class of the failures of items over which the engine died.
SET_ASIDE = "engine-died"


class Job(NamedTuple):
    """An item and what to do with it.

    Attributes:
        item: the item.
        prompt: how to ask about it; None leaves it alone.
        reason: how the prompt was chosen, or why it is left alone.
        forbidden: what a rewrite must not say, asked for when the text is judged; None where
            nothing is known.
    """

    item: Item
    prompt: Prompt | None
    reason: str
    forbidden: Callable[[], Forbidden] | None = None


class Retry(NamedTuple):
    """What to try again.

    Attributes:
        reasons: classes of failures (asked again as they were) and of refused texts (asked again
            at the temperatures, one after the other, until a text is accepted).
        temperatures: of the ladder.
        seed: of the ladder; each rung adds its number.
    """

    reasons: tuple[str, ...]
    temperatures: tuple[float, ...] = (0.3, 0.6, 0.9)
    seed: int = 0


@dataclass(slots=True)
class Group:
    """Items that send the very same.

    Attributes:
        key: of the text.
        request: that of the first member.
        image_hash: of its picture, None if it shows none.
        prompt: how it is asked about.
        sampling: how the reply is decoded.
        members: the items.
        retry_of: key of the refused text that is to be replaced; else empty.
        rung: of the ladder of temperatures; 0 is the recipe's own.
    """

    key: str
    request: Request
    image_hash: str | None
    prompt: Prompt
    sampling: Sampling
    members: list[Job]
    retry_of: str = ""
    rung: int = 0
