"""Text of the data on its way into a prompt: it may say anything and steer nothing.

It stands between ``<<<`` and ``>>>`` and cannot hold those marks; it cannot hold what a tokenizer
takes for a control token (``<|im_end|>`` would end the message, ``<|image_pad|>`` claim a picture);
and it is cut at a length that no description needs. Text without any of these is left as it is.
"""

from __future__ import annotations

import re

#: Longest text shown to a model, in characters; about 5,000 tokens of English. The published text
#: is not touched.
LONGEST = 20_000

_MARKS = re.compile(r"[<\uff1c]{2,}|[>\uff1e]{2,}")

#: Characters that show nothing and could hide inside a mark or a token: control characters but
#: tab and line feed, zero-width and direction marks, tags. Joiners count only beside ASCII, since
#: scripts and emoji need them.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    r"\U000e0000-\U000e007f]"
    r"|(?<=[\x20-\x7e])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x20-\x7e])"
)

#: Control tokens of the chat templates in use (Qwen, Llama, Gemma, Mistral, DeepSeek, Phi).
_TOKEN = re.compile(
    r"<[|\uff5c]([^<>\s]{1,60}?)[|\uff5c]>"
    r"|<(/?(?:s|bos|eos|pad|unk|mask|image|img|video|think|tool_call|tool_response"
    r"|(?:start|end)_of_(?:turn|image)|image_soft_token|fim_\w+))>"
    r"|\[(/?(?:INST|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS))\]"
)


#: Most texts hold nothing that any of the three looks for; one look at the characters tells.
_NOTEWORTHY = re.compile(
    r"[<>\[\uff1c\uff1e\x00-\x08\x0b-\x1f\x7f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064"
    r"\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)


def fenced(text: str | None) -> str:
    """A text fit to stand between the marks; None becomes the empty string."""
    shown = text or ""
    while _NOTEWORTHY.search(shown):
        before = shown
        shown = _INVISIBLE.sub("", shown)
        shown = _TOKEN.sub(lambda token: f"({next(filter(None, token.groups()))})", shown)
        shown = _MARKS.sub(" ", shown)
        if shown == before:
            break
    shown = shown.strip()
    return shown if len(shown) <= LONGEST else shown[:LONGEST].rpartition(" ")[0] + " ..."
