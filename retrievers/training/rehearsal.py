"""What a language model is shown again while it is trained to embed, so that it keeps what it knew.

A model that must recall before it embeds (TRACE, where no input shows the answer) loses in training
what no pair asks for. Rows of what it is to keep stand beside every batch; only the cross-entropy
of their answers counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, final

from augment.engines.inputs import chat
from augment.errors import DataError, EngineError
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
        rows: beside a batch, of each process.
        weight: of their loss, the mean over rows of the mean over tokens, beside the others.
        max_tokens: of a row; a longer one is refused.
    """

    path: str | None = None
    rows: int = 32
    weight: float = 1.0
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.rows < 1 or self.weight < 0 or self.max_tokens < 1:
            raise DataError(
                "rehearsal.rows and max_tokens must be positive, rehearsal.weight not negative"
            )

    def settings(self, content: str | None = None) -> dict[str, Any]:
        """For the record: the file by its SHA-256, so that it may be moved."""
        return {"sha256": content, "rows": self.rows, "weight": self.weight}


@final
class Rehearsed:
    """The rows of a file, some of them beside every batch; the same ones when a fit goes on.

    Args:
        config: names the file, which is read and tokenised now.
        collator: of the model.

    Attributes:
        sha256: of the file.

    Raises:
        DataError: with file and line, if a row cannot be used, or there is none.
    """

    def __init__(self, config: Rehearsal, collator: ConversationCollator) -> None:
        path = Path(config.path or "")
        self._config, self._collator = config, collator
        self._rows = [self._row(row, where) for where, row in objects(path)]
        if not self._rows:
            raise DataError("holds no row to rehearse", str(path))
        self.sha256 = sha256(path)

    def draw(self, seed: int, batch: int, rank: int = 0) -> Conversations:
        """The rows beside one batch of one process, every one as likely."""
        place = Random(f"rehearsal:{seed}:{batch}:{rank}")  # noqa: S311
        return self._collator.rehearsed(place.choices(self._rows, k=self._config.rows))

    def _row(self, row: dict[str, Any], where: str) -> tuple[list[int], list[int]]:
        """Tokens of a prompt, and of the answer behind it with its end."""
        said, given = self._said(row, where)
        processor, tokenizer = self._collator.processor, self._collator.processor.tokenizer
        try:
            prompt = chat(processor, [
                {"role": role, "content": [{"type": "text", "text": text}]}
                for role, text in said[:-1]
            ])  # fmt: skip
        except EngineError as error:
            raise DataError(str(error), where) from error
        before, after = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt + given, said[-1][1].removeprefix(given))
        )
        if len(before) + len(after) >= self._config.max_tokens:
            raise DataError(
                f"has {len(before) + len(after)} tokens; shorten it, or raise "
                "model.rehearsal.max_tokens",
                where,
            )
        return before, [*after, tokenizer.eos_token_id]

    def _said(self, row: dict[str, Any], where: str) -> tuple[list[tuple[str, str]], str]:
        """Role and text of each message, and how the last one begins without being learnt."""
        messages, given = row.get("messages"), row.get("given", "")
        told = messages if isinstance(messages, list) else []
        said = [
            (str(one.get("role")), str(one.get("content")))
            for one in told
            if isinstance(one, dict) and isinstance(one.get("content"), str)
        ]
        if (
            len(said) < 2
            or len(said) != len(told)
            or said[-1][0] != "assistant"
            or not all(role in _ROLES for role, _ in said)
            or any(row.get(kind) for kind in ("images", "videos", "audios"))
        ):
            raise DataError(
                "is no conversation to rehearse: expected messages with role and content, texts "
                "alone, the last one the assistant's",
                where,
            )
        answer = said[-1][1]
        if not isinstance(given, str) or not answer.startswith(given) or answer == given:
            raise DataError("given must be how the last message begins, and not all of it", where)
        processor, tokenizer = self._collator.processor, self._collator.processor.tokenizer
        # What the model was taught of thoughts and tools may be said; a picture or an end may not.
        ends = (processor.image_token, tokenizer.eos_token, self._collator.layout.mark)
        if found := next((end for end in ends if end and any(end in t for _, t in said)), None):
            raise DataError(f"holds the control token {found}", where)
        return said, given
