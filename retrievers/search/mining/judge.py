"""Hard negatives from embeddings: near the query, and not taken for positives; with reasons.

Ranking by a trained retriever and dropping what scores too near the positive is NV-Retriever's
positive-aware mining (2407.15831, section 4); rank ranges, margins and duplicates are judged by id
and by vector, whatever the modality.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from augment.errors import DataError
from augment.records import Query

KEPT = "kept"


@dataclass(frozen=True)
class MiningConfig:
    """Which candidates become hard negatives.

    Args:
        per_query: negatives kept for each query.
        first: rank of the first candidate that may be kept, from 1.
        last: rank of the last one; so many are looked at.
        relative_margin: reject scores above the positive's by this share of it or nearer: 0.05
            keeps those below 95 % of it (NV-Retriever's best); null for none.
        absolute_margin: reject scores nearer to the positive's than this, or above; null for none.
        positive_score: which of several positives the margins refer to: min is the strictest.
        min_score: reject scores below; null for none.
        duplicate: reject candidates whose cosine with a positive of the query is at least this;
            null for none.
        same_modality: search only candidates of the wanted modality.
        scope: dataset searches candidates of the query's own data set, all those of all.
        pick: top takes the best-ranked that may be kept, random draws among them.
        seed: of the draws.
        tables: also write every candidate looked at, with score and reason.
    """

    per_query: int = 8
    first: int = 1
    last: int = 100
    relative_margin: float | None = 0.05
    absolute_margin: float | None = None
    positive_score: Literal["min", "mean", "max"] = "mean"
    min_score: float | None = None
    duplicate: float | None = 0.98
    same_modality: bool = True
    scope: Literal["dataset", "all"] = "dataset"
    pick: Literal["top", "random"] = "top"
    seed: int = 0
    tables: bool = True

    def __post_init__(self) -> None:
        """Refuse ranges that hold nothing."""
        if self.per_query < 1:
            raise DataError(f"mining.per_query must be at least 1, got {self.per_query}")
        if not 1 <= self.first <= self.last:
            raise DataError(
                f"mining looks at ranks first to last, counted from 1; got {self.first} to "
                f"{self.last}"
            )


class Mined(NamedTuple):
    """What was found for one query.

    Attributes:
        qid: the query.
        positives: id -> score, of those that have a vector.
        dids: candidates by rank.
        scores: their cosines with the query.
        verdicts: ``kept``, or the reason of each rejection.
    """

    qid: str
    positives: dict[str, float]
    dids: list[str]
    scores: Float[np.ndarray, " ranks"]
    verdicts: list[str]

    @property
    def negatives(self) -> dict[str, float]:
        """Kept candidates with their scores, best first."""
        found = zip(self.dids, self.scores.tolist(), self.verdicts, strict=True)
        return {did: score for did, score, verdict in found if verdict == KEPT}


class Pool(NamedTuple):
    """Candidates that a query is searched in.

    Attributes:
        ids: of the candidates.
        vectors: unit vectors, one per id.
        row: row of an id, None where it is not here.
    """

    ids: Sequence[str]
    vectors: Float[Tensor, "n dim"]
    row: Callable[[str], int | None]


def mine(
    queries: Sequence[Query],
    vectors: Float[Tensor, "queries dim"],
    pool: Pool,
    positives: Pool,
    config: MiningConfig,
    device: str = "cpu",
    block: int = 256,
) -> Iterator[Mined]:
    """Hard negatives of queries that share a pool, in order.

    Args:
        queries: with their known positives.
        vectors: unit vectors, one per query.
        pool: where negatives are looked for.
        positives: where the positives' vectors are.
        config: what is kept.
        device: where products are taken.
        block: queries at a time.
    """
    everything = pool.vectors.float().to(device)
    depth = min(config.last, len(pool.ids))
    for start in range(0, len(queries), block):
        part = vectors[start : start + block].float().to(device)
        found = (part @ everything.T).topk(depth, dim=1)
        rows, scores = found.indices.cpu().numpy(), found.values.cpu().numpy()
        for offset, query in enumerate(queries[start : start + block]):
            own = part[offset].cpu()
            yield _judge(query, own, rows[offset], scores[offset], pool, positives, config)


def _judge(
    query: Query,
    vector: Float[Tensor, " dim"],
    rows: Int64[np.ndarray, " ranks"],
    scores: Float[np.ndarray, " ranks"],
    pool: Pool,
    positives: Pool,
    config: MiningConfig,
) -> Mined:
    order = np.lexsort((rows, -scores))  # ties by row, so that the device does not decide
    rows, scores = rows[order], scores[order]
    dids = [pool.ids[row] for row in rows.tolist()]
    found = {did: row for did in query.positives if (row := positives.row(did)) is not None}
    anchors = positives.vectors[list(found.values())].float()
    own = dict(zip(found, (anchors @ vector).tolist(), strict=True))
    known = set(query.positives)
    limit = _limit(list(own.values()), config)
    twins = np.zeros(len(rows), dtype=bool)
    if config.duplicate is not None and found:
        cosines = pool.vectors[torch.from_numpy(rows)].float() @ anchors.T
        twins = (cosines.amax(1) >= config.duplicate).numpy()
    verdicts = [""] * len(dids)
    for place, did in enumerate(dids):
        verdicts[place] = _reason(
            did in known, bool(twins[place]), float(scores[place]), place + 1, limit, config
        )
    _pick(query.item.id, verdicts, config)
    return Mined(query.item.id, own, dids, scores, verdicts)


class _Limit(NamedTuple):
    relative: float = float("inf")
    absolute: float = float("inf")
    known: bool = False


def _limit(scores: Sequence[float], config: MiningConfig) -> _Limit:
    if not scores:
        return _Limit()
    levels = {"min": min(scores), "mean": sum(scores) / len(scores), "max": max(scores)}
    positive = levels[config.positive_score]
    relative = absolute = float("inf")
    if config.relative_margin is not None:
        relative = positive - config.relative_margin * abs(positive)
    if config.absolute_margin is not None:
        absolute = positive - config.absolute_margin
    return _Limit(relative, absolute, True)


def _reason(
    known: bool, twin: bool, score: float, rank: int, limit: _Limit, config: MiningConfig
) -> str:
    """Why a candidate is no negative; empty if it may be one. The first reason counts."""
    if known:
        return "known positive"
    if not limit.known:
        return "query without an embedded positive"
    if twin:
        return "near duplicate of a positive"
    if rank < config.first:
        return "above the rank range"
    if score > limit.relative:
        return "relative margin"
    if score > limit.absolute:
        return "absolute margin"
    if config.min_score is not None and score < config.min_score:
        return "below the least score"
    return ""


def _pick(qid: str, verdicts: list[str], config: MiningConfig) -> None:
    open_places = [place for place, verdict in enumerate(verdicts) if not verdict]
    chosen = open_places[: config.per_query]
    if config.pick == "random":
        random = Random(f"{config.seed}:{qid}")  # noqa: S311
        chosen = random.sample(open_places, min(config.per_query, len(open_places)))
    for place in open_places:
        verdicts[place] = KEPT if place in set(chosen) else "not needed"


class Tally:
    """What mining has done, for people."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.queries = self.short = self.none = 0

    def add(self, mined: Mined, wanted: int) -> None:
        """Count one query."""
        kept = mined.verdicts.count(KEPT)
        self.verdicts.update(mined.verdicts)
        self.queries += 1
        self.short += kept < wanted
        self.none += kept == 0

    def table(self) -> str:
        """Reasons with counts and shares, then the queries that came out short."""
        total = sum(self.verdicts.values())
        lines = [
            f"{verdict:<36}{count:>12}{100 * count / total:>8.1f} %"
            for verdict, count in self.verdicts.most_common()
        ]
        lines.append(
            f"{self.queries} queries; {self.short} with fewer negatives than wanted, "
            f"{self.none} of them with none"
        )
        return "\n".join(lines)
