"""MMEB scored: every query against its own list, hit@1 or nDCG@5, means of categories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from augment.data.mmeb import CATEGORIES, IN_DISTRIBUTION, KNOWN, PARTS, Subset
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
    rows = np.concatenate([np.asarray(own, dtype=np.int64) for own in subset.lists])
    scores = [candidates[np.asarray(own)] @ queries[n] for n, own in enumerate(subset.lists)]
    return RunTable(
        [subset.qid(row) for row in range(len(subset.queries))],
        [subset.did(row) for row in range(len(subset.candidates))],
        query,
        rows,
        np.round(np.concatenate(scores).astype(np.float64), DECIMALS),
    )


#: Metrics as MMEB calls them.
SAID = {"success@1": "hit@1", "ndcg@5": "nDCG@5"}


@dataclass(frozen=True)
class Score:
    """Scores of one data set.

    Attributes:
        subset: its name.
        category: one of :data:`CATEGORIES`, or "other".
        queries: how many.
        candidates: distinct ones.
        metrics: success@1 (MMEB's Precision@1, hit@1), success@5, mrr, ndcg@5; shares of 1.
        metric: the one of them that MMEB counts.
    """

    subset: str
    category: str
    queries: int
    candidates: int
    metrics: Mapping[str, float]
    metric: str = "success@1"


def score_subset(subset: Subset, run: RunTable) -> Score:
    """Score a run of one data set; a query that the run lacks counts 0."""
    metrics = score_run(run, subset.grades, ("success@1", "success@5", "mrr", "ndcg@5")).means()
    category = next((c for c, names in CATEGORIES.items() if subset.name in names), "other")
    sizes = len(subset.queries), len(subset.candidates)
    return Score(subset.name, category, *sizes, metrics, subset.metric)


def summary(scores: Iterable[Score]) -> dict[str, float]:
    """Plain means over data sets: each category, in and out of distribution, all.

    Where videos or documents are among them, also each part of V2; in and out of distribution are
    of pictures alone. Data sets that are not MMEB's count in none but their own ("other").
    """
    found = list(scores)
    known = [score for score in found if score.subset in KNOWN]
    groups = {category: [s for s in found if s.category == category] for category in CATEGORIES}
    groups["other"] = [score for score in found if score.category == "other"]
    parts = {part: [s for s in known if s.subset in names] for part, names in PARTS.items()}
    groups["in distribution"] = [s for s in parts["image"] if s.subset in IN_DISTRIBUTION]
    groups["out of distribution"] = [s for s in parts["image"] if s.subset not in IN_DISTRIBUTION]
    groups |= parts if parts["video"] or parts["documents"] else {}
    groups["all"] = known
    return {
        name: sum(score.metrics[score.metric] for score in group) / len(group)
        for name, group in groups.items()
        if group
    }


def table(scores: Sequence[Score]) -> str:
    """Markdown: a row a data set, then the means, in per cent."""
    rows: list[list[object]] = []
    for score in scores:
        told = [f"{100 * score.metrics[name]:.1f}" for name in (score.metric, "success@5")]
        rows.append([score.subset, score.category, score.queries, *told, SAID[score.metric]])
    means = summary(scores).items()
    rows += [[f"mean: {name}", "", "", f"{100 * mean:.1f}", "", ""] for name, mean in means]
    told = [markdown(["data set", "category", "queries", "score", "hit@5", "score is"], rows, 2)]
    for part, names in PARTS.items():
        known = sum(score.subset in names for score in scores)
        told += [f"{known} of MMEB's {len(names)} {part} data sets."] * (0 < known < len(names))
    return "\n\n".join(told)
