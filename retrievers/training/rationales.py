"""What a model writes itself before its queries' vectors in training (RGE, 2511.16150).

Words that were written with the wanted candidate in sight make contrast trivial, and nobody writes
them in a test. So the contrastive loss reads what the model itself writes of the query alone, with
the weights of that moment, and what was written in sight only teaches it to write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import torch

from augment.errors import DataError
from augment.files import write_text
from retrievers.models.mllm.reasoning import Reasoning, reason
from retrievers.models.tuning import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from retrievers.models.mllm.conversations import Conversations
    from retrievers.models.mllm.encoder import Mllm


@dataclass(frozen=True)
class Rationales:
    """Whose words stand before a query's vector in the contrastive loss.

    Args:
        by: taught (what ``data.written`` teaches, as in TRACE) or own (what the model writes then,
            whatever it is taught, as in RGE).
        refresh_every: own words of a query that are so many steps old are written anew, with epoch
            those of an earlier pass over the data; null keeps the first ones.
        max_tokens: of own words; then the mark is forced.
        batch: queries that write at a time.
        allow_oracle_contrast: let taught words count that were written with the wanted candidate in
            sight, to see what they do.
    """

    by: Literal["taught", "own"] = "taught"
    refresh_every: int | Literal["epoch"] | None = 1
    max_tokens: int = 256
    batch: int = 96
    allow_oracle_contrast: bool = False

    def __post_init__(self) -> None:
        if self.by not in ("taught", "own"):
            raise DataError(f"rationales.by must be taught or own, got {self.by!r}")
        for name in ("refresh_every", "max_tokens", "batch"):
            if (value := getattr(self, name)) in (None, "epoch") and name == "refresh_every":
                continue
            if not isinstance(value, int) or value < 1:
                raise DataError(f"rationales.{name} must be positive, got {value!r}")


class Noted(NamedTuple):
    """Words of a query: the step whose weights wrote them, their tokens and how they ended."""

    step: int
    tokens: list[int]
    ending: str


@final
class Diary:
    """What a model wrote of each query, and when; on disk line by line, with the weights' hash.

    Args:
        how: when to write anew.
        path: of the lines; None keeps them in memory.
        step: a fit that goes on here has what was written before, and nothing of what was written
            behind it, which it will write again.
        epoch: steps of a pass over the data.
    """

    def __init__(
        self, how: Rationales, path: Path | None = None, step: int = 0, epoch: int = 1
    ) -> None:
        self._how, self._path, self._epoch = how, path, epoch
        self.noted: dict[str, Noted] = {}
        if path is not None:
            before = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
            write_text(path, "".join(f"{line}\n" for line in before if self._take(line, step)))

    def _take(self, line: str, step: int) -> bool:
        try:
            told = json.loads(line)
        except ValueError:  # the last one of a process that was killed
            return False
        if told["step"] < step:
            self.noted[told["query"]] = Noted(told["step"], told["tokens"], told["ending"])
        return bool(told["step"] < step)

    def behind(
        self, encoder: Mllm, batch: Conversations, qids: Sequence[str], step: int
    ) -> tuple[Conversations, dict[str, Tensor]]:
        """The batch's prompts with the model's own words behind them; new ones where it is time.

        Nothing of the training is touched: neither mode, gradients nor random numbers.

        Args:
            encoder: writes, greedily.
            batch: of queries, whatever stands behind their prompts.
            qids: of the queries.
            step: of the training.

        Returns:
            The batch; and means: tokens of a rationale, its age in steps, and the share whose mark
            was forced.
        """
        mark = [encoder.mark or 0]
        old = {qid: row for row, qid in enumerate(qids)
               if qid not in self.noted or self._old(self.noted[qid].step, step)}  # fmt: skip
        if old:
            asked = mark if encoder.layout.pooling == "at" else []
            self._write(encoder, batch, old, asked, step)
        noted = [self.noted[qid] for qid in qids]
        found = batch.answered([[*one.tokens, *mark] for one in noted], mark[0])
        means = {
            "written": [len(one.tokens) for one in noted],
            "age": [step - one.step for one in noted],
            "forced": [one.ending != "mark" for one in noted],
        }
        told = {name: torch.tensor(values, dtype=torch.float) for name, values in means.items()}
        return found, {name: values.mean() for name, values in told.items()}

    def _old(self, written: int, step: int) -> bool:
        every = self._how.refresh_every
        if every == "epoch":
            return step // self._epoch > written // self._epoch
        return every is not None and step - written >= every

    def _write(
        self, encoder: Mllm, batch: Conversations, old: dict[str, int], end: list[int], step: int
    ) -> None:
        weights = digest_of((n, p) for n, p in encoder.named_parameters() if p.requires_grad)
        how = Reasoning("always", max_tokens=self._how.max_tokens)
        processor = encoder.collator().processor
        decode, place = processor.tokenizer.decode, processor.image_token_id
        lines, names = [], list(old)
        with _evaluating(encoder):
            for start in range(0, len(names), self._how.batch):
                qids = names[start : start + self._how.batch]
                rows = [old[qid] for qid in qids]
                prompts = batch.answered([end] * len(rows), encoder.mark or 0, rows)
                found = reason(encoder, prompts, how)
                for qid, tokens, ending in zip(qids, found.tokens, found.endings, strict=True):
                    tokens = [token for token in tokens if token != place]  # it has no picture
                    self.noted[qid] = Noted(step, tokens, ending)
                    told = {"query": qid, "step": step, "weights": weights, "ending": ending}
                    told |= {"tokens": tokens, "text": str(decode(tokens))}
                    lines.append(json.dumps(told, ensure_ascii=False))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))


@contextmanager
def _evaluating(encoder: Any) -> Iterator[None]:
    """Evaluation mode for a while; each part then has its own again."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
