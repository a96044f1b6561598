"""Queries that won and lost, with pictures, texts and the top results of both runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, final

from augment.data.items import RootItems
from augment.records import Enrichment, Item, Side
from augment.store.page import DataUri, Piece, compare, thumbnail
from benchmarks.report.runs import Moved, OpenedRun, TaskHits

#: Longest side of a query's picture and of a result's, in pixels.
QUERY_SIDE, RESULT_SIDE = 320, 150


@final
@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        uri: thumbnail; None if there is none or it cannot be opened.
        alt: what it shows: the generated text about it, else the published one, else its id.
        why: why there is no thumbnail.
    """

    uri: DataUri | None
    alt: str
    why: str


@final
@dataclass(frozen=True)
class HitCard:
    """A hit as the page shows it."""

    rank: int
    id: str
    relevant: bool
    picture: Picture | None
    text: str


@final
@dataclass(frozen=True)
class QueryCard:
    """A query that moved.

    Attributes:
        moved: task and ranks.
        picture: of the query; None if it has none.
        published: its published text.
        before: text that the first run's retriever read; words that are gone are marked.
        after: text that the second's read; new words are marked.
        wanted: its first relevant candidate as the second run read it.
        results: top hits of both runs.
        text: the generated text behind the query in the second run, or the first.
    """

    moved: Moved
    picture: Picture | None
    published: str
    before: Sequence[Piece]
    after: Sequence[Piece]
    wanted: HitCard | None
    results: tuple[Sequence[HitCard], Sequence[HitCard]]
    text: Enrichment | None

    @property
    def same(self) -> bool:
        """Whether both retrievers read the same text."""
        return self.before == self.after


@final
class Gallery:
    """Makes cards.

    Args:
        root: folder of items and pictures.
        runs: the two runs.
        top: results of each run on a card.

    Attributes:
        runs: the two runs.
    """

    def __init__(self, root: Path, runs: tuple[OpenedRun, OpenedRun], top: int = 3) -> None:
        self.runs = runs
        self._top = top
        self._items: dict[Side, RootItems] = {
            "query": RootItems(root, "query"), "corpus": RootItems(root, "corpus"),
        }  # fmt: skip
        self._thumbnail = cache(partial(thumbnail, root))

    def card(self, moved: Moved, task: TaskHits) -> QueryCard:
        """One card of a query of a task."""
        wanted = task.wanted[moved.qid]
        item = self._items["query"].find(moved.qid)
        texts = ["" if item is None else run.text("query", item) for run in self.runs]
        before, after = compare(*texts)
        first, second = (
            [self._result(rank, hit.did, run, wanted)
             for rank, hit in enumerate(found.get(moved.qid, ())[: self._top], 1)]
            for run, found in zip(self.runs, task.hits, strict=True)
        )  # fmt: skip
        rank = moved.second or 0
        target = self._result(rank, wanted[0], self.runs[1], wanted) if wanted else None
        return QueryCard(
            moved,
            None if item is None else self._picture("query", item, QUERY_SIDE),
            (item.text or "") if item else "",
            before,
            after,
            target,
            (first, second),
            None if item is None else self._generated("query", item.id),
        )

    def row(self, moved: Moved, task: TaskHits) -> dict[str, Any]:
        """The same as plain values, pictures by path."""
        query = self._items["query"].find(moved.qid)
        firsts = [found.get(moved.qid, ())[:1] for found in task.hits]
        return {
            **moved._asdict(),
            "image": query.image if query else None,
            "published": query.text if query else None,
            "read": [run.text("query", query) if query else "" for run in self.runs],
            "wanted": self._plain(task.wanted[moved.qid][0], self.runs[1]),
            "found": [self._plain(hit[0].did, run) if hit else None
                      for hit, run in zip(firsts, self.runs, strict=True)],
        }  # fmt: skip

    def _plain(self, did: str, run: OpenedRun) -> dict[str, Any]:
        item = self._items["corpus"].find(did)
        return {
            "id": did,
            "image": item.image if item else None,
            "text": run.text("corpus", item) if item else "",
        }

    def _result(self, rank: int, did: str, run: OpenedRun, wanted: Sequence[str]) -> HitCard:
        item = self._items["corpus"].find(did)
        if item is None:
            return HitCard(rank, did, did in wanted, None, "not in this root")
        picture = self._picture("corpus", item, RESULT_SIDE)
        return HitCard(rank, did, did in wanted, picture, run.text("corpus", item))

    def _picture(self, side: Side, item: Item, longest: int) -> Picture | None:
        if item.image is None:
            return None
        uri, why = self._thumbnail(item.image, side=longest)
        text = self._generated(side, item.id)
        alt = text.text if text is not None else item.text
        return Picture(uri, alt or f"Picture of {item.id}", why)

    def _generated(self, side: Side, item_id: str) -> Enrichment | None:
        """The accepted text about an item, of the second run if it has one."""
        for run in reversed(self.runs):
            found = run.views[side].enrichment(item_id)
            if found is not None and not found.rejected:
                return found
        return None
