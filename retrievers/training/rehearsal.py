"""What a language model is shown again while it is trained to embed, so that it keeps what it knew.

A model that must recall before it embeds (TRACE, where no input shows the answer) loses in training
what no pair asks for. Rows of what it is to keep stand beside every batch; only the cross-entropy
of their answers counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, final

from augment.errors import DataError
from augment.files import objects, sha256
from retrievers.models.mllm.conversations import ConversationCollator, Conversations

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Rehearsal:
    """Conversations beside each batch of pairs.

    Args:
        path: file of JSON lines in the form that ms-swift and others read: ``messages``, texts with
            their ``role``, whose last one is the assistant's and is learnt; ``given``, if there is
            one, is how that one begins and is not learnt. Null rehearses nothing.
        rows: in a step, of each process.
        weight: of their loss, the mean over rows of the mean over tokens, beside the others.
    """

    path: str | None = None
    rows: int = 32
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.weight < 0:
            raise DataError("rehearsal.rows must be positive, and rehearsal.weight not negative")

    def settings(self) -> dict[str, Any]:
        """For the record: the file by its contents, so that it may be moved."""
        content = None if self.path is None else sha256(Path(self.path))
        return {"sha256": content, "rows": self.rows, "weight": self.weight}


class _Row(NamedTuple):
    messages: tuple[tuple[str, str], ...]
    given: str
    learnt: str


@final
class Rehearsed:
    """The rows of a file, some of them in every step; the same ones when a fit goes on.

    Args:
        config: names the file.
        collator: of the model.

    Raises:
        DataError: with file and line, if a row cannot be used, or there is none.
    """

    def __init__(self, config: Rehearsal, collator: ConversationCollator) -> None:
        self.config, self._collator = config, collator
        path = Path(config.path or "")
        self._rows = [_row(row, where) for where, row in objects(path)]
        if not self._rows:
            raise DataError("holds no row to rehearse", str(path))

    def draw(self, seed: int, step: int, rank: int = 0) -> Conversations:
        """The rows of one step and process, every one as likely."""
        drawn = Random(f"rehearsal:{seed}:{step}:{rank}").choices(  # noqa: S311
            self._rows, k=self.config.rows
        )
        return self._collator.answered([(one.messages, one.given, one.learnt) for one in drawn])


def _row(row: dict[str, Any], where: str) -> _Row:
    messages, given = row.get("messages"), row.get("given", "")
    told = messages if isinstance(messages, list) else []
    said = [(one.get("role"), one.get("content")) for one in told if isinstance(one, dict)]
    if (
        len(said) < 2
        or len(said) != len(told)
        or said[-1][0] != "assistant"
        or not all(role in _ROLES and isinstance(text, str) for role, text in said)
        or any(row.get(kind) for kind in ("images", "videos", "audios"))
    ):
        raise DataError(
            "is no conversation to rehearse: expected messages with role and content, texts alone, "
            "the last one the assistant's",
            where,
        )
    answer = str(said[-1][1])
    if not isinstance(given, str) or not answer.startswith(given) or answer == given:
        raise DataError("given must be how the last message begins, and not all of it", where)
    before = tuple((str(role), str(text)) for role, text in said[:-1])
    return _Row(before, given, answer.removeprefix(given))
