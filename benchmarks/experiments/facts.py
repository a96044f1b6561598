"""What share of the facts in a picture do the texts state, and what share of theirs is true?

Only for Flagland, whose scene graphs are known (``truth/`` in its root).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.records import Enrichment, Side
from benchmarks.flagland import language
from benchmarks.flagland.grammar import Fact
from benchmarks.flagland.oracle import flags_of


class Score(NamedTuple):
    """Counts of facts: stated and true, stated, to be stated."""

    right: int
    stated: int
    wanted: int

    def to_json(self) -> dict[str, float]:
        """Precision, recall and the counts."""
        return {
            "precision": self.right / self.stated if self.stated else 1.0,
            "recall": self.right / self.wanted if self.wanted else 1.0,
            **self._asdict(),
        }


def has_truth(root: Path) -> bool:
    """Whether the root is a Flagland with its scene graphs."""
    return (root / "truth" / "scene_graphs.jsonl").is_file()


def wanted_facts(root: Path, side: Side) -> Iterator[tuple[str, frozenset[Fact]]]:
    """Item id and the facts that its text should state."""
    flags = flags_of(root)
    if side == "corpus":
        for file in DataRoot(root).pools():
            for item in open_candidates(file.path):
                if item.image is not None:
                    yield item.id, flags[item.image].facts()
        return
    path = root / "truth" / "scene_graphs.jsonl"
    countries: dict[int, frozenset[Fact]] = {}
    for row in _rows(path):
        countries.setdefault(row["country"], flags[row["image"]].facts())
    for row in _rows(root / "truth" / "queries.jsonl"):
        yield row["qid"], countries[row["country"]]


def score_facts(root: Path, side: Side, texts: Mapping[str, Enrichment]) -> dict[str, Any]:
    """Precision and recall of a side's texts, by type of fact and in all.

    Args:
        root: a Flagland.
        side: query or corpus.
        texts: item id -> text; items without an accepted one are left out.
    """
    right: Counter[str] = Counter()
    stated: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for item_id, facts in dict(wanted_facts(root, side)).items():
        text = texts.get(item_id)
        if text is None or text.rejected:
            continue
        said = language.parse(text.text)
        right.update(kind for kind, _ in said & facts)
        stated.update(kind for kind, _ in said)
        wanted.update(kind for kind, _ in facts)
    by_type = {
        kind: Score(right[kind], stated[kind], wanted[kind]).to_json() for kind in sorted(wanted)
    }
    total = Score(right.total(), stated.total(), wanted.total()).to_json()
    return {"all": total, "by_type": by_type}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
