"""``python -m retrievers compare RUN_A RUN_B``: is the second better than the first?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.errors import DataError
from augment.files import replacing
from augment.records import Query
from retrievers.evaluation.compare import Comparison, compare, compare_scores, scores_from_run
from retrievers.evaluation.versions import source_commit, versions


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument("--root", type=Path, help="data root; gives slices and the queries' texts")
    parser.add_argument("--split", default="test", help="of the queries in --root")
    parser.add_argument("--examples", type=int, default=0, help="show so many wins and losses")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--out", type=Path, help="write everything as JSON, every change included")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = _parser().parse_args(list(arguments))
    a, b = args.names or (args.first.stem, args.second.stem)
    names = (a, b)
    if names[0] == names[1]:
        names = (f"{args.first.parent.name}/{names[0]}", f"{args.second.parent.name}/{names[1]}")
    queries = list(_queries(args.root, args.split)) if args.root else []
    if args.first.is_dir() and args.second.is_dir():
        result = compare(
            args.first, args.second, metric=args.metric, pool=args.pool, names=names,
            seed=args.seed, queries=queries,
        )  # fmt: skip
    else:
        if args.qrels is None:
            raise DataError("two run files need --qrels; two folders that `test` wrote do not")
        first, second = (
            scores_from_run(run, args.qrels, args.metric, short=False)
            for run in (args.first, args.second)
        )
        result = compare_scores(
            {args.qrels.stem: (first, second)}, metric=args.metric, pool=args.pool, names=names,
            seed=args.seed, queries=queries,
        )  # fmt: skip
    sys.stdout.write(_told(result, queries, args.examples))
    if args.out is not None:
        record = {**result.to_json(), "commit": source_commit(), "versions": versions()}
        with replacing(args.out, DataError) as stream:
            stream.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


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
                f"- {change.task}, {change.qid}: {change.first:.3f} → {change.second:.3f} "
                f"{texts.get(change.qid, '')}".rstrip()
                for change in changes
            ]
            parts.append("\n".join([f"{title} of {result.names[1]}:", *lines]))
    return "\n\n".join(part for part in parts if part) + "\n"
