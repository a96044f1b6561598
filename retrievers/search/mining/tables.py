"""Mined negatives as tables: what training reads, what people look through, what made them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from augment.files import write_text
from retrievers.data.plan import EvalTask, Plan
from retrievers.search.mining.judge import Mined, MiningConfig, Pool, Tally, mine
from retrievers.vectors.rows import Embeddings

_NAMES, _SCORES = pa.list_(pa.string()), pa.list_(pa.float32())
_NEGATIVES = pa.schema(
    [
        ("qid", pa.string()),
        ("positive_ids", _NAMES),
        ("positive_scores", _SCORES),
        ("negative_ids", _NAMES),
        ("negative_scores", _SCORES),
    ]
)
_CANDIDATES = pa.schema(
    [
        ("qid", pa.string()),
        ("did", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
        ("verdict", pa.dictionary(pa.int32(), pa.string())),
    ]
)
#: Queries per row group.
_GROUP = 4096


def mine_plan(
    plan: Plan,
    candidates: Embeddings,
    queries: Embeddings,
    config: MiningConfig,
    folder: Path,
    about: Mapping[str, Any],
    device: str = "cpu",
) -> Tally:
    """Mine for every query of a plan and write what was found.

    Writes ``negatives.parquet`` (one row per query, for ``data.negatives.path``),
    ``candidates.parquet`` (every candidate looked at: rank, score, reason) if asked for, and
    ``mining.json``. They appear together when all is done.

    Args:
        plan: see :func:`~retrievers.search.mining.plan_mining`.
        candidates: vectors by row of the plan.
        queries: vectors by row of the plan's queries.
        config: what is kept.
        folder: where the tables go.
        about: what made the vectors, on which text and data; stored with the tables.
        device: where products are taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    told = json.dumps(about, sort_keys=True, default=str)
    kept = _Writer(folder / "negatives.parquet", _NEGATIVES, told)
    seen = _Writer(folder / "candidates.parquet", _CANDIDATES, told) if config.tables else None
    for mined in _mine_tasks(plan, candidates, queries, config, device):
        tally.add(mined, config.per_query)
        kept.add([_kept(mined)])
        if seen is not None:
            seen.add(_seen(mined))
    for writer in (kept, seen):
        if writer is not None:
            writer.close()
    summary = {
        **about,
        "queries": tally.queries,
        "without_a_vector": int((~queries.done).sum()),
        "short": tally.short,
        "none": tally.none,
        "verdicts": dict(tally.verdicts.most_common()),
    }
    write_text(folder / "mining.json", json.dumps(summary, indent=1, default=str) + "\n")
    return tally


def _mine_tasks(
    plan: Plan, candidates: Embeddings, queries: Embeddings, config: MiningConfig, device: str
) -> Iterator[Mined]:
    ids, done = plan.ids.to_pylist(), candidates.done.numpy()
    everything, asked = candidates.vectors, queries.vectors
    rows = {did: row for row, did in enumerate(ids) if done[row]}
    positives = Pool(ids, everything, rows.get)
    start = 0
    for task in plan.tasks:
        pool = _pool(plan, task, ids, everything, done)
        place = [start + n for n in range(len(task.queries)) if queries.done[start + n]]
        wanted = [task.queries[row - start] for row in place]
        if wanted:
            yield from mine(wanted, asked[place], pool, positives, config, device)
        start += len(task.queries)


def _pool(plan: Plan, task: EvalTask, ids: list[str], everything: Any, done: Any) -> Pool:
    members = plan.pools[task.pool]
    members = members[done[members]]
    names = [ids[row] for row in members.tolist()]
    return Pool(names, everything[members], dict(zip(names, range(len(names)), strict=True)).get)


def _kept(mined: Mined) -> dict[str, Any]:
    negatives = mined.negatives
    return {
        "qid": mined.qid,
        "positive_ids": list(mined.positives),
        "positive_scores": list(mined.positives.values()),
        "negative_ids": list(negatives),
        "negative_scores": list(negatives.values()),
    }


def _seen(mined: Mined) -> list[dict[str, Any]]:
    scores = list(mined.positives.values())
    positive = float(np.mean(scores)) if scores else None
    return [
        {
            "qid": mined.qid,
            "did": did,
            "rank": rank,
            "score": float(score),
            "positive_score": positive,
            "verdict": verdict,
        }
        for rank, (did, score, verdict) in enumerate(
            zip(mined.dids, mined.scores, mined.verdicts, strict=True), start=1
        )
    ]


@final
class _Writer:
    """A Parquet file written in row groups, under its name only when it is complete."""

    def __init__(self, path: Path, schema: Any, about: str) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._schema = schema.with_metadata({"made": about})
        self._writer = parquet.ParquetWriter(self._partial, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows."""
        self._rows += rows
        if len(self._rows) >= _GROUP:
            self._flush()

    def close(self) -> None:
        """Write the rest and give the file its name."""
        self._flush()
        self._writer.close()
        self._partial.replace(self._path)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
