"""What a search answers, and how a terminal shows it."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from augment.errors import printable

_WIDTH = 96


@dataclass(frozen=True)
class Cascaded:
    """Where a candidate stood before it was read again.

    Attributes:
        rank: in the first stage, from 1.
        first: its score there.
        second: the reranker's score; None beyond its depth.
        rewritten: the text in sight of the query that the reranker read, None if there is none.
    """

    rank: int
    first: float
    second: float | None
    rewritten: str | None


@dataclass(frozen=True)
class Result:
    """One candidate of an answer.

    Attributes:
        rank: from 1.
        score: cosine of query and candidate, or that of BM25; in a cascade the reranker's, or the
            fused one.
        id: of the candidate.
        text: as published, or None.
        generated: accepted generated text, or None. Whether the retriever read it is said by
            :attr:`retrievers.Searcher.corpus_view`.
        image: path relative to the data root, or None.
        shared: words that the query, with what was written before its vector, and the text that
            the retriever read have in common. Of BM25 they are why it was found.
        cascade: what the stages of a cascade made of it; None without one.
    """

    rank: int
    score: float
    id: str
    text: str | None
    generated: str | None
    image: str | None
    shared: tuple[str, ...] = ()
    cascade: Cascaded | None = None


class Pace(NamedTuple):
    """How fast a searcher answered, over its latest searches.

    Attributes:
        searches: how many.
        p50: median of the seconds of one, waiting included.
        p95: which 19 of 20 did not exceed.
        tokens: written before a query's vector, on average.
    """

    searches: int
    p50: float
    p95: float
    tokens: float

    @classmethod
    def of(cls, latest: Collection[tuple[float, int]]) -> Pace:
        """Of seconds and tokens of each search, at least one."""
        seconds, tokens = zip(*latest, strict=True)
        p50, p95 = np.percentile(seconds, (50, 95))
        return cls(len(latest), float(p50), float(p95), fmean(tokens))

    def __str__(self) -> str:
        wrote = f"; {self.tokens:.1f} tokens written a query" if self.tokens else ""
        return f"latest {self.searches:,}: p50 {self.p50:.3f} s, p95 {self.p95:.3f} s{wrote}"


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
        wrote: what the retriever wrote before the query's vector; empty for nothing.
        tokens: how many it wrote.
        seconds: from the question to the answer, waiting for others' included.
    """

    results: tuple[Result, ...]
    read: str | None
    seen: bool
    instruction: str | None
    rewritten: str | None
    notes: tuple[str, ...]
    wrote: str = ""
    tokens: int = 0
    seconds: float = field(default=0.0, compare=False)

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


def render(answer: Answer, root: Path) -> str:
    """An answer as text for people.

    Args:
        answer: what was found.
        root: put before the paths of pictures, so that a terminal can open them.
    """
    lines = []
    if answer.rewritten:
        lines.append(f"rewritten  {_line(answer.rewritten)}")
    lines += [f"read as    {_line(answer.described())}"]
    lines += [f"wrote      {_line(answer.wrote)}"] if answer.wrote else []
    lines.append("")
    for result in answer:
        stages = result.cascade
        moved = f"  ({told(stages)})" if stages else ""
        lines.append(f"{result.rank:>3}  {result.score:.4f}  {printable(result.id)}{moved}")
        fields = {
            "text": result.text,
            "generated": result.generated,
            "rewritten": stages and stages.rewritten,
            "shared": " ".join(result.shared),
            "image": printable(str(root / result.image)) if result.image else None,
        }
        for name, value in fields.items():
            if value:
                # A path stays on one line, so that it can be copied.
                plain = name == "image"
                lines.append(f"     {name:<9}  {value}" if plain else _wrapped(name, value))
    return "\n".join(lines) + "\n"


def name_of(checkpoint: Path) -> str:
    """What a checkpoint is called: its run's folder, or the model's name."""
    if checkpoint.suffix != ".ckpt":
        return checkpoint.name
    folder = checkpoint.absolute().parent
    return folder.parent.name if folder.name == "checkpoints" else checkpoint.stem


def told(stages: Cascaded) -> str:
    """Rank and scores before, for people."""
    second = "not read again" if stages.second is None else f"reranker {stages.second:.3f}"
    return f"was {stages.rank}, {stages.first:.3f}; {second}"


def _wrapped(name: str, value: str) -> str:
    return textwrap.fill(
        _line(value),
        _WIDTH,
        initial_indent=f"     {name:<9}  ",
        subsequent_indent=" " * 16,
        break_on_hyphens=False,
    )


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
