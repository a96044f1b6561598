"""From two runs to one static page. Everything shown is escaped; no script, no network."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import jsonargparse

from augment.enrichment.command import entry
from augment.errors import DataError
from augment.files import say, write_text
from augment.records import Side
from augment.store import page
from augment.store.keys import Recipe
from benchmarks.report.gallery import Gallery
from benchmarks.report.runs import SIDES, OpenedRun, moves, open_run, pick
from retrievers.evaluation.compare import Pair, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_name("page.html")

#: Cards in each gallery.
EXAMPLES = 8

#: Ranks of the first relevant candidate of a query in two runs; None is "not found".
Ranks = tuple[int | None, int | None]


@final
class RankMoves(NamedTuple):
    """Queries by what became of their first relevant candidate, from one run to another.

    Attributes:
        better: queries for which it moved up.
        same: those for which it did not move.
        worse: those for which it moved down.
        to_first: those for which it newly came first.
        from_first: those for which it is no longer first.
    """

    better: int
    same: int
    worse: int
    to_first: int
    from_first: int

    @classmethod
    def of(cls, ranks: Iterable[Ranks]) -> RankMoves:
        """Counted."""
        pairs = list(ranks)
        gains = [1 / (b or math.inf) - 1 / (a or math.inf) for a, b in pairs]
        return cls(
            sum(gain > 0 for gain in gains), gains.count(0), sum(gain < 0 for gain in gains),
            sum(a != 1 and b == 1 for a, b in pairs), sum(a == 1 and b != 1 for a, b in pairs),
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"better for {self.better:,} queries, the same for {self.same:,}, worse for "
            f"{self.worse:,}; newly first {self.to_first:,}, no longer first {self.from_first:,}"
        )


def scatter(ranks: Iterable[Ranks], depth: int, names: tuple[str, str]) -> Figure:
    """Ranks in two runs against each other, the first rank at the top left.

    Args:
        ranks: of every query.
        depth: hits per query; "not found" stands apart from the last rank.
        names: of the runs.
    """
    from matplotlib.figure import Figure

    counts = Counter(ranks)
    far = 1.6 * (depth + 1)
    places = [[rank or far for rank in pair] for pair in counts]
    colours = ["#8a939c" if a == b else ("#0072b2" if b < a else "#d55e00") for a, b in places]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    most = max(counts.values(), default=1)
    sizes = [10 + 340 * count / most for count in counts.values()]
    across, down = zip(*places, strict=True)
    axes.scatter(across, down, s=sizes, c=colours, alpha=0.8)
    ticks = [rank for rank in (1, 2, 5, 10, 20, 50, 100) if rank <= depth]
    ends = (0.75, 1.3 * far)
    axes.set(xscale="log", yscale="log", xlabel=names[0], ylabel=names[1], xlim=ends, ylim=ends)
    axes.spines[:].set_color("#808080")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([*ticks, far], [*map(str, ticks), "none"])
        axis.set_tick_params(colors="#808080")
        axis.minorticks_off()
        axis.label.set_color("#808080")
    axes.invert_yaxis()
    return figure


def ticks_of(rows: Iterable[Pair]) -> range:
    """Per cents to stand at an axis that every bar and whisker of these rows ends within."""
    ends = [
        100 * end
        for row in rows
        for end in (
            row.first,
            row.second,
            row.first + row.difference.low,
            row.first + row.difference.high,
        )
    ]
    step = 20 if max(ends) > 40 else 5
    first, last = math.floor(min([0, *ends]) / step), math.ceil(max([1, *ends]) / step)
    return range(first * step, last * step + 1, step)


def write_report(
    first: Path,
    second: Path,
    out: Path = Path("report.html"),
    *,
    names: tuple[str, str] | None = None,
    metric: str = "success@5",
    pool: Literal["local", "union"] = "local",
    root: Path | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> None:
    """Write a static page about two runs: scores, ranks, wins and losses, where texts come from.

    Args:
        first: folder that ``test`` or ``bm25`` wrote.
        second: the same of the other run.
        out: HTML file to write.
        names: of the two runs; None takes the folders' names.
        metric: per-query score, see :class:`retrievers.evaluation.metrics.Measure`.
        pool: local or union.
        root: data root; None takes the one that the runs name.
        examples: cards in each gallery.
        seed: of the resampling.
        notes: sentences to stand under the chart.

    Raises:
        DataError: if a run or the root cannot be read, or the runs are not about the same queries.
    """
    runs = (open_run(first), open_run(second))
    if names is None and first.name == second.name:
        names = f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"
    names = names or (first.name, second.name)
    found = root or runs[1].root or runs[0].root
    if found is None or not found.is_dir():
        raise DataError(
            f"the data root {found or ''} is not here; name it with --root", str(second)
        )
    comparison = compare(first, second, metric=metric, pool=pool, names=names, seed=seed)
    tasks, moved = moves(runs, pool)
    gallery = Gallery(found, runs)
    wins, losses = ([gallery.card(one, tasks[one.task]) for one in pick(moved, better, examples)]
                    for better in (True, False))  # fmt: skip
    depth = max((len(hits) for task in tasks.values() for run in task.hits
                 for hits in run.values()), default=1)  # fmt: skip
    template = page.environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    ranks = [(one.first, one.second) for one in moved]
    html = template.render(
        names=names,
        comparison=comparison,
        ticks=ticks_of(comparison.rows),
        ranks=RankMoves.of(ranks),
        chart=_drawn(scatter(ranks, depth, names)),
        depth=depth,
        thumbnail=cache(partial(page.thumbnail, found)),
        compare=page.compare,
        wins=wins,
        losses=losses,
        provenance=[one for name, run in zip(names, runs, strict=True) for side in SIDES
                    for one in _provenance(name, run, side)],
        trained=[(name, run.trained) for name, run in zip(names, runs, strict=True)],
        made=[(name, run.about.get("made_by"), run.about.get("commit"))
              for name, run in zip(names, runs, strict=True)],
        seen=[(name, row) for name, run in zip(names, runs, strict=True)
              for row in run.about.get("rows", ()) if row.get("modality")],
        notes=[*notes, *(note for run in runs for note in run.notes)],
    )  # fmt: skip
    write_text(out, html, DataError)
    say(out)


def _drawn(figure: Figure) -> page.DataUri:
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", transparent=True)
    return page.DataUri(f"data:image/svg+xml;base64,{base64.b64encode(sink.getvalue()).decode()}")


def _provenance(name: str, run: OpenedRun, side: Side) -> Iterator[dict[str, Any]]:
    """How the texts of one side of one run were made; no recipe where published text is shown."""
    view = run.views[side]
    for recipe in map(Recipe.from_json, view.recipes) if view.recipes else [None]:
        # What was done to the texts afterwards, by experiments.
        changed = recipe.settings.get("changed") if recipe else None
        told = (
            ", ".join(f"{k} {v}" for k, v in changed.items()) if isinstance(changed, dict) else ""
        )
        yield {"run": name, "side": side, "view": view.view, "recipe": recipe, "changed": told}


@entry
def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status."""
    try:
        jsonargparse.auto_cli(
            write_report, args=list(arguments), prog="python -m benchmarks.report"
        )
    except ValueError as error:
        raise DataError(str(error)) from error
    return 0
