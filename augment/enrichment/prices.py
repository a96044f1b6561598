"""What a run costs, at prices that the user names; none are built in, because they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat


@final
@dataclass(frozen=True)
class Prices:
    """Prices in any one currency; None where unknown.

    Attributes:
        read: of a million tokens read.
        written: of a million tokens written.
        gpu_hour: of one GPU for one hour.
    """

    read: float | None = None
    written: float | None = None
    gpu_hour: float | None = None

    def tokens(self, read: float, written: float) -> float | None:
        """Price of tokens; None if no price of tokens is known."""
        if self.read is None and self.written is None:
            return None
        return (read * (self.read or 0.0) + written * (self.written or 0.0)) / 1e6

    def hours(self, gpu_hours: float) -> float | None:
        """Price of GPU-hours; None if it is unknown."""
        return None if self.gpu_hour is None else gpu_hours * self.gpu_hour


NO_PRICES = Prices()

#: Option of a command, without ``--price-`` -> what it is the price of.
PRICE_OPTIONS: Mapping[str, str] = {
    "read": "a million tokens read",
    "written": "a million tokens written",
    "gpu-hour": "one device for an hour",
}


def add_price_options(parser: ArgumentParser) -> None:
    """Add ``--price-read``, ``--price-written`` and ``--price-gpu-hour``."""
    for name, what in PRICE_OPTIONS.items():
        parser.add_argument(
            f"--price-{name}", type=NonNegativeFloat | None, default=None, metavar="X",
            help=f"Of {what}, for the costs.",
        )  # fmt: skip
