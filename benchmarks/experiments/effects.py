"""What a grid of eight cells says, and where a curve crosses a line; all on paired queries.

A cell S(t, q, c) is the score of the retriever trained on text ``t`` and shown text ``q`` of
queries and ``c`` of candidates, 0 for raw and 1 for enriched. :data:`CONTRASTS` are weighted sums
of cells; each is computed for every query, so that its interval is a paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple, final

import numpy as np
import pandas as pd
from jaxtyping import Float64

from retrievers.evaluation.compare import Interval, macro_bootstrap

Cell = tuple[int, int, int]
_WORDS = ("raw", "enriched")
#: Cell -> name of its arm.
CELLS: Mapping[Cell, str] = {
    (t, q, c): f"trained {_WORDS[t]}; query {_WORDS[q]}, corpus {_WORDS[c]}"
    for t, q, c in product((0, 1), repeat=3)
}


@final
class GridContrast(NamedTuple):
    """A weighted sum of cells.

    Attributes:
        name: of the effect.
        formula: for people.
        weights: of the cells that count.
    """

    name: str
    formula: str
    weights: Mapping[Cell, float]


def _main(place: int) -> dict[Cell, float]:
    return {cell: 0.25 if cell[place] else -0.25 for cell in CELLS}


CONTRASTS: tuple[GridContrast, ...] = (
    GridContrast("total", "S(1,1,1) - S(0,0,0)", {(1, 1, 1): 1, (0, 0, 0): -1}),
    GridContrast("inference only", "S(0,1,1) - S(0,0,0)", {(0, 1, 1): 1, (0, 0, 0): -1}),
    GridContrast("retraining", "S(1,1,1) - S(0,1,1)", {(1, 1, 1): 1, (0, 1, 1): -1}),
    GridContrast("corpus effect", "mean over t, q of S(t,q,1) - S(t,q,0)", _main(2)),
    GridContrast("query effect", "mean over t, c of S(t,1,c) - S(t,0,c)", _main(1)),
    GridContrast(
        "query x corpus",
        "mean over t of S(t,1,1) - S(t,1,0) - S(t,0,1) + S(t,0,0)",
        {cell: 0.5 if cell[1] == cell[2] else -0.5 for cell in CELLS},
    ),
    GridContrast(
        "alignment effect",
        "(S(1,1,1) + S(0,0,0) - S(0,1,1) - S(1,0,0)) / 2",
        {(1, 1, 1): 0.5, (0, 0, 0): 0.5, (0, 1, 1): -0.5, (1, 0, 0): -0.5},
    ),
)


def effect(
    weights: Mapping[str, float], scores: pd.DataFrame, seed: int = 0
) -> dict[str, Interval]:
    """A weighted sum of arms for each task and, under ``mean``, for their plain mean."""
    values = {task: rows.to_numpy() @ np.array(list(weights.values()))
              for task, rows in _by_task(scores[list(weights)])}  # fmt: skip
    pairs = {task: (np.zeros(len(each)), each) for task, each in values.items()}
    effects = {task: macro_bootstrap([pair], seed=seed) for task, pair in pairs.items()}
    return {**effects, "mean": macro_bootstrap(list(pairs.values()), seed=seed)}


def _by_task(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if scores.isna().any(axis=None):
        raise ValueError("the arms judge different queries")
    return [(str(task), rows) for task, rows in scores.groupby(level=0, sort=False)]


@final
class Crossing(NamedTuple):
    """Where a curve meets a line; infinite where it does not within the measured range."""

    at: float
    low: float
    high: float


def crossing(
    x: Sequence[float],
    arms: Sequence[str],
    base: str,
    full: str,
    scores: pd.DataFrame,
    share: float,
) -> Crossing:
    """Where the gain over ``base`` passes a share of the gain of ``full``.

    Linear between the measured places; the first passing counts, in either direction. The 95 %
    interval resamples queries within tasks, the same ones in every arm.

    The places ``x`` rise; a ``share`` of 0 is where the gain is gone.
    """
    random = np.random.default_rng(0)
    tasks = [rows.to_numpy().T for _, rows in _by_task(scores[[base, full, *arms]])]
    observed = np.mean([task.mean(1) for task in tasks], axis=0)
    draws = []
    for _ in range(2000):
        means = [task[:, random.integers(0, task.shape[1], task.shape[1])].mean(1)
                 for task in tasks]  # fmt: skip
        draws.append(_passing(x, np.mean(means, axis=0), share))
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    return Crossing(_passing(x, observed, share), float(low), float(high))


def _passing(x: Sequence[float], means: Float64[np.ndarray, " arms"], share: float) -> float:
    base, full, points = means[0], means[1], means[2:]
    above = points - base - share * (full - base)
    for place in range(1, len(x)):
        a, b = above[place - 1], above[place]
        if a == 0 and place == 1:
            return float(x[0])
        if (a < 0 <= b) or (a > 0 >= b):
            return float(x[place - 1] + (x[place] - x[place - 1]) * a / (a - b))
    return math.inf
