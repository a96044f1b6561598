"""Shares of a job for processes that know nothing of each other: Slurm, torchrun, or by hand.

An item's share follows from its picture (or its text, where it has none), so that items which share
a picture are described once, by the same process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from augment.errors import DataError
from augment.records import Item

#: Where ``auto`` finds number and count, in this order: srun, torchrun.
VARIABLES = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))


class Shard(NamedTuple):
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


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """A share as the command line names it.

    Args:
        text: ``i/n`` counted from 0, ``auto`` to read :data:`VARIABLES`, or None for everything.
        environment: where ``auto`` looks.

    Raises:
        DataError: if it is neither, or ``auto`` finds nothing.
    """
    if text is None:
        return Shard()
    if text == "auto":
        for number, count in VARIABLES:
            if number in environment and count in environment:
                return parse_shard(f"{environment[number]}/{environment[count]}")
        names = " or ".join("/".join(pair) for pair in VARIABLES)
        raise DataError(f"--shard auto: none of {names} is set; start with srun or torchrun")
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return Shard(int(number), int(count))
    raise DataError(f"--shard {text}: expected i/n with 0 <= i < n, such as 0/8, or auto")
