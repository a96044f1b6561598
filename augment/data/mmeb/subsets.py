"""MMEB's 78 data sets by name, category and part, and what is in one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import NamedTuple

_TABLE = resources.files("augment.data.mmeb").joinpath("sets.tsv").read_text()
_ROWS = [line.split("\t") for line in _TABLE.splitlines()[1:]]

#: Category -> data sets, as published folders are called (2410.05160, Table 1; V2: the names of
#: experiments/public/eval/*.yaml in TIGER-AI-Lab/VLM2Vec).
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    category: tuple(name for name, _, of, _ in _ROWS if of == category)
    for category in dict.fromkeys(of for _, _, of, _ in _ROWS)
}

#: image, video, documents -> data sets. V1 is the first.
PARTS: Mapping[str, tuple[str, ...]] = {
    part: tuple(name for name, of, *_ in _ROWS if of == part)
    for part in dict.fromkeys(of for _, of, *_ in _ROWS)
}

#: Those of V1 with a training subset; the other 16 are out of distribution.
IN_DISTRIBUTION = frozenset(name for name, *_, trained in _ROWS if trained == "yes")
#: All of them.
KNOWN = frozenset(name for name, *_ in _ROWS)


class Target(NamedTuple):
    """A query or candidate: text and path of a picture or of frames, either may be None."""

    text: str | None
    image: str | None


@dataclass(frozen=True)
class Subset:
    """One data set.

    Attributes:
        name: as its folder.
        queries: in file order.
        candidates: each once, in order of first appearance.
        lists: for each query the places of its candidates, a right one first; a range of all of
            them where a query has no list of its own.
        right: for each query the places of right candidates, with their grades.
        metric: what MMEB counts, success@1 (hit@1) or ndcg@5.
    """

    name: str
    queries: list[Target] = field(default_factory=list)
    candidates: list[Target] = field(default_factory=list)
    lists: list[Sequence[int]] = field(default_factory=list)
    right: list[Mapping[int, int]] = field(default_factory=list)
    metric: str = "success@1"

    def qid(self, row: int) -> str:
        """Id of a query, by its row from 0."""
        return f"{self.name}:q{row + 1}"

    def did(self, row: int) -> str:
        """Id of a candidate, by its place from 0."""
        return f"{self.name}:c{row + 1}"

    @property
    def grades(self) -> dict[str, dict[str, int]]:
        """The right candidates of each query."""
        return {
            self.qid(row): {self.did(place): grade for place, grade in own.items()}
            for row, own in enumerate(self.right)
        }
