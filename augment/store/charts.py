"""Histograms as inline SVG, drawn by matplotlib in the colours of the page they stand in."""

from __future__ import annotations

import io
import math
import re
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike

#: Most bars of a histogram.
BARS = 24

#: Where the axis ends if it would be twice as long for the values above this quantile.
SHOWN = 0.99

#: Width and height of a histogram in inches of 72 units.
_SIZE = (320 / 72, 150 / 72)

#: Colours to draw in -> those of the page, which differ by day and night.
_BAR, _AXIS, _LIMIT = "#0000fe", "#00fe00", "#fe0000"
_COLOURS = {_BAR: "var(--accent)", _AXIS: "var(--line)", _LIMIT: "var(--bad)"}

#: What inline SVG does without: ids, which must differ in a page, and names of other formats.
_SURPLUS = re.compile(
    r'<defs>\s*<style.*?</defs>|<metadata>.*?</metadata>|<!--.*?-->|^.*?(?=<svg)'
    r'| (?:id|xmlns(?::\w+)?|version)="[^"]*"| font-family:[^;]*;| transform="rotate\(-0[^"]*"',
    re.DOTALL,
)  # fmt: skip


class Plot(NamedTuple):
    """A drawn distribution.

    Attributes:
        title: what is counted.
        summary: median and spread in words; also what a screen reader says.
        svg: the drawing; every bar says in a ``title`` what it counts.
    """

    title: str
    summary: str
    svg: Markup


def quantile(values: ArrayLike, share: float) -> float:
    """The value below which a share of the values lies (lower of two)."""
    return float(np.quantile(np.asarray(values, np.float64), share, method="inverted_cdf"))


def histogram(
    title: str,
    values: ArrayLike,
    *,
    unit: str = "",
    whole: bool = True,
    limit: float | None = None,
) -> Plot:
    """Bars of equal width over values.

    A ``limit`` within the drawing is marked.
    """
    given = np.asarray(values, np.float64)
    middle, fifth, last = (quantile(given, share) for share in (0.5, 0.05, 0.95))
    summary = f"median {_short(middle)}, 5 to 95 %: {_short(fifth)} to {_short(last)}"
    edge, most = quantile(given, SHOWN), float(given.max())
    if most - edge > edge - given.min():
        above = int(np.count_nonzero(given > edge))
        summary += f"; cut at {SHOWN:.0%}: {above:,} above {_short(edge)}, to {_short(most)}"
        given = given[given <= edge]
    step = _step((given.max() - given.min()) / BARS, whole)
    places = np.floor(given / step + 1e-9).astype(np.int64)
    first = int(places.min())
    counts = np.bincount(places - first)
    starts = (first + np.arange(len(counts))) * step
    ends = [f" to {_short(start + step)}" if not whole or step > 1 else "" for start in starts]
    labels = [
        f"{_short(start)}{end} {unit}".strip() + f": {number:,}"
        for start, end, number in zip(starts, ends, counts, strict=True)
    ]
    svg = _drawn(starts, counts, step, labels, limit)
    shown = f"{title}: {summary} {unit}".strip()
    opening = Markup('<svg role="img" aria-label="{}"').format(shown)
    return Plot(title, f"{summary} {unit}".strip(), Markup(svg.replace("<svg", opening, 1)))  # noqa: S704 - escaped


def _drawn(
    starts: np.ndarray, counts: np.ndarray, step: float, labels: list[str], limit: float | None
) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0.106, 0.147, 0.869, 0.786))
    bars = axes.bar(starts, counts, step * 0.93, align="edge", color=_BAR, clip_on=False)
    for number, bar in enumerate(bars):
        bar.set_gid(f"bar-{number}")
    top = int(counts.max())
    axes.set(xlim=(starts[0], starts[-1] + step), ylim=(0, top), yticks=(0, top))
    axes.set_yticklabels(["0", f"{top:,}"])
    axes.locator_params("x", nbins=5, steps=(1, 2, 5, 10), integer=step >= 1)
    axes.xaxis.set_major_formatter(lambda value, _: _short(round(value, 9)))
    axes.tick_params(bottom=False, left=False, pad=4, labelsize=10.5)
    axes.spines[["left", "right"]].set_visible(False)
    axes.spines[["top", "bottom"]].set_color(_AXIS)
    if limit is not None and starts[0] <= limit <= starts[-1] + step:
        line = axes.axvline(limit, color=_LIMIT, linestyle=(0, (4, 3)), linewidth=1, clip_on=False)
        line.set_gid(f"bar-{len(labels)}")
        labels = [*labels, f"limit {_short(limit)}"]
    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "augment"}):
        figure.savefig(sink, format="svg", transparent=True)
    svg = re.sub(
        r'<g id="bar-(\d+)">',
        lambda bar: f"<g><title>{escape(labels[int(bar[1])])}</title>",
        sink.getvalue(),
    )
    svg = _SURPLUS.sub("", svg)
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg


def _step(least: float, whole: bool) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    if least <= 0:
        return 1.0 if whole else 0.1
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def _short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
