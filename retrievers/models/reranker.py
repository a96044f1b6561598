"""What says how well candidates answer a query, reading both together: pointwise and listwise."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from augment.errors import DataError
from augment.files import digest
from retrievers.data.examples import Example
from retrievers.models.base import Encoder
from retrievers.models.mllm.encoder import Mllm

_NUMBER = re.compile(r"\d+")


class Judgement(NamedTuple):
    """Scores of a query's candidates, and what they cost.

    Attributes:
        scores: in float32 on the CPU, higher is better.
        tokens: read for each candidate, the query's own and pictures included; of a list's windows
            each candidate's share.
    """

    scores: Float[Tensor, " candidates"]
    tokens: Int[Tensor, " candidates"]


class Reranker(ABC):
    """Scores candidates of one query; higher is better.

    Args:
        model: a language model whose layout has :attr:`~Layout.cross`; its weights as they are.
        pictures: show pictures; without, texts alone are read (TTE-v2's reranking of descriptions).

    Raises:
        DataError: if the model's layout is that of an encoder.
    """

    #: Whether a candidate's score depends on the others.
    joint: bool = False

    def __init__(self, model: Mllm, pictures: bool = True) -> None:
        cross = model.layout.cross
        if cross is None or cross.listwise != self.joint:
            wanted = "listwise" if self.joint else "qwen3-vl-reranker"
            raise DataError(
                f"its layout is not that of a {type(self).__name__.lower()} reranker; name one "
                f"with preset, such as {wanted}, or with layout.cross"
            )
        self.model = model.eval()
        self.pictures = pictures and cross.pictures

    def made_by(self, text: Mapping[str, str]) -> str:
        """Hash of all that makes a score; sixteen hex digits.

        Args:
            text: fingerprint of a text recipe.
        """
        told = {name: value for name, value in vars(self).items() if name != "model"}
        return digest([type(self).__name__, told, self.model.fingerprint(text)])[:16]

    @final
    def score(self, query: Example, candidates: Sequence[Example]) -> Float[Tensor, " candidates"]:
        """The scores of :meth:`judge`."""
        return self.judge(query, candidates).scores

    @final
    @torch.inference_mode()
    def judge(self, query: Example, candidates: Sequence[Example]) -> Judgement:
        """The score of each candidate.

        Args:
            query: what is asked, its pictures as the model's collator made them.
            candidates: in the order of the first stage.

        Raises:
            DataError: if there is no candidate, nothing is to be seen of an item, or a score is no
                number.
        """
        if not candidates:
            raise DataError("has no candidate to score; its first stage found none", query.id)
        asked, *given = [self._seen(each) for each in (query, *candidates)]
        found, tokens = self._scores(asked, given)
        scores = found.float().cpu()
        if not scores.isfinite().all():
            bad = [each.id for each, s in zip(given, scores.tolist(), strict=True) if s - s]
            raise DataError(
                f"its score with {', '.join(bad[:8])} is no number; look at the weights, and take "
                "dtype float32 or bfloat16",
                query.id,
            )
        return Judgement(scores, tokens.long().cpu())

    def _seen(self, example: Example) -> Example:
        seen = example if self.pictures else example._replace(image=None)
        if not seen.text and seen.image is None:
            why = "" if self.pictures else "; without pictures, show a view of generated text"
            raise DataError(f"has no text or picture to be read{why}", example.id)
        return seen

    @abstractmethod
    def _scores(self, query: Example, candidates: Sequence[Example]) -> Judgement: ...


@final
class Pointwise(Reranker):
    """Each candidate by itself: log-odds of yes, or what the model's own head of layers says."""

    def _scores(self, query: Example, candidates: Sequence[Example]) -> Judgement:
        pairs = self.model.collator().together(
            [query] * len(candidates), [[candidate] for candidate in candidates]
        )
        return Judgement(self.model.scores(pairs.to(self.model.device)), pairs.lengths)


@final
class Listwise(Reranker):
    """The model writes an order of several candidates; a score is the place from behind.

    A window goes from the end of the list to its beginning, so that a good candidate is carried
    along (RankGPT, 2304.09542, section 3.2).

    Args:
        model: see :class:`Reranker`.
        pictures: likewise.
        window: candidates of one prompt.
        stride: places by which it moves.
    """

    joint = True

    def __init__(
        self, model: Mllm, pictures: bool = True, window: int = 20, stride: int = 10
    ) -> None:
        super().__init__(model, pictures)
        if not 1 <= stride <= window:
            raise DataError(f"stride {stride} must be from 1 to the window, {window}")
        self.window, self.stride = window, stride

    def _scores(self, query: Example, candidates: Sequence[Example]) -> Judgement:
        order, start = list(range(len(candidates))), max(len(candidates) - self.window, 0)
        read = 0
        while True:
            own = order[start : start + self.window]
            text, tokens = self._written(query, [candidates[n] for n in own])
            places, read = permutation(text, len(own)), read + tokens
            order[start : start + self.window] = [own[place] for place in places]
            if not start:
                break
            start = max(start - self.stride, 0)
        scores = torch.empty(len(order))
        scores[order] = torch.arange(len(order), 0, -1, dtype=torch.float32)
        return Judgement(scores, torch.full((len(order),), read // len(order)))

    def _written(self, query: Example, candidates: Sequence[Example]) -> tuple[str, int]:
        """An order of one window, and the tokens that were read for it."""
        from augment.engines.decoding import decode_with
        from augment.records import Sampling

        collator = self.model.collator()
        tokenizer = collator.processor.tokenizer
        batch = collator.together([query], [candidates]).to(self.model.device)
        inputs: dict[str, Any] = {
            "input_ids": batch.tokens, "attention_mask": batch.mask,
            "mm_token_type_ids": batch.kinds, **batch.pictures(),
        }  # fmt: skip
        decode = decode_with(self.model.vlm, [tokenizer.eos_token_id], tokenizer.pad_token_id or 0)
        (tokens,) = decode(inputs, Sampling(max_new_tokens=8 * len(candidates)))
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        return text, int(batch.lengths.sum())


def scorer(model: Encoder, pictures: bool = True) -> Reranker:
    """The reranker that a model's layout is for, pointwise or listwise.

    Raises:
        DataError: if it is no multimodal language model, or its layout is that of an encoder.
    """
    if not isinstance(model, Mllm):
        raise DataError(
            f"a {type(model).__name__} is no reranker; an Mllm of such a preset is, or what `fit "
            "--config flagland_reranker` trains"
        )
    cross = model.layout.cross
    kind = Listwise if cross is not None and cross.listwise else Pointwise
    return kind(model, pictures)


def permutation(text: str, size: int) -> list[int]:
    """The order that a text tells, repaired: places from 0, each once.

    Args:
        text: numbers from 1, best first, such as ``[2] > [1]``. Of those that repeat the first
            counts, others than there are do not; what is missing follows in its own order.
        size: how many there are.
    """
    told = (int(number) - 1 for number in _NUMBER.findall(text) if len(number) < 9)
    kept = dict.fromkeys(place for place in told if 0 <= place < size)
    return [*kept, *(place for place in range(size) if place not in kept)]
