"""The published items of a root, found by id in its tables without reading whole files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import cast, final

import pyarrow as pa
import pyarrow.compute as pc

from augment.data import DataRoot
from augment.data.pools import CandidateTable, QueryTable, open_candidates, open_queries
from augment.data.root import DataFile
from augment.records import Item, Side

_SPLITS = ("train", "val", "test", "union_train", "union_val")


@final
class Items:
    """Candidates or queries of a root.

    Args:
        root: folder in M-BEIR's layout.
        side: which of them.

    Raises:
        DataError: if the root or one of its files cannot be read.
    """

    def __init__(self, root: Path, side: Side) -> None:
        data = DataRoot(root)
        self._tables: Sequence[CandidateTable | QueryTable]
        files: list[DataFile]
        if side == "corpus":
            # Union pools repeat the local ones.
            files = data.pools() or data.union_pools()
            self._tables = [open_candidates(file.path) for file in files]
        else:
            splits = [data.query_files(split) for split in _SPLITS]
            files = [file for split in splits[:3] for file in split]
            files = files or [file for split in splits for file in split]
            self._tables = [open_queries(file.path) for file in files]
        self._names: dict[str, str] = {}
        for file, table in zip(files, self._tables, strict=True):
            if len(table):
                self._names.setdefault(_item(table, 0).dataset, file.dataset)

    def find(self, item_id: str) -> Item | None:
        """The item with this id, or None."""
        for table in self._tables:
            row = table.find(item_id)
            if row is not None:
                return _item(table, row)
        return None

    def name(self, dataset: str) -> str:
        """Name of a dataset by its id, or the id itself."""
        return self._names.get(dataset, dataset)

    def with_picture(self) -> int:
        """Items that have a picture, those in several files counted once."""
        shown = [t.ids.filter(t.column("image").is_valid()).chunks for t in self._tables]
        ids = pa.chunked_array([chunk for chunks in shown for chunk in chunks], pa.string())
        return cast("int", pc.count_distinct(ids).as_py())


def _item(table: CandidateTable | QueryTable, row: int) -> Item:
    found = table[row]
    return found if isinstance(found, Item) else found.item


def asked_for(root: Path, candidates: Collection[str]) -> Mapping[str, str]:
    """Candidate id -> text of a query without a picture that this candidate answers.

    Args:
        root: folder in M-BEIR's layout.
        candidates: ids to look up; those that no such query wants are absent.

    Raises:
        DataError: if the root or one of its files cannot be read.
    """
    data = DataRoot(root)
    wanted = pa.array(sorted(candidates), pa.string())
    found: dict[str, str] = {}
    for split in reversed(_SPLITS[:3]):
        for file in data.query_files(split):
            table = open_queries(file.path)
            start = 0
            for positives in table.column("positives").chunks:
                hits = pc.is_in(positives.flatten(), wanted)
                rows = positives.value_parent_indices().filter(hits).to_pylist()
                for row, did in zip(
                    rows, positives.flatten().filter(hits).to_pylist(), strict=True
                ):
                    query = table[start + row].item
                    if query.image is None and query.text:
                        found.setdefault(did, query.text)
                start += len(positives)
    return found
