"""From two runs to one static page. Everything shown is escaped; no script, no network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import jsonargparse

from augment.enrichment.command import entry
from augment.errors import DataError
from augment.files import say, write_text
from augment.records import Side
from augment.store.keys import Recipe
from augment.store.page import environment
from benchmarks.report.gallery import Gallery
from benchmarks.report.runs import SIDES, OpenedRun, moves, open_run, pick
from retrievers.evaluation.compare import compare

_TEMPLATE = Path(__file__).with_name("page.html")

#: Cards in each gallery.
EXAMPLES = 8
#: Ranks are drawn exactly up to here, and behind it in classes of half an octave.
EXACT = 10
#: Side of the square of ranks in SVG units, and room for its labels on the left and on top.
SIDE, LEFT, TOP = 300.0, 62.0, 18.0


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
    names = names or _names(first, second)
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
    template = environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        names=names,
        comparison=comparison,
        scatter=scatter(((one.first, one.second) for one in moved), depth),
        wins=wins,
        losses=losses,
        provenance=[_provenance(name, run, side)
                    for name, run in zip(names, runs, strict=True) for side in SIDES],
        trained=[(name, run.trained) for name, run in zip(names, runs, strict=True)],
        made=[(name, run.about.get("made_by"), run.about.get("commit"))
              for name, run in zip(names, runs, strict=True)],
        notes=[*notes, *(note for run in runs for note in run.notes)],
    )  # fmt: skip
    write_text(out, html, DataError)
    say(out)


def _names(first: Path, second: Path) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"


def _provenance(name: str, run: OpenedRun, side: Side) -> dict[str, Any]:
    """How the text of one side of one run was made; no recipe where published text is shown."""
    view = run.views[side]
    recipe = Recipe.from_json(view.recipe) if view.recipe else None
    # What was done to the texts afterwards, by experiments.
    changed = recipe.settings.get("changed") if recipe else None
    told = ", ".join(f"{k} {v}" for k, v in changed.items()) if isinstance(changed, dict) else ""
    return {"run": name, "side": side, "view": view.view, "recipe": recipe, "changed": told}


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
