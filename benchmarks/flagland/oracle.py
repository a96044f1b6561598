"""Flagland's oracle: the texts that a perfect model would write, and how far others are from them.

Enriching with the oracle's texts instead of a model's shows what the retriever reaches when the
text is never wrong; :func:`score_facts` counts which facts of the pictures a model's texts state.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from augment import import_data, queries
from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines.scripted import ScriptedEngine
from augment.records import TASKS, Enrichment, Side
from benchmarks.flagland import language
from benchmarks.flagland.grammar import FACT_TYPES, Fact, Flag
from benchmarks.flagland.world import DATASET, DATASET_ID, country_of


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


def true_texts(root: Path, side: str) -> dict[str, str]:
    """Id -> what is true of it, of every item of one side of a Flagland root."""
    if side == "corpus":
        return {item: language.caption(flag) for item, flag in _pictured(root)}
    # the flag of a request to change one is the flag that results from the change
    asked = {truth["qid"]: _wanted(truth, flag) for truth, flag in _asked(root)}
    return {**_of_words(root), **asked}


def tagged_texts(root: Path) -> dict[str, str]:
    """Id -> the true chain in tags of every query with a picture, as TRACE's prompts ask for it."""
    rows = _rows(root, "scene_graphs.jsonl")
    flags = {row["country"]: Flag.from_dict(row["flag"]) for row in rows}
    ends = {
        "describe": "What is wanted is about the country that flies it.",
        "question": "Question and answering passage are about the country that flies it.",
        "modification": "The wanted flag is to have {constraint}. All else stays as it is.",
    }
    return {
        truth["qid"]: f"<reasoning>The picture shows a flag with "
        f"{language.describe(flags[truth.get('before', truth['country'])])}. "
        f"{ends[truth['kind']].format(**truth)}</reasoning>\n"
        f"<answer>{_wanted(truth, flag)}</answer>"
        for truth, flag in _asked(root) if truth["kind"] in ends
    }  # fmt: skip


def oracle_engine(root: Path, side: str, tagged: bool = False) -> ScriptedEngine:
    """Answers every request of one side of a Flagland root with the truth, or a chain in tags."""
    answers = tagged_texts(root) if tagged else true_texts(root, side)
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


def write_mmeb(root: Path, out: Path, tasks: Sequence[int] = (6, 8)) -> None:
    """Some tasks of a world in MMEB's files, imported, with rationales that saw the targets.

    OUT/train is in MMEB-train's form, OUT/test in that of the test: a query's list is the pool of
    its task. OUT/root is what ``augment import mmeb`` makes of both, OUT/store has what the oracle
    sees in a query's picture and what only the target tells (prompt ``rge/oracle``).
    """
    data, told, written = DataRoot(root), told_by_targets(root), {}
    seen = {truth["qid"]: _wanted(truth, flag) for truth, flag in _asked(root)}
    for task in tasks:
        name, prompt = f"Flagland{task}", data.instructions().get(DATASET_ID, *TASKS[task])[0]
        pool = {one.id: one for one in open_candidates(data.pool_for(DATASET, task, "test"))}
        for split, mark in (("train", "train-"), ("test", "")):
            rows: list[dict[str, Any]] = []
            asked = (query for file in data.query_files(split) for query in open_queries(file.path))
            for query in (query for query in asked if query.task == task):
                item, right = query.item, pool[query.positives[0]]
                text = f"<|image_1|>\n{prompt} {item.text}\n"
                own = [right, *(one for one in pool.values() if one is not right and not mark)]
                texts, images = [one.text or "" for one in own], [one.image or "" for one in own]
                rows.append({
                    "qry": text, "qry_image_path": item.image, "pos_text": texts[0],
                    "pos_image_path": images[0], "neg_text": "", "neg_image_path": "",
                } if mark else {"qry_text": text, "qry_img_path": item.image, "tgt_text": texts,
                                "tgt_img_path": images})  # fmt: skip
                written[f"{mark}{name}:q{len(rows)}"] = f"{seen[item.id]} {told[item.id]}"
            files = "original" if mark else split
            path = out / split / name / f"{files}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
    made = out / "root"
    import_data("mmeb", out / "test", made, images=root, train=out / "train")
    engine = ScriptedEngine(written, root=made, model="flagland-oracle", batch_size=256)
    queries.run(made, out / "store", engine=engine, question_prompt="rge/oracle")


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
