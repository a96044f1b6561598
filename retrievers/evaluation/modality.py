"""Whether a union pool gives what a query asks for: modalities of results, and how first ones fail.

In the union of all pools an instruction also says which modality is wanted. A first result that is
not relevant is the query's own picture (a candidate of another task), of another modality, or a
wrong item of the right one; only the last would fail in a local pool, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from augment.records import Modality, Query
from retrievers.data.plan import Plan
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable


@dataclass(frozen=True)
class ModalityScores:
    """Modalities of a run's results; shares of the judged queries, of 1.

    Attributes:
        at_1: first results of the asked modality.
        at_5: of the first five results of a query those of the asked modality, on average.
        filtered: success@1 with only the asked modality kept.
        own_picture: first results that show the query's own picture and are not relevant.
        wrong_modality: other first results of another modality.
        wrong_item: first results of the asked modality that are not relevant.
        found: asked modality -> modality of the first result -> queries.
    """

    at_1: float
    at_5: float
    filtered: float
    own_picture: float
    wrong_modality: float
    wrong_item: float
    found: Mapping[Modality, Mapping[Modality, int]]


def modality_scores(
    plan: Plan,
    run: RunTable,
    grades: Mapping[str, Mapping[str, int]],
    queries: Sequence[tuple[Query, Modality]],
) -> ModalityScores:
    """Look at what a run found.

    Args:
        plan: holds the candidates.
        run: of one task in the union pool.
        grades: its judgements.
        queries: of the task, each with the modality that it asks for; others do not count.
    """
    judged = Judgements(grades)
    known = set(judged.qids)
    asked = {query.item.id: (query, wanted) for query, wanted in queries if query.item.id in known}
    rows = plan.catalog.find_all(run.ids.to_pylist())
    kinds = np.array([item.modality for item in plan.catalog.items(rows)], object)
    of_query = [asked.get(qid, (None, ""))[1] for qid in run.qids.to_pylist()]
    fits = kinds[run.rows] == np.array(of_query, object)[run.query]
    first = run.cut(1)
    items = list(plan.catalog.items(rows[first.rows]))
    lost = dict.fromkeys(("own_picture", "wrong_modality", "wrong_item"), 0)
    found: dict[Modality, dict[Modality, int]] = {}
    for qid, item in zip(first.qids.take(pa.array(first.query)).to_pylist(), items, strict=True):
        if qid not in asked:
            continue
        query, wanted = asked[qid]
        row = found.setdefault(wanted, {})
        row[item.modality] = row.get(item.modality, 0) + 1
        if grades[qid].get(item.id, 0) <= 0:
            own = bool(set(item.images) & set(query.item.images))
            other = "wrong_item" if item.modality == wanted else "wrong_modality"
            lost["own_picture" if own else other] += 1
    total = max(len(known), 1)
    early = run.rank <= 5
    counts = np.bincount(run.query[early], minlength=len(run))
    shares = np.bincount(run.query[early], fits[early], len(run)) / np.maximum(counts, 1)
    return ModalityScores(
        float(fits[run.rank == 1].sum() / total),
        float(shares.sum() / total),
        score_run(run.where(fits), judged, ["success@1"]).means()["success@1"],
        **{name: count / total for name, count in lost.items()},
        found=found,
    )
