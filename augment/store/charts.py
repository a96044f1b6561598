"""Plots as numbers for inline SVG; ``templates/parts.html`` draws them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

#: Most bars of a histogram.
BARS = 24

#: Drawing area of a histogram in SVG units: width, height, and room for labels.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320.0, 150.0, 34.0, 8.0, 10.0, 22.0


class Bar(NamedTuple):
    """A rectangle in SVG units and what it says."""

    x: float
    y: float
    width: float
    height: float
    label: str


class Tick(NamedTuple):
    """A place on an axis in SVG units and its number."""

    at: float
    label: str


class Histogram(NamedTuple):
    """A drawn distribution.

    Attributes:
        title: what is counted.
        summary: median and spread in words; also what a screen reader says.
        bars: from left to right.
        ticks: of the horizontal axis.
        top: the largest count.
        limit: place of a limit in SVG units, None if there is none within the plot.
        limit_label: what the limit is.
    """

    title: str
    summary: str
    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    top: int
    limit: float | None
    limit_label: str


def quantile(counts: Mapping[float, int], share: float) -> float:
    """The value below which a share of the counted values lies (lower of two).

    Raises:
        ValueError: if nothing was counted.
    """
    total = sum(counts.values())
    if total == 0:
        raise ValueError("no values")
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            break
    return value


def histogram(
    title: str,
    counts: Mapping[float, int],
    *,
    unit: str = "",
    whole: bool = True,
    limit: float | None = None,
) -> Histogram:
    """Bars of equal width over the counted values.

    Args:
        title: what is counted.
        counts: value -> how often; at least one.
        unit: of the values, for labels.
        whole: the values are whole numbers.
        limit: a value to mark.

    Raises:
        ValueError: if nothing was counted.
    """
    low, high = min(counts), max(counts)
    step = _step((high - low) / BARS, whole)
    first = math.floor(low / step + 1e-9)
    bins = Counter[int]()
    for value, number in counts.items():
        bins[math.floor(value / step + 1e-9) - first] += number
    places = max(bins) + 1
    top = max(bins.values())
    width = (WIDTH - LEFT - RIGHT) / places

    def x(value: float) -> float:
        return LEFT + (value / step - first) * width

    bars = []
    for place, number in sorted(bins.items()):
        start = (first + place) * step
        height = (HEIGHT - TOP - BOTTOM) * number / top
        span = (
            _short(start) if whole and step == 1 else f"{_short(start)} to {_short(start + step)}"
        )
        label = f"{span} {unit}".strip() + f": {number:,}"
        bars.append(
            Bar(LEFT + place * width, HEIGHT - BOTTOM - height, max(width - 1, 0.6), height, label)
        )
    middle, fifth, last = (quantile(counts, share) for share in (0.5, 0.05, 0.95))
    summary = f"median {_short(middle)}, 5 to 95 %: {_short(fifth)} to {_short(last)}"
    inside = limit is not None and first * step <= limit <= (first + places) * step
    return Histogram(
        title=title,
        summary=f"{summary} {unit}".strip(),
        bars=bars,
        ticks=_ticks(first * step, (first + places) * step, x),
        top=top,
        limit=x(limit) if limit is not None and inside else None,
        limit_label="" if limit is None else f"limit {_short(limit)}",
    )


def _step(least: float, whole: bool) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    if least <= 0:
        return 1.0 if whole else 0.1
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def _ticks(low: float, high: float, x: Callable[[float], float]) -> list[Tick]:
    step = _step((high - low) / 5, whole=False)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [Tick(x(n * step), _short(n * step)) for n in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
