"""A chain in tags: ``<reasoning>...</reasoning><answer>...</answer>`` (TRACE, 2603.02929).

TRACE's rule filter, as far as the general checks (repetition, language, refusal) do not have it:
one pair of each tag, in order, nothing outside; 16 to 256 tokens of reasoning and 2 to 64 of
answer; an answer that shares a salient word with the request or the target, and repeats neither the
request nor what the chain says of the source. Deviations: tokens are counted by CLIP's tokenizer
unless the teacher's is named (``limits.tokenizer``); TRACE compares the answer of composed
retrieval with the caption of the source, which M-BEIR does not have: its place takes the chain's
first sentence, word for word; equal requests share a text instead of being de-duplicated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from augment.checks.text import STOP_WORDS, folded, stem
from augment.data.tokens import token_counter

#: Tokens of reasoning and of answer, from and to.
REASONING, ANSWER = (16, 256), (2, 64)

#: An answer that is this much of the first sentence, its end, is the source and no result.
SOURCE = 0.6

_THOUGHT = re.compile(r"\A\s*(?:<think>)?.*</think>", re.DOTALL)
_FORM = re.compile(
    r"\s*<reasoning>(.*)</reasoning>\s*<answer>(.*)</answer>\s*", re.DOTALL | re.IGNORECASE
)
_SENTENCE = re.compile(r"(?<=[.!?])\s")
_TAG = re.compile(r"</?(?:reasoning|answer)>", re.IGNORECASE)


class Chain(NamedTuple):
    """A chain without its tags; of no reasoning where the form was not kept."""

    reasoning: str
    answer: str
    broken: bool

    @property
    def text(self) -> str:
        """What a model is taught to write."""
        return f"{self.reasoning}\n{self.answer}".strip()


def parse_chain(reply: str) -> Chain:
    """Read a chain; where the tags are not as they should be, all of it is the answer."""
    said = _THOUGHT.sub("", reply)
    found = _FORM.fullmatch(said)
    if found is None or len(_TAG.findall(said)) != 4:
        return Chain("", _TAG.sub(" ", said).strip(), True)
    return Chain(found[1].strip(), found[2].strip(), False)


def chain_faults(
    chain: Chain, original: str | None, targets: Sequence[str], tokenizer: str = ""
) -> Iterator[tuple[str, float, str]]:
    """Name, score and reason (empty if there is none) of every check."""
    yield "tags", float(chain.broken), "tags: not one pair of each, in order" * chain.broken
    if chain.broken:
        return
    for name, text, (least, most) in (
        ("reasoning_tokens", chain.reasoning, REASONING), ("answer_tokens", chain.answer, ANSWER),
    ):  # fmt: skip
        number = token_counter(tokenizer)(text)
        over = not least <= number <= most
        yield name, number, f"{name}: {number}, {least} to {most} wanted" if over else ""
    known = _salient(" ".join([original or "", *targets]))
    strange = bool(known) and not known & _salient(chain.answer)
    yield "unrelated", float(strange), "unrelated: no word of request or target" * strange
    same = bool(original) and folded(chain.answer) == folded(original or "")
    yield "repeated_request", float(same), "repeated request" * same
    first, said = (folded(one) for one in (_SENTENCE.split(chain.reasoning, 1)[0], chain.answer))
    # To its end: what something was taken away from may begin as the source does.
    taken = len(said) / len(first) if said and first[-len(said) :] == said else 0.0
    unchanged = bool(original) and taken >= SOURCE
    yield "unchanged", taken, "unchanged: the answer is what is said of the source" * unchanged


def _salient(text: str) -> set[str]:
    return {stem(word) for word in folded(text)} - STOP_WORDS
