"""Flagland's oracle: the texts a perfect model would write, read off the scene graphs.

Enriching with them instead of a model's texts shows what the retriever reaches when the text is
never wrong; :func:`symbolic_score` needs no retriever at all and shows that a world is solvable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines.scripted import ScriptedEngine
from augment.records import Item
from benchmarks.flagland import language
from benchmarks.flagland.grammar import Fact, Flag


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def flags_of(root: Path) -> dict[str, Flag]:
    """Image path -> scene graph."""
    path = root / "truth" / "scene_graphs.jsonl"
    return {row["image"]: Flag.from_dict(row["flag"]) for row in _rows(path)}


def _wanted(truth: dict[str, Any], flags: dict[int, Flag]) -> str:
    flag = flags[truth["country"]]
    if truth["kind"] == "question":
        return language.resolved(truth["frame"], flag)
    # Of a request, too: ``country`` is the one whose flag results from the change.
    return language.caption(flag)


def oracle_engine(root: Path, side: str) -> ScriptedEngine:
    """Answers every request of one side of a Flagland root with the truth.

    Args:
        root: written by :mod:`benchmarks.flagland`.
        side: ``query`` or ``corpus``; ids of the two sides overlap.
    """
    answers: dict[str, str] = {}
    if side == "corpus":
        flags = flags_of(root)
        for file in DataRoot(root).pools():
            for item in open_candidates(file.path):
                if item.image is not None:
                    answers[item.id] = language.caption(flags[item.image])
    else:
        path = root / "truth" / "scene_graphs.jsonl"
        countries = {row["country"]: Flag.from_dict(row["flag"]) for row in _rows(path)}
        for truth in _rows(root / "truth" / "queries.jsonl"):
            answers[truth["qid"]] = _wanted(truth, countries)
    return ScriptedEngine(answers, root=root, model="flagland-oracle", batch_size=256)


def symbolic_score(root: Path, split: str = "test") -> dict[int, float]:
    """Success@1 of matching scene graphs, by task, on the tasks that want a picture.

    A query's wanted facts are compared with those of every candidate's picture; a query counts
    if its positive is the only candidate that agrees.
    """
    flags = flags_of(root)
    path = root / "truth" / "scene_graphs.jsonl"
    countries = {row["country"]: Flag.from_dict(row["flag"]) for row in _rows(path)}
    truths = {row["qid"]: row for row in _rows(root / "truth" / "queries.jsonl")}
    data = DataRoot(root)
    scores: dict[int, float] = {}
    for file in data.query_files(split):
        if file.task not in (4, 7, 8):
            continue
        by_facts: dict[frozenset[Fact], list[Item]] = {}
        for item in open_candidates(data.pool_for(file.dataset, file.task, split)):
            by_facts.setdefault(flags[item.image or ""].facts(), []).append(item)
        right = []
        for query in open_queries(file.path):
            facts = countries[truths[query.item.id]["country"]].facts()
            right.append([item.id for item in by_facts.get(facts, [])] == list(query.positives))
        scores[file.task] = sum(right) / len(right)
    return scores
