"""MMEB's image data sets scored: every query against its own list, hit@1, category means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from augment.data.mmeb import CATEGORIES, IN_DISTRIBUTION, KNOWN, Subset
from augment.files import markdown
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import DECIMALS, RunTable


def rank_lists(subset: Subset, queries: np.ndarray, candidates: np.ndarray) -> RunTable:
    """Rank every query's own list by inner product.

    Raises:
        DataError: if a vector is not finite.
    """
    sizes = [len(own) for own in subset.lists]
    query = np.repeat(np.arange(len(subset.lists)), sizes)
    rows = np.array([place for own in subset.lists for place in own], dtype=np.int64)
    scores = [candidates[list(own)] @ queries[n] for n, own in enumerate(subset.lists)]
    return RunTable(
        [subset.qid(row) for row in range(len(subset.queries))],
        [subset.did(row) for row in range(len(subset.candidates))],
        query,
        rows,
        np.round(np.concatenate(scores).astype(np.float64), DECIMALS),
    )


@dataclass(frozen=True)
class Score:
    """Scores of one data set.

    Attributes:
        subset: its name.
        category: one of :data:`CATEGORIES`, or "other".
        queries: how many.
        candidates: distinct ones.
        metrics: success@1 (MMEB's Precision@1, hit@1), success@5, mrr, ndcg@5; shares of 1.
    """

    subset: str
    category: str
    queries: int
    candidates: int
    metrics: Mapping[str, float]


def score_subset(subset: Subset, run: RunTable) -> Score:
    """Score a run of one data set; a query that the run lacks counts 0."""
    metrics = score_run(run, subset.grades, ("success@1", "success@5", "mrr", "ndcg@5")).means()
    category = next((c for c, names in CATEGORIES.items() if subset.name in names), "other")
    return Score(subset.name, category, len(subset.queries), len(subset.candidates), metrics)


def summary(scores: Iterable[Score]) -> dict[str, float]:
    """Plain means of success@1 over data sets: each category, in and out of distribution, all.

    Data sets that are not MMEB's count in none but their own ("other").
    """
    found = list(scores)
    known = [score for score in found if score.subset in KNOWN]
    groups = {category: [s for s in found if s.category == category] for category in CATEGORIES}
    groups["other"] = [score for score in found if score.category == "other"]
    groups["in distribution"] = [s for s in known if s.subset in IN_DISTRIBUTION]
    groups["out of distribution"] = [s for s in known if s.subset not in IN_DISTRIBUTION]
    groups["all"] = known
    return {
        name: sum(score.metrics["success@1"] for score in group) / len(group)
        for name, group in groups.items()
        if group
    }


def table(scores: Sequence[Score]) -> str:
    """Markdown: a row a data set, then the means; hit@1 in per cent."""
    rows: list[list[object]] = []
    for score in scores:
        hit = [f"{100 * score.metrics[name]:.1f}" for name in ("success@1", "success@5")]
        rows.append([score.subset, score.category, score.queries, *hit])
    rows += [[f"mean: {name}", "", "", f"{100 * v:.1f}", ""] for name, v in summary(scores).items()]
    told = markdown(["data set", "category", "queries", "hit@1", "hit@5"], rows, 2)
    known = sum(score.subset in KNOWN for score in scores)
    return told + (
        f"\n\n{known} of MMEB's {len(KNOWN)} image data sets." if 0 < known < len(KNOWN) else ""
    )
