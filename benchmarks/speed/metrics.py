"""Metrics and run file of many queries, against pytrec_eval or UniIR's own code.

Both start from what a search returns (rows of the pool and scores, best first) and a file of
judgements, and end with success@k and recall@k of every query and a run file that is on the disk.
pytrec_eval has no writer: it gets the least that Python can do a hit. ``--uniir=CHECKOUT`` takes
UniIR's own ``run_retrieval`` in its place, from a checkout of TIGER-AI-Lab/UniIR, its search
replaced by these results.

Only this package checks what it writes (repeated candidates, scores that are no numbers, ties by
id); its pool has ids in a column, told unique by the index, as the evaluation's. Numbers must agree
before any is printed. At full size some two minutes and 2 GB of memory.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

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


def make(queries: int, k: int, pool: int) -> World:
    """Random hits, one to four positives a query, half of which are among the hits."""
    random = np.random.default_rng(0)
    hashed = (np.arange(pool) % 10) * 10_000_000 + np.arange(pool) // 10 + 1
    dids = [unhash_did(number) for number in hashed]
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
    return World(list(grades), dids, pa.array(dids), hashed, rows, scores, grades)


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


def by_uniir(checkout: Path, world: World, folder: Path) -> Callable[[], Means]:
    """UniIR's own ``run_retrieval``, given what its search would have returned.

    Its Recall@k is 1 where any positive is among the first k: what is called success here.
    """
    sys.path[:0] = [str(checkout / "src"), str(checkout / "src" / "common")]
    modules: Any = sys.modules  # neither is called here, and one loads models
    modules.update(dist_utils=mock.Mock(), interactive_retriever=mock.Mock())
    import mbeir_retriever  # type: ignore[import-not-found]
    from omegaconf import OmegaConf

    one = {
        "enable_retrieve": True, "datasets_name": ["world"],
        "correspond_cand_pools_name": ["world"], "correspond_qrels_name": ["world"],
        "correspond_metrics_name": [", ".join(f"Recall@{k}" for k in KS)],
    }  # fmt: skip
    names = {
        f"{name}_dir_name": name for name in ("embed", "index", "query", "candidate", "results")
    }
    config = OmegaConf.create(
        {
            "uniir_dir": str(folder),
            "mbeir_data_dir": str(folder),
            "experiment": {"path_suffix": "."},
            "retrieval_config": {
                **names,
                "qrel_dir_name": "qrels",
                "raw_retrieval": False,
                "write_to_tsv": False,
                "test_datasets_config": one,
            },
        }
    )
    (folder / "embed" / "test").mkdir(parents=True)
    numbers = [5 * 500_000 + number + 1 for number in range(len(world.qids))]
    np.save(folder / "embed" / "test" / "mbeir_world_test_ids.npy", np.array(numbers))
    found = world.scores, world.hashed[world.rows]

    def work() -> Means:
        said = io.StringIO()
        with (
            mock.patch.object(mbeir_retriever, "search_index", return_value=found),
            redirect_stdout(said),
        ):
            mbeir_retriever.run_retrieval(config)
        means = re.findall(r"Mean Recall@(\d+): ([\d.]+)", said.getvalue())
        return {f"success@{k}": float(value) for k, value in means}

    return work


def measure(
    queries: int = 50_000,
    k: int = 50,
    pool: int = 200_000,
    rounds: int = 5,
    uniir: Path | None = None,
) -> Page:
    """Judge one search result in both ways.

    Args:
        queries: of the result.
        k: hits of a query.
        pool: candidates.
        rounds: of which the median is shown.
        uniir: folder of TIGER-AI-Lab/UniIR, whose own code becomes the peer.

    Raises:
        ValueError: if the two say different things.
    """
    world = make(queries, k, pool)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / QRELS).parent.mkdir(parents=True)
        judged = [Qrel(q, d, 1, 0) for q, dids in world.grades.items() for d in dids]
        write_qrels(folder / QRELS, judged)
        ways: dict[str, Callable[[], Means]] = {"ours": lambda: by_columns(world, folder)}
        if uniir is None:
            ways["pytrec_eval"] = lambda: by_pytrec_eval(world, folder)
        else:
            ways["UniIR's own code"] = by_uniir(uniir, world, folder)
        turns = take_turns(ways, rounds)
    ours, theirs = (own.result for own in turns.values())
    near = 1e-9 if uniir is None else 1e-4  # UniIR tells four decimals
    for measure_name, value in theirs.items():
        if abs(value - ours[measure_name]) > near:
            raise ValueError(f"{measure_name} is {ours[measure_name]} and {value}")
    return Page(
        "Metrics and run file",
        f"{queries:,} queries with {k} hits each, pool of {pool:,}; from the rows and scores that "
        "a search returns, and a file of judgements, to success@k and recall@k (k = 1, 5, 10) of "
        f"every query and a run file. Median of {rounds} rounds in turns; both agree.",
        {"": rows_of(turns, queries, "queries")},
    )
