"""Metrics and run file of many queries, against pytrec_eval.

Both start from what a search returns (rows of the pool and scores, best first) and a file of
judgements, and end with success@k and recall@k of every query and a run file that is on the disk.
pytrec_eval has no writer: it gets the least that Python can do a hit.

Only this package checks what it writes (repeated candidates, scores that are no numbers, ties by
id); its pool has ids in a column, told unique by the index, as the evaluation's. Numbers must agree
before any is printed. At full size some two minutes and 2 GB of memory.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from augment.data import grades_of, read_qrels, write_qrels
from augment.records import Qrel
from benchmarks.speed.harness import Page, rows_of, take_turns
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import write_run

KS = (1, 5, 10)
NAMES = [f"{name}@{k}" for name in ("success", "recall") for k in KS]
QRELS = "qrels/test/mbeir_world_test_qrels.txt"
Means = dict[str, float]


class World(NamedTuple):
    """A search result with its judgements, and the ids of the pool as each way has them."""

    qids: list[str]
    dids: list[str]
    column: pa.StringArray
    rows: np.ndarray
    scores: np.ndarray
    grades: dict[str, dict[str, int]]


def make(queries: int, k: int, pool: int) -> World:
    """Random hits, one to four positives a query, half of which are among the hits."""
    random = np.random.default_rng(0)
    dids = [f"{number % 10}:{number // 10 + 1}" for number in range(pool)]
    # Distinct rows within a query without drawing a permutation of the pool for each.
    start = random.integers(0, pool, (queries, 1))
    step = random.integers(1, pool // k, (queries, 1))
    rows = (start + step * np.arange(k)) % pool
    scores = -np.sort(-np.round(random.random((queries, k)), 6)).astype(np.float32)
    grades = {}
    for number in range(queries):
        hits = random.choice(rows[number], random.integers(0, 3))
        lost = random.integers(0, pool, random.integers(1, 3))
        grades[f"5:{number + 1}"] = {dids[row]: 1 for row in (*hits, *lost)}
    return World(list(grades), dids, pa.array(dids), rows, scores, grades)


def by_columns(world: World, folder: Path) -> Means:
    """This package."""
    judged = Judgements(grades_of(read_qrels(folder / QRELS)))
    table = RunTable.from_search(world.qids, world.column, world.rows, world.scores, unique=True)
    write_run(folder / "columns.trec", table, "columns")
    return score_run(table, judged, NAMES).means()


def by_pytrec_eval(world: World, folder: Path) -> Means:
    """pytrec_eval, and a run file written with as little work a hit as Python can do."""
    import pytrec_eval

    run = {
        qid: dict(zip([world.dids[row] for row in rows.tolist()], scores.tolist(), strict=True))
        for qid, rows, scores in zip(world.qids, world.rows, world.scores, strict=True)
    }
    with (folder / "pytrec.trec").open("w", encoding="utf-8") as file:
        for qid, hits in run.items():
            ranked = enumerate(hits.items(), start=1)
            file.write("".join([f"{qid} Q0 {d} {rank} {s:.6f} tidy\n" for rank, (d, s) in ranked]))
        file.flush()
        os.fsync(file.fileno())
    with (folder / QRELS).open(encoding="utf-8") as file:
        grades = pytrec_eval.parse_qrel(line.rsplit(" ", 1)[0] for line in file)
    wanted = {f"{name}.{','.join(map(str, KS))}" for name in ("success", "recall")}
    scores = pytrec_eval.RelevanceEvaluator(grades, wanted).evaluate(run)
    return {
        name: sum(own[name.replace("@", "_")] for own in scores.values()) / len(scores)
        for name in NAMES
    }


def measure(queries: int = 50_000, k: int = 50, pool: int = 200_000, rounds: int = 5) -> Page:
    """Judge one search result in both ways.

    Args:
        queries: of the result.
        k: hits of a query.
        pool: candidates.
        rounds: of which the median is shown.

    Raises:
        ValueError: if the two say different things.
    """
    world = make(queries, k, pool)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / QRELS).parent.mkdir(parents=True)
        judged = [Qrel(q, d, 1, 0) for q, dids in world.grades.items() for d in dids]
        write_qrels(folder / QRELS, judged)
        ways = {
            "ours": lambda: by_columns(world, folder),
            "pytrec_eval": lambda: by_pytrec_eval(world, folder),
        }
        turns = take_turns(ways, rounds)
    ours, theirs = (own.result for own in turns.values())
    for measure_name, value in theirs.items():
        if abs(value - ours[measure_name]) > 1e-9:
            raise ValueError(f"{measure_name} is {ours[measure_name]} and {value}")
    return Page(
        "Metrics and run file",
        f"{queries:,} queries with {k} hits each, pool of {pool:,}; from the rows and scores that "
        "a search returns, and a file of judgements, to success@k and recall@k (k = 1, 5, 10) of "
        f"every query and a run file. Median of {rounds} rounds in turns; both agree.",
        {"": rows_of(turns, queries, "queries")},
    )
