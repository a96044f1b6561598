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
    args = _parser().parse_args(list(arguments))
    started = time.monotonic()
    measures = args.metrics or standard_measures()
    for measure in measures:
        Measure.parse(measure)
    rows = [_row(source, measures, args) for source in _sources(args)]
    rows.sort(key=lambda row: (*row_order(row["dataset"], row["task"]), row["pool"]))
    sys.stdout.write(_table(rows))
    if args.out is not None:
        record = {
            "rows": rows,
            "mean": {pool: _mean(rows, pool) for pool in dict.fromkeys(r["pool"] for r in rows)},
            "settings": {"level": args.level, "metrics": measures},
            "commit": source_commit(),
            "versions": versions(),
            "cost": {"seconds": round(time.monotonic() - started, 3)},
        }
        with replacing(args.out, DataError) as stream:
            stream.write(json.dumps(record, indent=1) + "\n")


def _sources(args: argparse.Namespace) -> Iterator[_Source]:
    if not args.run.is_dir():
        if args.qrels is None:
            raise DataError("a run file needs --qrels", str(args.run))
        yield _Source(args.run.stem, None, "-", args.run, args.qrels)
        return
    uniir = [(path, _UNIIR.fullmatch(path.name)) for path in sorted(args.run.iterdir())]
    found = [(path, match) for path, match in uniir if match]
    if found:
        if args.root is None:
            raise DataError("UniIR's run files need --root, where the qrels are", str(args.run))
        for path, match in found:
            dataset, task, pool, split = match.groups()
            qrels = DataRoot(args.root).qrels_file(dataset, int(task), split)
            name = "local" if pool == "single" else "union"
            yield _Source(dataset, int(task), name, path, qrels)
        return
    pools = [pool for pool in ("local", "union") if list(args.run.glob(f"*.{pool}.trec"))]
    for pool in pools or ["local"]:
        for name in tasks_of(args.run, pool):
            dataset, _, code = name.rpartition("_task")
            task = int(code) if code.isdigit() else None
            run, qrels = args.run / f"{name}.{pool}.trec", args.run / f"{name}.qrels"
            yield _Source(dataset or name, task, pool, run, qrels)


def _row(source: _Source, measures: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    table = read_table(source.run, empty=source.pool != "-")
    grades = grades_of(read_qrels(source.qrels))
    unjudged = check_queries(table, grades, str(source.run), str(source.qrels))
    if unjudged and not args.extra:
        raise DataError(
            f"{len(unjudged)} of {len(table)} queries are not judged in {source.qrels}, the first "
            f"is {unjudged[0]}: two data sets in one run? split it, or pass --extra to leave "
            "these queries out",
            str(source.run),
        )
    pool = None
    if args.candidates is not None:
        ids = open_candidates(args.candidates).ids.combine_chunks()
        check_candidates(table, ids, str(args.candidates))
        pool = len(ids)
    if not args.short and source.pool == "-":
        _check_depths(table, measures, pool, source.run)
    judged = Judgements(grades, args.level)
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
