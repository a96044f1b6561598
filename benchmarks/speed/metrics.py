"""Metrics and run file of many queries: columns against a loop over queries and pytrec_eval.

``python -m benchmarks.speed.metrics`` writes ``benchmarks/results/metrics.md``. All start from what a
search returns (rows of the pool and scores, best first) and end with success@k and recall@k of
every query and a run file. The loop is the plain way, UniIR's: ids made from hashed numbers one by
one, a formatted line a hit, sets per query. The tidy loop is the least that Python can do a hit:
ids at hand as strings, plain numbers, one pass. pytrec_eval has no writer: it gets the tidy one's.
Only this package checks what it writes (repeated candidates, scores that are no numbers, ties by
id); its pool has ids in a column, told unique by the index, as the evaluation's. All wait until the
file is on the disk. Numbers must agree before any is printed. The ways take turns; the median of
the rounds is shown.

At full size some two minutes and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytrec_eval

from benchmarks.speed.machine import machine
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_run, read_table, writing_run

KS = (1, 5, 10)
RESULTS = Path("benchmarks/results/metrics.md")
Means = dict[str, float]


def unhash_did(number: int) -> str:
    """The id of a candidate from UniIR's number, as its code makes it."""
    return "{}:{}".format(*divmod(int(number), 10_000_000))


class World(NamedTuple):
    """A search result with its judgements, and the ids of the pool as each way has them."""

    qids: list[str]
    dids: list[str]
    column: pa.StringArray
    hashed: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    grades: dict[str, dict[str, int]]


def make(queries: int, k: int, pool: int, seed: int = 0) -> World:
    """Random hits, one to four positives a query, half of which are among the hits."""
    random = np.random.default_rng(seed)
    hashed = (np.arange(pool) % 10) * 10_000_000 + np.arange(pool) // 10 + 1
    dids = [unhash_did(number) for number in hashed]
    # Distinct rows within a query without drawing a permutation of the pool for each.
    start, step = (
        random.integers(0, pool, (queries, 1)),
        random.integers(1, pool // k, (queries, 1)),
    )
    rows = (start + step * np.arange(k)) % pool
    scores = -np.sort(-np.round(random.random((queries, k)), 6)).astype(np.float32)
    grades = {}
    for number in range(queries):
        hits = random.choice(rows[number], random.integers(0, 3))
        lost = random.integers(0, pool, random.integers(1, 3))
        grades[f"5:{number + 1}"] = {dids[row]: 1 for row in (*hits, *lost)}
    return World(list(grades), dids, pa.array(dids), hashed, rows, scores, grades)


def by_columns(world: World, path: Path) -> Means:
    """This package."""
    table = RunTable.from_search(world.qids, world.column, world.rows, world.scores, unique=True)
    measures = [f"{name}@{k}" for name in ("success", "recall") for k in KS]
    with writing_run(path, table, "columns"):
        return score_run(table, Judgements(world.grades), measures).means()


def by_loop(world: World, path: Path) -> Means:
    """A loop over queries, as evaluation scripts have it."""
    with path.open("w", encoding="utf-8") as file:
        for qid, rows, scores in zip(world.qids, world.rows, world.scores, strict=True):
            for rank, (row, score) in enumerate(zip(rows, scores, strict=True), start=1):
                did = unhash_did(world.hashed[row])
                file.write(f"{qid} Q0 {did} {rank} {score} loop\n")
    values: dict[str, list[float]] = {}
    for qid, rows in zip(world.qids, world.rows, strict=True):
        found = [unhash_did(number) for number in world.hashed[rows]]
        relevant = set(world.grades[qid])
        for k in KS:
            shared = relevant.intersection(found[:k])
            values.setdefault(f"success@{k}", []).append(float(bool(shared)))
            values.setdefault(f"recall@{k}", []).append(len(shared) / len(relevant))
    return {name: sum(own) / len(own) for name, own in values.items()}


def by_tidy_loop(world: World, path: Path) -> Means:
    """The same with as little work a hit as Python can do."""
    values: dict[str, list[float]] = {
        f"{name}@{k}": [] for name in ("success", "recall") for k in KS
    }
    with path.open("w", encoding="utf-8") as file:
        for qid, rows, scores in zip(world.qids, world.rows, world.scores, strict=True):
            found = [world.dids[row] for row in rows.tolist()]
            file.write(_lines(qid, found, scores.tolist(), "tidy"))
            relevant = world.grades[qid].keys()
            for k in KS:
                shared = len(relevant & set(found[:k]))
                values[f"success@{k}"].append(float(shared > 0))
                values[f"recall@{k}"].append(shared / len(relevant))
    return {name: sum(own) / len(own) for name, own in values.items()}


def _lines(qid: str, dids: Sequence[str], scores: Sequence[float], tag: str) -> str:
    hits = enumerate(zip(dids, scores, strict=True), start=1)
    return "".join([f"{qid} Q0 {did} {rank} {score:.6f} {tag}\n" for rank, (did, score) in hits])


def by_pytrec_eval(world: World, path: Path) -> Means:
    """pytrec_eval, with the tidy loop's run file."""
    run: dict[str, dict[str, float]] = {}
    with path.open("w", encoding="utf-8") as file:
        for qid, rows, own in zip(world.qids, world.rows, world.scores, strict=True):
            found, values = [world.dids[row] for row in rows.tolist()], own.tolist()
            file.write(_lines(qid, found, values, "pytrec"))
            run[qid] = dict(zip(found, values, strict=True))
    cuts = ",".join(map(str, KS))
    scores = pytrec_eval.RelevanceEvaluator(
        world.grades, {f"success.{cuts}", f"recall.{cuts}"}
    ).evaluate(run)
    return {
        f"{name}@{k}": sum(own[f"{name}_{k}"] for own in scores.values()) / len(scores)
        for name in ("success", "recall")
        for k in KS
    }


WAYS: dict[str, Callable[[World, Path], Means]] = {
    "columns (this package)": by_columns,
    "loop over queries": by_loop,
    "tidy loop": by_tidy_loop,
    "pytrec_eval": by_pytrec_eval,
}


def measure(world: World, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each round by way.

    Raises:
        ValueError: if two ways disagree on a number or on the ranking in the file.
    """
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    means: dict[str, Means] = {}
    small = make(100, 10, 1000)
    for way in WAYS.values():  # what a process does once is no part of it
        way(small, folder / "warm.trec")
    for _ in range(rounds):
        for number, (name, way) in enumerate(WAYS.items()):
            os.sync()  # nobody waits for what the others have left to the disk
            start = time.perf_counter()
            means[name] = way(world, folder / f"{number}.trec")
            with (folder / f"{number}.trec").open("rb") as file:
                os.fsync(file.fileno())
            seconds[name].append(time.perf_counter() - start)
            sys.stderr.write(f"{name}: {seconds[name][-1]:.2f} s\n")
    first, *others = means.values()
    for other in others:
        for name, value in first.items():
            if abs(value - other[name]) > 1e-9:
                raise ValueError(f"{name} is {value} and {other[name]}")
    runs = [read_run(folder / f"{number}.trec") for number in range(2)]
    if any([h.did for h in runs[0][q]] != [h.did for h in runs[1][q]] for q in world.qids[:1000]):
        raise ValueError("the run files rank differently")
    return seconds


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.metrics", description=__doc__)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--pool", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    world = make(args.queries, args.k, args.pool, args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = measure(world, args.rounds, folder)
        start = time.perf_counter()
        read_table(folder / "0.trec")
        reading = time.perf_counter() - start
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    base = medians["columns (this package)"]
    lines = [
        "# Metrics and run file",
        "",
        f"{args.queries:,} queries with {args.k} hits each, pool of {args.pool:,}; from the rows "
        "and scores that a search returns to success@k and recall@k (k = 1, 5, 10) of every query "
        f"and a run file. Median of {args.rounds} rounds, the ways taking turns; all agree.",
        "",
        "| way | seconds | least | most | times ours |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {name} | {median:.2f} | {min(seconds[name]):.2f} | {max(seconds[name]):.2f} "
            f"| {median / base:.1f} |"
            for name, median in medians.items()
        ),
        "",
        f"Reading the run file back into columns: {reading:.2f} s.",
        "",
        machine("metrics", args.seed),
    ]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
