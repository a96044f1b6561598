"""One run out of several: reciprocal ranks, or weighted scores with weights tuned on dev queries.

Reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009. Weighted sums of min-max
normalised scores: Lee, "Analyses of multiple evidence combination", SIGIR 1997; convex combinations
with weights from a few dev queries beat reciprocal ranks in Bruch, Gai and Ingber, "An analysis of
fusion functions for hybrid retrieval", 2210.11934.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from augment.data import grades_of, read_qrels
from augment.errors import DataError
from augment.files import digest, opened, read_json, sha256, split_fields, write_json
from retrievers.evaluation.compare import files_of, has_runs, tasks_of
from retrievers.evaluation.evaluate import CASCADE
from retrievers.evaluation.judgements import Grades, Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.results import forget_runs
from retrievers.evaluation.run import DECIMALS, RunTable
from retrievers.evaluation.run_files import read_table, write_run


def reciprocal_rank_fusion(
    runs: Sequence[RunTable], k: float = 60, depth: int | None = None
) -> RunTable:
    """Sum of ``1 / (k + rank)`` over the runs that found a candidate.

    Args:
        runs: of the same queries, at least two; a query that a run lacks gets nothing from it.
        k: how little first places count more than later ones; 60 in the paper.
        depth: hits per query of the result; None keeps all.

    Raises:
        DataError: if there are fewer than two runs, or two of them share no query.
        ValueError: if k is negative.
    """
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    # A thousandfold, so that six decimals tell late ranks apart.
    return _fuse(runs, [1000.0 / (k + run.rank) for run in runs], depth)


def weighted_fusion(
    runs: Sequence[RunTable], weights: Sequence[float], depth: int | None = None
) -> RunTable:
    """Weighted sum of scores that are normalised to 0..1 within each query and run.

    A candidate that a run did not find gets 0 from it, as its last one does.

    Args:
        runs: of the same queries, at least two.
        weights: one for each run, not negative, one of them above 0; their sum does not matter.
        depth: hits per query of the result; None keeps all.

    Raises:
        DataError: if runs and weights do not pair up, or two runs share no query.
    """
    values = np.asarray(weights, dtype=np.float64)
    if len(values) != len(runs) or not np.isfinite(values).all() or (values < 0).any():
        raise DataError(
            f"weights {list(weights)} for {len(runs)} runs; give one for each, none negative"
        )
    if not values.sum():
        raise DataError("all weights are 0; give at least one run a weight")
    shares = (values / values.sum()).tolist()
    normal = [share * _min_max(run) for share, run in zip(shares, runs, strict=True)]
    return _fuse(runs, normal, depth)


def _min_max(run: RunTable) -> np.ndarray:
    if not len(run.rows):
        return np.zeros(0)
    kept = np.flatnonzero(np.diff(run.starts))
    best = run.scores[run.starts[kept]].astype(np.float64)
    worst = run.scores[run.starts[kept + 1] - 1].astype(np.float64)
    place = np.repeat(np.arange(len(kept)), np.diff(run.starts)[kept])
    span = (best - worst)[place]
    scaled = np.divide(run.scores - worst[place], span, out=np.ones(len(place)), where=span > 0)
    return np.asarray(scaled)


def _fuse(runs: Sequence[RunTable], parts: Sequence[np.ndarray], depth: int | None) -> RunTable:
    if len(runs) < 2:
        raise DataError(f"fusion needs at least two runs, got {len(runs)}")
    for number, other in enumerate(runs[1:], start=2):
        shared = pc.is_in(other.qids, value_set=runs[0].qids)
        if len(runs[0]) and len(other) and not pc.any(shared).as_py():
            raise DataError(
                f"run 1 and run {number} share no query: {runs[0].qids[0]} is the first of one, "
                f"{other.qids[0]} of the other; fuse runs of the same data"
            )
    qids = pc.unique(pa.concat_arrays([run.qids for run in runs]))
    ids = pc.unique(pa.concat_arrays([run.ids for run in runs]))
    keys = []
    for run in runs:
        query = np.asarray(pc.index_in(run.qids, value_set=qids), dtype=np.int64)[run.query]
        row = np.asarray(pc.index_in(run.ids, value_set=ids), dtype=np.int64)[run.rows]
        keys.append(query * max(len(ids), 1) + row)
    pairs, place = np.unique(np.concatenate(keys), return_inverse=True)
    scores = np.round(np.bincount(place, np.concatenate(parts), len(pairs)), DECIMALS)
    query, row = np.divmod(pairs, max(len(ids), 1))
    fused = RunTable(qids, ids, query, row, scores)
    return fused if depth is None else fused.cut(depth)


class Tuned(NamedTuple):
    """Weights found on dev queries.

    Attributes:
        weights: one for each run, summing to 1.
        metric: what they were chosen for.
        score: the mean of the metric on the dev queries with them.
        alone: the same of each run alone.
        queries: how many dev queries there were.
    """

    weights: tuple[float, ...]
    metric: str
    score: float
    alone: tuple[float, ...]
    queries: int


def tune_weights(
    dev: Sequence[tuple[Sequence[RunTable], Grades]], metric: str = "ndcg@10", steps: int = 10
) -> Tuned:
    """The weights with the best mean of a metric on dev queries, on a grid.

    Never tune on the queries that are reported. Of equally good weights those nearest to equal
    ones are taken.

    Args:
        dev: tasks, each with its runs (in the same order) and judgements; each weighs the same.
        metric: see :meth:`~retrievers.evaluation.metrics.Measure.parse`. nDCG moves with every
            rank, so that few dev queries tell weights apart.
        steps: the grid divides 1 into so many parts.

    Raises:
        DataError: if there is no dev task or a task has no judged query.
        ValueError: if the metric is unknown.
    """
    if not dev:
        raise DataError("no dev task to tune weights on")
    judged = [Judgements(grades) for _, grades in dev]
    if not all(own.qids for own in judged):
        raise DataError("a dev task has no judged query; tune on tasks that have some")

    def mean(weights: Sequence[float]) -> float:
        scores = [
            score_run(weighted_fusion(runs, weights), own, [metric]).means()[metric]
            for (runs, _), own in zip(dev, judged, strict=True)
        ]
        return float(np.mean(scores))

    size = len(dev[0][0])
    parts = (own for own in itertools.product(range(steps + 1), repeat=size) if sum(own) == steps)
    grid = {own: mean(own) for own in (tuple(n / steps for n in counts) for counts in parts)}
    spread = {own: sum((weight - 1 / size) ** 2 for weight in own) for own in grid}
    best = max(grid, key=lambda weights: (round(grid[weights], 12), -spread[weights]))
    alone = [tuple(float(n == own) for n in range(size)) for own in range(size)]
    queries = sum(len(own.qids) for own in judged)
    return Tuned(best, metric, grid[best], tuple(grid[one] for one in alone), queries)


def fuse(
    runs: Sequence[Path],
    out: Path,
    *,
    rrf_k: float = 60.0,
    weights: Sequence[float] = (),
    dev: Sequence[Path] = (),
    weights_from: Path | None = None,
    metric: str = "ndcg@10",
    depth: int = 100,
) -> Tuned | None:
    """Fuse runs of the same data, dense and lexical for example; writes runs and ``fusion.json``.

    Args:
        runs: folders that ``test`` or ``bm25`` wrote.
        out: folder of the fused runs.
        rrf_k: constant of reciprocal ranks, which are taken without weights.
        weights: one for each run.
        dev: the same systems on dev queries; tunes weights on them.
        weights_from: ``fusion.json`` of weights that were tuned before, for the same systems.
        metric: what weights are tuned for.
        depth: hits per query.

    Returns:
        The weights that were tuned, None if none were.

    Raises:
        DataError: if folders hold other tasks or no runs, or dev queries are among those fused.
    """
    if sum(map(bool, (weights, dev, weights_from))) > 1:
        raise DataError("--weights, --dev and --weights-from each tell the weights; pass one")
    if out.resolve() in {folder.resolve() for folder in (*runs, *dev)}:
        raise DataError("is read and would be written over; name another folder", str(out))
    tuned = _tuned(runs, dev, metric) if dev else None
    if weights_from is not None:
        weights = kept_weights(weights_from, runs)
    shares = tuned.weights if tuned else weights
    made: dict[str, str] = {}
    for pool in ("local", "union"):
        if not all(has_runs(folder, pool) for folder in runs):
            continue
        for name in _shared(runs, pool):
            tables = _tables(runs, name, pool)
            fused = (
                weighted_fusion(tables, shares, depth)
                if shares
                else reciprocal_rank_fusion(tables, rrf_k, depth)
            )
            write_run(out / f"{name}.{pool}.trec", fused, "fused")
            made[f"{name}.{pool}.trec"] = name
            judged = files_of(runs[0], name, pool)[1]
            shutil.copyfile(judged, out / judged.name)
    if not made:
        raise DataError("the folders hold no runs of the same pool", str(runs[0]))
    forget_runs(out, made.values(), made)
    for cap in [folder / CASCADE for folder in runs if (folder / CASCADE).is_file()]:
        shutil.copyfile(cap, out / CASCADE)  # which texts were rewritten, and where they lie
    record: dict[str, object] = {
        "runs": [str(folder) for folder in runs],
        "weights": list(shares) if shares else None,
        "rrf_k": None if shares else rrf_k,
        "tuned": tuned._asdict() if tuned else None,
    }
    if dev and tuned:
        names = _shared(dev, "local")
        files = [f for own in dev for name in names for f in files_of(own, name, "local")]
        chosen = {
            "weights": list(tuned.weights),
            "metric": metric,
            "systems": [_system(folder) for folder in dev],
            "files": [sha256(file) for file in files],
        }
        record.update(chosen=chosen, digest=digest(chosen))
    write_json(out / "fusion.json", record, DataError)
    return tuned


def _system(folder: Path) -> str:
    """What stands behind the scores of a folder's first run: the tag, which says what made it."""
    with opened(files_of(folder, tasks_of(folder, "local")[0], "local")[0]) as stream:
        return " ".join(split_fields(stream.readline().decode())[5:])


def kept_weights(path: Path, runs: Sequence[Path]) -> list[float]:
    """The weights that ``fusion.json`` tells, of the systems of some folders.

    Raises:
        DataError: if it tells of none, or of other systems.
    """
    told = read_json(path)
    chosen = told.get("chosen") if isinstance(told, dict) else None
    if not isinstance(chosen, dict) or digest(chosen) != told.get("digest"):
        raise DataError("holds no weights as --dev chose them; tune them again", str(path))
    systems = [_system(folder) for folder in runs]
    if systems != chosen["systems"]:
        raise DataError(
            f"its weights were chosen for {chosen['systems']}, and these are runs of {systems}; "
            "tune them for these with --dev",
            str(path),
        )
    return list(chosen["weights"])


def _tables(folders: Sequence[Path], name: str, pool: str) -> list[RunTable]:
    return [read_table(files_of(folder, name, pool)[0], empty=True) for folder in folders]


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
    first, second = ([_system(folder) for folder in folders] for folders in (runs, dev))
    if first != second and sorted(first) == sorted(second):
        raise DataError(f"--dev has the systems in another order, {second} for {first}")
    tasks = []
    seen: set[str] = set()
    for name in _shared(dev, "local"):
        tables = _tables(dev, name, "local")
        grades = grades_of(read_qrels(files_of(dev[0], name, "local")[1]))
        seen.update(grades)
        if grades:
            tasks.append((tables, grades))
    for name in _shared(runs, "local"):
        judged = files_of(runs[0], name, "local")[1]
        both = seen & grades_of(read_qrels(judged)).keys()
        if both:
            raise DataError(
                f"query {min(both)} is among the dev queries and among those to be fused "
                f"({len(both)} such); tune on other queries",
                str(judged),
            )
    return tune_weights(tasks, metric)
