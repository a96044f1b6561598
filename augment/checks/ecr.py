"""A thought and a final text in one answer: ``<think>...</think>`` and what stands behind it.

Embedding-centric reasoning (TTE, 2510.05014; TTE-v2, 2602.23369): what a model thinks about an item
before it is embedded, shown whole or by its final part alone. Marks that are missing are mended and
told; what cannot be read is refused, so that views show the published text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from augment.checks.clean import clean

_MARK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)


class Ecr(NamedTuple):
    """An answer in its two parts.

    Attributes:
        text: thought and final text, without marks.
        final: the final text.
        mended: what was wrong and could be read nevertheless.
        refused: what was wrong and could not; else empty.
    """

    text: str
    final: str
    mended: tuple[str, ...] = ()
    refused: str = ""


def parse_ecr(answer: str) -> Ecr:
    """Read an answer to a prompt of form ``ecr``.

    Without the opening mark all before the closing one is thought, as templates have it that open
    the thought themselves; without the closing one all is thought, and its last paragraph the final
    text; without either all is final.
    """
    marks = list(_MARK.finditer(answer))
    if [mark[1] for mark in marks] not in ([], [""], ["/"], ["", "/"]):
        return Ecr(clean(_MARK.sub("\n", answer)), "", refused="nested thoughts")
    opened = marks[0] if marks and not marks[0][1] else None
    closed = marks[-1] if marks and marks[-1][1] else None
    if closed is not None:
        thought = clean(answer[opened.end() if opened else 0 : closed.start()])
        final = clean(answer[closed.end() :])
        whole = "\n".join(part for part in (thought, final) if part)
    else:
        whole = clean(answer[opened.end() if opened else 0 :])
        final = whole.rpartition("\n")[2] if opened else whole
    mended = [] if opened else ["no opening mark"]
    mended += [] if closed else ["no closing mark"]
    return Ecr(whole, final, tuple(mended), "" if final else "no final text")
