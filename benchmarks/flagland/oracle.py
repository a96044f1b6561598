"""Flagland's oracle: the texts that a perfect model would write, and how far others are from them.

Enriching with the oracle's texts instead of a model's shows what the retriever reaches when the
text is never wrong; :func:`score_facts` counts which facts of the pictures a model's texts state.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines.scripted import ScriptedEngine
from augment.records import Enrichment, Side
from benchmarks.flagland import language
from benchmarks.flagland.grammar import FACT_TYPES, Fact, Flag
from benchmarks.flagland.world import country_of


def has_truth(root: Path) -> bool:
    """Whether the root is a Flagland with its scene graphs."""
    return (root / "truth" / "scene_graphs.jsonl").is_file()


def _rows(root: Path, name: str) -> Iterator[dict[str, Any]]:
    with (root / "truth" / name).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def flags_of(root: Path) -> dict[str, Flag]:
    """Image path -> scene graph."""
    return {row["image"]: Flag.from_dict(row["flag"]) for row in _rows(root, "scene_graphs.jsonl")}


def _pictured(root: Path) -> Iterator[tuple[str, Flag]]:
    """Id and flag of every candidate with a picture."""
    flags = flags_of(root)
    for file in DataRoot(root).pools():
        for item in open_candidates(file.path):
            if item.image is not None:
                yield item.id, flags[item.image]


def _asked(root: Path) -> Iterator[tuple[dict[str, Any], Flag]]:
    """What a query with a picture should be rewritten to, and the flag that it is about."""
    rows = _rows(root, "scene_graphs.jsonl")
    countries = {row["country"]: Flag.from_dict(row["flag"]) for row in rows}
    for truth in _rows(root, "queries.jsonl"):
        yield truth, countries[truth["country"]]


def oracle_engine(root: Path, side: str) -> ScriptedEngine:
    """Answers every request of one side of a Flagland root with the truth."""
    if side == "corpus":
        answers = {item: language.caption(flag) for item, flag in _pictured(root)}
    else:  # the flag of a request to change one is the flag that results from the change
        answers = {truth["qid"]: _wanted(truth, flag) for truth, flag in _asked(root)}
        answers = {**_of_words(root), **answers}
    return ScriptedEngine(answers, root=root, model="flagland-oracle", batch_size=256)


def _of_words(root: Path) -> dict[str, str]:
    """Id -> what the country's flag shows, of every query without a picture."""
    shown = {row["country"]: Flag.from_dict(row["flag"])
             for row in _rows(root, "scene_graphs.jsonl")}  # fmt: skip
    asked = (query.item for split in ("train", "val", "test")
             for file in DataRoot(root).query_files(split)
             for query in open_queries(file.path))  # fmt: skip
    return {item.id: language.caption(shown[country_of(item.id)])
            for item in asked if item.image is None}  # fmt: skip


def _wanted(truth: Mapping[str, Any], flag: Flag) -> str:
    if truth["kind"] == "recall":
        return language.recalled(truth["name"], flag)
    question = truth["kind"] == "question"
    return language.resolved(truth["frame"], flag) if question else language.caption(flag)


def told_by_targets(root: Path) -> dict[str, str]:
    """Query id -> what its picture does not show: the country's name, and the answer."""
    names = {query.item.id: json.loads(query.item.source or "{}").get("country", "")
             for split in ("train", "val", "test") for file in DataRoot(root).query_files(split)
             for query in open_queries(file.path)}  # fmt: skip
    truths = ((truth["qid"], truth.get("answer", "")) for truth in _rows(root, "queries.jsonl"))
    return {qid: f"The country is {names[qid]}" + (f", the answer {answer}." if answer else ".")
            for qid, answer in truths}  # fmt: skip


@dataclass
class FactCounts:
    """Facts that descriptions state, those that are true, and those that are both, by type."""

    right: Counter[str] = field(default_factory=Counter)
    stated: Counter[str] = field(default_factory=Counter)
    wanted: Counter[str] = field(default_factory=Counter)
    exact: int = 0
    total: int = 0

    def add(self, said: frozenset[Fact], true: frozenset[Fact]) -> None:
        """Count one description."""
        self.right.update(kind for kind, _ in said & true)
        self.stated.update(kind for kind, _ in said)
        self.wanted.update(kind for kind, _ in true)
        self.exact += said == true
        self.total += 1

    def row(self, kinds: Iterable[str] = FACT_TYPES) -> dict[str, float]:
        """Precision, recall and F1 over some types, micro-averaged, and the counts behind them."""
        kinds = tuple(kinds)
        right, stated, wanted = (
            sum(counted[kind] for kind in kinds)
            for counted in (self.right, self.stated, self.wanted)
        )
        return {
            "precision": right / stated if stated else 1.0,
            "recall": right / wanted if wanted else 1.0,
            "f1": 2 * right / max(1, stated + wanted),
            "right": right,
            "stated": stated,
            "wanted": wanted,
        }

    def table(self) -> dict[str, Any]:
        """All rows, and the share of descriptions in which every fact is right."""
        rows: dict[str, Any] = {kind: self.row([kind]) for kind in FACT_TYPES}
        exact = self.exact / max(1, self.total)
        return {**rows, "all": self.row(), "exact": exact, "descriptions": self.total}


def score_facts(root: Path, side: Side, texts: Mapping[str, Enrichment]) -> dict[str, Any]:
    """Precision and recall of the facts in a side's texts, by type of fact and in all."""
    flags = (
        _pictured(root)
        if side == "corpus"
        else ((truth["qid"], flag) for truth, flag in _asked(root))
    )
    counts = FactCounts()
    for item_id, flag in dict(flags).items():
        text = texts.get(item_id)
        if text is not None and not text.rejected:
            counts.add(language.parse(text.text), flag.facts())
    by_type = {kind: counts.row([kind]) for kind in sorted(counts.wanted)}
    return {"all": counts.row(), "by_type": by_type}
