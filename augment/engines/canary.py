"""Questions asked before a run, which show that a server does what we rely on.

Servers start happily with a wrong chat template, without seeing pictures, or with their own idea of
how large a picture is. Each canary finds one such defect within seconds, and its failure ends the
run before anything is spent. The texts that they cause are not saved.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from PIL import Image, ImageDraw

from augment.engines.inputs import Budget
from augment.errors import EngineError
from augment.records import Reply

#: Asks for one answer: system message, user's text, picture or None.
Ask = Callable[[str, str, Image.Image | None], Awaitable[Reply]]

SYSTEM = "You describe pictures."
TEXT = "Describe this picture: its colours, its shapes and where they are."

#: Control tokens of common chat templates; in an answer they mean that the template is wrong.
MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "[INST]",
    "<|eot_id|>",
    "<start_of_turn>",
)

#: Words that cost a token each in every tokenizer, at least.
_PADDING = "one two three four five six seven eight nine ten " * 3

#: A picture may cost this much more than its size allows: marks around it, and row ends.
SLACK = 1.1
SLACK_TOKENS = 16


def canary_pictures() -> list[Image.Image]:
    """Four pictures that no description can share: their colours and shapes differ."""
    pictures: list[Image.Image] = []
    for ground, ink in (("red", "yellow"), ("navy", "white"), ("green", "black"), ("white", "red")):
        picture = Image.new("RGB", (256, 192), ground)
        draw = ImageDraw.Draw(picture)
        if len(pictures) % 2:
            draw.rectangle((0, 64, 256, 128), fill=ink)
        else:
            draw.ellipse((88, 56, 168, 136), fill=ink)
        pictures.append(picture)
    return pictures


def _huge(budget: Budget) -> Image.Image:
    """More pixels than the budget, with detail that does not vanish in resizing."""
    dice = random.Random(0)  # noqa: S311  # a picture, not cryptography
    tile = Image.frombytes("RGB", (16, 12), dice.randbytes(16 * 12 * 3))
    side = max(64, int((budget.max_pixels / 12) ** 0.5))
    return tile.resize((side * 8, side * 6), Image.Resampling.NEAREST)


async def check(ask: Ask, budget: Budget) -> str:
    """Ask the canaries.

    Args:
        ask: how a question reaches the model; resizes as in the run, decodes greedily.
        budget: of the pictures.

    Returns:
        What was found, in one line.

    Raises:
        EngineError: if pictures are not seen, the chat template drops what we send or shows in the
            answers, or pictures cost more tokens than their size allows.
    """
    plain = _well(await ask(SYSTEM, TEXT, None))
    pictures = canary_pictures()
    shown = [_well(await ask(SYSTEM, TEXT, picture)) for picture in pictures]
    await _template(ask, plain, shown)
    if len({reply.text for reply in shown}) == 1:
        raise EngineError(
            f"pictures are not seen: {len(shown)} very different pictures got the same answer,"
            f" {shown[0].text[:80]!r}; check that the model is a vision-language model and that"
            " the server's chat template shows pictures to it"
        )
    if not plain.prompt_tokens or not shown[0].prompt_tokens:
        return f"pictures are seen ({len(shown)} different ones got different answers)"
    cost = shown[0].prompt_tokens - plain.prompt_tokens
    if cost <= 0:
        raise EngineError(
            f"pictures are not seen: a request costs {shown[0].prompt_tokens} tokens with a picture"
            f" and {plain.prompt_tokens} without; check the server's chat template"
        )
    return await _sizes(ask, budget, plain, cost)


async def _template(ask: Ask, plain: Reply, shown: list[Reply]) -> None:
    for reply in (plain, *shown):
        for mark in MARKS:
            if mark in reply.text:
                raise EngineError(
                    f"the answer {reply.text[:80]!r} shows the control token {mark}; the server"
                    " uses a wrong chat template or does not stop at the model's end token"
                )
    if not plain.prompt_tokens:
        return
    for where, reply in (
        ("system message", _well(await ask(SYSTEM + " " + _PADDING, TEXT, None))),
        ("user's text", _well(await ask(SYSTEM, TEXT + " " + _PADDING, None))),
    ):
        if reply.prompt_tokens - plain.prompt_tokens < len(_PADDING.split()):
            raise EngineError(
                f"the chat template drops the {where}: with {len(_PADDING.split())} words more the"
                f" prompt grew from {plain.prompt_tokens} to {reply.prompt_tokens} tokens; start"
                " the server with the model's own chat template"
            )


async def _sizes(ask: Ask, budget: Budget, plain: Reply, cost: int) -> str:
    huge = _well(await ask(SYSTEM, TEXT, _huge(budget))).prompt_tokens - plain.prompt_tokens
    # 14 pixels is the smallest patch in use; models that merge patches cost a quarter of this.
    most = int(SLACK * budget.max_pixels / 14**2) + SLACK_TOKENS
    if huge > most:
        raise EngineError(
            f"resizing has no effect: a large picture costs {huge} tokens, though"
            f" {budget.max_pixels:,} pixels are at most {most}; the server enlarges pictures, check"
            " its processor settings"
        )
    return f"pictures are seen; a small one costs {cost} tokens, the largest {huge}"


def _well(reply: Reply) -> Reply:
    if reply.finish == "error":
        raise EngineError(
            f"the server cannot answer a simple question ({reply.reason}); nothing was sent of the"
            " data"
        )
    return reply
