"""How a published text is tidied before an encoder sees it."""

from __future__ import annotations

from typing import Literal

from augment.errors import DataError

#: ``uniir`` for parity with published numbers, ``plain`` for text that is left as written.
TextRule = Literal["uniir", "plain"]


def format_text(text: str | None, rule: TextRule = "uniir") -> str:
    """Tidy one text; None becomes the empty string.

    Args:
        text: published text.
        rule: ``uniir`` removes carriage returns, outer blanks and outer double quotes, raises the
            first character to upper case and ends the text with a full stop unless it ends with
            ``.``, ``?`` or ``!`` (UniIR, ``format_string`` in its data utilities). It makes
            ``iPhone`` ``IPhone`` and puts a Latin full stop after Chinese. ``plain`` only strips.

    Raises:
        DataError: if there is no such rule.
    """
    if rule == "plain":
        return (text or "").strip()
    if rule != "uniir":
        raise DataError(f"no text rule named {rule!r}; there are 'uniir' and 'plain'")
    tidy = (text or "").replace("\r", "").strip().strip('"')
    if not tidy:
        return ""
    tidy = tidy[0].upper() + tidy[1:]
    return tidy if tidy[-1] in ".?!" else tidy + "."
