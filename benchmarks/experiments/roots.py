"""Data roots of experiments: made, cut to a part, known by their contents."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.errors import DataError
from augment.files import new_folder

_FOLDERS = ("query/{split}", "cand_pool/local", "qrels/{split}", "instructions")


def digest_root(root: Path) -> str:
    """SHA-256 over the names and contents of all lists of a root; pictures count by name only.

    Raises:
        DataError: if it is no data root.
    """
    data = DataRoot(root)
    digest = hashlib.sha256()
    for folder in ("query", "cand_pool", "qrels", "instructions"):
        for path in sorted((data.path / folder).rglob("*")):
            if path.is_file() and path.suffix in (".jsonl", ".txt", ".tsv"):
                digest.update(str(path.relative_to(data.path)).encode())
                with path.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()


def make_world(root: Path, countries: int, seed: int, workers: int) -> None:
    """Write a Flagland unless it is there.

    Raises:
        DataError: if there can be no such world.
    """
    from benchmarks.flagland.world import WorldConfig, write_world

    if root.exists():
        return
    try:
        config = WorldConfig(countries, seed)
    except ValueError as error:
        raise DataError(f"no Flagland: {error}") from error
    with new_folder(root) as partial:
        write_world(partial, config, workers=workers)


def make_part(root: Path, datasets: Sequence[str], split: str, out: Path) -> None:
    """Write a root with some data sets of another and the pictures they name, unless it is there.

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
    with new_folder(out) as partial:
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


def _pictures(data: DataRoot, split: str) -> Iterator[str]:
    for pool in data.pools():
        yield from (item.image for item in open_candidates(pool.path) if item.image)
    for file in data.query_files(split):
        yield from (query.item.image for query in open_queries(file.path) if query.item.image)
