"""A part of a data root: the lists of some data sets and one split, and the pictures they name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.errors import DataError

_FOLDERS = ("query/{split}", "cand_pool/local", "qrels/{split}", "instructions")


def make_part(root: Path, datasets: Sequence[str], split: str, out: Path) -> None:
    """Write a root with some data sets of another, unless it is there.

    Args:
        root: M-BEIR root.
        datasets: names as in its files.
        split: of the queries.
        out: the new root; a union pool is not written.

    Raises:
        DataError: if a data set has no queries of the split, or a picture cannot be copied.
    """
    if out.exists():
        return
    data = DataRoot(root)
    known = sorted({file.dataset for file in data.query_files(split)})
    if absent := [name for name in datasets if name not in known]:
        raise DataError(f"no {split} queries of {absent[0]!r}; there are {', '.join(known)}",
                        str(root))  # fmt: skip
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in (name.format(split=split) for name in _FOLDERS):
        (partial / folder).mkdir(parents=True)
        for path in sorted((root / folder).iterdir()):
            shared = folder == "instructions"
            if shared or any(path.name.startswith(f"mbeir_{name}_") for name in datasets):
                shutil.copy(path, partial / folder)
    for picture in sorted(set(_pictures(DataRoot(partial), split))):
        if not (root / picture).is_file():
            raise DataError("no such picture", str(root / picture))
        (partial / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / picture, partial / picture)
    partial.rename(out)


def _pictures(data: DataRoot, split: str) -> Iterator[str]:
    for pool in data.pools():
        yield from (item.image for item in open_candidates(pool.path) if item.image)
    for file in data.query_files(split):
        yield from (query.item.image for query in open_queries(file.path) if query.item.image)
