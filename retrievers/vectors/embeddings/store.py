"""Embeddings on disk, read: vectors by row without loading them, rows by id or by content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int64

from augment.errors import StoreError
from retrievers.vectors.embeddings.manifest import Manifest, Shard, read_manifest
from retrievers.vectors.index.ids import Ids

#: Bytes of a key.
KEY_BYTES = 16
ITEMS = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field("degraded", pa.bool_(), nullable=False),
    ]
)


@final
class EmbeddingStore:
    """A folder of embeddings as one matrix of rows, mapped and not loaded.

    Of an item that was embedded twice, because it changed, both rows are there; :attr:`live` has
    the current ones. Worker processes that open the same folder share its pages.

    Args:
        folder: see :mod:`retrievers.vectors.embeddings.manifest`.
        manifest: of the folder.
        shards: those to open.

    Attributes:
        folder: as given.
        manifest: as given.
        degraded: whether a row was embedded without its picture, which was unreadable.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._vectors: list[np.ndarray] = []
        tables: list[Any] = []
        for shard in shards:
            self._vectors.append(_map_vectors(folder, manifest, shard))
            tables.append(_map_items(folder, shard))
        items = pa.concat_tables(tables) if tables else ITEMS.empty_table()
        self._firsts = np.cumsum([0, *(shard.rows for shard in shards)])
        self._ids = items["id"]
        self._keys = np.concatenate([np.empty(0, _KEY), *map(_keys_of, items["key"].chunks)])
        self._order: Int64[np.ndarray, " n"] | None = None
        self.degraded: Bool[np.ndarray, " n"] = items["degraded"].to_numpy(zero_copy_only=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        made_by: str | None = None,
        verify: bool = True,
        partial: bool = False,
        shards: Iterable[str] | None = None,
    ) -> EmbeddingStore:
        """Open a folder.

        Args:
            folder: where :class:`retrievers.vectors.embeddings.EmbeddingWriter` wrote.
            made_by: fingerprint that is expected; None takes any.
            verify: read all shards once and compare checksums (a second or two per GB). Sizes are
                always compared.
            partial: open what a stopped run has left.
            shards: names of those to open; None takes all.

        Raises:
            StoreError: if there is no store, a shard is missing or damaged (all are named), the
                run that filled it did not end, or a newer version wrote it.
            MismatchError: if other weights or text made it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise StoreError(
                f"{folder}: no embeddings here; make them with python -m retrievers embed"
            )
        if made_by is not None:
            manifest.belongs(folder, made_by, {})
        if not manifest.complete and not partial:
            raise StoreError(
                f"{folder}: embedding stopped after {sum(s.rows for s in manifest.shards)} "
                "vectors; run the same python -m retrievers embed again to go on"
            )
        names = None if shards is None else set(shards)
        chosen = [s for s in manifest.shards if names is None or s.name in names]
        problems = {s: problem for s in chosen if (problem := s.problem(folder, verify))}
        if problems:
            told = "; ".join(problems.values())
            lost = sum(shard.rows for shard in problems)
            raise StoreError(
                f"{folder}: {len(problems)} of {len(chosen)} shards damaged: {told}. Run the same "
                f"python -m retrievers embed again: it embeds their {lost} items and no others"
            )
        return cls(folder, manifest, chosen)

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.manifest.dim

    @property
    def made_by(self) -> str:
        """Fingerprint of what made the vectors."""
        return self.manifest.made_by

    def take(self, rows: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Vectors of some rows, in the stored precision."""
        if not len(rows):
            return np.empty((0, self.dim), self.manifest.dtype)
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows, kind="stable")
            out = np.empty((len(rows), self.dim), self.manifest.dtype)
            out[order] = self.take(rows[order])
            return out
        first, last = np.searchsorted(self._firsts, [rows[0], rows[-1]], side="right") - 1
        cuts = np.searchsorted(rows, self._firsts[first + 1 : last + 1])
        parts = [
            _pick(self._vectors[first + place], inner - self._firsts[first + place])
            for place, inner in enumerate(np.split(rows, cuts))
            if len(inner)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def live(self) -> Int64[np.ndarray, " n"]:
        """Rows that are current, one per id, in the order they were written."""
        if pc.count_distinct(self._ids).as_py() == len(self):
            return np.arange(len(self))
        codes = self._ids.combine_chunks().dictionary_encode().indices.to_numpy()
        _, last = np.unique(codes[::-1], return_index=True)
        return np.sort(len(self) - 1 - last)

    def ids(self, rows: Int64[np.ndarray, " n"] | None = None) -> Any:
        """Ids as an Arrow array of strings, of some rows or of all."""
        column = Ids(self._ids).column
        return column if rows is None else column.take(pa.array(rows, pa.int64()))

    def find(self, keys: np.ndarray) -> Int64[np.ndarray, " n"]:
        """The latest row with each key of :func:`retrievers.vectors.embeddings.item_keys`, or -1."""
        keys = keys.astype(_KEY)
        if not len(self):
            return np.full(len(keys), -1)
        if self._order is None:
            self._order = np.argsort(self._keys, kind="stable")
        place = np.searchsorted(self._keys, keys, side="right", sorter=self._order) - 1
        rows = self._order[np.maximum(place, 0)]
        return np.where((place >= 0) & (self._keys[rows] == keys), rows, -1)


_KEY = np.dtype(f"S{KEY_BYTES}")


def _keys_of(chunk: Any) -> np.ndarray:
    keys: np.ndarray = np.frombuffer(chunk.buffers()[1], _KEY)
    return keys[chunk.offset : chunk.offset + len(chunk)]


def _pick(vectors: np.ndarray, rows: Int64[np.ndarray, " n"]) -> np.ndarray:
    """Rows of a shard in rising order; a whole run of them is not copied."""
    if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return vectors[rows[0] : rows[-1] + 1]
    return np.asarray(vectors[rows])


def _map_vectors(folder: Path, manifest: Manifest, shard: Shard) -> np.ndarray:
    path = shard.files(folder)[0]
    try:
        # Copy on write: torch takes no read-only arrays, and nobody writes.
        mapped: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); run embed again") from error
    expected = ((shard.rows, manifest.dim), np.dtype(manifest.dtype))
    if (mapped.shape, mapped.dtype) != expected:
        raise StoreError(
            f"{path}: holds {mapped.dtype} {mapped.shape}, the manifest says {expected[1]} "
            f"{expected[0]}; run embed again"
        )
    return mapped


def _map_items(folder: Path, shard: Shard) -> Any:
    path = shard.files(folder)[1]
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); run embed again") from error
    if not table.schema.equals(ITEMS) or len(table) != shard.rows:
        raise StoreError(
            f"{path}: {len(table)} rows of {table.schema.names}, the manifest says {shard.rows} "
            f"rows of {ITEMS.names}; run embed again"
        )
    return table
