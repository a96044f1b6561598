"""Embeddings on disk: a folder of shards, and one small file that is replaced as a whole.

::

    STORE/manifest.json          what made the vectors, and the list of shards; the only truth
    STORE/<shard>.npy            vectors, float16 or float32, rows in the order of ...
    STORE/<shard>.arrow          ... id, key of the item's content, whether its picture was left out
    STORE/.lock                  held while a shard is being added

A shard counts once the manifest lists it; whatever else lies in the folder was left by a killed
run and is removed by the next writer.

Open what ``python -m retrievers embed`` left, and search it::

    store = EmbeddingStore.open("runs/mine/embeddings/corpus")
    run = open_index(store).run(["q"], vectors, k=10, made_by=store.made_by)
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError, StoreError

Dtype = Literal["float16", "float32"]

#: Raised whenever the layout changes.
VERSION = 1
NAME = "manifest.json"
#: Vectors of a full shard.
SHARD_ROWS = 16_384
#: A shard is written after so many seconds even if it is not full; a killed run loses no more.
SHARD_SECONDS = 60.0
#: A key of an item's content (see :func:`retrievers.vectors.embed.item_keys`).
_KEY = np.dtype("S16")
_ITEMS = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("key", pa.binary(_KEY.itemsize), nullable=False),
        pa.field("degraded", pa.bool_(), nullable=False),
    ]
)


@final
@dataclass(frozen=True)
class Shard:
    """One pair of files.

    Attributes:
        name: stem of both.
        rows: number of vectors.
        vectors: SHA-256 of the ``.npy`` file.
        items: SHA-256 of the ``.arrow`` file.
        vector_bytes: size of the ``.npy`` file.
        item_bytes: size of the ``.arrow`` file.
    """

    name: str
    rows: int
    vectors: str
    items: str
    vector_bytes: int
    item_bytes: int

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Vectors and items."""
        return folder / f"{self.name}.npy", folder / f"{self.name}.arrow"

    def problem(self, folder: Path, checksums: bool) -> str:
        """What is wrong with the files; empty if nothing is."""
        vectors, items = self.files(folder)
        return _problem(vectors, self.vectors, self.vector_bytes, checksums) or _problem(
            items, self.items, self.item_bytes, checksums
        )


def _problem(path: Path, digest: str, size: int, checksum: bool) -> str:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} has {found} bytes of {size}"
        if checksum and sha256(path) != digest:
            return f"{path.name} has a wrong checksum"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return ""


@final
@dataclass(frozen=True)
class Manifest:
    """What made the vectors, and where they are.

    Attributes:
        made_by: fingerprint of weights, settings and text recipe.
        made_with: what the fingerprint stands for, as plain strings, to say what differs.
        dtype: of the stored vectors.
        dim: dimension; 0 while there are none.
        shards: in the order they were written; of an id that stands in several, the last counts.
        complete: whether the run that wrote last came to its end.
        version: of the layout.
    """

    made_by: str
    made_with: Mapping[str, str] = field(default_factory=dict)
    dtype: Dtype = "float16"
    dim: int = 0
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    version: int = VERSION

    def belongs(self, folder: Path, made_by: str, made_with: Mapping[str, str]) -> None:
        """Refuse vectors of another model or text.

        Raises:
            MismatchError: names what differs.
        """
        names = sorted({*self.made_with, *made_with})
        differing = [n for n in names if made_with and self.made_with.get(n) != made_with.get(n)]
        if made_by == self.made_by and not differing:
            return
        told = "; ".join(f"{n}: {self.made_with.get(n)}, now {made_with.get(n)}" for n in differing)
        raise MismatchError(
            f"{folder} holds vectors made by {self.made_by!r}, not by {made_by!r}"
            f"{f' ({told})' if told else ''}; name another folder, or delete this one to embed anew"
        )


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None if there is none.

    Raises:
        StoreError: if it cannot be read or is of a newer version.
    """
    path = folder / NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["version"] > VERSION:
            raise StoreError(
                f"{path}: version {fields['version']}, this package reads up to {VERSION}; "
                "upgrade the package, or embed again into another folder"
            )
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        manifest = Manifest(**fields, shards=shards)
        if manifest.dtype not in get_args(Dtype):
            raise ValueError(f"dtype {manifest.dtype!r} is none of {', '.join(get_args(Dtype))}")
        if any(Path(shard.name).name != shard.name for shard in shards):
            raise ValueError("a shard lies outside the folder")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); restore it, or delete "
            f"{folder} and embed again"
        ) from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest; a reader sees the old one or the new one."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    publish(folder / NAME, lambda path: path.write_text(text, encoding="utf-8"))


def publish(target: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, bring it to the disk, and give it its name."""
    partial = target.with_name(f".partial-{target.name}")
    write(partial)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(target)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@final
class EmbeddingStore:
    """A folder of embeddings as one matrix of rows, mapped and not loaded.

    Of an item that was embedded twice, because it changed, both rows are there; :attr:`live` has
    the current ones. Worker processes that open the same folder share its pages.

    Args:
        folder: see :mod:`retrievers.vectors.store`.
        manifest: of the folder.

    Attributes:
        folder: as given.
        manifest: as given.
        degraded: whether a row was embedded without its picture, which was unreadable.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._vectors: list[np.ndarray] = []
        tables: list[Any] = []
        for shard in manifest.shards:
            self._vectors.append(_map_vectors(folder, manifest, shard))
            tables.append(_map_items(folder, shard))
        items = pa.concat_tables(tables) if tables else _ITEMS.empty_table()
        self._firsts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
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
    ) -> EmbeddingStore:
        """Open a folder.

        Args:
            folder: where :class:`EmbeddingWriter` wrote.
            made_by: fingerprint that is expected; None takes any.
            verify: read all shards once and compare checksums (a second or two per GB). Sizes are
                always compared.
            partial: open what a stopped run has left.

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
        shards = manifest.shards
        problems = {s: problem for s in shards if (problem := s.problem(folder, verify))}
        if problems:
            told = "; ".join(problems.values())
            lost = sum(shard.rows for shard in problems)
            raise StoreError(
                f"{folder}: {len(problems)} of {len(shards)} shards damaged: {told}. Run the same "
                f"python -m retrievers embed again: it embeds their {lost} items and no others"
            )
        return cls(folder, manifest)

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
        column = self._ids.combine_chunks()
        return column if rows is None else column.take(pa.array(rows, pa.int64()))

    def find(self, keys: np.ndarray) -> Int64[np.ndarray, " n"]:
        """The latest row with each key of :func:`~retrievers.vectors.embed.item_keys`, or -1."""
        keys = keys.astype(_KEY)
        if not len(self):
            return np.full(len(keys), -1)
        if self._order is None:
            self._order = np.argsort(self._keys, kind="stable")
        place = np.searchsorted(self._keys, keys, side="right", sorter=self._order) - 1
        rows = self._order[np.maximum(place, 0)]
        return np.where((place >= 0) & (self._keys[rows] == keys), rows, -1)


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
    if not table.schema.equals(_ITEMS) or len(table) != shard.rows:
        raise StoreError(
            f"{path}: {len(table)} rows of {table.schema.names}, the manifest says {shard.rows} "
            f"rows of {_ITEMS.names}; run embed again"
        )
    return table


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
        return EmbeddingStore(self.folder, self._current())

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
            keys: of :func:`~retrievers.vectors.embed.item_keys`.
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
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _ITEMS, strict=True)]
        items = pa.table(arrays, schema=_ITEMS)
        name = f"{len(manifest.shards):06}-{secrets.token_hex(4)}"
        shard = Shard(name, len(vectors), "", "", 0, 0)
        first, second = shard.files(self.folder)
        publish(first, lambda path: _save(path, vectors))
        publish(second, lambda path: _write_items(path, items))
        shard = replace(
            shard,
            vectors=sha256(first),
            items=sha256(second),
            vector_bytes=first.stat().st_size,
            item_bytes=second.stat().st_size,
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
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _ITEMS) as writer:
        writer.write_table(items)
