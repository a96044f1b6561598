"""Embeddings on disk, written: shard by shard, each whole or not there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from jaxtyping import Bool, Float
from torch import Tensor

from augment.errors import DataError, MismatchError, StoreError
from retrievers.vectors.embeddings.manifest import (
    Dtype,
    Manifest,
    Shard,
    publish,
    read_manifest,
    sha256,
    write_manifest,
)
from retrievers.vectors.embeddings.store import ITEMS, EmbeddingStore

#: Vectors of a full shard.
SHARD_ROWS = 16_384
#: A shard is written after so many seconds even if it is not full; a killed run loses no more.
SHARD_SECONDS = 60.0


@final
class EmbeddingWriter:
    """Adds vectors to a folder; several processes may add to one folder at the same time.

    Opening it checks all shards. Damaged ones are taken out of the folder and named in
    :attr:`damaged`, so that their items are found missing and embedded again.

    Args:
        folder: made by the first shard.
        made_by: fingerprint of weights, settings and text recipe.
        made_with: what it stands for, as plain strings.
        dtype: of the stored vectors; half the size costs about three digits.
        shard_rows: see :data:`SHARD_ROWS`.
        shard_seconds: see :data:`SHARD_SECONDS`.

    Attributes:
        damaged: what was wrong, by name of the shard.

    Raises:
        StoreError: if the folder cannot be read or written.
        MismatchError: if it holds vectors of other weights or text, or of another dtype.
    """

    def __init__(
        self,
        folder: str | Path,
        made_by: str,
        made_with: Mapping[str, str] | None = None,
        dtype: Dtype = "float16",
        shard_rows: int = SHARD_ROWS,
        shard_seconds: float = SHARD_SECONDS,
    ) -> None:
        self.folder = Path(folder)
        self._empty = Manifest(made_by, dict(made_with or {}), dtype)
        self._shard_rows = shard_rows
        self._shard_seconds = shard_seconds
        self._began = time.monotonic()
        self._ids: list[str] = []
        self._keys: list[bytes] = []
        self._degraded: list[bool] = []
        self._vectors: list[np.ndarray] = []
        self.damaged: dict[str, str] = {}
        self._locked(self._mend)

    def reader(self) -> EmbeddingStore:
        """What is in the folder now."""
        manifest = self._current()
        return EmbeddingStore(self.folder, manifest, manifest.shards)

    def append(
        self,
        ids: Sequence[str],
        keys: np.ndarray,
        vectors: Float[Tensor, "n dim"],
        degraded: Bool[np.ndarray, " n"] | None = None,
    ) -> None:
        """Add vectors; they are on disk with their shard.

        Args:
            ids: one per vector; one that was stored before is replaced.
            keys: of :func:`retrievers.vectors.embeddings.item_keys`.
            vectors: finite, also in the stored precision.
            degraded: which were embedded without their picture.

        Raises:
            DataError: if a vector is not finite, or the lengths differ.
            MismatchError: if the dimension is another than the store's.
        """
        if not len(ids) == len(keys) == len(vectors):
            raise DataError(f"{len(ids)} ids and {len(keys)} keys for {len(vectors)} vectors")
        known = self._vectors[0].shape[1] if self._vectors else self._current().dim
        if vectors.ndim != 2 or known not in (0, vectors.shape[1]):
            raise MismatchError(
                f"vectors of shape {tuple(vectors.shape)} in {self.folder}, which holds {known} "
                "dimensions; name another folder"
            )
        stored = vectors.detach().float().cpu().to(getattr(torch, self._empty.dtype)).numpy()
        bad = np.nonzero(~np.isfinite(stored).all(axis=1))[0]
        if len(bad):
            raise DataError(
                f"vector is not finite as {self._empty.dtype} ({len(bad)} such of {len(ids)}); "
                "look at the model and its precision, or store float32",
                ids[bad[0]],
            )
        if not self._ids:
            self._began = time.monotonic()
        self._ids.extend(ids)
        self._keys.extend(bytes(key).ljust(16, b"\0") for key in keys.tolist())
        self._degraded.extend([False] * len(ids) if degraded is None else degraded.tolist())
        self._vectors.append(stored)
        waited = time.monotonic() - self._began
        if len(self._ids) >= self._shard_rows or waited >= self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what was added as a shard."""
        if self._ids:
            self._locked(self._add_shard)
            self._ids, self._keys, self._degraded, self._vectors = [], [], [], []

    def finish(self, complete: bool = True) -> None:
        """Write the rest, and whether all that was wanted is there."""
        self.flush()

        def mark() -> None:
            manifest = self._current()
            if manifest.complete != complete:
                write_manifest(self.folder, replace(manifest, complete=complete))

        self._locked(mark)

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()

    def _locked(self, change: Callable[[], None]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                change()
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot write embeddings: {error}; shards written before are "
                "safe, run the same command again when this is mended, or name a folder that can "
                "be written"
            ) from error

    def _current(self) -> Manifest:
        found = read_manifest(self.folder) or self._empty
        found.belongs(self.folder, self._empty.made_by, self._empty.made_with)
        if found.dtype != self._empty.dtype:
            raise MismatchError(
                f"{self.folder} holds {found.dtype}, not {self._empty.dtype}; name another folder"
            )
        return found

    def _mend(self) -> None:
        """Take damaged shards out, and what killed runs left."""
        manifest = self._current()
        for shard in manifest.shards:
            problem = shard.problem(self.folder, checksums=True)
            if problem:
                self.damaged[shard.name] = problem
        if self.damaged:
            kept = tuple(s for s in manifest.shards if s.name not in self.damaged)
            manifest = replace(manifest, shards=kept, complete=False)
            write_manifest(self.folder, manifest)
        self._sweep(manifest)

    def _sweep(self, manifest: Manifest) -> None:
        listed = {path for shard in manifest.shards for path in shard.files(self.folder)}
        found = {path for end in (".npy", ".arrow") for path in self.folder.glob(f"*{end}")}
        for path in (found - listed) | set(self.folder.glob(".partial-*")):
            with suppress(OSError):
                path.unlink()

    def _add_shard(self) -> None:
        manifest = self._current()
        self._sweep(manifest)
        vectors = np.concatenate(self._vectors)
        columns = (self._ids, self._keys, self._degraded)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, ITEMS, strict=True)]
        items = pa.table(arrays, schema=ITEMS)
        name = f"{len(manifest.shards):06}-{secrets.token_hex(4)}"
        shard = Shard(name, len(vectors), "", "", 0, 0)
        paths = shard.files(self.folder)
        publish(paths[0], lambda path: _save(path, vectors))
        publish(paths[1], lambda path: _write_items(path, items))
        first, second = paths
        shard = Shard(
            name,
            len(vectors),
            sha256(first),
            sha256(second),
            first.stat().st_size,
            second.stat().st_size,
        )
        shards = (*manifest.shards, shard)
        write_manifest(
            self.folder,
            replace(manifest, dim=vectors.shape[1], shards=shards, complete=False),
        )


def _save(path: Path, vectors: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, vectors, allow_pickle=False)


def _write_items(path: Path, items: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ITEMS) as writer:
        writer.write_table(items)
