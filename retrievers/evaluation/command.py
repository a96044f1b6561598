"""``python -m retrievers evaluate | compare | fuse``: run files on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.errors import DataError, printable
from augment.files import say, write_json
from augment.records import Query
from retrievers.evaluation.compare import Comparison, compare
from retrievers.evaluation.evaluate import evaluate
from retrievers.evaluation.fusion import fuse
from retrievers.evaluation.results import modality_table
from retrievers.evaluation.versions import source_commit, versions


def run_evaluate(arguments: Sequence[str]) -> None:
    """Score run files, whoever wrote them."""
    args = vars(_evaluate_parser().parse_args(list(arguments)))
    out = args.pop("out")
    found = evaluate(args.pop("run"), args.pop("qrels"), **args)
    say(found.table())
    if out is not None:
        write_json(out, found.to_json(), DataError)


def run_fuse(arguments: Sequence[str]) -> None:
    """Make one run out of several, and score it."""
    args = vars(_fuse_parser().parse_args(list(arguments)))
    runs, out = args.pop("runs"), args.pop("out")
    tuned = fuse(runs, out, **args)
    if tuned:
        alone = ", ".join(f"{100 * score:.1f}" for score in tuned.alone)
        say(
            f"weights {' '.join(map(str, tuned.weights))}: {tuned.metric} "
            f"{100 * tuned.score:.1f} on {tuned.queries} dev queries (alone: {alone})\n"
        )
    run_evaluate([str(out), "--out", str(out / "metrics.json")])


def run_compare(arguments: Sequence[str]) -> None:
    """Is the second run better than the first?"""
    args = _compare_parser().parse_args(list(arguments))
    a, b = args.names or (args.first.stem, args.second.stem)
    if a == b:
        a, b = f"{args.first.parent.name}/{a}", f"{args.second.parent.name}/{b}"
    queries = list(_queries(args.root, args.split)) if args.root else []
    result = compare(
        args.first, args.second, metric=args.metric, pool=args.pool, names=(a, b),
        seed=args.seed, queries=queries, qrels=args.qrels,
    )  # fmt: skip
    say(_told(result, queries, args.examples))
    seen = {}
    if args.root is not None:
        for name, run in zip((a, b), (args.first, args.second), strict=True):
            found = evaluate(
                run, args.qrels, root=args.root, metrics=["success@1"], short=True, extra=True,
                split=args.split,
            ).modalities  # fmt: skip
            seen[name] = {title: asdict(row) for title, row in found.items()}
            say(f"\n{name}\n{modality_table(found)}\n" if found else "")
    if args.out is not None:
        record = {**result.to_json(), "modality": seen, "commit": source_commit()}
        record["versions"] = versions()
        write_json(args.out, record, DataError)


def _queries(root: Path, split: str) -> Iterator[Query]:
    for file in DataRoot(root).query_files(split):
        yield from open_queries(file.path)


def _told(result: Comparison, queries: Sequence[Query], examples: int) -> str:
    parts = [result.table(), result.slice_table(), result.note()]
    texts = {query.item.id: query.item.text or "(picture)" for query in queries}
    wins = [change for change in result.changes if change.second > change.first][:examples]
    losses = [change for change in result.changes if change.second < change.first][::-1][:examples]
    for title, changes in (("wins", wins), ("losses", losses)):
        if changes:
            lines = [
                printable(
                    f"- {change.task}, {change.qid}: {change.first:.3f} → {change.second:.3f} "
                    f"{texts.get(change.qid, '')}".rstrip()
                )
                for change in changes
            ]
            parts.append("\n".join([f"{title} of {result.names[1]}:", *lines]))
    return "\n\n".join(part for part in parts if part)


def _evaluate_parser() -> argparse.ArgumentParser:
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
    parser.add_argument(
        "--root", type=Path, help="data root: shows modalities; for UniIR's run_files"
    )
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
    parser.add_argument(
        "--own-picture",
        choices=("keep", "file", "content"),
        default="keep",
        help="leave candidates that show the query's own picture out, by path or by bytes (CIRR, "
        "CIRCO); M-BEIR keeps them; needs --root",
    )
    parser.add_argument("--split", default="test", help="of the queries in --root")
    parser.add_argument(
        "--subsets",
        type=Path,
        metavar="FILE",
        help="JSON, query id -> ids of its own candidates: adds CIRR's R_subset@1, 2 and 3",
    )
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retrievers compare",
        description="Paired comparison of two runs: a row a task with a bootstrap interval and a "
        "randomisation test (Holm-corrected), the plain mean of the tasks, slices of the queries.",
    )
    parser.add_argument(
        "first", type=Path, help="folder that `test` or `bm25` wrote, or a run file"
    )
    parser.add_argument("second", type=Path, help="the same of the other system")
    parser.add_argument("--qrels", type=Path, help="judgements, if run files are compared")
    parser.add_argument("--metric", default="success@5", help="success@k, recall@k, ndcg@k, ...")
    parser.add_argument("--pool", default="local", choices=("local", "union"))
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="of the two systems")
    parser.add_argument("--root", type=Path, help="data root: slices, texts, modalities")
    parser.add_argument("--split", default="test", help="of the queries in --root")
    parser.add_argument("--examples", type=int, default=0, help="show so many wins and losses")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--out", type=Path, help="write everything as JSON, every change included")
    return parser


def _fuse_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retrievers fuse",
        description="Fuse runs of the same data, dense and lexical for example. Without weights: "
        "reciprocal ranks. --dev tunes weights on other queries than those that are fused.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `test` or `bm25` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the fused runs")
    parser.add_argument("--rrf-k", type=float, default=60, help="constant of reciprocal ranks")
    parser.add_argument("--weights", type=float, nargs="+", help="one for each run")
    parser.add_argument("--dev", type=Path, nargs="+", help="the same systems on dev queries")
    parser.add_argument(
        "--weights-from",
        type=Path,
        help="fusion.json of weights that --dev chose for these systems",
    )
    parser.add_argument("--metric", default="ndcg@10", help="what weights are tuned for")
    parser.add_argument("--depth", type=int, default=100, help="hits per query")
    return parser
