"""Run files scored, whoever wrote them."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from augment.data import DataRoot, grades_of, read_qrels
from augment.data.pools import Catalog, open_candidates, open_queries
from augment.data.root import read_lists
from augment.errors import DataError
from augment.files import markdown, read_json, sha256, write_json
from augment.records import OwnPicture, Query
from retrievers.evaluation.compare import check_queries, files_of, has_runs, tasks_of
from retrievers.evaluation.judgements import Grades, Judgements
from retrievers.evaluation.metrics import STANDARD, Measure, QueryScores, score_run
from retrievers.evaluation.protocol import REPORTED, missing_rows, reported_k, row_order
from retrievers.evaluation.results import ModalityScores, modality_scores, modality_table
from retrievers.evaluation.run import RunTable, check_candidates, check_depth
from retrievers.evaluation.run_files import read_table
from retrievers.evaluation.versions import source_commit, versions

#: UniIR's names of run files.
_UNIIR = re.compile(
    r"mbeir_(.+?)_task([0-8])_(single|union)_pool_(\w+?)_k\d+_run\.txt(?:\.gz|\.zst)?"
)
#: What a cascade leaves beside its runs; ``runs`` has what their first stage found.
CASCADE = "cascade.json"
#: CIRR reports its subset recall at these.
_SUBSET_KS = (1, 2, 3)


class _Source(NamedTuple):
    """One run file with its judgements; ``task`` is None where the name does not tell."""

    dataset: str
    task: int | None
    pool: str
    run: Path
    qrels: Path


class _Root(NamedTuple):
    """What a root knows of the queries of a split, and all its candidates."""

    queries: Sequence[Query]
    catalog: Catalog


class _Asked(NamedTuple):
    """What every run file is scored with; see :func:`evaluate`."""

    metrics: Sequence[str]
    level: int
    candidates: Path | None
    short: bool
    extra: bool
    left_out: Mapping[str, Sequence[str]]
    lists: Mapping[str, Sequence[str]] | None
    root: _Root | None


@dataclass(frozen=True)
class Evaluated:
    """Scores of run files.

    Attributes:
        rows: of each file its data set, task, pool, counts, SHA-256 and ``metrics``, shares of 1;
            ``modality`` (:class:`~retrievers.evaluation.results.ModalityScores`) where a root says
            what the candidates are, and the pool is not local.
        mean: pool -> metric -> plain mean over its rows.
        settings: what was asked for.
        commit: of the source that ran; None outside git.
        versions: of the libraries that matter.
        cost: seconds.
    """

    rows: Sequence[dict[str, Any]]
    mean: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any]
    commit: str | None
    versions: Mapping[str, str]
    cost: Mapping[str, float]

    def table(self) -> str:
        """Markdown with the mean of each pool, scores in per cent; of a cascade with its cap."""
        names = list(self.rows[0]["metrics"])
        lines: list[list[object]] = []
        capped = any("cap" in row for row in self.rows)
        for row in self.rows:
            shown = [f"{100 * row['metrics'].get(name, 0):.2f}" for name in names]
            if capped:
                shown.insert(0, _cap_told(row.get("cap")))
            lines.append([_title(row), row["pool"], row["queries"], row["missing"], *shown])
        for pool, mean in self.mean.items():
            count = sum(row["pool"] == pool for row in self.rows)
            if count > 1:
                shown = [f"{100 * value:.2f}" for value in mean.values()]
                lines.append([f"mean of {count}", pool, *[""] * (2 + capped), *shown])
        cap = ["first stage's recall@n"] * capped
        told = markdown(["run", "pool", "queries", "missing", *cap, *names], lines, 2)
        lacking = missing_rows({(row["dataset"], row["task"]) for row in self.rows})
        if lacking:
            told += f"\n\nThe mean lacks {', '.join(lacking)} of M-BEIR's 16 rows."
        seen = modality_table(self.modalities)
        return f"{told}\n\n{seen}" if seen else told

    def __str__(self) -> str:
        return self.table()

    @property
    def modalities(self) -> dict[str, ModalityScores]:
        """Name of a row -> what it found of the modality that was asked for."""
        return {_title(row): row["modality"] for row in self.rows if row["modality"] is not None}


def evaluate(
    run: Path,
    qrels: Path | None = None,
    *,
    root: Path | None = None,
    candidates: Path | None = None,
    metrics: Sequence[str] = (),
    level: int = 1,
    short: bool = False,
    extra: bool = False,
    own_picture: OwnPicture = "keep",
    split: str = "test",
    subsets: Path | None = None,
    out: Path | None = None,
) -> Evaluated:
    """Score TREC run files (UniIR's with seven columns and Pyserini's too).

    A judged query that a run lacks counts 0. M-BEIR's number is success@5, or success@10 on
    Fashion200K and FashionIQ, and the plain mean of the rows.

    Args:
        run: a run file, a folder that ``test`` wrote, or UniIR's ``run_files``.
        qrels: judgements, for a run file.
        root: data root: qrels of UniIR's run files, and the modalities of candidates.
        candidates: pool file; hits from elsewhere are refused.
        metrics: success@k, recall@k, precision@k, mrr, ndcg@k, map@k, ...; none: the standard ones.
        level: the least grade that is relevant.
        short: whether the run may be shorter than a metric's cut-off.
        extra: whether the run may hold queries that are not judged.
        own_picture: file or content leaves candidates that show the query's own picture out of the
            ranking, by path or by bytes (CIRR, CIRCO); M-BEIR keeps them; needs the root.
        split: of the queries whose pictures are meant.
        subsets: JSON file, query id -> ids of its own candidates; adds ``subset_success@k``, the
            success among these alone: CIRR's R_subset@k (2108.04024, section 5.1).
        out: JSON file to write everything to.

    Raises:
        ValueError: if a metric is unknown.
        DataError: if files are missing, malformed, or of different data.
    """
    started = time.monotonic()
    measures = list(metrics or STANDARD)
    for measure in measures:
        Measure.parse(measure)
    about = None if root is None else _opened(DataRoot(root), split)
    left_out = _own(root, about, own_picture, split)
    lists = None if subsets is None else read_lists(subsets)
    asked = _Asked(measures, level, candidates, short, extra, left_out, lists, about)
    rows = [_row(source, asked) for source in _sources(run, qrels, root)]
    rows.sort(key=lambda row: (*row_order(row["dataset"], row["task"]), row["pool"]))
    found = Evaluated(
        rows,
        {pool: _mean(rows, pool) for pool in dict.fromkeys(row["pool"] for row in rows)},
        {"level": level, "metrics": measures, "own_picture": own_picture, "subsets": subsets},
        source_commit(),
        versions(),
        {"seconds": round(time.monotonic() - started, 3)},
    )
    if out is not None:
        write_json(out, asdict(found), DataError)
    return found


def _sources(run: Path, qrels: Path | None, root: Path | None) -> Iterator[_Source]:
    if not run.is_dir():
        if qrels is None:
            raise DataError("a run file needs --qrels", str(run))
        yield _Source(run.stem, None, "-", run, qrels)
        return
    uniir = [(path, _UNIIR.fullmatch(path.name)) for path in sorted(run.iterdir())]
    found = [(path, match) for path, match in uniir if match]
    if found:
        if root is None:
            raise DataError("UniIR's run files need --root, where the qrels are", str(run))
        for path, match in found:
            dataset, task, pool, split = match.groups()
            judged = DataRoot(root).qrels_file(dataset, int(task), split)
            name = "local" if pool == "single" else "union"
            yield _Source(dataset, int(task), name, path, judged)
        return
    pools = [pool for pool in ("local", "union") if has_runs(run, pool)]
    for pool in pools or ["local"]:
        for name in tasks_of(run, pool):
            dataset, _, code = name.rpartition("_task")
            task = int(code) if code.isdigit() else None
            yield _Source(dataset or name, task, pool, *files_of(run, name, pool))


def _opened(data: DataRoot, split: str) -> _Root:
    queries = [query for file in data.query_files(split) for query in open_queries(file.path)]
    catalog = Catalog()
    for file in [*data.pools(), *data.union_pools()]:
        catalog.add(file.path, check=False)
    return _Root(queries, catalog)


def _own(
    root: Path | None, about: _Root | None, by: OwnPicture, split: str
) -> Mapping[str, Sequence[str]]:
    """Candidates that are left out by the root's protocol, or show each query's own picture."""
    listed = {} if root is None else DataRoot(root).excluded(split)
    if by == "keep":
        return listed
    from retrievers.data.plan import own_pictures  # it loads torch

    if root is None or about is None:
        raise DataError("--own-picture needs --root, where the queries and pools are")
    dids = own_pictures(about.catalog, about.queries, root, by)
    shown = zip((query.item.id for query in about.queries), dids, strict=True)
    return {qid: [*own, *listed.get(qid, ())] for qid, own in shown}


def _seen(source: _Source, table: RunTable, grades: Grades, about: _Root) -> ModalityScores | None:
    """What a run found of the modality asked for; None in local pools, or if nothing is known."""
    from retrievers.data.datasets import target_modality  # it loads torch

    own = []
    for query in about.queries:
        here = source.task is None or query.task in (None, source.task)
        with suppress(DataError):  # where nothing says what is asked for
            if here and query.item.id in grades:
                own.append((query, target_modality(query, about.catalog.find)))
    if source.pool == "local" or not own or not len(about.catalog):
        return None
    return modality_scores(about.catalog, table, grades, own)


def _row(source: _Source, asked: _Asked) -> dict[str, Any]:
    table = read_table(source.run, empty=source.pool != "-")
    grades = grades_of(read_qrels(source.qrels))
    unjudged = check_queries(table, grades, str(source.run), str(source.qrels))
    if unjudged and not asked.extra:
        raise DataError(
            f"{len(unjudged)} of {len(table)} queries are not judged in {source.qrels}, the first "
            f"is {unjudged[0]}: two data sets in one run? split it, or pass --extra to leave "
            "these queries out",
            str(source.run),
        )
    pool = None
    if asked.candidates is not None:
        ids = open_candidates(asked.candidates).ids.combine_chunks()
        check_candidates(table, ids, str(asked.candidates))
        pool = len(ids)
    if not asked.short and source.pool == "-":
        _check_depths(table, asked.metrics, pool, source.run)
    if asked.left_out:
        relevant = {(qid, did) for qid, own in grades.items() for did, g in own.items() if g > 0}
        hidden = {qid: [did for did in own if (qid, did) not in relevant]
                  for qid, own in asked.left_out.items()}  # fmt: skip
        table = table.without(hidden)
    wanted = [*asked.metrics]
    reported = f"success@{reported_k(source.dataset)}"
    judged = Judgements(grades, asked.level)
    scores = score_run(table, judged, dict.fromkeys([*wanted, reported]))
    means = scores.means()
    shown = {name: means[name] for name in wanted}
    means = shown if source.task is None else {REPORTED: means[reported], **shown}
    if asked.lists is not None:
        means |= _subset_scores(table, judged, asked.lists, asked.short, str(source.run))
    record = _record(source, table, scores, means)
    record["modality"] = None if asked.root is None else _seen(source, table, grades, asked.root)
    cascade, fused = map(source.run.with_name, (CASCADE, "fusion.json"))
    # A fused run goes on behind what was reranked: the recall of that is not its cap.
    told = read_json(cascade) if cascade.is_file() and not fused.is_file() else {}
    if cap := told.get("runs", {}).get(source.run.name):
        record["cap"] = cap
    return record


def _cap_told(cap: Mapping[str, Any] | None) -> str:
    if cap is None:
        return "-"
    depth = cap["depth"]
    return f"{100 * cap[f'recall@{depth}']:.2f} @{depth}"


def _subset_scores(
    table: RunTable,
    judged: Judgements,
    lists: Mapping[str, Collection[str]],
    short: bool,
    where: str,
) -> dict[str, float]:
    """Success among each query's own candidates.

    Candidates that a run lacks rank behind those that it holds, so that nothing is lost as long as
    it holds a relevant one.
    """
    lacking = [qid for qid in judged.qids if qid not in lists]
    if lacking:
        raise DataError(
            f"has no list of candidates in the file of --subsets ({len(lacking)} such)",
            f"query {lacking[0]}",
        )
    own = table.only(lists)
    scores = score_run(own, judged, [f"success@{k}" for k in (*_SUBSET_KS, max(own.depth, 1))])
    unfound = int((scores.values[f"success@{max(own.depth, 1)}"] == 0).sum())
    if unfound and not short:
        raise DataError(
            f"of {unfound} queries it holds no relevant candidate of their lists; search as deep "
            "as the pool, or pass --short to count these 0",
            where,
        )
    means = scores.means()
    return {f"subset_success@{k}": means[f"success@{k}"] for k in _SUBSET_KS}


def _check_depths(table: RunTable, measures: Sequence[str], pool: int | None, path: Path) -> None:
    deepest = max((Measure.parse(measure).k or 1 for measure in measures), default=1)
    try:
        check_depth(table, deepest, pool)
    except DataError as error:
        raise DataError(f"{error}; --short if the pool is that small", str(path)) from error


def _record(
    source: _Source, table: RunTable, scores: QueryScores, means: dict[str, float]
) -> dict[str, Any]:
    return {
        "dataset": source.dataset,
        "task": source.task,
        "pool": source.pool,
        "queries": len(scores.qids),
        "missing": len(scores.missing),
        "unjudged": len(scores.unjudged),
        "hits": len(table.rows),
        "candidates_found": pc.count_distinct(table.ids).as_py(),
        "run": str(source.run),
        "sha256": sha256(source.run),
        "metrics": means,
    }


def _title(row: Mapping[str, Any]) -> str:
    return row["dataset"] if row["task"] is None else f"{row['dataset']} task {row['task']}"


def _mean(rows: Sequence[dict[str, Any]], pool: str) -> dict[str, float]:
    own = [row["metrics"] for row in rows if row["pool"] == pool]
    shared = [name for name in own[0] if all(name in metrics for metrics in own)]
    return {name: sum(metrics[name] for metrics in own) / len(own) for name in shared}
