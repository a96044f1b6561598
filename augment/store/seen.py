"""Names that came by, with a number each: every id and every key of a run.

They take 24 bytes a name (30 to 34 MiB a million, measured), where a dict or a set of strings
takes 135 to 170. Names are kept as hashes of 128 bits: among 10 million, two agree with a chance of
1e-25.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import numpy.typing as npt

from augment.store.segments import code, find

#: Latest names, in a dict until they are this many.
LATEST = 1 << 16


@final
class Seen:
    """Names, each with a number of 64 bits."""

    def __init__(self) -> None:
        self._latest: dict[bytes, int] = {}
        self._high: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._low: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._numbers: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._latest) + len(self._numbers)

    def __contains__(self, name: str) -> bool:
        return self._find(code(name)) is not None

    def add(self, name: str, number: int = 0) -> int | None:
        """Remember a name, unless it is known; the number it was known with, or None."""
        one = code(name)
        known = self._find(one)
        if known is None:
            self._latest[one] = number
            if len(self._latest) >= LATEST:
                self._sort_in()
        return known

    def _find(self, one: bytes) -> int | None:
        if one in self._latest:
            return self._latest[one]
        at = find(self._high.data, self._low.data, one)
        return None if at < 0 else int(self._numbers[at])

    def _sort_in(self) -> None:
        codes = np.frombuffer(b"".join(self._latest), np.uint64).reshape(-1, 2)
        numbers = np.fromiter(self._latest.values(), np.int64, len(self._latest))
        order = np.argsort(codes[:, 0], kind="stable")
        # One place for each, so that only one column at a time exists twice.
        at = np.searchsorted(self._high, codes[order, 0], side="right")
        columns: tuple[tuple[Any, Any], ...] = (
            (self._high, codes[:, 0]), (self._low, codes[:, 1]), (self._numbers, numbers)
        )  # fmt: skip
        self._high, self._low, self._numbers = (
            np.insert(old, at, new[order]) for old, new in columns
        )
        self._latest = {}
