"""``python -m retrievers fuse RUN_A RUN_B --out RUN``: one run out of several."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from augment.data import grades_of, read_qrels
from augment.errors import DataError
from augment.files import replacing
from retrievers.commands.evaluate import main as evaluate
from retrievers.evaluation.compare import tasks_of
from retrievers.evaluation.fusion import (
    Tuned,
    reciprocal_rank_fusion,
    tune_weights,
    weighted_fusion,
)
from retrievers.evaluation.run_files import read_table, write_run


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument("--metric", default="ndcg@10", help="what weights are tuned for")
    parser.add_argument("--depth", type=int, default=100, help="hits per query")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = _parser().parse_args(list(arguments))
    if args.weights and args.dev:
        raise DataError("--weights are given and --dev would tune them; pass one of the two")
    tuned = _tuned(args.runs, args.dev, args.metric) if args.dev else None
    weights = tuned.weights if tuned else args.weights
    for pool in ("local", "union"):
        if not all(list(folder.glob(f"*.{pool}.trec")) for folder in args.runs):
            continue
        for name in _shared(args.runs, pool):
            runs = [read_table(folder / f"{name}.{pool}.trec", empty=True) for folder in args.runs]
            fused = (
                weighted_fusion(runs, weights, args.depth)
                if weights
                else reciprocal_rank_fusion(runs, args.rrf_k, args.depth)
            )
            write_run(args.out / f"{name}.{pool}.trec", fused, "fused")
            shutil.copyfile(args.runs[0] / f"{name}.qrels", args.out / f"{name}.qrels")
    if not args.out.is_dir():
        raise DataError("the folders hold no runs of the same pool", str(args.runs[0]))
    record = {
        "runs": [str(folder) for folder in args.runs],
        "weights": list(weights) if weights else None,
        "rrf_k": None if weights else args.rrf_k,
        "tuned": tuned._asdict() if tuned else None,
    }
    with replacing(args.out / "fusion.json", DataError) as stream:
        stream.write(json.dumps(record, indent=1) + "\n")
    if tuned:
        alone = ", ".join(f"{100 * score:.1f}" for score in tuned.alone)
        sys.stdout.write(
            f"weights {' '.join(map(str, tuned.weights))}: {tuned.metric} "
            f"{100 * tuned.score:.1f} on {tuned.queries} dev queries (alone: {alone})\n\n"
        )
    evaluate([str(args.out), "--out", str(args.out / "metrics.json")])


def _shared(folders: Sequence[Path], pool: str) -> list[str]:
    names = [tasks_of(folder, pool) for folder in folders]
    for folder, own in zip(folders, names, strict=True):
        if own != names[0]:
            lacking = sorted(set(own) ^ set(names[0]))
            raise DataError(f"differs in tasks from {folders[0]}: {lacking[:3]}", str(folder))
    return names[0]


def _tuned(runs: Sequence[Path], dev: Sequence[Path], metric: str) -> Tuned:
    if len(dev) != len(runs):
        raise DataError(f"{len(dev)} dev folders for {len(runs)} runs; give one for each")
    same = {folder.resolve() for folder in runs} & {folder.resolve() for folder in dev}
    if same:
        raise DataError("is fused and tuned on; tune on other queries", str(min(same)))
    tasks = []
    seen: set[str] = set()
    for name in _shared(dev, "local"):
        tables = [read_table(folder / f"{name}.local.trec", empty=True) for folder in dev]
        grades = grades_of(read_qrels(dev[0] / f"{name}.qrels"))
        seen.update(grades)
        if grades:
            tasks.append((tables, grades))
    for name in _shared(runs, "local"):
        both = seen & grades_of(read_qrels(runs[0] / f"{name}.qrels")).keys()
        if both:
            raise DataError(
                f"query {min(both)} is among the dev queries and among those to be fused "
                f"({len(both)} such); tune on other queries",
                str(runs[0] / f"{name}.qrels"),
            )
    return tune_weights(tasks, metric)
