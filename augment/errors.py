"""The errors of the toolkit.

::

    ToolkitError
    ├── DataError        input that cannot be used: names the file, line or id and the remedy
    │   └── ImageError   one picture that cannot be used; carries a short ``reason``
    ├── EngineError      a model that cannot be loaded or has died (a failed item is a value)
    │   └── EngineDied   a model that died over what it was asked
    ├── StoreError       a store of text or vectors that cannot be read
    │   └── StoreWriteError   ... or written: disk full, read-only, no permission
    └── MismatchError    two parts that must agree (text recipe, weights, vectors) do not

All of them mean "the whole run stops". What happens to one item is a value with a reason.
"""

from __future__ import annotations

import re

# Control characters, separators of lines, marks that turn the direction of what follows, and halves
# of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str, lines: bool = False) -> str:
    """Text of strangers for a terminal: what would move its cursor or forge a line is escaped.

    Args:
        text: such as the path of a picture, or what a server said.
        lines: keep line ends.
    """

    def escaped(one: re.Match[str]) -> str:
        if lines and one[0] == "\n":
            return one[0]
        # Those that stand unescaped in JSON stay JSON.
        return repr(one[0])[1:-1] if one[0] < " " else f"\\u{ord(one[0]):04x}"

    return _UNSEEN.sub(escaped, text)


class ToolkitError(Exception):
    """Base of every error that a user can cause and mend."""


class DataError(ToolkitError):
    """Input data that cannot be used.

    Args:
        message: what was seen and what to do.
        where: ``file:line`` or an id; printed in front of the message.
    """

    def __init__(self, message: str, where: str = "") -> None:
        message = printable(message, lines=True)
        super().__init__(f"{printable(where)}: {message}" if where else message)
        self.where = where


class ImageError(DataError):
    """One picture that cannot be used.

    Args:
        message: what was seen and what to do.
        where: path of the picture as the data names it.
        reason: one of ``missing``, ``outside-root``, ``lfs-pointer``, ``too-large``, ``corrupt``,
            ``changed``.
    """

    def __init__(self, message: str, where: str = "", reason: str = "corrupt") -> None:
        super().__init__(message, where)
        self.reason = reason


class EngineError(ToolkitError):
    """A model that cannot be loaded, or has died in the middle of a run."""


class EngineDied(EngineError):
    """A model that worked and has died, perhaps over one of the requests it had.

    The items are asked again in halves, by a fresh process, until the one at fault is found.
    """


class StoreError(ToolkitError):
    """A store of text or vectors that cannot be read, or does not hold what is asked for."""


class StoreWriteError(StoreError):
    """A store that cannot be written: disk full, read-only, no permission."""


class MismatchError(ToolkitError):
    """Two parts that must agree do not, and going on would make a wrong number."""
