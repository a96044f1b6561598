"""Figures of an experiment: arms by task, comparisons, effects, curves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Tells arms apart in print and to colour-blind eyes (Okabe and Ito's palette, without yellow).
COLOURS = ("#8a939c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1d1f21")


def figures(value: Mapping[str, Any], *, most: int = 6) -> dict[str, Figure]:
    """Name -> figure."""
    made: dict[str, Figure] = {"arms": arms(value)}
    pairs = value["comparisons"]
    if pairs:
        names = list(dict.fromkeys(name for pair in pairs for name in pair["names"]))[:most]
        made["tasks"] = tasks(value, names)
        made["differences"] = differences(pairs)
    if value["effects"]:
        made["effects"] = effects(value["effects"])
    if value["curves"]:
        made["curves"] = curves(value["curves"])
    for route in value.get("routes", ()):
        made["routes"] = routes(route)
    return made


def save(value: Mapping[str, Any], folder: Path) -> None:
    """Write the figures as PNG files named by experiment and figure."""
    for name, figure in figures(value).items():
        write(figure, folder / f"{value['experiment']}-{name}.png")


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and forget it, which pyplot would not."""
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _wrapped(names: Iterable[str], width: int = 34) -> list[str]:
    return ["\n".join(textwrap.wrap(name, width)) for name in names]


def arms(value: Mapping[str, Any]) -> Figure:
    """The mean of every arm, a dot for every seed."""
    shown = value["arms"]
    figure, axes = _axes(7.5, 0.9 + 0.42 * len(shown))
    scores = [100 * arm["mean"]["score"] for arm in shown.values()]
    axes.barh(range(len(shown)), scores, color="#c9d6e2", height=0.7)
    for place, (score, arm) in enumerate(zip(scores, shown.values(), strict=True)):
        seeds = [100 * score for score in arm["mean"]["seeds"]]
        axes.plot(seeds, [place] * len(seeds), "o", color=COLOURS[1], markersize=4, alpha=0.8)
        # Behind the last dot, which it would hide at the end of the bar.
        axes.annotate(f"{score:.1f}", (max(seeds), place), (6, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(shown)), _wrapped(shown), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(scores) * 1.12 + 1)
    axes.set_xlabel(f"{value['metric']}, %, mean of tasks ({value['pool']} pools); dots: seeds")
    return figure


def tasks(value: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """Some arms by task; whiskers are the spread over seeds."""
    rows = [*value["arms"][names[0]]["tasks"], "mean"]
    figure, axes = _axes(9.5, 3.9)
    width = 0.84 / len(names)
    for n, name in enumerate(names):
        arm = value["arms"][name]
        cells = [arm["mean"] if row == "mean" else arm["tasks"][row] for row in rows]
        at = [place + (n - (len(names) - 1) / 2) * width for place in range(len(rows))]
        spread = [100 * (cell["sd"] or 0) for cell in cells]
        bars = axes.bar(at, [100 * cell["score"] for cell in cells], width * 0.94, label=name,
                        color=COLOURS[n % len(COLOURS)], ecolor="#55555599",
                        yerr=spread if any(spread) else None)  # fmt: skip
        if len(names) <= 2:
            axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    labels = [row.replace(": ", "\n").replace(" → ", "\n→ ") for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylabel(f"{value['metric']}, %")
    axes.set_ylim(0, 105)
    figure.legend(frameon=False, loc="outside upper left", ncols=min(4, len(names)), fontsize=9)
    return figure


def differences(pairs: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean differences of all comparisons with their intervals; dots are seeds."""
    names = _wrapped(("{1} less {0}".format(*pair["names"]) for pair in pairs), 44)
    rows = [(pair["rows"][-1]["difference"], pair["rows"][-1]["seeds"]) for pair in pairs]
    what = f"difference in {pairs[0]['metric']}, points"
    return _whiskers(names, rows, 0.45, f"{what}; 95 % interval; dots: seeds")


def effects(found: Sequence[Mapping[str, Any]]) -> Figure:
    """The contrasts of the grid with their intervals."""
    names = [f"{one['name']}\n{one['formula']}" for one in found]
    rows = [(one["rows"]["mean"], one["seeds"]) for one in found]
    what = "effect, points, mean of tasks; 95 % interval; dots: seeds"
    return _whiskers(names, rows, 0.5, what)


def _whiskers(
    names: Sequence[str],
    rows: Sequence[tuple[Mapping[str, float], Sequence[float]]],
    height: float,
    label: str,
) -> Figure:
    figure, axes = _axes(7.5, 0.9 + height * len(rows))
    for place, (row, seeds) in enumerate(rows):
        mean, low, high = (100 * row[key] for key in ("mean", "low", "high"))
        axes.plot([low, high], [place, place], color=COLOURS[1], linewidth=2.2)
        axes.plot([mean], [place], "s", color=COLOURS[1], markersize=6)
        axes.plot([100 * seed for seed in seeds], [place + 0.22] * len(seeds), "o",
                  color=COLOURS[0], markersize=3.5)  # fmt: skip
    axes.axvline(0, color="#55555588", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)
    return figure


def curves(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Gains along each axis, and where each crosses."""
    figure, axes = _axes(7.5, 3.6)
    for n, curve in enumerate(found):
        colour = COLOURS[(n + 1) % len(COLOURS)]
        x = [point["x"] for point in curve["points"]]
        mean, low, high = ([100 * point["gain"][key] for point in curve["points"]]
                           for key in ("mean", "low", "high"))  # fmt: skip
        axes.plot(x, mean, "o-", color=colour, label=curve["name"])
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        if curve["at"]["at"] is not None:
            axes.axvline(curve["at"]["at"], color=colour, linestyle=":", linewidth=1.4)
    axes.axhline(0, color="#55555588", linewidth=1)
    axes.set_xlabel("rate or share; dotted: " + {
        "break_even": "where the gain is gone", "keep_95": "where 95 % of the gain is reached",
    }[found[0]["find"]])  # fmt: skip
    axes.set_ylabel(f"gain over {found[0]['base']}, points")
    axes.legend(frameon=False, fontsize=9)
    return figure


def routes(found: Mapping[str, Any]) -> Figure:
    """Scores against tokens by who writes first, and who is let write: in need or not, if told."""
    from matplotlib import pyplot as plt

    told = {"mark": "least likely mark first", "margin": "smallest margin first",
            "chance": "by chance"}  # fmt: skip
    both = bool(found["roc"])
    size = (5 + 5 * both, 3.9)
    figure, (axes,) = plt.subplots(1, 1 + both, figsize=size, squeeze=False, layout="constrained")
    for n, (order, points) in enumerate(found["orders"].items(), start=1):
        axes[0].plot([point["tokens"] for point in points],
                     [100 * point["score"] for point in points],
                     ".-", color=COLOURS[n], label=told[order])  # fmt: skip
    axes[0].set(xlabel="tokens a query", ylabel="score, %, mean of tasks")
    axes[0].legend(frameon=False, fontsize=9)
    if both:
        for n, (task, points) in enumerate(found["roc"].items(), start=1):
            axes[1].plot(*zip(*points, strict=True), ".-", color=COLOURS[n], label=f"task {task}")
        axes[1].plot([0, 1], [0, 1], ":", color=COLOURS[0])
        axes[1].set(xlabel="of queries that need nothing, share that writes",
                    ylabel="of queries in need")  # fmt: skip
        axes[1].legend(frameon=False, fontsize=9)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure
