"""Which items are worth a text? Routers put the items of a side in order, the first ones first.

========== ====================================================================================
random     a fixed shuffle
thin       fewest published words first: a picture alone before a picture with an article
contested  asks a retriever that knows only the published text. Queries: smallest distance between
           its first two hits first. Candidates: those that came closest to another hit of some
           query, be it above or below them; candidates that no query found come last. No judgement
           is looked at.
========== ====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from augment.errors import DataError
from augment.files import digest
from augment.records import Hit, Item, Side
from retrievers.evaluation.run import read_table

#: Hits of a query that count as its rivals.
DEPTH = 10

#: Name -> whether a retriever is asked.
ROUTERS: Mapping[str, bool] = {"random": False, "thin": False, "contested": True}


def chosen(
    items: Mapping[str, Item],
    side: Side,
    share: float,
    router: str,
    seed: int = 0,
    runs: Path | None = None,
) -> frozenset[str]:
    """Ids of the items that get a text.

    Args:
        items: those that could have one.
        side: query or corpus.
        share: of the items.
        router: see the module.
        seed: of the shuffle, which also settles ties.
        runs: folder with local runs of the retriever that is asked.

    Raises:
        DataError: if the router is unknown, or needs runs and gets none.
    """
    if router not in ROUTERS:
        raise DataError(f"unknown router {router!r}; there are {', '.join(ROUTERS)}")
    if not 0 <= share <= 1:
        raise DataError(f"a share is between 0 and 1, got {share}")
    rank = _key(router, items, side, runs)
    order = sorted(items, key=lambda item_id: (rank(item_id), digest([seed, item_id])))
    return frozenset(order[: round(share * len(order))])


def _key(
    router: str, items: Mapping[str, Item], side: Side, runs: Path | None
) -> Callable[[str], float]:
    if router == "random":
        return lambda item_id: 0.0
    if router == "thin":
        return lambda item_id: float(len((items[item_id].text or "").split()))
    if runs is None:
        raise DataError("the router contested asks a retriever; name its arm with contested_by")
    distance = margins(runs) if side == "query" else closeness(runs)
    return lambda item_id: distance.get(item_id, math.inf)


def _hits(runs: Path) -> Iterator[tuple[str, Sequence[Hit]]]:
    for path in sorted(runs.glob("*.local.trec")):
        yield from read_table(path, empty=True).to_run().items()


def margins(runs: Path) -> dict[str, float]:
    """Query id -> distance in score of its first two hits; infinite where there is one."""
    return {
        qid: hits[0].score - hits[1].score if len(hits) > 1 else math.inf
        for qid, hits in _hits(runs)
    }


def closeness(runs: Path) -> dict[str, float]:
    """Candidate id -> smallest distance in score to the first hit (of the first: to the second)."""
    found: dict[str, float] = {}
    for _, hits in _hits(runs):
        near = hits[:DEPTH]
        for place, hit in enumerate(near):
            rival = near[0] if place else (near[1] if len(near) > 1 else None)
            distance = abs(hit.score - rival.score) if rival else math.inf
            found[hit.did] = min(found.get(hit.did, math.inf), distance)
    return found
