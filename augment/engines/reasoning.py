"""Reasoning as models write it before their answer: the marks around it, and a text without it.

Many chat templates open the thought themselves (DeepSeek-R1, Qwen3-VL-Thinking), so that a reply
holds the closing mark alone: whatever stands before one is thought, opened or not. A thought that
is not closed is left where it is, for the checks to refuse.
"""

from __future__ import annotations

import re

_NAMES = (
    r"(?:\w+[:_])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad"
    r"|monologue)"
)

#: What opens a thought and what closes it, as regular expressions, and who writes it so. From the
#: parsers of vLLM (``vllm/reasoning``) and SGLang (``reasoning_parser.py``), and model cards.
MARKS: tuple[tuple[str, str], ...] = (
    # think: DeepSeek-R1, Qwen3, QwQ, GLM-4.5V, ERNIE-4.5-VL, MiniMax; seed:think: Seed-OSS;
    # longcat_think: LongCat; thought: EXAONE Deep; the others: Reflection, and prompts that ask.
    (f"<{_NAMES}>", f"</{_NAMES}>"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL, Kimi-k1.5
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A Reasoning
    (r"<unused94>", r"<unused95>"),  # MedGemma
    (r"<\|channel>", r"<channel\|>"),  # Gemma 4
    # gpt-oss (the harmony format); without its control tokens "analysis...assistantfinal".
    (
        r"<\|channel\|>",
        r"(?:<\|channel\|>|assistant)final(?:<\|message\|>)?",
    ),
    # Granite 3.2
    (r"\bhere(?: is|'s) my thought process:?", r"\bhere(?: is|'s) my response:?"),
)

_MARK = re.compile(
    "|".join([f"(?P<closes>{'|'.join(mark for _, mark in MARKS)})", *(mark for mark, _ in MARKS)]),
    re.IGNORECASE,
)


def has_mark(text: str) -> bool:
    """Whether a mark of reasoning stands in a text."""
    return _MARK.search(text) is not None


def without_reasoning(text: str) -> str:
    """A text without closed thoughts, and without whatever stands before a lone closing mark."""
    kept: list[str] = []
    start, opened = 0, False
    for mark in _MARK.finditer(text):
        if mark["closes"] is not None:
            if not opened:
                kept.clear()
            start, opened = mark.end(), False
        elif not opened:
            kept.append(text[start : mark.start()])
            start, opened = mark.start(), True
    return "".join((*kept, text[start:]))
