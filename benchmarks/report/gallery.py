"""Queries that won and lost, with pictures, texts and the top results of both runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.data.images import open_image
from augment.errors import ImageError
from augment.records import Enrichment, Hit, Item, Side
from augment.store.page import DataUri, Piece, compare, thumbnail
from augment.store.report import Items
from benchmarks.report.runs import Opened

#: Longest side of a query's picture and of a result's, in pixels.
QUERY_SIDE, RESULT_SIDE = 320, 150


class Moved(NamedTuple):
    """A query with the rank of its first relevant candidate in both runs; None is not found."""

    task: str
    title: str
    qid: str
    first: int | None
    second: int | None


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
class Result:
    """A hit as the page shows it."""

    rank: int
    id: str
    relevant: bool
    picture: Picture | None
    text: str


@final
@dataclass(frozen=True)
class Card:
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
    wanted: Result | None
    results: tuple[Sequence[Result], Sequence[Result]]
    text: Enrichment | None

    @property
    def same(self) -> bool:
        """Whether both retrievers read the same text."""
        return self.before == self.after


def pick(moved: Iterable[Moved], wins: bool, most: int) -> list[Moved]:
    """The queries that gained or lost most by reciprocal rank, taking turns among tasks.

    Args:
        moved: all queries.
        wins: those that the second run is better for, or those that it is worse for.
        most: how many.
    """
    sign = 1 if wins else -1
    by_task: dict[str, list[Moved]] = {}
    for one in moved:
        if sign * _gain(one) > 0:
            by_task.setdefault(one.task, []).append(one)
    for own in by_task.values():
        own.sort(key=lambda one: (-sign * _gain(one), one.qid))
    turns = zip_longest(*by_task.values())
    return [one for turn in turns for one in turn if one is not None][:most]


def _gain(moved: Moved) -> float:
    """Gain in reciprocal rank."""
    return 1 / (moved.second or math.inf) - 1 / (moved.first or math.inf)


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

    def __init__(self, root: Path, runs: tuple[Opened, Opened], top: int = 3) -> None:
        self._root = root
        self.runs = runs
        self._top = top
        self._items: dict[Side, Items] = {
            "query": Items(root, "query"), "corpus": Items(root, "corpus"),
        }  # fmt: skip
        self._thumbnail = cache(self._open)

    def card(
        self, moved: Moved, hits: Sequence[Mapping[str, Sequence[Hit]]], wanted: Sequence[str]
    ) -> Card:
        """One card.

        Args:
            moved: the query.
            hits: query -> hits of its task, in both runs.
            wanted: its relevant candidates.
        """
        item = self._items["query"].find(moved.qid)
        texts = ["" if item is None else run.text("query", item) for run in self.runs]
        before, after = compare(*texts)
        first, second = (
            [self._result(rank, hit.did, run, wanted)
             for rank, hit in enumerate(found.get(moved.qid, ())[: self._top], 1)]
            for run, found in zip(self.runs, hits, strict=True)
        )  # fmt: skip
        rank = moved.second or 0
        target = self._result(rank, wanted[0], self.runs[1], wanted) if wanted else None
        return Card(
            moved,
            None if item is None else self._picture("query", item, QUERY_SIDE),
            (item.text or "") if item else "",
            before,
            after,
            target,
            (first, second),
            None if item is None else self._generated("query", item.id),
        )

    def row(
        self, moved: Moved, hits: Sequence[Mapping[str, Sequence[Hit]]], wanted: Sequence[str]
    ) -> dict[str, Any]:
        """The same as plain values, pictures by path.

        Args:
            moved: the query.
            hits: query -> hits of its task, in both runs.
            wanted: its relevant candidates.
        """
        query = self._items["query"].find(moved.qid)
        firsts = [found.get(moved.qid, ())[:1] for found in hits]
        return {
            **moved._asdict(),
            "image": query.image if query else None,
            "published": query.text if query else None,
            "read": [run.text("query", query) if query else "" for run in self.runs],
            "wanted": self._plain(wanted[0], self.runs[1]),
            "found": [self._plain(hit[0].did, run) if hit else None
                      for hit, run in zip(firsts, self.runs, strict=True)],
        }  # fmt: skip

    def _plain(self, did: str, run: Opened) -> dict[str, Any]:
        item = self._items["corpus"].find(did)
        return {
            "id": did,
            "image": item.image if item else None,
            "text": run.text("corpus", item) if item else "",
        }

    def _result(self, rank: int, did: str, run: Opened, wanted: Sequence[str]) -> Result:
        item = self._items["corpus"].find(did)
        if item is None:
            return Result(rank, did, did in wanted, None, "not in this root")
        picture = self._picture("corpus", item, RESULT_SIDE)
        return Result(rank, did, did in wanted, picture, run.text("corpus", item))

    def _picture(self, side: Side, item: Item, longest: int) -> Picture | None:
        if item.image is None:
            return None
        uri, why = self._thumbnail(item.image, longest)
        text = self._generated(side, item.id)
        alt = text.text if text is not None else item.text
        return Picture(uri, alt or f"Picture of {item.id}", why)

    def _open(self, image: str, longest: int) -> tuple[DataUri | None, str]:
        try:
            return thumbnail(open_image(self._root, image), longest), ""
        except ImageError as error:
            return None, f"picture {error.reason}"

    def _generated(self, side: Side, item_id: str) -> Enrichment | None:
        """The accepted text about an item, of the second run if it has one."""
        for run in reversed(self.runs):
            found = run.views[side].enrichment(item_id)
            if found is not None and not found.rejected:
                return found
        return None
