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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from augment.checks.rewrite import forbidden, leaks
from augment.data import DataRoot
from augment.data.items import RootItems
from augment.errors import DataError
from augment.files import aligned, write_json
from augment.records import Side
from augment.views import TextView
from retrievers.data.plan import Plan, plan_test
from retrievers.data.texts import TextRecipe, ViewConfig
from retrievers.evaluation.compare import Interval, macro_bootstrap
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.results import Runs
from retrievers.models.base import Encoder
from retrievers.models.load import loaded
from retrievers.vectors.bm25 import Bm25Config, bm25_plan
from retrievers.vectors.embed import embed_contents
from retrievers.vectors.exact import MatrixIndex
from retrievers.vectors.index import rank_plan
from retrievers.vectors.words import analyser

#: Task -> query id -> success@1 of BM25.
Found = Mapping[str, Mapping[str, float]]
#: Ranks a plan's candidates by texts alone.
Ranker = Callable[[Plan, TextRecipe], Runs]


class LeakRow(NamedTuple):
    """What the texts of a recipe tell in a split.

    Attributes:
        recipe: its id in the store.
        split: of the queries.
        published: asked with the published text of those queries that have a generated one.
        generated: asked with the generated text alone.
        shared: share of the neighbouring words of the target that stand in the text and not in the
            query.
        by_chance: the same with the target of another query of the task.
        said: share of texts that hold a known answer, a name or a copied run of their target; see
            :func:`augment.checks.rewrite.leaks`.
        vectors: published and generated, asked of an encoder of texts in place of BM25.
    """

    recipe: str
    split: str
    published: Found
    generated: Found
    shared: float
    by_chance: float
    said: float
    vectors: tuple[Found, Found] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, successes as means over tasks of shares of 1."""
        told = {
            "queries": sum(map(len, self.generated.values())),
            "published": _mean(self.published),
            "generated": _mean(self.generated),
            "gain": _paired(self.published, self.generated),
        }
        if self.vectors is not None:
            means = dict(zip(("published", "generated"), map(_mean, self.vectors), strict=True))
            told["vectors"] = {**means, "gain": _paired(*self.vectors)}
        return {**self._asdict(), **told}


class LeakAudit(NamedTuple):
    """What was found.

    Attributes:
        rows: by recipe and split.
        gaps: recipe -> its gain over published text in the first split less that in the last.
        excess: split -> how much more often a recipe's texts find the target than the other's do,
            on queries that have both; without another recipe, than the published ones do. By an
            encoder's vectors under ``SPLIT by vectors``.
        most: of the excess in points; None for any.
    """

    rows: Sequence[LeakRow]
    gaps: Mapping[str, Interval]
    excess: Mapping[str, Interval]
    most: float | None

    @property
    def leaking(self) -> list[str]:
        """Splits whose excess is above the bound."""
        most = math.inf if self.most is None else self.most
        return [split for split, found in self.excess.items() if 100 * found.mean > most]

    @property
    def exit_code(self) -> int:
        """1 where the bound is passed."""
        return int(bool(self.leaking))

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        rows = [row.to_json() for row in self.rows]
        return {**self._asdict(), "rows": rows, "leaking": self.leaking}

    def __str__(self) -> str:
        names = ("published", "generated", "gain", "shared", "by_chance", "said")
        rows = [[row["recipe"], row["split"], f"{row['queries']:,}",
                 *(str(one) if isinstance(one := row[name], Interval) else f"{100 * one:.1f}"
                   for name in names)]
                for row in self.to_json()["rows"]]  # fmt: skip
        told = [aligned(rows, 2, ["recipe", "split", "texts", *names]), ""]
        told += [f"by vectors, {row['recipe']}, {row['split']}: published "
                 f"{100 * by['published']:.1f}, generated {100 * by['generated']:.1f}, {by['gain']}"
                 for row in self.to_json()["rows"] if (by := row["vectors"])]  # fmt: skip
        told += [f"gap of {name}, first split less last: {gap}"
                 for name, gap in self.gaps.items()]  # fmt: skip
        told += [f"excess, {split}: {more}" for split, more in self.excess.items()]
        where = f"above {self.most:g} in {', '.join(self.leaking)}" if self.leaking else "no"
        return "\n".join(told if self.most is None else [*told, f"leak: {where}"])


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
    most: float | None = None,
    model: Encoder | str | None = None,
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
        most: points by which texts may find the target more often than those of the other recipe,
            or than published ones where there is none.
        model: asks by vectors of the texts alone, as well: a checkpoint, an exported folder, a name
            that ``search`` takes, or an encoder; null asks by words alone.
        out: JSON file of what was found.

    Raises:
        DataError: if files are missing, or no query has a text.
        StoreError: if generated text cannot be read.
    """
    views = [ViewConfig("replace", str(store), recipe).open("query")]
    if other_recipe is not None or other_store is not None:
        views.append(ViewConfig("replace", str(other_store or store), other_recipe).open("query"))
    shown, items = corpus.open("corpus"), RootItems(root, "corpus")
    ranked = None if model is None else partial(_by_vectors, loaded(model), {})
    found: list[dict[str, LeakRow]] = [{} for _ in views]
    for view, own in zip(views, found, strict=True):
        for split in splits:
            plan = plan_test(DataRoot(root), split, False, tasks, limit)
            if _only_texts(plan, view):
                own[split] = _row(plan, view, split, shown, items, ranked)
    rows = found[0]
    if not rows:
        raise DataError(f"no query of {', '.join(splits)} has a text of the recipe", str(store))
    excess = {
        split: _paired(found[-1][split].generated if found[1:] else row.published, row.generated)
        for split, row in rows.items()
        if split in found[-1]
    }
    for split, row in rows.items():
        if row.vectors and split in excess:
            before = (found[-1][split].vectors or row.vectors)[1 if found[1:] else 0]
            excess[f"{split} by vectors"] = _paired(before, row.vectors[1])
    gaps = {own[splits[0]].recipe: _gap(own[splits[0]], own[splits[-1]])
            for own in found if len(own) > 1}  # fmt: skip
    audit = LeakAudit([row for own in found for row in own.values()], gaps, excess, most)
    if out is not None:
        write_json(out, audit.to_json(), DataError)
    return audit


def _only_texts(plan: Plan, view: TextView) -> bool:
    """Leave out queries without a text; whether any is left."""
    for task in plan.tasks:
        task.queries = [query for query in task.queries if view.generated(query.item.id)]
        ids = {query.item.id for query in task.queries}
        task.grades = {qid: grades for qid, grades in task.grades.items() if qid in ids}
    plan.tasks = [task for task in plan.tasks if task.grades]
    return bool(plan.tasks)


def _found(plan: Plan, recipe: TextRecipe, ranked: Ranker | None = None) -> Found:
    runs = ranked(plan, recipe) if ranked else bm25_plan(plan, recipe, 1, Bm25Config())[0]
    return {
        task.name: score_run(
            runs[task.name, "local"], Judgements(task.grades), ["success@1"]
        ).of("success@1")
        for task in plan.tasks
    }  # fmt: skip


def _by_vectors(
    encoder: Encoder, kept: dict[tuple[Side, str], torch.Tensor], plan: Plan, recipe: TextRecipe
) -> Runs:
    """As by BM25: of texts alone, and candidates without a text are not found.

    ``kept`` has the vectors of texts that were embedded before, for another recipe or split.
    """
    texts = [recipe.candidate(item) or "" for item in plan.catalog.items()]
    words = [recipe.query_view.text(query.item) or "" for query, _ in plan.queries]
    made_by = encoder.fingerprint({})

    def embedded(rows: list[int], of: list[str], side: Side) -> torch.Tensor:
        new = [text for text in dict.fromkeys(of[row] for row in rows) if (side, text) not in kept]
        for start in range(0, len(new), 64):
            block = new[start : start + 64]
            vectors = embed_contents(encoder, [(text, None) for text in block], side)
            kept.update(zip(((side, text) for text in block), vectors, strict=True))
        return torch.stack([kept[side, of[row]] for row in rows])

    def index_of(_: str, rows: Int64[np.ndarray, " rows"]) -> MatrixIndex | None:
        if not (own := [row for row in rows.tolist() if texts[row].strip()]):
            return None
        index = MatrixIndex()
        names = plan.catalog.names(np.array(own, np.int64))
        index.add(names, embedded(own, texts, "corpus"), made_by)
        return index

    def queries_of(span: range) -> tuple[list[int], Any]:
        worded = [row for row in span if words[row].strip()]
        return worded, embedded(worded, words, "query") if worded else None

    return rank_plan(plan, 1, made_by, index_of, queries_of)


def _row(
    plan: Plan,
    view: TextView,
    split: str,
    shown: TextView,
    items: RootItems,
    ranked: Ranker | None,
) -> LeakRow:
    words, told = analyser("english"), []
    for task in plan.tasks:
        wanted = [plan.find(query.positives[0]) for query in task.queries]
        targets = [set(pairwise(words((item and shown.text(item)) or ""))) for item in wanted]
        for place, query in enumerate(task.queries):
            text, original = view.generated(query.item.id) or "", query.item.text or ""
            new = set(pairwise(words(text))) - set(pairwise(words(original)))
            shares = [
                len(new & one) / max(len(one), 1) for one in (targets[place], targets[place - 1])
            ]
            told.append([*shares, bool(leaks(text, original, forbidden(items, query)))])
    both = [TextRecipe(each, shown, "plain", None) for each in (view.other("raw"), view)]
    published, generated = (_found(plan, each) for each in both)
    by = (_found(plan, both[0], ranked), _found(plan, both[1], ranked)) if ranked else None
    shared, by_chance, said = np.mean(told, axis=0).tolist()
    recipe = str(view.recipe["id"])
    return LeakRow(recipe, split, published, generated, shared, by_chance, said, by)


def _mean(found: Found) -> float:
    return float(np.mean([np.mean(list(own.values())) for own in found.values()]))


def _paired(first: Found, second: Found) -> Interval:
    """Of the second less the first, on queries of both."""
    both = {task: sorted(set(first.get(task, ())) & set(own)) for task, own in second.items()}
    pairs = [([first[task][qid] for qid in qids], [second[task][qid] for qid in qids])
             for task, qids in both.items() if qids]  # fmt: skip
    return macro_bootstrap(pairs) if pairs else Interval(0.0, 0.0, 0.0)


def _gap(first: LeakRow, last: LeakRow) -> Interval:
    """Of their gains, which are those of other queries, so that variances add up."""
    gains = [_paired(row.published, row.generated) for row in (first, last)]
    mean, half = gains[0].mean - gains[1].mean, math.hypot(*((g.high - g.low) / 2 for g in gains))
    return Interval(mean, mean - half, mean + half)
