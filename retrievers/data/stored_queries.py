"""Queries that stay in their files until they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final, overload

import numpy as np
from jaxtyping import Int32, UInt16

from augment.data.columnar import QueryTable
from augment.records import Query

#: Queries read at once when all are.
_BLOCK = 1 << 12


@final
class StoredQueries(Sequence[Query]):
    """Rows of query files: six bytes each, where a million records would take two gigabytes.

    Processes that load pairs share the files' pages; records that they shared would be copied into
    each of them as soon as they are looked at.

    Args:
        tables: query files.
        source: of each query, the place of its table.
        rows: of each, its row there.
    """

    def __init__(
        self,
        tables: Sequence[QueryTable],
        source: UInt16[np.ndarray, " n"],
        rows: Int32[np.ndarray, " n"],
    ) -> None:
        self._tables, self._source, self._rows = tables, source, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Query: ...
    @overload
    def __getitem__(self, place: slice) -> StoredQueries: ...
    def __getitem__(self, place: int | slice) -> Query | StoredQueries:
        if isinstance(place, slice):
            return StoredQueries(self._tables, self._source[place], self._rows[place])
        return self._tables[int(self._source[place])][int(self._rows[place])]

    def __iter__(self) -> Iterator[Query]:
        for start in range(0, len(self), _BLOCK):
            source, rows = (part[start : start + _BLOCK] for part in (self._source, self._rows))
            for own in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(source)) + 1):
                yield from self._tables[int(source[own[0]])].take(rows[own].tolist())
