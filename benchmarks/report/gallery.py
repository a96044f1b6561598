"""Queries that won and lost, with pictures, texts and the top results of both runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, final

from augment.data.items import RootItems
from augment.records import Enrichment, Item, Side
from augment.store import pair_id
from benchmarks.report.runs import Moved, OpenedRun, TaskHits


@final
class CardItem(NamedTuple):
    """An item as the page shows it: its id, its picture, the text and what the picture shows.

    Of a hit also its score, its rank in the other run (None: it is not there), and what a cascade
    made of its text in sight of the query.
    """

    id: str
    image: str | None
    text: str
    alt: str
    score: float | None = None
    other: int | None = None
    rewritten: str = ""

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
        wrote: what the retrievers of both runs wrote before the query's vector; empty for nothing.
    """

    moved: Moved
    query: CardItem
    read: tuple[str, str]
    relevant: Sequence[str]
    wanted: CardItem
    results: tuple[Sequence[CardItem], Sequence[CardItem]]
    text: Enrichment | None
    wrote: tuple[str, str]

    def plain(self) -> dict[str, Any]:
        """For JSON, with the first result of each run; null where it has none."""
        return {
            **self.moved._asdict(),
            "image": self.query.image,
            "published": self.query.text,
            "read": list(self.read),
            "wrote": list(self.wrote),
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
        before, after = (self._hits(moved, task, place) for place in (0, 1))
        wrote = tuple(run.writings.get(moved.qid, "") for run in self._runs)
        query = CardItem(moved.qid, None, "", "")
        if item is not None:
            query = CardItem(item.id, item.image, item.text or "", self._alt("query", item))
        return QueryCard(
            moved, query, (first, second), relevant, self._candidate(relevant[0], self._runs[1]),
            (before, after), self._generated("query", moved.qid), cast("tuple[str, str]", wrote),
        )  # fmt: skip

    def _hits(self, moved: Moved, task: TaskHits, place: int) -> list[CardItem]:
        own, other = (task.hits[n].get(moved.qid, ()) for n in (place, 1 - place))
        ranks, run = {hit.did: rank for rank, hit in enumerate(other, 1)}, self._runs[place]
        cards = []
        for hit in own[: self._top]:
            made = run.rewritten.get(pair_id(f"{moved.task}/{moved.qid}", hit.did))
            text = "" if made is None or made.rejected else made.text
            card = self._candidate(hit.did, run)
            cards.append(card._replace(score=hit.score, other=ranks.get(hit.did), rewritten=text))
        return cards

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
