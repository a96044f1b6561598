"""The candidates or the queries of a data root together, whatever files they stand in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, final

import pyarrow as pa
import pyarrow.compute as pc

from augment.data.pools import CandidateTable, QueryTable, open_candidates, open_queries
from augment.data.root import DataFile, DataRoot
from augment.records import Item, Query, Side

SPLITS = ("train", "val", "test")


@final
class RootItems:
    """Candidates or queries of a root, found by id without reading whole files.

    Union files repeat the others and count only where there are no others.

    Raises:
        DataError: if the root or one of its files cannot be read.
    """

    def __init__(self, root: Path, side: Side) -> None:
        data = DataRoot(root)
        self._tables: Sequence[CandidateTable | QueryTable]
        files: list[DataFile]
        if side == "corpus":
            files = data.pools() or data.union_pools()
            self._tables = [open_candidates(file.path) for file in files]
        else:
            files = [file for split in SPLITS for file in data.query_files(split)]
            files = files or [*data.query_files("union_train"), *data.query_files("union_val")]
            self._tables = [open_queries(file.path) for file in files]
        self._names: dict[str, str] = {}
        for file, rows in zip(files, self._tables, strict=True):
            if len(rows):
                self._names.setdefault(_item(rows[0]).dataset, file.dataset)

    def __iter__(self) -> Iterator[Item]:
        return (_item(record) for rows in self._tables for record in rows)

    def find(self, item_id: str) -> Item | None:
        """The item with this id, or None."""
        for rows in self._tables:
            row = rows.find(item_id)
            if row is not None:
                return _item(rows[row])
        return None

    def name(self, dataset: str) -> str:
        """Name of a dataset by its id, or the id itself."""
        return self._names.get(dataset, dataset)

    def with_picture(self) -> int:
        """Items that have a picture, those in several files counted once."""
        shown = [t.ids.filter(t.column("image").is_valid()).chunks for t in self._tables]
        ids = pa.chunked_array([chunk for chunks in shown for chunk in chunks], pa.string())
        return cast("int", pc.count_distinct(ids).as_py())


def _item(record: Item | Query) -> Item:
    return record.item if isinstance(record, Query) else record
