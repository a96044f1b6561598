"""Questions asked of a server before a run.

Servers start happily with a wrong chat template, without seeing pictures, or with their own idea of
how large a picture is; each question finds one such defect.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from PIL import Image, ImageDraw

from augment.engines.inputs import PixelBudget
from augment.errors import EngineError
from augment.records import Reply

SYSTEM = "You describe pictures."
TEXT = "Describe this picture: its colours, its shapes and where they are."

#: Control tokens of common chat templates; in an answer they mean that the template is wrong.
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "[INST]", "<|eot_id|>", "<start_of_turn>",
)  # fmt: skip

#: Words that cost a token each in every tokenizer, at least.
_PADDING = "one two three four five six seven eight nine ten " * 3

#: A picture may cost this much more than its size allows: marks around it, and row ends.
SLACK, SLACK_TOKENS = 1.1, 16

#: System message, text and picture to the model's reply; resizes as in the run.
AskCanary = Callable[[str, str, Image.Image | None], Awaitable[Reply]]


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


def _huge(budget: PixelBudget) -> Image.Image:
    """More pixels than the budget, with detail that does not vanish in resizing."""
    dice = random.Random(0)  # noqa: S311  # a picture, not cryptography
    tile = Image.frombytes("RGB", (16, 12), dice.randbytes(16 * 12 * 3))
    side = max(64, int((budget.max_pixels / 12) ** 0.5))
    return tile.resize((side * 8, side * 6), Image.Resampling.NEAREST)


async def check_server(ask: AskCanary, budget: PixelBudget) -> str:
    """Ask the questions; what was found, in one line.

    Args:
        ask: see :data:`AskCanary`.
        budget: of the pictures.

    Raises:
        EngineError: if the server cannot answer, pictures are not seen, the chat template drops
            what we send or shows in the answers, or pictures cost more tokens than their size
            allows.
    """

    async def answer(system: str, text: str, picture: Image.Image | None = None) -> Reply:
        reply = await ask(system, text, picture)
        if reply.finish == "error":
            raise EngineError(
                f"the server cannot answer a simple question ({reply.reason}); nothing was sent of"
                " the data"
            )
        if mark := next((mark for mark in MARKS if mark in reply.text), None):
            raise EngineError(
                f"the answer {reply.text[:80]!r} shows the control token {mark}; the server"
                " uses a wrong chat template or does not stop at the model's end token"
            )
        return reply

    plain = await answer(SYSTEM, TEXT)
    counted = bool(plain.prompt_tokens)
    for where, padded in (
        ("system message", (f"{SYSTEM} {_PADDING}", TEXT)),
        ("user's text", (SYSTEM, f"{TEXT} {_PADDING}")),
    ):
        grown, words = (await answer(*padded)).prompt_tokens, len(_PADDING.split())
        if counted and grown - plain.prompt_tokens < words:
            raise EngineError(
                f"the chat template drops the {where}: with {words} words more the prompt grew by"
                f" {grown - plain.prompt_tokens} tokens; start the server with the model's own chat"
                " template"
            )
    shown = [await answer(SYSTEM, TEXT, picture) for picture in canary_pictures()]
    cost = shown[0].prompt_tokens - plain.prompt_tokens
    counted = counted and bool(shown[0].prompt_tokens)
    if len({reply.text for reply in shown}) == 1 or (counted and cost <= 0):
        raise EngineError(
            f"pictures are not seen: {len(shown)} very different pictures, the first of which costs"
            f" {cost} tokens, got answers such as {shown[0].text[:80]!r}; check that the model is a"
            " vision-language model and that the server's chat template shows pictures to it"
        )
    if not counted:
        return f"pictures are seen ({len(shown)} different ones got different answers)"
    huge = (await answer(SYSTEM, TEXT, _huge(budget))).prompt_tokens - plain.prompt_tokens
    # 14 pixels is the smallest patch in use; models that merge patches cost a quarter of this.
    if huge > int(SLACK * budget.max_pixels / 14**2) + SLACK_TOKENS:
        raise EngineError(
            f"resizing has no effect: a large picture costs {huge} tokens, more than"
            f" {budget.max_pixels:,} pixels can; the server enlarges pictures, check its processor"
            " settings"
        )
    return f"pictures are seen; a small one costs {cost} tokens, the largest {huge}"
