"""Reason, then embed: a query's vector behind what the model writes about it (TRACE, RGE).

The prompt is read once. A row whose next token is the mark is done: the state that says so is its
vector. The others write, token by token, until the mark; the state that predicts it (``before``),
its own (``at``) or that of the turn's end (``after``) is their vector, with no second pass.
Finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from augment.errors import DataError
from retrievers.models.mllm.conversations import Conversations

#: How a row came to its vector: ``direct`` wrote nothing; ``mark`` wrote the mark itself; ``end``
#: wrote the end of its turn and ``length`` as much as it may, where the mark was put in its place.
Ending = Literal["direct", "mark", "end", "length"]


@dataclass(frozen=True)
class Reasoning:
    """When a model writes before a query's vector, and how much.

    Args:
        when: never; always, at least a token; or adaptive, where the mark is not the likeliest
            first token.
        threshold: of adaptive, the probability of the mark from which nothing is written; null
            asks for the likeliest token.
        max_tokens: of what is written; then the mark is forced.
        candidates: they write before their vectors, too.
    """

    when: Literal["never", "always", "adaptive"] = "never"
    threshold: float | None = None
    max_tokens: int = 128
    candidates: bool = False

    def __post_init__(self) -> None:
        if self.when not in ("never", "always", "adaptive"):
            raise DataError(f"reasoning.when must be never, always or adaptive, got {self.when!r}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise DataError(f"reasoning.threshold is a probability, got {self.threshold}")
        if self.candidates and self.when == "never":
            raise DataError("reasoning.candidates has candidates write; set reasoning.when, too")
        if self.max_tokens < 1:
            raise DataError(f"reasoning.max_tokens must be positive, got {self.max_tokens}")

    def settings(self) -> dict[str, Any]:
        """For the record; without candidates as it was before these could write."""
        told = asdict(self)
        return told if self.candidates else {k: v for k, v in told.items() if k != "candidates"}

    def straight(self, logits: Float[Tensor, "batch vocabulary"], mark: int) -> Tensor:
        """Which rows write nothing, by the logits of their first token."""
        if self.when == "always":
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if self.when == "never":
            return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        if self.threshold is None:
            return logits.argmax(-1) == mark
        return logits.softmax(-1)[:, mark] >= self.threshold


class Reasoned(NamedTuple):
    """What came of a batch.

    Attributes:
        vectors: unit vectors.
        direct: what they are where nothing is written; of every row, from the same pass.
        mark: probability of the mark as the first token.
        tokens: what was written, without the mark.
        endings: how each row came to its vector.
    """

    vectors: Float[Tensor, "batch dim"]
    direct: Float[Tensor, "batch dim"]
    mark: Float[Tensor, " batch"]
    tokens: Sequence[list[int]]
    endings: Sequence[Ending]


@torch.no_grad()
def reason(encoder: Any, batch: Conversations, how: Reasoning) -> Reasoned:
    """Write where it is asked for, greedily, and take the vectors.

    The model's own defaults of generation (sampling, penalties) have no say.

    Args:
        encoder: a :class:`~retrievers.models.mllm.encoder.Mllm` whose layout has a mark.
        batch: prompts of one side, without targets.
        how: when and how much.
    """
    # One token at a time, of fewer and fewer rows: nothing to compile.
    with torch.compiler.set_stance("force_eager"):
        return _reason(encoder, batch, how)


def _reason(encoder: Any, batch: Conversations, how: Reasoning) -> Reasoned:
    from augment.engines.decoding import Decoder

    mark, tokenizer = encoder.mark, encoder.collator().processor.tokenizer
    behind = encoder.layout.behind(tokenizer)
    prompts = batch.without_end(len(behind)) if behind else batch
    # Its own decoder for every batch: what one keeps of a prompt is of the weights of that moment.
    reading = Decoder(encoder.vlm, ()).begin(
        {
            "input_ids": prompts.tokens,
            "attention_mask": prompts.mask,
            "mm_token_type_ids": prompts.kinds,
            **prompts.pictures(),
        }
    )
    logits, direct = reading.logits, encoder.vector(reading.glance(behind))
    straight = how.straight(logits, mark)
    endings: list[Ending] = ["direct"] * batch.size
    rows = (~straight).nonzero()[:, 0]
    found = Reasoned(
        direct.clone(), direct, logits.softmax(-1)[:, mark], [[] for _ in endings], endings
    )
    if len(rows):
        reading.keep(rows)
        # Who is to write writes at least a token: an end at once would be writing nothing, unseen.
        ends = [mark, tokenizer.eos_token_id]
        first = logits[rows].index_fill(1, torch.tensor(ends, device=rows.device), -torch.inf)
        _write(encoder, reading, first.argmax(-1), rows.tolist(), found, how.max_tokens)
    return found


def _write(
    encoder: Any, reading: Any, chosen: Tensor, places: list[int], found: Reasoned, most: int
) -> None:
    """Fill in the rows that write: ``places`` of the batch, one for each row of ``reading``."""
    from augment.engines.decoding import LEFT

    mark, tokenizer = encoder.mark, encoder.collator().processor.tokenizer
    behind, ends = encoder.layout.behind(tokenizer), frozenset({tokenizer.eos_token_id})
    done: set[int] = set()
    while True:
        closing, going = [], []
        for number, token in enumerate(chosen.tolist()):
            place = places[number]
            if place in done:
                continue
            ending = _ending(token, mark, ends, len(found.tokens[place]), most)
            if ending is None:
                found.tokens[place].append(token)
                going.append(number)
            else:
                found.endings[place] = ending  # type: ignore[index]
                closing.append(number)
        if closing and behind:
            chosen[closing] = mark
            reading.read(chosen)
        if closing:
            closed = [places[number] for number in closing]
            found.vectors[closed] = encoder.vector(reading.glance(behind[1:])[closing])
            done.update(closed)
        if not going:
            return
        if len(going) <= LEFT * len(places):
            left = torch.tensor(going, device=chosen.device)
            reading.keep(left)
            chosen, places = chosen[left], [places[number] for number in going]
        if not (closing and behind):
            reading.read(chosen)
        chosen = reading.logits.argmax(-1)


def _ending(token: int, mark: int, ends: frozenset[int], written: int, most: int) -> Ending | None:
    if token == mark:
        return "mark"
    if token in ends:
        return "end"
    return "length" if written >= most else None
