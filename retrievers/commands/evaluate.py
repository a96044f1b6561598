"""``python -m retrievers evaluate RUN``: score run files, whoever wrote them."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from augment.data import DataRoot, grades_of, read_qrels
from augment.data.pools import open_candidates
from augment.errors import DataError
from augment.files import replacing
from retrievers.evaluation.compare import check_queries, tasks_of
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import Measure, QueryScores, score_run, standard_measures
from retrievers.evaluation.protocol import REPORTED, missing_rows, reported_k, row_order
from retrievers.evaluation.run import RunTable, check_candidates, check_depth
from retrievers.evaluation.run_files import read_table
from retrievers.evaluation.versions import source_commit, versions

#: UniIR's names of run files.
_UNIIR = re.compile(r"mbeir_(.+?)_task([0-8])_(single|union)_pool_(\w+?)_k\d+_run\.txt")


class _Source(NamedTuple):
    """One run file with its judgements; ``task`` is None where the name does not tell."""

    dataset: str
    task: int | None
    pool: str
    run: Path
    qrels: Path


class _Rules(NamedTuple):
    """What is asked of every run."""

    level: int
    short: bool
    extra: bool
    candidates: Path | None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retrievers evaluate",
        description="Metrics of TREC run files (UniIR's with seven columns and Pyserini's too). A "
        "judged query that a run lacks counts 0. M-BEIR's number is success@5, or success@10 on "
        "Fashion200K and FashionIQ, and the plain mean of the rows.",
    )
    parser.add_argument(
        "run", type=Path, help="run file, or folder of `test`, or UniIR's run_files"
    )
    parser.add_argument("--qrels", type=Path, help="judgements, for a run file")
    parser.add_argument("--root", type=Path, help="data root with qrels, for UniIR's run_files")
    parser.add_argument("--candidates", type=Path, help="pool file: refuse hits from elsewhere")
    parser.add_argument(
        "--metrics", nargs="+", default=None, help="success@5 recall@10 ndcg@10 ..."
    )
    parser.add_argument("--level", type=int, default=1, help="least grade that is relevant")
    parser.add_argument(
        "--short", action="store_true", help="the run may be shorter than a metric's cut-off"
    )
    parser.add_argument(
        "--extra", action="store_true", help="the run may hold queries that are not judged"
    )
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = vars(_parser().parse_args(list(arguments)))
    out: Path | None = args.pop("out")
    told = evaluate(**args)
    sys.stdout.write(_table(told["rows"]))
    if out is not None:
        with replacing(out, DataError) as stream:
            stream.write(json.dumps(told, indent=1) + "\n")


def evaluate(
    run: Path,
    qrels: Path | None = None,
    root: Path | None = None,
    candidates: Path | None = None,
    metrics: Sequence[str] | None = None,
    level: int = 1,
    short: bool = False,
    extra: bool = False,
) -> dict[str, Any]:
    """Score run files, whoever wrote them; a judged query that a run lacks counts 0.

    Args:
        run: a TREC run file, a folder that ``test`` wrote, or UniIR's run_files.
        qrels: judgements, for a run file.
        root: data root with qrels, for UniIR's run_files.
        candidates: pool file: refuse hits from elsewhere.
        metrics: such as success@5, recall@10, ndcg@10; None takes M-BEIR's.
        level: least grade that is relevant.
        short: the run may be shorter than a metric's cut-off.
        extra: the run may hold queries that are not judged.

    Returns:
        ``rows`` with ``metrics`` as shares of 1, their ``mean`` by pool, settings, versions, cost.

    Raises:
        DataError: if a file is missing or malformed, or run and judgements do not go together.
        ValueError: if there is no such metric.
    """
    started = time.monotonic()
    measures = list(metrics or standard_measures())
    for measure in measures:
        Measure.parse(measure)
    rules = _Rules(level, short, extra, candidates)
    rows = [_row(source, measures, rules) for source in _sources(run, qrels, root)]
    rows.sort(key=lambda row: (*row_order(row["dataset"], row["task"]), row["pool"]))
    return {
        "rows": rows,
        "mean": {pool: _mean(rows, pool) for pool in dict.fromkeys(r["pool"] for r in rows)},
        "settings": {"level": level, "metrics": measures},
        "commit": source_commit(),
        "versions": versions(),
        "cost": {"seconds": round(time.monotonic() - started, 3)},
    }


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
    pools = [pool for pool in ("local", "union") if list(run.glob(f"*.{pool}.trec"))]
    for pool in pools or ["local"]:
        for name in tasks_of(run, pool):
            dataset, _, code = name.rpartition("_task")
            task = int(code) if code.isdigit() else None
            file, judged = run / f"{name}.{pool}.trec", run / f"{name}.qrels"
            yield _Source(dataset or name, task, pool, file, judged)


def _row(source: _Source, measures: Sequence[str], rules: _Rules) -> dict[str, Any]:
    table = read_table(source.run, empty=source.pool != "-")
    grades = grades_of(read_qrels(source.qrels))
    unjudged = check_queries(table, grades, str(source.run), str(source.qrels))
    if unjudged and not rules.extra:
        raise DataError(
            f"{len(unjudged)} of {len(table)} queries are not judged in {source.qrels}, the first "
            f"is {unjudged[0]}: two data sets in one run? split it, or pass --extra to leave "
            "these queries out",
            str(source.run),
        )
    pool = None
    if rules.candidates is not None:
        ids = open_candidates(rules.candidates).ids.combine_chunks()
        check_candidates(table, ids, str(rules.candidates))
        pool = len(ids)
    if not rules.short and source.pool == "-":
        _check_depths(table, measures, pool, source.run)
    judged = Judgements(grades, rules.level)
    wanted = [*measures]
    reported = f"success@{reported_k(source.dataset)}"
    scores = score_run(table, judged, dict.fromkeys([*wanted, reported]))
    means = scores.means()
    shown = {name: means[name] for name in wanted}
    means = shown if source.task is None else {REPORTED: means[reported], **shown}
    return _record(source, table, scores, means)


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
        "sha256": hashlib.sha256(source.run.read_bytes()).hexdigest(),
        "metrics": means,
    }


def _mean(rows: Sequence[dict[str, Any]], pool: str) -> dict[str, float]:
    own = [row["metrics"] for row in rows if row["pool"] == pool]
    shared = [name for name in own[0] if all(name in metrics for metrics in own)]
    return {name: sum(metrics[name] for metrics in own) / len(own) for name in shared}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0]["metrics"])
    lines = [
        "| run | pool | queries | missing | " + " | ".join(names) + " |",
        "|---|---|--:|--:|" + "--:|" * len(names),
    ]
    for row in rows:
        title = row["dataset"] if row["task"] is None else f"{row['dataset']} task {row['task']}"
        cells = [f"{100 * row['metrics'].get(name, 0):.2f}" for name in names]
        lines.append(
            f"| {title} | {row['pool']} | {row['queries']} | {row['missing']} | "
            + " | ".join(cells)
            + " |"
        )
    for pool in dict.fromkeys(row["pool"] for row in rows):
        count = sum(row["pool"] == pool for row in rows)
        if count > 1:
            cells = [f"{100 * value:.2f}" for value in _mean(rows, pool).values()]
            lines.append(f"| mean of {count} | {pool} | | | " + " | ".join(cells) + " |")
    lacking = missing_rows({(row["dataset"], row["task"]) for row in rows})
    if lacking:
        lines += ["", f"The mean lacks {', '.join(lacking)} of M-BEIR's 16 rows."]
    return "\n".join(lines) + "\n"
