"""Vectors of a plan's rows while a run lasts, in memory or in a folder; keys of their items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from retrievers.data.plan import Content
from retrievers.data.writings import WRITTEN, Writing, append_writings, read_writings
from retrievers.vectors.held import Matrix, Vectors, VectorSource
from retrievers.vectors.index import Index
from retrievers.vectors.store import EmbeddingWriter


@final
class Embeddings:
    """Vectors by row, filled batch by batch.

    Without a ``writer`` they are kept in memory; a writer needs ``keys`` of the rows' contents and
    their ``names``.

    Attributes:
        done: which rows have a vector; with a writer, up to date after :meth:`finish`.
        failed: rows with nothing to embed.
        degraded: rows embedded without their picture.
        writings: what was written before the vectors of rows; in a folder, of earlier runs, too.
        direct: vectors of those rows without it, of this run.
    """

    def __init__(
        self,
        size: int,
        writer: EmbeddingWriter | None = None,
        keys: np.ndarray | None = None,
        names: Callable[[Sequence[int]], list[str]] | None = None,
    ) -> None:
        self._size = size
        self._memory: Float32[np.ndarray, "size dim"] | None = None
        self._writer = writer
        self._keys = keys
        self._names = names
        self._source: VectorSource = Matrix(np.zeros((size, 1), np.float32))
        self._rows: Int64[np.ndarray, " size"] = np.arange(size)
        self.done = torch.zeros(size, dtype=torch.bool)
        self.failed: list[int] = []
        self.degraded: list[int] = []
        self.writings: dict[int, Writing] = {}
        self.direct: dict[int, Tensor] = {}
        self._find()

    def missing(self, part: int = 0, parts: int = 1) -> Int64[np.ndarray, " rows"]:
        """Rows still to be embedded; of several processes, those of one.

        Each row belongs to one of ``parts`` processes, whatever is done already.
        """
        rows = np.nonzero(~self.done.numpy())[0]
        if self._keys is not None and parts > 1:
            rows = rows[self._keys[rows].astype("S4").view("<u4") % parts == part]
        return rows

    @property
    def vectors(self) -> Float[Tensor, "size dim"]:
        """All vectors in memory; zeros where nothing was put."""
        whole = torch.zeros(self._size, self._source.dim or 1)
        whole[self.done] = self.take(self.done.nonzero()[:, 0])
        return whole

    def take(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n dim"]:
        """Vectors of some rows that have one."""
        return torch.from_numpy(self._source.take(self._rows[rows.numpy()])).float()

    def put(
        self,
        rows: Int[Tensor, " n"],
        vectors: Float[Tensor, "n dim"],
        degraded: Iterable[int] = (),
    ) -> None:
        """Keep vectors of some rows; ``degraded`` are those made without their picture."""
        if self._writer is not None and self._keys is not None and self._names is not None:
            places = rows.tolist()
            lame = np.isin(places, list(degraded))
            self._writer.append(self._names(places), self._keys[places], vectors, lame)
            return
        if self._memory is None:
            self._memory = np.zeros((self._size, vectors.shape[1]), np.float32)
            self._source = Matrix(self._memory)
        self._memory[rows.numpy()] = vectors.float().numpy()
        self.done[rows] = True

    def note(
        self,
        rows: Sequence[int],
        writings: Sequence[Writing],
        direct: Float[Tensor, "n dim"] | None = None,
    ) -> None:
        """Keep what was written before the vectors of some rows, and the vectors without it.

        Without those, as of candidates, the words are kept in the folder alone.
        """
        if direct is None:
            kept = [one._replace(text="") for one in writings]
        else:
            kept = list(writings)
            self.direct.update(zip(rows, direct, strict=True))
        self.writings.update(zip(rows, kept, strict=True))
        if self._log is not None and self._keys is not None:
            keys = (self._keys[row].hex() for row in rows)
            append_writings(self._log, zip(keys, writings, strict=True))

    @property
    def _log(self) -> Path | None:
        return None if self._writer is None else self._writer.folder / WRITTEN

    def fail(self, failed: Iterable[int], degraded: Iterable[int]) -> None:
        """Note rows with nothing to embed, and rows embedded without their picture."""
        self.failed.extend(failed)
        if self._writer is None:
            self.degraded.extend(degraded)

    def finish(self) -> bool:
        """Bring all vectors to the disk; whether every row has one or has failed."""
        if self._writer is not None:
            self._writer.flush()
            self._find()
            whole = int(self.done.sum()) + len(self.failed) == self._size
            self._writer.finish(complete=whole)
        return int(self.done.sum()) + len(self.failed) == self._size

    def add_to(
        self, index: Index[Vectors], ids: Any, rows: Int[Tensor, " n"], made_by: str
    ) -> None:
        """Add the vectors of some rows to an index, read where they lie."""
        if self._writer is None:
            index.add(ids, self.take(rows), made_by)
        else:
            index.add(ids, self._source, made_by, self._rows[rows.numpy()])

    def _find(self) -> None:
        """Look up which rows the folder has."""
        if self._writer is None or self._keys is None:
            return
        if self._log is not None and self._log.exists():
            known = read_writings(self._log, torn=True)
            named = ((row, known.get(key.hex())) for row, key in enumerate(self._keys))
            self.writings = {row: one for row, one in named if one is not None}
        self._source = store = self._writer.reader()
        self._rows = store.find(self._keys)
        self.done = torch.from_numpy(self._rows >= 0)
        lame = self.done.numpy().copy()
        lame[lame] = store.degraded[self._rows[lame]]
        self.degraded = [int(row) for row in np.nonzero(lame)[0]]


def item_keys(contents: Iterable[Content], root: Path) -> np.ndarray:
    """BLAKE2b of id, text and pictures; an array of 16-byte strings.

    A picture counts by path, size and modification time, so that checking a pool reads no pixel;
    a picture replaced by one of the same size and time, to the nanosecond, is not noticed.
    """
    return np.fromiter((_key(content, root) for content in contents), dtype="S16")


def _key(content: Content, root: Path) -> bytes:
    seen = (content.id, content.text, [_picture(root, path) for path in content.images])
    packed = json.dumps(seen).encode()
    return hashlib.blake2b(packed, digest_size=16).digest()


def _picture(root: Path, path: str) -> tuple[str, int, int]:
    try:
        status = (root / path).stat()
    except (OSError, ValueError):  # said by whoever opens it
        return path, -1, -1
    return path, status.st_size, status.st_mtime_ns
