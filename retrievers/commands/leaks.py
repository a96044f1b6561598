"""``python -m retrievers leaks --root ROOT --store S``: do generated texts of queries tell targets?

A text that was written with the wanted candidate in sight makes training trivial, and is not there
in a test (RGE, 2511.16150). Such a text betrays itself: by its words alone the candidate is found
where the query's own words do not find it, in training more than in the test, and it shares phrases
with its own candidate that it does not share with another's. What a picture shows and a text says
helps to find, too, so that the level alone convicts nobody: compare with texts that were written of
the query alone (``other_recipe``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse

from augment.checks.rewrite import forbidden, leaks
from augment.data import DataRoot
from augment.data.items import RootItems
from augment.errors import DataError
from augment.files import aligned, say, write_json
from augment.views import TextView
from retrievers.data.plan import Plan, plan_test
from retrievers.data.texts import TextRecipe, ViewConfig
from retrievers.evaluation.compare import Interval, macro_bootstrap
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.vectors.bm25 import Bm25Config, bm25_plan
from retrievers.vectors.words import analyser

#: Task -> query id -> score.
Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class LeakRow:
    """What the texts of a recipe tell in a split; shares of 1, plain means over tasks.

    Attributes:
        recipe: its id in the store.
        split: of the queries.
        queries: that have a text.
        published: success of BM25 asked with the published text of these queries.
        generated: the same with the generated text alone.
        gain: the difference, paired.
        shared: share of the neighbouring words of the target that stand in the text and not in the
            query.
        by_chance: the same with the target of another query of the task.
        said: share of texts that hold a known answer, a name or a copied run of their target; see
            :func:`augment.checks.rewrite.leaks`.
    """

    recipe: str
    split: str
    queries: int
    published: float
    generated: float
    gain: Interval
    shared: float
    by_chance: float
    said: float


@dataclass(frozen=True)
class LeakAudit:
    """What was found.

    Attributes:
        rows: by recipe and split.
        gaps: recipe -> its gain in the first split less that in the last.
        excess: split -> how much more often a recipe's texts find the target than the other's do,
            on queries that have both; without another recipe, than the published ones do.
        most: of the excess in points; None for any.
    """

    rows: Sequence[LeakRow]
    gaps: Mapping[str, Interval]
    excess: Mapping[str, Interval]
    most: float | None = None

    @property
    def leaking(self) -> list[str]:
        """Splits whose excess is above the bound."""
        most = math.inf if self.most is None else self.most
        return [split for split, found in self.excess.items() if 100 * found.mean > most]

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**asdict(self), "leaking": self.leaking}

    def __str__(self) -> str:
        head = ["recipe", "split", "texts", "published", "generated", "gain", "shared",
                "by chance", "said"]  # fmt: skip
        rows = [
            [row.recipe, row.split, f"{row.queries:,}", _points(row.published),
             _points(row.generated), _between(row.gain),
             *map(_points, (row.shared, row.by_chance, row.said))]
            for row in self.rows
        ]  # fmt: skip
        told = [aligned(rows, 2, head), ""]
        told += [f"gap of {name}, first split less last: {_between(gap)}"
                 for name, gap in self.gaps.items()]  # fmt: skip
        told += [f"excess, {split}: {_between(more)}" for split, more in self.excess.items()]
        if self.most is not None:
            verdict = f"above {self.most:g} in {', '.join(self.leaking)}" if self.leaking else "no"
            told.append(f"leak: {verdict}")
        return "\n".join(told)


def audit_leaks(
    root: Path,
    store: Path,
    recipe: str | None = None,
    other_recipe: str | None = None,
    other_store: Path | None = None,
    corpus: ViewConfig = ViewConfig(),  # noqa: B008 - frozen
    splits: tuple[str, ...] = ("train", "test"),
    tasks: list[int] | None = None,
    limit: int | None = None,
    metric: str = "success@1",
    most: float | None = None,
    out: Path | None = None,
) -> LeakAudit:
    """Ask how much of the target generated texts of queries tell; a gate with ``most``.

    Any text of queries in a store will do: rewrites, chains, rationales. The exit status is 1 where
    the bound is passed.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the generated texts.
        recipe: its id; null takes the only one.
        other_recipe: texts that saw nothing but the query, to compare with.
        other_store: folder of those; null takes the same.
        corpus: text shown of candidates; pictures have none but what is generated of them.
        splits: of the queries, training first; those without a text of the recipe are left out.
        tasks: only these task codes (0 to 8).
        limit: at most so many queries per data set and task.
        metric: score of a query.
        most: points by which texts may find the target more often than those of the other recipe,
            or than published ones where there is none.
        out: JSON file of what was found.

    Raises:
        DataError: if files are missing, or no query has a text.
        StoreError: if generated text cannot be read.
    """
    views = [ViewConfig("replace", str(store), recipe).open("query")]
    if other_recipe is not None or other_store is not None:
        views.append(ViewConfig("replace", str(other_store or store), other_recipe).open("query"))
    shown, items = corpus.open("corpus"), RootItems(root, "corpus")
    rows: list[LeakRow] = []
    found: dict[tuple[int, str], tuple[Scores, Scores]] = {}
    for place, view in enumerate(views):
        for split in splits:
            plan = plan_test(DataRoot(root), split, False, tasks, limit)
            if not _only_texts(plan, view):
                continue
            raw, generated = (
                _scores(plan, TextRecipe(each, shown, "plain", None), metric)
                for each in (view.other("raw"), view)
            )
            found[place, split] = asked = raw, generated
            rows.append(_row(plan, view, split, shown, asked, items))
    if not any(place == 0 for place, _ in found):
        raise DataError(f"no query of {', '.join(splits)} has a text of the recipe", str(store))
    audit = LeakAudit(rows, _gaps(rows, splits), _excess(found, len(views) - 1, splits), most)
    if out is not None:
        write_json(out, audit.to_json(), DataError)
    return audit


def _only_texts(plan: Plan, view: TextView) -> int:
    """Leave out queries without a text; how many are left."""
    for task in plan.tasks:
        task.queries = [query for query in task.queries if view.generated(query.item.id)]
        task.grades = {query.item.id: task.grades[query.item.id] for query in task.queries
                       if query.item.id in task.grades}  # fmt: skip
    plan.tasks = [task for task in plan.tasks if task.grades]
    return sum(len(task.queries) for task in plan.tasks)


def _scores(plan: Plan, recipe: TextRecipe, metric: str) -> Scores:
    runs, *_ = bm25_plan(plan, recipe, 100, Bm25Config())
    return {
        task.name: score_run(runs[task.name, "local"], Judgements(task.grades), [metric]).of(metric)
        for task in plan.tasks
    }


def _row(
    plan: Plan, view: TextView, split: str, shown: TextView, asked: tuple[Scores, Scores],
    items: RootItems,
) -> LeakRow:  # fmt: skip
    words = analyser("english")
    own, others, said, queries = 0.0, 0.0, 0, 0
    for task in plan.tasks:
        wanted = [plan.find(query.positives[0]) for query in task.queries]
        targets = [_neighbours(words((item and shown.text(item)) or "")) for item in wanted]
        for place, query in enumerate(task.queries):
            text, original = view.generated(query.item.id) or "", query.item.text or ""
            new = _neighbours(words(text)) - _neighbours(words(original))
            target, other = targets[place], targets[place - 1]
            own += len(new & target) / max(len(target), 1)
            others += len(new & other) / max(len(other), 1)
            said += bool(leaks(text, original, forbidden(items, query)))
        queries += len(task.queries)
    means = [sum(sum(s.values()) / len(s) for s in each.values()) / len(each) for each in asked]
    return LeakRow(
        str(view.recipe["id"]), split, queries, means[0], means[1], _paired(*asked),
        own / queries, others / queries, said / queries,
    )  # fmt: skip


def _neighbours(words: Sequence[str]) -> set[tuple[str, str]]:
    return set(pairwise(words))


def _paired(first: Scores, second: Scores) -> Interval:
    """Of the second less the first, on queries of both."""
    both = {task: sorted(set(first.get(task, ())) & set(own)) for task, own in second.items()}
    pairs = [
        ([first[task][qid] for qid in qids], [second[task][qid] for qid in qids])
        for task, qids in both.items()
        if qids
    ]
    return macro_bootstrap(pairs) if pairs else Interval(math.nan, math.nan, math.nan)


def _gaps(rows: Sequence[LeakRow], splits: Sequence[str]) -> dict[str, Interval]:
    """Other queries in each split, so that variances add up."""
    gains = {(row.recipe, row.split): row.gain for row in rows}
    gaps = {}
    for recipe in dict.fromkeys(row.recipe for row in rows):
        ends = [gains.get((recipe, split)) for split in (splits[0], splits[-1])]
        if ends[0] and ends[1] and splits[0] != splits[-1]:
            mean = ends[0].mean - ends[1].mean
            half = math.hypot(*((end.high - end.low) / 2 for end in ends if end))
            gaps[recipe] = Interval(mean, mean - half, mean + half)
    return gaps


def _excess(
    found: Mapping[tuple[int, str], tuple[Scores, Scores]], other: int, splits: Sequence[str]
) -> dict[str, Interval]:
    """By split, where both have texts."""
    return {
        split: _paired(found[other, split][1 if other else 0], found[0, split][1])
        for split in splits
        if (0, split) in found and (other, split) in found
    }


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _between(found: Interval) -> str:
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def main(arguments: Sequence[str]) -> int:
    """Run the command; 1 where the bound is passed."""
    audit = jsonargparse.auto_cli(
        audit_leaks, args=list(arguments), as_positional=False, prog="python -m retrievers leaks"
    )
    say(audit)
    return int(bool(audit.leaking))
