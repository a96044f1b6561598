"""From runs to a table of scores; functions over a :class:`retrievers.data.plan.Plan`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from augment.data import write_qrels
from augment.data.pools import Catalog
from augment.files import aligned, packed, write_text
from augment.records import Modality, Qrel, Query, Run
from retrievers.data.writings import table as written_table
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import STANDARD, score_run
from retrievers.evaluation.protocol import REPORTED, missing_rows, reported_k
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import write_run
from retrievers.evaluation.versions import source_commit, versions

if TYPE_CHECKING:  # it loads torch, which `evaluate` does without
    from retrievers.data.plan import EvalTask, Plan

#: What a run holds and no pool; its modality is not known.
_UNKNOWN = "unknown"
#: Why a first result is not relevant.
_FAILS = ("own picture", "wrong modality", "wrong item")
#: (task name, "local" or "union") -> run.
Runs = Mapping[tuple[str, str], Run | RunTable]


@dataclass(frozen=True)
class ModalityScores:
    """Whether a union pool gives what its queries ask for; shares of the judged queries, of 1.

    There an instruction also says which modality is wanted. A first result that is not relevant is
    the query's own picture (a candidate of another task), of another modality, or a wrong item of
    the right one; only the last would fail in a local pool, too.

    Attributes:
        at_1: first results of the asked modality.
        at_5: of the first five results of a query those of the asked modality, on average.
        success: success@1, all candidates being ranked.
        filtered: success@1 with only the asked modality kept.
        own_picture: first results that show the query's own picture and are not relevant.
        wrong_modality: other first results of another modality.
        wrong_item: first results of the asked modality that are not relevant.
        found: asked modality -> modality of the first result -> queries.
    """

    at_1: float
    at_5: float
    success: float
    filtered: float
    own_picture: float
    wrong_modality: float
    wrong_item: float
    found: Mapping[Modality, Mapping[str, int]]


def modality_scores(
    catalog: Catalog,
    run: RunTable,
    grades: Mapping[str, Mapping[str, int]],
    queries: Sequence[tuple[Query, Modality]],
) -> ModalityScores:
    """Look at what a run found."""
    from retrievers.data.plan import same_file

    judged = Judgements(grades)
    known = set(judged.qids)
    asked = {query.item.id: (query, wanted) for query, wanted in queries if query.item.id in known}
    fits = fitting(catalog, run, {qid: wanted for qid, (_, wanted) in asked.items()})
    first = run.cut(1)
    lost = dict.fromkeys((name.replace(" ", "_") for name in _FAILS), 0)
    found: dict[Modality, dict[str, int]] = {}
    dids = first.ids.take(pa.array(first.rows)).to_pylist()
    qids = first.qids.take(pa.array(first.query)).to_pylist()
    rows = catalog.rows_of(dids)
    items = catalog.items(rows[rows >= 0])
    for qid, did, held in zip(qids, dids, rows >= 0, strict=True):
        item = next(items) if held else None
        if qid not in asked:
            continue
        query, wanted = asked[qid]
        kind = _UNKNOWN if item is None else item.modality
        row = found.setdefault(wanted, {})
        row[kind] = row.get(kind, 0) + 1
        if grades[qid].get(did, 0) <= 0:
            shown = {*map(same_file, item.images)} if item is not None else set()
            own = bool(shown & {*map(same_file, query.item.images)})
            other = "wrong_item" if kind == wanted else "wrong_modality"
            lost["own_picture" if own else other] += 1
    total = max(len(known), 1)
    early = run.rank <= 5
    counts = np.bincount(run.query[early], minlength=len(run))
    shares = np.bincount(run.query[early], fits[early], len(run)) / np.maximum(counts, 1)
    return ModalityScores(
        float(fits[run.rank == 1].sum() / total),
        float(shares.sum() / total),
        score_run(run, judged, ["success@1"]).means()["success@1"],
        score_run(run.where(fits), judged, ["success@1"]).means()["success@1"],
        **{name: count / total for name, count in lost.items()},
        found=found,
    )


def fitting(
    catalog: Catalog, run: RunTable, asked: Mapping[str, Modality]
) -> Bool[np.ndarray, " hits"]:
    """Whether each hit of a run is of the modality that its query asks for."""
    rows = catalog.rows_of(run.ids.to_pylist())
    kinds = np.full(len(rows), _UNKNOWN, object)
    kinds[rows >= 0] = [item.modality for item in catalog.items(rows[rows >= 0])]
    wanted = np.array([asked.get(qid, "") for qid in run.qids.to_pylist()], object)
    return np.asarray(kinds[run.rows] == wanted[run.query], bool)


def modality_table(rows: Mapping[str, ModalityScores]) -> str:
    """Results of the asked modality by row, and how first ones fail, in per cent."""
    head = ["union pool", "asked@1", "asked@5", "success@1", "asked only", *_FAILS]
    lines = []
    pairs: Counter[tuple[str, str]] = Counter()
    for name, seen in rows.items():
        shares = [seen.at_1, seen.at_5, seen.success, seen.filtered]
        shares += [getattr(seen, fail.replace(" ", "_")) for fail in _FAILS]
        lines.append([name, *(f"{100 * share:.1f}" for share in shares)])
        for wanted, counts in seen.found.items():
            pairs.update({(wanted, kind): count for kind, count in counts.items()})
    kinds = sorted({kind for pair in pairs for kind in pair})
    confusion = [[wanted, *(str(pairs[wanted, kind]) for kind in kinds)] for wanted in kinds]
    told = [aligned([head, *lines]), aligned([["asked, then found first", *kinds], *confusion])]
    return "\n\n".join(told) if rows else ""


@dataclass(frozen=True)
class Row:
    """Scores of one data set, task and pool.

    Attributes:
        dataset: name.
        task: M-BEIR code 0 to 8.
        pool: local or union.
        queries: judged queries; those that could not be embedded count 0.
        candidates: searched ones.
        dangling: relevant (query, candidate) pairs whose candidate is not in the pool. They stay
            in recall's denominator, as in UniIR.
        dropped: relevant pairs removed by the policy for positives.
        left_out: queries that lost their last positive by it; they do not count.
        failed_queries: left without a vector.
        failed_candidates: of this pool, left without a vector and so out of the search.
        degraded: queries and candidates embedded from text alone, their picture being unreadable.
        metrics: success@k, recall@k (true), mrr@10, ndcg@10, map@10, and ``mbeir``, the number
            that M-BEIR reports for the data set (success@5 or @10); shares of 1.
        modality: of union pools, what was found of the modality that was asked for.
    """

    dataset: str
    task: int | None
    pool: str
    queries: int
    candidates: int
    dangling: int
    failed_queries: int
    failed_candidates: int
    degraded: int
    metrics: Mapping[str, float]
    dropped: int = 0
    left_out: int = 0
    modality: ModalityScores | None = None


@dataclass
class Results:
    """What a test measured.

    Attributes:
        rows: per data set, task and pool.
        made_by: fingerprint of weights and text.
        settings: of model and data.
        versions: of the libraries that matter.
        commit: of the source that ran, with ``-dirty`` if files had changed; None outside git.
        cost: seconds of each stage, items embedded and items per second; of candidates that write
            before their vectors, tokens of each on average.
        recall: of an approximate index against exact search, by pool; empty for an exact one.
        writing: of a model that wrote before the vectors of queries, by task name, what
            :func:`retrievers.data.writings.spent` tells.
        runs: (task name, "local" or "union") -> run; not in the JSON.
    """

    rows: list[Row]
    made_by: str
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = field(default_factory=source_commit)
    cost: dict[str, float] = field(default_factory=dict)
    recall: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    writing: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: Runs = field(default_factory=dict, repr=False)

    @property
    def mean(self) -> dict[str, dict[str, float]]:
        """Pool -> metric -> plain mean over rows, as in M-BEIR's tables."""
        means = {}
        for pool in dict.fromkeys(row.pool for row in self.rows):
            own = [row.metrics for row in self.rows if row.pool == pool]
            means[pool] = {name: fmean(metrics[name] for metrics in own) for name in own[0]}
        return means

    def table(self) -> str:
        """A plain table with the mean of each pool; scores in per cent."""
        names = (REPORTED, "success@1", "success@5", "success@10", "recall@5", "mrr@10")
        head = ["dataset", "task", "pool", "queries", "pool size", *names]
        lines = [
            [row.dataset, str(row.task), row.pool, str(row.queries), str(row.candidates)]
            + [f"{100 * row.metrics[name]:.1f}" for name in names]
            for row in self.rows
        ]
        for pool, mean in self.mean.items():
            lines.append(["mean", "", pool, "", "", *(f"{100 * mean[name]:.1f}" for name in names)])
        return aligned([head, *lines], 3)

    def notes(self) -> str:
        """Modalities, and one line for every kind of loss behind the numbers; empty if none."""
        kinds = {
            "queries without a vector (they count 0)": [r.failed_queries for r in self.rows],
            "candidates without a vector (left out)": [r.failed_candidates for r in self.rows],
            "items embedded without their unreadable picture": [r.degraded for r in self.rows],
            "relevant candidates that are not in the pool": [r.dangling for r in self.rows],
            "relevant candidates dropped by data.test.positives": [r.dropped for r in self.rows],
            "queries left out with them": [r.left_out for r in self.rows],
        }
        cut = (self.settings.get("data") or {}).get("cut_text") or {}
        lacking = missing_rows({(row.dataset, row.task) for row in self.rows})
        partial = f"the mean lacks {', '.join(lacking)} of M-BEIR's 16 rows\n" if lacking else ""
        beyond = f"{cut['line']}\n" if cut.get("line") else ""
        bare = dict.fromkeys(f"{r.dataset} task {r.task}" for r in self.rows if not r.queries)
        if bare:
            beyond += f"no judged queries, searched and not scored: {', '.join(bare)}\n"
        modality = modality_table(
            {f"{r.dataset} task {r.task}": r.modality for r in self.rows if r.modality is not None}
        )
        return (
            (f"\n{modality}\n\n" if modality else "")
            + (f"\n{aligned(written_table(self.writing))}\n\n" if self.writing else "")
            + partial
            + beyond
            + "".join(
                f"{name}: {sum(counts)} over all rows, per row in metrics.json\n"
                for name, counts in kinds.items()
                if sum(counts)
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the runs, JSON-serialisable."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "runs"}
        return {**told, "rows": [asdict(row) for row in self.rows], "mean": self.mean}

    def __str__(self) -> str:
        return f"{self.table()}\n{self.notes()}".rstrip()


class Lost(NamedTuple):
    """Rows of one side that have no vector, or one made without their unreadable picture."""

    failed: Sequence[int]
    degraded: Sequence[int]


def score(plan: Plan, runs: Runs, candidates: Lost, queries: Lost, made_by: str) -> Results:
    """Metrics of every run, tasks in the order of the plan, local before union."""
    rows = []
    for task, span in spans(plan):
        for pool in ("local", "union"):
            if (task.name, pool) not in runs:
                continue
            members = plan.pools[task.union if pool == "union" else task.pool]
            rows.append(_row(plan, task, span, pool, members, runs, candidates, queries))
    return Results(rows, made_by, versions=versions(), runs=runs)


def _row(
    plan: Plan,
    task: EvalTask,
    span: range,
    pool: str,
    members: Any,
    runs: Runs,
    candidates: Lost,
    queries: Lost,
) -> Row:
    inside = np.zeros(len(plan), dtype=bool)
    inside[members] = True
    relevant = [d for judged in task.grades.values() for d, g in judged.items() if g > 0]
    at = plan.catalog.rows_of(relevant)
    run = runs[task.name, pool]
    table = run if isinstance(run, RunTable) else RunTable.from_run(run)
    metrics = score_run(table, task.grades, STANDARD).means()
    asked = plan.queries[span.start : span.stop] if pool == "union" else []
    reported = metrics[f"success@{reported_k(task.dataset)}"]
    failed, degraded = (
        int(inside[np.array(rows, dtype=np.int64)].sum())
        for rows in (candidates.failed, candidates.degraded)
    )
    return Row(
        dataset=task.dataset,
        task=task.task,
        pool=pool,
        queries=sum(any(grade > 0 for grade in own.values()) for own in task.grades.values()),
        candidates=int(inside.sum()) - failed,
        dangling=len(relevant) - int(inside[at[at >= 0]].sum()),
        failed_queries=sum(row in span for row in queries.failed),
        failed_candidates=failed,
        degraded=degraded + sum(row in span for row in queries.degraded),
        metrics={REPORTED: reported, **metrics},
        dropped=task.dropped,
        left_out=task.left_out,
        modality=modality_scores(plan.catalog, table, task.grades, asked) if asked else None,
    )


def spans(plan: Plan) -> list[tuple[EvalTask, range]]:
    """Each task with the rows of its queries."""
    found, start = [], 0
    for task in plan.tasks:
        found.append((task, range(start, start + len(task.queries))))
        start += len(task.queries)
    return found


def forget_runs(folder: Path, tasks: Iterable[str], made: Container[str]) -> None:
    """Remove what an earlier command left of these tasks, in a pool that was not searched now."""
    for name in (f"{task}.{pool}.trec" for task in tasks for pool in ("local", "union")):
        if name not in made:
            packed(folder / name).unlink(missing_ok=True)


def write_results(folder: Path, plan: Plan, results: Results) -> None:
    """Write ``<task>.<pool>.trec``, ``<task>.qrels`` (four columns) and, last, ``metrics.json``."""
    for (name, pool), run in results.runs.items():
        write_run(folder / f"{name}.{pool}.trec", run, results.made_by)
    made = {f"{name}.{pool}.trec" for name, pool in results.runs}
    forget_runs(folder, (task.name for task in plan.tasks), made)
    for task in plan.tasks:
        qrels = [Qrel(q, d, g) for q, judged in task.grades.items() for d, g in judged.items()]
        write_qrels(folder / f"{task.name}.qrels", qrels, columns=4)
    text = json.dumps(results.to_json(), indent=1, default=str) + "\n"
    write_text(folder / "metrics.json", text)
