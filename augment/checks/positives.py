"""What rewritten queries must not say: texts of their positives, looked up when they are needed.

Pools stay memory-mapped; a query costs a binary search for each of its positives, and only queries
whose text is judged cost anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import final

from augment.checks import Forbidden
from augment.data.pools import CandidateTable
from augment.records import Item, Query

#: Positives read per query. A query of InfoSeek or OVEN may have hundreds, much alike.
MOST_POSITIVES = 20

#: Keys of ``query_src_content`` that hold known answers, as a string or a list of strings.
ANSWER_KEYS = ("answer", "answers", "answer_eval")


@final
class Positives:
    """Finds the texts of positives in pools.

    Args:
        pools: opened pools. Positives that none of them holds forbid nothing.
        most: see :data:`MOST_POSITIVES`.
        answer_keys: see :data:`ANSWER_KEYS`.
    """

    def __init__(
        self,
        pools: Sequence[CandidateTable],
        most: int = MOST_POSITIVES,
        answer_keys: Sequence[str] = ANSWER_KEYS,
    ) -> None:
        self._pools = tuple(pools)
        self._most = most
        self._answer_keys = tuple(answer_keys)
        self._home: dict[str, CandidateTable] = {}

    def forbidden(self, query: Query) -> Forbidden:
        """The texts of a query's positives, and its known answers."""
        items = (self._find(did) for did in query.positives[: self._most])
        texts = [item.text for item in items if item is not None and item.text]
        return Forbidden(tuple(dict.fromkeys(texts)), tuple(self._answers(query.item.source)))

    def _find(self, did: str) -> Item | None:
        # Candidates of a data set lie together, so the pool that had the last one is tried first.
        dataset = did.partition(":")[0]
        home = self._home.get(dataset)
        for pool in (*((home,) if home else ()), *self._pools):
            row = pool.find(did)
            if row is not None:
                self._home[dataset] = pool
                found: Item = pool[row]
                return found
        return None

    def _answers(self, source: str | None) -> Iterator[str]:
        if not source or not any(f'"{key}"' in source for key in self._answer_keys):
            return
        try:
            record = json.loads(source)
        except (ValueError, RecursionError):
            return
        if isinstance(record, Mapping):
            for key in self._answer_keys:
                value = record.get(key)
                for answer in value if isinstance(value, list) else [value]:
                    if isinstance(answer, str) and answer.strip():
                        yield answer
