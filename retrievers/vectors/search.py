"""From vectors to runs, and the whole test: embed, search, score."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch

from augment.errors import DataError
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.data.plan import Plan
from retrievers.evaluation.results import Results, run_files, score, spans, write_results
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import writing_runs
from retrievers.models.base import Encoder
from retrievers.vectors import make_index
from retrievers.vectors.embed import Embedded, embed
from retrievers.vectors.index import Recall


class Searched(NamedTuple):
    """Runs of a plan, and for each pool the recall of an approximate index; none of an exact one.

    Attributes:
        runs: (task name, "local" or "union") -> run.
        recall: what :func:`retrievers.vectors.index.measure_recall` found, by pool.
    """

    runs: dict[tuple[str, str], RunTable]
    recall: dict[str, list[Recall]]


def search(
    plan: Plan,
    vectors: Embedded,
    config: SearchConfig = SearchConfig(),  # noqa: B008 - frozen
    device: str | torch.device = "cpu",
) -> Searched:
    """Search every task in its local pool and, if the plan has one, in the union.

    Args:
        plan: what to search.
        vectors: of its candidates and queries.
        config: depth and index.
        device: where the products run.

    Raises:
        DataError: if no candidate of a pool has a vector.
    """
    candidates, queries, made_by = vectors.candidates, vectors.queries, vectors.made_by
    found = Searched({}, {})
    for pool, rows in plan.pools.items():
        kept = torch.from_numpy(rows)[candidates.done[rows]]
        searching = [(t, n) for t, n in spans(plan) if pool in ("union", t.pool)]
        if not len(kept):
            raise DataError("no candidate of this pool could be embedded", pool)
        index = make_index(config.index, made_by, str(device), config.index_parameters)
        ids = plan.catalog.names(kept.numpy())
        candidates.add_to(index, ids, kept, made_by)
        for task, span in searching:
            own = torch.arange(span.start, span.stop)
            own = own[queries.done[own]]
            run = RunTable([], [], [], [], [])
            if len(own):
                qids = [plan.queries[row][0].item.id for row in own.tolist()]
                hits = index.search(queries.take(own), min(config.depth, len(index)), made_by)
                run = RunTable.from_search(qids, ids, hits.rows, hits.scores, unique=True)
            found.runs[task.name, "union" if pool == "union" else "local"] = run
        if index.recall:
            found.recall[pool] = list(index.recall.values())
    return found


def test(
    encoder: Encoder,
    data: MBeirData,
    out: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    precision: str = "32-true",
    allow_mismatch: bool = False,
) -> Results:
    """Embed, search and score every query file of the test split, in one process.

    Args:
        encoder: its weights are used as they are.
        data: the root, what is shown of it, and the protocol (``data.test``).
        out: run files, qrels and ``metrics.json`` go to this folder; None writes nothing.
        device: auto, cpu, cuda, cuda:N.
        precision: of embedding; 32-true, bf16-mixed or 16-mixed.
        allow_mismatch: show text of another recipe than the one trained on.

    Returns:
        A row for each data set, task and pool, with the runs; scores are shares of 1.

    Raises:
        MismatchError: if the weights were trained on another text recipe.
        DataError: if files are missing or malformed.
    """
    plan = data.test_plan()
    vectors = embed(
        encoder, data, plan, device=device, precision=precision, allow_mismatch=allow_mismatch
    )
    started = time.monotonic()
    found = search(plan, vectors, data.test, encoder.device)
    if out is None:
        return _scored(encoder, data, plan, vectors, found, started)
    with writing_runs(run_files(Path(out), found.runs), vectors.made_by):
        results = _scored(encoder, data, plan, vectors, found, started)
    write_results(Path(out), plan, results)
    return results


test.__test__ = False  # type: ignore[attr-defined] # pytest would take it for one of its own


def _scored(
    encoder: Encoder,
    data: MBeirData,
    plan: Plan,
    vectors: Embedded,
    found: Searched,
    started: float,
) -> Results:
    results = score(plan, found.runs, *vectors.lost, vectors.made_by)
    results.recall = {
        pool: [measured._asdict() for measured in own] for pool, own in found.recall.items()
    }
    results.cost = {
        "embedding_seconds": round(vectors.seconds, 3),
        "search_seconds": round(time.monotonic() - started, 3),
        "items": vectors.items,
        "items_per_second": round(vectors.items / max(vectors.seconds, 1e-9), 1),
    }
    cut = None if vectors.cut is None else vectors.cut.to_json()
    results.settings = {
        "model": encoder.settings(),
        "data": {"cut_text": cut, **data.describe()},
        "trained_on": encoder.trained_on,
    }
    return results
