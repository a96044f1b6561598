"""What a search answers: candidates, and what became of the query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """One candidate of an answer.

    Attributes:
        rank: from 1.
        score: cosine of query and candidate, or that of BM25.
        id: of the candidate.
        text: as published, or None.
        generated: accepted generated text, or None. Whether the retriever read it is said by
            :attr:`retrievers.Searcher.corpus_view`.
        image: path relative to the data root, or None.
    """

    rank: int
    score: float
    id: str
    text: str | None
    generated: str | None
    image: str | None


@dataclass(frozen=True)
class Answer(Sequence[Result]):
    """The candidates found, best first, and what became of the query.

    Attributes:
        results: the candidates.
        read: the text that the retriever read as the query; None if it read none.
        seen: whether the retriever saw a picture of the query.
        instruction: the instruction in front of it, or None.
        rewritten: what the VLM made of the typed query; None if it was not asked, left this kind
            of query alone, or its text was refused.
        notes: what a user should know about this search.
    """

    results: tuple[Result, ...]
    read: str | None
    seen: bool
    instruction: str | None
    rewritten: str | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, place: Any) -> Any:
        return self.results[place]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def described(self) -> str:
        """What the retriever read, for people."""
        if self.read is None:
            return "the picture alone" if self.seen else "nothing"
        return self.read

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
