"""Data roots of experiments: made, and known by their contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from augment.data import DataRoot
from augment.errors import DataError
from augment.files import new_folder


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
