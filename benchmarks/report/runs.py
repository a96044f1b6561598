"""Runs as ``test`` or ``bm25`` left them: hits, the text that was read, how ranks moved."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.data import read_qrels
from augment.errors import DataError, StoreError
from augment.files import packed, read_json
from augment.records import Enrichment, Hit, Item, Side
from augment.store import Store
from augment.views import TextView, open_view
from retrievers.data.texts import ViewConfig
from retrievers.data.writings import WRITTEN, read_writings
from retrievers.evaluation.compare import files_of, tasks_of
from retrievers.evaluation.evaluate import CASCADE
from retrievers.evaluation.protocol import task_titles
from retrievers.evaluation.run_files import read_table
from retrievers.search.rewriting import store_of

SIDES: tuple[Side, Side] = ("query", "corpus")


@final
@dataclass(frozen=True)
class OpenedRun:
    """One run's folder.

    Attributes:
        folder: with run files, judgements and, of our own tests, ``metrics.json``.
        views: text of both sides as the retriever read it.
        about: ``metrics.json``; empty if there is none.
        notes: what could not be opened.
    """

    folder: Path
    views: Mapping[Side, TextView]
    about: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def root(self) -> Path | None:
        """The data root that the run names."""
        root = self.about.get("settings", {}).get("data", {}).get("root")
        return Path(root) if root else None

    def text(self, side: Side, item: Item) -> str:
        """What the retriever read of an item, without instruction; empty if there is no text."""
        return self.views[side].text(item) or ""

    def hits(self, task: str, pool: str) -> Mapping[str, Sequence[Hit]]:
        """Hits of a task's queries, best first."""
        return read_table(files_of(self.folder, task, pool)[0], empty=True).to_run()

    @cached_property
    def writings(self) -> Mapping[str, str]:
        """Query -> what the retriever wrote before its vector; empty where none writes."""
        path = self.folder / WRITTEN
        return {qid: one.text for qid, one in read_writings(path).items()} if path.is_file() else {}

    @cached_property
    def rewritten(self) -> Mapping[str, Enrichment]:
        """Pair -> a candidate's text in sight of the query; empty where nothing was rewritten."""
        path = self.folder / CASCADE
        told = (read_json(path).get("rewrite") if path.is_file() else None) or {}
        found = store_of(self.folder, told)
        return Store(found).texts("corpus", told["recipe"]) if told and found.is_dir() else {}

    @cached_property
    def trained(self) -> str:
        """What the weights were trained on, in words."""
        found = self.about.get("settings", {}).get("trained_on")
        if found is None:
            model = self.about.get("settings", {}).get("model", {})
            return "nothing (BM25)" if model.get("name") == "bm25" else "unknown"
        return ", ".join(f"{side} {found[side].partition(':')[0]}" for side in SIDES)


def open_run(folder: Path) -> OpenedRun:
    """Open a run's folder.

    Raises:
        DataError: if there is no such folder, or its record cannot be read.
    """
    if not folder.is_dir():
        raise DataError("no such folder; name one that `test` or `bm25` wrote", str(folder))
    path = folder / "metrics.json"
    about: dict[str, Any] = {}
    notes: list[str] = []
    if path.is_file():
        try:
            about = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DataError(f"is no record of a test: {error}", str(path)) from error
    else:
        notes.append(f"{folder.name} has no metrics.json: its texts are shown as published.")
    data = about.get("settings", {}).get("data", {})
    views: dict[Side, TextView] = {}
    for side in SIDES:
        views[side], note = _view(side, data.get(side) or {})
        notes += [f"{folder.name}: {note}"] if note else []
    return OpenedRun(folder, views, about, notes)


def _view(side: Side, given: Mapping[str, Any]) -> tuple[TextView, str]:
    known = {one.name for one in fields(ViewConfig)}
    try:
        return ViewConfig(**{key: value for key, value in given.items() if key in known}).open(
            side
        ), ""
    except (StoreError, DataError) as error:
        return open_view(side), f"the {side} texts cannot be read, so the published ones stand " \
            f"here ({error})"  # fmt: skip


def relevant(folder: Path, task: str) -> dict[str, list[str]]:
    """Query -> relevant candidates, in the order of the judgements.

    Raises:
        DataError: if they are missing or malformed.
    """
    found: dict[str, list[str]] = {}
    for qrel in read_qrels(packed(folder / f"{task}.qrels")):
        if qrel.relevance > 0:
            found.setdefault(qrel.qid, []).append(qrel.did)
    return found


@final
class TaskHits(NamedTuple):
    """Hits of two runs and judgements (query -> relevant candidates) of a task."""

    hits: tuple[Mapping[str, Sequence[Hit]], Mapping[str, Sequence[Hit]]]
    wanted: Mapping[str, Sequence[str]]


@final
class Moved(NamedTuple):
    """A query with the rank of its first relevant candidate in both runs; None is not found."""

    task: str
    title: str
    qid: str
    first: int | None
    second: int | None

    @property
    def gain(self) -> float:
        """In reciprocal rank."""
        return 1 / (self.second or math.inf) - 1 / (self.first or math.inf)


def moves(runs: tuple[OpenedRun, OpenedRun], pool: str) -> tuple[dict[str, TaskHits], list[Moved]]:
    """What two runs found, by task, and every query with its ranks.

    Raises:
        DataError: if a file is missing or malformed.
    """
    names = tasks_of(runs[0].folder, pool)
    tasks, moved = {}, []
    for name, title in task_titles(names).items():
        hits = (runs[0].hits(name, pool), runs[1].hits(name, pool))
        wanted = relevant(runs[0].folder, name)
        first, second = (first_ranks(each, wanted) for each in hits)
        tasks[name] = TaskHits(hits, wanted)
        moved += [Moved(name, title, qid, first[qid], second[qid]) for qid in wanted]
    return tasks, moved


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
        if sign * one.gain > 0:
            by_task.setdefault(one.task, []).append(one)
    for queries in by_task.values():
        queries.sort(key=lambda one: (-sign * one.gain, one.qid))
    turns = zip_longest(*by_task.values())
    return [one for turn in turns for one in turn if one is not None][:most]


def first_ranks(
    hits: Mapping[str, Sequence[Hit]], wanted: Mapping[str, Sequence[str]]
) -> dict[str, int | None]:
    """Query -> rank of its first relevant candidate, from 1; None if it was not found."""
    found: dict[str, int | None] = {}
    for qid, ids in wanted.items():
        right = set(ids)
        ranks = (rank for rank, hit in enumerate(hits.get(qid, ()), 1) if hit.did in right)
        found[qid] = next(ranks, None)
    return found
