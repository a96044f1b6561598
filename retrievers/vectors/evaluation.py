"""A pass over candidates and queries: their vectors, the search in them, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import final

from torch import Tensor

from augment.records import Side
from retrievers.data.examples import Inputs, Items
from retrievers.data.module import MBeirData
from retrievers.data.plan import Plan
from retrievers.data.settings import SearchConfig
from retrievers.search.mining import MiningConfig, Tally, mine_plan
from retrievers.vectors.embed import Embeddings
from retrievers.vectors.scoring import Results, Searched, score, search_plan

#: The loaders of a pass, in order.
SIDES: tuple[Side, Side] = ("corpus", "query")


@final
class Evaluation:
    """Collects vectors batch by batch, and searches once all are there.

    Args:
        rooms: where the vectors of candidates and of queries go.
        device: that searches.
    """

    def __init__(self, rooms: Sequence[Embeddings], device: str) -> None:
        self._rooms = rooms
        self._device = device
        self._started, self._encoded = time.monotonic(), 0
        self._embedded: float | None = None

    def put(self, batch: Items, loader: int, encode: Callable[[Inputs, Side], Tensor]) -> None:
        """Embed a batch of candidates (loader 0) or queries (loader 1)."""
        room = self._rooms[loader]
        room.fail(batch.failed.tolist(), batch.degraded.tolist())
        self._encoded += batch.inputs.size
        if batch.inputs.size:
            vectors = encode(batch.inputs, SIDES[loader]).float().cpu()
            room.put(batch.rows.cpu(), vectors, batch.degraded.tolist())

    def finish(self) -> list[str]:
        """All batches are there; what became of them, a line for each side."""
        self._embedded = time.monotonic()
        return [_told(side, room) for side, room in zip(SIDES, self._rooms, strict=True)]

    def search(self, plan: Plan, made_by: str, search: SearchConfig) -> Searched:
        """Runs of all pools.

        Args:
            plan: what is asked, and where.
            made_by: fingerprint of what made the vectors.
            search: depth and index.
        """
        candidates, queries = self._rooms
        return search_plan(
            plan, candidates, queries, made_by, search.depth, self._device, search.index,
            search.index_parameters,
        )  # fmt: skip

    def score(self, plan: Plan, found: Searched, made_by: str) -> Results:
        """Metrics of what was found."""
        candidates, queries = self._rooms
        results = score(plan, found.runs, candidates, queries, made_by)
        results.recall = {
            pool: [measured._asdict() for measured in own] for pool, own in found.recall.items()
        }
        return results

    def mine(self, data: MBeirData, config: MiningConfig, made_by: str, folder: Path) -> Tally:
        """Hard negatives, written to a folder; what became of the candidates."""
        about = {
            "made_by": made_by,
            "text": data.recipe.fingerprint,
            "data": data.digest(),
            "mining": asdict(config),
        }
        candidates, queries = self._rooms
        return mine_plan(data.plan, candidates, queries, config, folder, about, self._device)

    def cost(self) -> dict[str, float]:
        """Seconds of embedding and of search so far; items, and items per second."""
        now = time.monotonic()
        embedded = now if self._embedded is None else self._embedded
        embedding = embedded - self._started
        return {
            "embedding_seconds": round(embedding, 3),
            "search_seconds": round(now - embedded, 3),
            "items": self._encoded,
            "items_per_second": round(self._encoded / max(embedding, 1e-9), 1),
        }


def _told(side: Side, room: Embeddings) -> str:
    whole = room.finish()
    kept, failed = int(room.done.sum()), len(room.failed)
    return (
        f"{side}: {kept} vectors, {len(room.degraded)} of them without their unreadable "
        f"picture; {failed} items with nothing to embed"
        + ("" if whole else f"; {len(room.done) - kept - failed} left to other processes")
    )
