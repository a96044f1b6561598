"""From vectors to runs, and the whole test: embed, search, score."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from augment.errors import DataError
from augment.files import replacing_path
from retrievers.data import writings
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.data.plan import Plan
from retrievers.evaluation.results import Results, Runs, score, spans, write_results
from retrievers.models.base import Encoder
from retrievers.vectors import make_index
from retrievers.vectors.approximate import Recall
from retrievers.vectors.embed import Embedded, embed
from retrievers.vectors.held import Vectors
from retrievers.vectors.index import Index, rank_plan
from retrievers.vectors.rows import Embeddings


class Searched(NamedTuple):
    """Runs of a plan, and for each pool the recall of an approximate index; none of an exact one.

    Attributes:
        runs: (task name, "local" or "union") -> run.
        recall: what :func:`retrievers.vectors.approximate.measure_recall` found, by pool.
    """

    runs: Runs
    recall: dict[str, list[Recall]]


def search(
    plan: Plan,
    vectors: Embedded,
    config: SearchConfig = SearchConfig(),  # noqa: B008 - frozen
    device: str | torch.device = "cpu",
) -> Searched:
    """Search every task in its local pool and, if the plan has one, in the union.

    Raises:
        DataError: if no candidate of a pool has a vector.
    """
    candidates, queries = vectors.candidates, vectors.queries
    made: dict[str, Index[Vectors]] = {}

    def index_of(pool: str, rows: Int64[np.ndarray, " rows"]) -> Index[Vectors]:
        kept = torch.from_numpy(rows)[candidates.done[rows]]
        if not len(kept):
            raise DataError("no candidate of this pool could be embedded", pool)
        index = make_index(config.index, vectors.made_by, str(device), config.index_parameters)
        candidates.add_to(index, plan.catalog.names(kept.numpy()), kept, vectors.made_by)
        return made.setdefault(pool, index)

    def queries_of(span: range) -> tuple[list[int], torch.Tensor]:
        own = torch.arange(span.start, span.stop)
        own = own[queries.done[own]]
        return own.tolist(), queries.take(own)

    runs = rank_plan(plan, config.depth, vectors.made_by, index_of, queries_of)
    measured = {pool: getattr(index, "recall", {}) for pool, index in made.items()}
    return Searched(runs, {pool: list(own.values()) for pool, own in measured.items() if own})


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
    results = score(plan, found.runs, *vectors.lost, vectors.made_by)
    results.recall = {
        pool: [measured._asdict() for measured in own] for pool, own in found.recall.items()
    }
    written = vectors.queries.writings
    for task, span in spans(plan) if written else []:
        results.writing[task.name] = writings.spent(
            [written[row] for row in span if row in written]
        )
    results.cost = {
        "embedding_seconds": round(vectors.seconds, 3),
        "search_seconds": round(time.monotonic() - started, 3),
        "items": vectors.items,
        "items_per_second": round(vectors.items / max(vectors.seconds, 1e-9), 1),
        "queries_per_second": round(vectors.asked / max(vectors.asking, 1e-9), 1),
    }
    if own := vectors.candidates.writings:
        results.cost["tokens_a_candidate"] = round(writings.spent(own.values())["tokens"], 2)
    cut = None if vectors.cut is None else vectors.cut.to_json()
    results.settings = {
        "model": encoder.settings(),
        "data": {"cut_text": cut, **data.describe()},
        "trained_on": encoder.trained_on,
    }
    if out is not None:
        write_writings(Path(out), plan, vectors.queries)
        write_results(Path(out), plan, results)
    return results


def write_writings(out: Path, plan: Plan, queries: Embeddings) -> None:
    """Keep what was written before the vectors of queries, and the vectors without it."""
    from safetensors.torch import save_file

    for name in (writings.WRITTEN, "direct.safetensors"):
        (out / name).unlink(missing_ok=True)  # an earlier test's
    if not queries.writings:
        return
    names = [query.item.id for query, _ in plan.queries]
    writings.write_writings(
        out / writings.WRITTEN, ((names[row], one) for row, one in sorted(queries.writings.items()))
    )
    if len(queries.direct) == len(queries.writings):
        rows = sorted(queries.direct)
        stacked = torch.stack([queries.direct[row] for row in rows]).half()
        with replacing_path(out / "direct.safetensors") as path:
            save_file({"vectors": stacked}, path, {"rows": "those of written.jsonl"})


test.__test__ = False  # type: ignore[attr-defined] # pytest would take it for one of its own
