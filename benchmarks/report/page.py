"""From two runs to one static page. Everything shown is escaped; no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.errors import DataError
from augment.records import Side
from augment.store.keys import Recipe
from augment.store.page import environment, save_page
from benchmarks.report.charts import bars, scatter
from benchmarks.report.gallery import Card, Gallery, Moved, pick
from benchmarks.report.runs import SIDES, Opened, first_ranks, open_run, relevant
from retrievers.evaluation.compare import compare, tasks_of
from retrievers.evaluation.protocol import task_title

_TEMPLATE = Path(__file__).with_name("page.html")

#: Cards in each gallery.
EXAMPLES = 8


@final
@dataclass(frozen=True)
class Provenance:
    """How the text of one side of one run was made.

    Attributes:
        run: name of the run.
        side: query or corpus.
        view: raw, append, replace or a mixture.
        recipe: None where published text is shown.
        changed: what was done to the texts afterwards, by experiments; empty otherwise.
    """

    run: str
    side: Side
    view: str
    recipe: Recipe | None
    changed: str


class _Task(NamedTuple):
    """Hits of both runs and judgements of a task."""

    hits: tuple[Mapping[str, Any], Mapping[str, Any]]
    wanted: Mapping[str, Sequence[str]]


def write_report(
    first: Path,
    second: Path,
    page: Path,
    *,
    names: tuple[str, str] | None = None,
    metric: str = "success@5",
    pool: str = "local",
    root: Path | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        first: folder that ``test`` or ``bm25`` wrote.
        second: the same of the other run.
        page: HTML file to write.
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
    tasks = {name: _task(runs, name, pool) for name in tasks_of(first, pool)}
    moved = _moved(tasks)
    gallery = Gallery(found, runs)
    cards = {
        kind: [_card(gallery, one, tasks[one.task]) for one in pick(moved, wins, examples)]
        for kind, wins in (("wins", True), ("losses", False))
    }
    depth = max((len(hits) for task in tasks.values() for run in task.hits
                 for hits in run.values()), default=1)  # fmt: skip
    template = environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        names=names,
        comparison=comparison,
        bars=bars(comparison),
        scatter=scatter(((one.first, one.second) for one in moved), depth),
        wins=cards["wins"],
        losses=cards["losses"],
        provenance=[_provenance(name, run, side)
                    for name, run in zip(names, runs, strict=True) for side in SIDES],
        trained=[(name, run.trained) for name, run in zip(names, runs, strict=True)],
        made=[(name, run.about.get("made_by"), run.about.get("commit"))
              for name, run in zip(names, runs, strict=True)],
        notes=[*notes, *(note for run in runs for note in run.notes)],
    )  # fmt: skip
    save_page(page, html)


def _names(first: Path, second: Path) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"


def _task(runs: tuple[Opened, Opened], name: str, pool: str) -> _Task:
    return _Task(
        (runs[0].hits(name, pool), runs[1].hits(name, pool)), relevant(runs[0].folder, name)
    )


def _moved(tasks: Mapping[str, _Task]) -> list[Moved]:
    several = len({name.rpartition("_task")[0] for name in tasks}) > 1
    found = []
    for name, task in tasks.items():
        first, second = (first_ranks(hits, task.wanted) for hits in task.hits)
        title = task_title(name, several)
        found += [Moved(name, title, qid, first[qid], second[qid]) for qid in task.wanted]
    return found


def _card(gallery: Gallery, moved: Moved, task: _Task) -> Card:
    return gallery.card(moved, task.hits, task.wanted[moved.qid])


def _provenance(name: str, run: Opened, side: Side) -> Provenance:
    view = run.views[side]
    recipe = Recipe.from_json(view.recipe) if view.recipe else None
    changed = recipe.settings.get("changed") if recipe else None
    told = ", ".join(f"{k} {v}" for k, v in changed.items()) if isinstance(changed, dict) else ""
    return Provenance(name, side, str(view.view), recipe, told)
