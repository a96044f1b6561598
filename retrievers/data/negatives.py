"""Hard negatives of training queries: published ones, or a table that mining has written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import pyarrow as pa
from pyarrow import parquet

from augment.errors import DataError
from augment.files import read_json, sha256
from augment.records import Query

#: Columns of a table of mined negatives; one row per query.
COLUMNS = ("qid", "positive_ids", "positive_scores", "negative_ids", "negative_scores")


@dataclass(frozen=True)
class NegativesConfig:
    """Hard negatives beside the in-batch ones.

    Args:
        path: ``negatives.parquet`` of ``python -m retrievers mine``, or the folder it is in.
        published: take the queries' own ``neg_cand_list``; not together with a path.
        per_query: hard negatives drawn for each query and epoch, where it has so many.
        doubtful: what becomes of candidates that mining took for unjudged positives: no query's
            negatives (mask), or drawn as positives, too (positive); keep says nothing of them.
    """

    path: str | None = None
    published: bool = False
    per_query: int = 1
    doubtful: Literal["mask", "positive", "keep"] = "keep"

    def open(self) -> HardNegatives | None:
        """The source that is meant; None for none.

        Raises:
            DataError: if both are asked for, or the file is missing or no such table.
        """
        if self.path is not None and self.published:
            raise DataError("data.negatives: give a path or published=true, not both")
        if self.path is None and not self.published:
            return None
        return HardNegatives(
            None if self.path is None else Path(self.path),
            self.per_query,
            self.doubtful,
        )


class Scored(NamedTuple):
    """Candidates of one query by id, with scores; NaN where there is none.

    Attributes:
        positives: known ones.
        negatives: mined or published ones.
        doubtful: what may be positive and is not known to be.
    """

    positives: Mapping[str, float] = {}
    negatives: Mapping[str, float] = {}
    doubtful: tuple[str, ...] = ()


@final
@dataclass
class HardNegatives:
    """Hard negatives by query.

    Without a ``path`` they are the published ones.

    Attributes:
        weak: queries whose positives are not to be relied on.
    """

    path: Path | None
    per_query: int
    doubtful: Literal["mask", "positive", "keep"] = "keep"
    weak: frozenset[str] = field(default=frozenset(), init=False)
    _rows: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _table: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the table."""
        if self.path is None:
            return
        path = self.path / "negatives.parquet" if self.path.is_dir() else self.path
        if not path.is_file():
            raise DataError("no such table; write it with `python -m retrievers mine`", str(path))
        made = path.with_name("mining.json")
        if made.is_file() and read_json(made).get("sha256") != sha256(path):
            raise DataError(f"is not the table that {made.name} tells of; mine again", str(path))
        try:
            self._table = parquet.read_table(path, page_checksum_verification=True).combine_chunks()
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise DataError(f"no table of mined negatives: {error}", str(path)) from error
        missing = [name for name in COLUMNS if name not in self._table.column_names]
        if missing:
            raise DataError(f"no table of mined negatives: lacks {missing}", str(path))
        qids = self._table["qid"].to_pylist()
        self._rows = {qid: row for row, qid in enumerate(qids)}
        told = {"doubtful_ids", "weak"} <= set(self._table.column_names)  # not of older tables
        if told:
            weak = self._table["weak"].to_pylist()
            self.weak = frozenset(qid for qid, one in zip(qids, weak, strict=True) if one)
        elif self.doubtful != "keep":
            raise DataError("does not say what is doubtful; mine again", str(path))

    def of(self, query: Query) -> Scored:
        """Negatives of a query, never one of its known positives; empty if there are none."""
        known = set(query.positives)
        if self.path is None:
            names = dict.fromkeys(query.negatives, math.nan)
            return Scored({}, {did: nan for did, nan in names.items() if did not in known})
        row = self._rows.get(query.item.id)
        if row is None:
            return Scored()
        columns = [*COLUMNS[1:], *(["doubtful_ids"] if self.doubtful != "keep" else [])]
        values = [self._table[name][row].as_py() for name in columns]
        negatives: dict[str, float] = dict(zip(values[2], values[3], strict=True))
        return Scored(
            dict(zip(values[0], values[1], strict=True)),
            {did: score for did, score in negatives.items() if did not in known},
            tuple(values[4]) if self.doubtful != "keep" else (),
        )
