"""What is asked: items with their prompts, what of them sends the very same, and shares of a job.

Shares are for processes that know nothing of each other: Slurm, torchrun, or by hand. An item's
share follows from its picture (or its text, where it has none), so that items which share a picture
are described once, by the same process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from augment.checks import Forbidden
from augment.errors import DataError
from augment.prompts import Prompt
from augment.records import Item, Request, Sampling

#: Class of the failures of items over which the engine died.
SET_ASIDE = "engine-died"

#: Where the share ``auto`` finds number and count, in this order: srun, torchrun.
VARIABLES = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))


class Job(NamedTuple):
    """An item and what to do with it.

    Attributes:
        item: the item.
        prompt: how to ask about it; None leaves it alone.
        reason: how the prompt was chosen, or why it is left alone.
        forbidden: what a rewrite must not say, asked for when the text is judged; None where
            nothing is known.
        target: what a query looks for, where its prompt shows it.
        asked: the query in whose sight the item is written about, of pairs; else empty.
    """

    item: Item
    prompt: Prompt | None
    reason: str
    forbidden: Callable[[], Forbidden] | None = None
    target: Item | None = None
    asked: str = ""


class Retry(NamedTuple):
    """What a retry asks again.

    Failures are asked again as they were. A refused text is asked for at rising temperatures until
    one is accepted, which helps against repetition and the truncation that comes of it; it then
    stands in for the refused one wherever that is used. A text that stays refused stays as it is.

    Attributes:
        reason: of failures and refusals, as python -m augment status counts them.
        temperatures: for refused texts, one after the other.
        seed: of these texts; each temperature adds its number.
    """

    reason: Sequence[str] = ("repetition", "truncated")
    temperatures: Sequence[float] = (0.3, 0.6, 0.9)
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


class Share(NamedTuple):
    """One share.

    Attributes:
        number: counted from 0.
        shares: how many there are.
    """

    number: int = 0
    shares: int = 1

    def takes(self, item: Item) -> bool:
        """Whether an item belongs to this share."""
        if self.shares == 1:
            return True
        text = item.image or item.text or item.id
        return zlib.crc32(text.encode("utf-8", "surrogatepass")) % self.shares == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.shares}" if self.shares > 1 else ""


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """A share as the command line names it.

    Args:
        text: ``i/n`` counted from 0, ``auto`` to read :data:`VARIABLES`, or None for everything.
        environment: where ``auto`` looks.

    Raises:
        DataError: if it is neither, or ``auto`` finds nothing.
    """
    if text is None:
        return Share()
    if text == "auto":
        for number, count in VARIABLES:
            if number in environment and count in environment:
                return parse_shard(f"{environment[number]}/{environment[count]}")
        names = " or ".join("/".join(pair) for pair in VARIABLES)
        raise DataError(f"--shard auto: none of {names} is set; start with srun or torchrun")
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return Share(int(number), int(count))
    raise DataError(f"--shard {text}: expected i/n with 0 <= i < n, such as 0/8, or auto")
