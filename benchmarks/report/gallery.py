"""Queries that won and lost, with pictures, texts and the top results of both runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.data.items import RootItems
from augment.records import Enrichment, Item, Side
from benchmarks.report.runs import Moved, OpenedRun, TaskHits


@final
class CardItem(NamedTuple):
    """An item as the page shows it: its id, its picture, the text and what the picture shows."""

    id: str
    image: str | None
    text: str
    alt: str

    def plain(self) -> dict[str, Any]:
        """For JSON, the picture by its path."""
        return {"id": self.id, "image": self.image, "text": self.text}


@final
class QueryCard(NamedTuple):
    """A query that moved.

    Attributes:
        moved: task and ranks.
        query: with its published text.
        read: text that the retrievers of both runs read.
        relevant: ids of its relevant candidates.
        wanted: the first of them, as the second run read it.
        results: top hits of both runs.
        text: the generated text behind the query in the second run, or the first.
    """

    moved: Moved
    query: CardItem
    read: tuple[str, str]
    relevant: Sequence[str]
    wanted: CardItem
    results: tuple[Sequence[CardItem], Sequence[CardItem]]
    text: Enrichment | None

    def plain(self) -> dict[str, Any]:
        """For JSON, with the first result of each run; null where it has none."""
        return {
            **self.moved._asdict(),
            "image": self.query.image,
            "published": self.query.text,
            "read": list(self.read),
            "wanted": self.wanted.plain(),
            "found": [next((one.plain() for one in found), None) for found in self.results],
        }


@final
class Gallery:
    """Makes cards.

    Args:
        root: folder of items and pictures.
        runs: the two runs.
        top: results of each run on a card.
    """

    def __init__(self, root: Path, runs: tuple[OpenedRun, OpenedRun], top: int = 3) -> None:
        self._runs = runs
        self._top = top
        self._queries, self._candidates = RootItems(root, "query"), RootItems(root, "corpus")

    def card(self, moved: Moved, task: TaskHits) -> QueryCard:
        """One card of a query of a task."""
        item = self._queries.find(moved.qid)
        relevant = task.wanted[moved.qid]
        first, second = ("" if item is None else run.text("query", item) for run in self._runs)
        before, after = (
            [self._candidate(hit.did, run) for hit in found.get(moved.qid, ())[: self._top]]
            for run, found in zip(self._runs, task.hits, strict=True)
        )
        query = CardItem(moved.qid, None, "", "")
        if item is not None:
            query = CardItem(item.id, item.image, item.text or "", self._alt("query", item))
        return QueryCard(
            moved, query, (first, second), relevant, self._candidate(relevant[0], self._runs[1]),
            (before, after), self._generated("query", moved.qid),
        )  # fmt: skip

    def _candidate(self, did: str, run: OpenedRun) -> CardItem:
        item = self._candidates.find(did)
        if item is None:
            return CardItem(did, None, "not in this root", "")
        return CardItem(did, item.image, run.text("corpus", item), self._alt("corpus", item))

    def _alt(self, side: Side, item: Item) -> str:
        """What a picture shows: the generated text about it, else the published one."""
        text = self._generated(side, item.id)
        return (text.text if text is not None else item.text) or f"Picture of {item.id}"

    def _generated(self, side: Side, item_id: str) -> Enrichment | None:
        """The accepted text about an item, of the second run if it has one."""
        for run in reversed(self._runs):
            found = run.views[side].enrichment(item_id)
            if found is not None and not found.rejected:
                return found
        return None
