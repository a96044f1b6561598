"""Candidates under their ids, searched: the contract of indexes, and the search of a whole plan.

Scores of vectors are computed anew in double precision for the best candidates and rounded to six
decimals; ties go by id (descending, trec_eval's rule). Equal vectors therefore rank the same on
every machine, whatever device, block size or library found them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from copy import copy
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int64
from typing_extensions import Self

from augment.errors import DataError, MismatchError
from retrievers.data.plan import Plan
from retrievers.evaluation.results import Runs, spans
from retrievers.evaluation.run import RunTable, descending, repeated


class Nearest(NamedTuple):
    """Result of a search: rows of the index and their scores, best first.

    Where fewer than k were found, row -1 and score -inf fill up.
    """

    rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]


class Held(Protocol):
    """What an index holds of its candidates: :class:`Vectors`, or texts."""

    #: What its items are called in errors.
    kind: str

    def checked(self, ids: Any, items: Any) -> Any:
        """The items as they are kept, or an error."""

    def append(self, items: Any, rows: Any) -> None:
        """Keep checked items; of those that are read where they lie, some rows."""

    def only(self, rows: Int64[np.ndarray, " n"]) -> Self:
        """Some of the rows; nothing is copied."""

    def queries(self, queries: Any) -> Any:
        """The queries as they are searched with, or an error."""


HeldT = TypeVar("HeldT", bound=Held)


class Index(ABC, Generic[HeldT]):
    """Candidates under their ids.

    Args:
        held: receives what the candidates are found by.
        made_by: fingerprint of what makes the items, such as model and text recipe. None takes the
            first one added.

    Attributes:
        ids: of all candidates by row, an Arrow array of strings.
    """

    def __init__(self, held: HeldT, made_by: str | None = None) -> None:
        self.made_by = made_by
        self.held = held
        self.ids: Any = pa.array([], pa.large_string())
        self._ranks: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def _find(self, queries: Any, k: int) -> Nearest:
        """The best ``k`` (at most the size) of checked queries, ranked."""

    def build(self) -> None:
        """Make everything ready now, rather than at the first search."""

    def _changed(self) -> None:
        """Called after candidates were added."""

    @final
    def add(
        self, ids: Any, items: Any, made_by: str, rows: Int64[np.ndarray, " n"] | None = None
    ) -> None:
        """Add candidates.

        Args:
            ids: one per candidate, new to the index: strings or an Arrow array of strings.
            items: texts, for an index of words; else finite vectors ([n, dim], kept in memory), or
                a source of some, such as a :class:`retrievers.vectors.store.EmbeddingStore`, which
                is read where it lies, block by block.
            made_by: fingerprint of what made them.
            rows: rows of the source; None takes all.

        Raises:
            MismatchError: if vectors are of another fingerprint, dimension or kind.
            DataError: if ids repeat, are no strings or too few, or a vector is not finite.
        """
        self._refuse_foreign(made_by)
        checked = self.held.checked(ids, items)
        size = len(checked) if rows is None else len(rows)
        if len(ids) != size:
            raise DataError(f"{len(ids)} ids for {size} {self.held.kind}; give one id for each")
        column = pa.concat_arrays([self.ids, _column(ids)])
        twice = repeated(column)
        if twice is not None:
            raise DataError("id stands twice; remove duplicates before indexing", twice)
        if size:
            self.held.append(checked, rows)
        self.ids, self._ranks, self.made_by = column, None, made_by
        self._changed()

    @final
    def only(self, rows: Int64[np.ndarray, " n"]) -> Self:
        """An index of the same kind over some of the candidates, which stay where they lie."""
        part = copy(self)
        part.ids, part.held, part._ranks = self.ids.take(pa.array(rows)), self.held.only(rows), None
        part._changed()
        return part

    @final
    def search(self, queries: Any, k: int, made_by: str | None = None) -> Nearest:
        """The best ``k`` candidates of each query.

        Args:
            queries: vectors ([queries, dim]), or texts.
            k: 1 to the size of the index.
            made_by: fingerprint of what made them; None does not check.

        Raises:
            MismatchError: if vectors are of another fingerprint or dimension.
            DataError: if the index is empty, k is larger, or a query cannot be searched with.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not len(self):
            raise DataError("the index is empty; add candidates first")
        if k > len(self):
            raise DataError(
                f"k = {k} is larger than the index of {len(self)} candidates; ask for at most "
                f"{len(self)}"
            )
        if made_by is not None:
            self._refuse_foreign(made_by)
        asked = self.held.queries(queries)
        if not len(asked):
            return Nearest(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
        return self._find(asked, k)

    @final
    def run(
        self,
        qids: Any,
        queries: Any,
        k: int,
        made_by: str,
        without: Mapping[str, Collection[str]] | None = None,
    ) -> RunTable:
        """Search and answer with ids: at most ``k`` hits of each query, best first.

        Candidates that ``without`` lists for a query are left out of its ranking
        (:attr:`retrievers.data.plan.EvalTask.own`), and the next ones take their places.
        """
        deep = k + max(map(len, (without or {}).values()), default=0)
        found = self.search(queries, min(deep, len(self)) if len(self) else k, made_by)
        run = RunTable.from_search(qids, self.ids, found.rows, found.scores, unique=True)
        return run.without(without).cut(k) if without else run

    def _refuse_foreign(self, made_by: str) -> None:
        if self.made_by is not None and made_by != self.made_by:
            raise MismatchError(
                f"{self.held.kind} made by {made_by!r} do not belong in an index made by "
                f"{self.made_by!r}; embed them again with the same checkpoint and text recipe"
            )

    def _rank(
        self, rows: Int64[np.ndarray, "queries n"], scores: Float[np.ndarray, "queries n"]
    ) -> Nearest:
        """Best first, ties by id."""
        if self._ranks is None:
            self._ranks = descending(self.ids)
        order = np.lexsort((self._ranks[rows], -scores), axis=1)
        return Nearest(
            np.take_along_axis(rows, order, axis=1),
            np.take_along_axis(scores, order, axis=1).astype(np.float32),
        )

    def _digest(self) -> str:
        """SHA-256 of all ids, in order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), 65_536):
            digest.update("\n".join([*self.ids[start : start + 65_536].to_pylist(), ""]).encode())
        return digest.hexdigest()


def rank_plan(
    plan: Plan,
    depth: int,
    made_by: str,
    index_of: Callable[[str, Int64[np.ndarray, " rows"]], Index[Any] | None],
    queries_of: Callable[[range], tuple[list[int], Any]],
) -> Runs:
    """Search every task in its local pool and, if the plan has one, in the union.

    Args:
        plan: what to search.
        depth: hits of each query.
        made_by: fingerprint of what made candidates and queries.
        index_of: name and rows of a pool -> an index of them; None where there is nothing to find.
        queries_of: rows of the plan's queries -> those that can be asked, and what is asked.

    Returns:
        (task name, "local" or "union") -> run.
    """
    runs: dict[tuple[str, str], RunTable] = {}
    for pool, rows in plan.pools.items():
        searching = [(task, span) for task, span in spans(plan) if pool in (task.pool, task.union)]
        index = index_of(pool, rows) if searching else None
        for task, span in searching:
            asked, queries = queries_of(span)
            run = RunTable([], [], [], [], [])
            if index is not None and asked:
                qids = [task.queries[row - span.start].item.id for row in asked]
                run = index.run(qids, queries, depth, made_by, task.own)
            runs[task.name, "union" if pool == task.union else "local"] = run
    return runs


def _column(ids: Any) -> Any:
    """Ids as an Arrow array of strings."""
    try:
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        if isinstance(ids, pa.Array):
            return ids.cast(pa.large_string())
        return pa.array(list(ids), pa.large_string())
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise DataError(f"ids must be strings, as in the pool: {error}") from error
