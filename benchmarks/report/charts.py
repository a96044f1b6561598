"""Numbers for the page's charts: bars by task, and ranks before and after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

from retrievers.evaluation.compare import Comparison, Pair

#: Ranks are drawn exactly up to here, and behind it in classes of half an octave.
EXACT = 10

#: Side of the square of ranks in SVG units, and room for its labels on the left and on top.
SIDE, LEFT, TOP = 300.0, 62.0, 18.0


@final
class Bars(NamedTuple):
    """A task's scores in per cent, and where the interval of the difference lies.

    ``low`` and ``high`` are the first score plus the ends of the interval, cut at 0 and 100, so
    that a whisker that stays clear of the first bar's end is a difference clear of 0.
    """

    row: Pair
    first: float
    second: float
    low: float
    high: float


def bars(comparison: Comparison) -> list[Bars]:
    """A group of bars for every row."""
    found = []
    for row in comparison.rows:
        ends = [100 * min(1.0, max(0.0, row.first + end)) for end in row.difference[1:]]
        found.append(Bars(row, 100 * row.first, 100 * row.second, ends[0], ends[1]))
    return found


@final
class Dot(NamedTuple):
    """Queries with these ranks in both runs: a place in SVG units, a radius, and what it says."""

    x: float
    y: float
    radius: float
    tone: str
    label: str


@final
class Scatter(NamedTuple):
    """Ranks before (across) and after (up, the first rank on top).

    Attributes:
        dots: the largest first, so that small ones stay visible.
        ticks: place along an axis and its label.
        better: queries whose relevant candidate moved up.
        same: those that it did not move for.
        worse: those that it moved down for.
        to_first: those that it newly came first for.
        from_first: those that it is no longer first for.
        depth: hits per query of the runs.
    """

    dots: Sequence[Dot]
    ticks: Sequence[tuple[float, str]]
    better: int
    same: int
    worse: int
    to_first: int
    from_first: int
    depth: int

    @property
    def summary(self) -> str:
        """In words; also what a screen reader says of the chart."""
        return (
            f"better for {self.better:,} queries, the same for {self.same:,}, worse for "
            f"{self.worse:,}; newly first {self.to_first:,}, no longer first {self.from_first:,}"
        )


def _class(rank: int | None) -> int | None:
    """The lowest rank of a rank's class."""
    if rank is None or rank <= EXACT:
        return rank
    step = math.floor(2 * math.log2(rank / EXACT))
    return max(EXACT + 1, math.ceil(EXACT * 2 ** (step / 2)))


def scatter(ranks: Iterable[tuple[int | None, int | None]], depth: int) -> Scatter:
    """Ranks of the first relevant candidate in two runs.

    Args:
        ranks: of every query, in the first and the second run; None is "not found".
        depth: hits per query.
    """
    pairs = list(ranks)
    counts = Counter((_class(a), _class(b)) for a, b in pairs)
    most = max(counts.values(), default=1)
    far = depth + 1
    end = math.log(far * 1.6)  # "not found" stands apart from the last rank

    def place(rank: int | None) -> float:
        return SIDE * (1.0 if rank is None else math.log(rank) / end)

    dots = []
    for (a, b), count in counts.most_common():
        tone = "same" if a == b else ("up" if (b or far) < (a or far) else "down")
        label = f"{count:,} queries: {_told(a)} before, {_told(b)} after"
        radius = 2.2 + 11 * math.sqrt(count / most)
        dots.append(Dot(LEFT + place(a), TOP + place(b), radius, tone, label))
    ticks = [(place(rank), str(rank)) for rank in (1, 2, 5, 10, 20, 50, 100) if rank <= depth]
    moved = Counter(
        "same" if a == b else ("up" if (b or far) < (a or far) else "down") for a, b in pairs
    )
    return Scatter(
        dots, [*ticks, (SIDE, "none")], moved["up"], moved["same"], moved["down"],
        sum(a != 1 and b == 1 for a, b in pairs), sum(a == 1 and b != 1 for a, b in pairs), depth,
    )  # fmt: skip


def _told(rank: int | None) -> str:
    if rank is None:
        return "not found"
    return f"rank {rank}" if rank <= EXACT else f"rank {rank} or a little later"
