"""Embeddings on disk: a folder of shards, and one small file that is replaced as a whole.

::

    STORE/manifest.json     what made the vectors, and the list of shards; the only truth
    STORE/<shard>.arrow     id, key of the item's content, whether its picture was left out, vector
    STORE/.lock             held while a shard is being added

A shard counts once the manifest lists it; whatever else lies in the folder was left by a killed
run and is removed by the next writer.

Open what ``python -m retrievers embed`` left, and search it::

    store = EmbeddingStore.open("runs/mine/embeddings/corpus")
    run = open_index(store).run(["q"], vectors, k=10, made_by=store.made_by)
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any, Literal, final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError, StoreError
from augment.files import digest, replacing_path, sha256, write_json
from retrievers.vectors.held import Matrix, Vectors

Dtype = Literal["float16", "float32"]

#: Changed whenever the layout changes.
VERSION = 2
NAME = "manifest.json"
#: Vectors of a full shard.
SHARD_ROWS = 16_384
#: A shard is written after so many seconds even if it is not full; a killed run loses no more.
SHARD_SECONDS = 60.0
#: A key of an item's content (see :func:`retrievers.vectors.rows.item_keys`).
_KEY = np.dtype("S16")


@final
@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        name: its stem.
        rows: number of vectors.
        sha256: of its bytes.
    """

    name: str
    rows: int
    sha256: str

    def file(self, folder: Path) -> Path:
        """Where it lies."""
        return folder / f"{self.name}.arrow"

    def problem(self, folder: Path) -> str:
        """What is wrong with the file; empty if nothing is."""
        path = self.file(folder)
        try:
            return "" if sha256(path) == self.sha256 else f"{path.name} has a wrong checksum"
        except FileNotFoundError:
            return f"{path.name} is missing"
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror}"


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
        StoreError: if it cannot be read, is damaged, or is of another version.
    """
    path = folder / NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["version"] != VERSION:
            raise StoreError(
                f"{path}: version {fields['version']}, this package reads {VERSION}; upgrade the "
                "package, or embed again into another folder"
            )
        if fields.pop("sha256") != digest(fields):
            raise ValueError("wrong checksum")
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
    fields = asdict(manifest)
    write_json(folder / NAME, {**fields, "sha256": digest(fields)})


@final
class EmbeddingStore:
    """A folder of embeddings as one matrix of rows, mapped and not loaded.

    Of an item that was embedded twice, because it changed, both rows are there; :attr:`live` has
    the current ones. Worker processes that open the same folder share its pages.

    Attributes:
        folder: as given.
        manifest: as given.
        degraded: whether a row was embedded without its picture, which was unreadable.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        mapped = [_mapped(folder, manifest, shard) for shard in manifest.shards]
        self._vectors = Vectors()
        for vectors, _ in mapped:
            self._vectors.append(Matrix(vectors))
        schema = _schema(manifest.dtype, manifest.dim).remove(3)
        items = pa.Table.from_batches([batch for _, batch in mapped], schema)
        self._ids = items["id"]
        keys = [np.frombuffer(chunk.buffers()[1], _KEY)[chunk.offset : chunk.offset + len(chunk)]
                for chunk in items["key"].chunks]  # fmt: skip
        self._keys = np.concatenate([np.empty(0, _KEY), *keys])
        self._order: Int64[np.ndarray, " n"] | None = None
        self.degraded: Bool[np.ndarray, " n"] = items["degraded"].to_numpy(zero_copy_only=False)

    @classmethod
    def open(cls, folder: str | Path, made_by: str | None = None) -> EmbeddingStore:
        """Open a folder; all shards are read once to compare checksums, a second or two per GB.

        Raises:
            StoreError: if there is no store, a shard is missing or damaged (all are named), the
                run that filled it did not end, or another version wrote it.
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
        shards = manifest.shards
        if not manifest.complete:
            raise StoreError(
                f"{folder}: embedding stopped after {sum(s.rows for s in shards)} "
                "vectors; run the same python -m retrievers embed again to go on"
            )
        problems = {s: problem for s in shards if (problem := s.problem(folder))}
        if problems:
            told = "; ".join(problems.values())
            lost = sum(shard.rows for shard in problems)
            raise StoreError(
                f"{folder}: {len(problems)} of {len(shards)} shards damaged: {told}. Run the same "
                f"python -m retrievers embed again: it embeds their {lost} items and no others"
            )
        return cls(folder, manifest)

    def __len__(self) -> int:
        return len(self._vectors)

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
        return self._vectors.take(rows)

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
        """The latest row with each key of :func:`~retrievers.vectors.rows.item_keys`, or -1."""
        keys = keys.astype(_KEY)
        if not len(self):
            return np.full(len(keys), -1)
        if self._order is None:
            self._order = np.argsort(self._keys, kind="stable")
        place = np.searchsorted(self._keys, keys, side="right", sorter=self._order) - 1
        rows = self._order[np.maximum(place, 0)]
        return np.where((place >= 0) & (self._keys[rows] == keys), rows, -1)


def _schema(dtype: Dtype, dim: int) -> Any:
    return pa.schema(
        [
            pa.field("id", pa.large_string(), nullable=False),
            pa.field("key", pa.binary(_KEY.itemsize), nullable=False),
            pa.field("degraded", pa.bool_(), nullable=False),
            pa.field("vector", pa.list_(getattr(pa, dtype)(), dim), nullable=False),
        ]
    )


def _mapped(folder: Path, manifest: Manifest, shard: Shard) -> tuple[np.ndarray, Any]:
    """Vectors and the other columns of a shard, mapped and not loaded."""
    path = shard.file(folder)
    try:
        with path.open("rb") as stream:
            # Copy on write: torch takes no read-only arrays, and nobody writes.
            memory = mmap(stream.fileno(), 0, access=ACCESS_COPY)
        whole = pa.py_buffer(memory)
        batch = pa.ipc.open_file(whole).get_batch(0)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); run embed again") from error
    if not batch.schema.equals(schema := _schema(manifest.dtype, manifest.dim)):
        found, told = (", ".join(map(str, each.types)) for each in (batch.schema, schema))
        raise StoreError(f"{path}: holds {found}, the manifest says {told}; run embed again")
    place = batch.column(3).values.buffers()[1].address - whole.address
    vectors = np.frombuffer(memory, manifest.dtype, len(batch) * manifest.dim, place)
    return vectors.reshape(len(batch), manifest.dim), batch.select([0, 1, 2])


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
        self._waiting: list[Any] = []
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

        Raises:
            DataError: if a vector is not finite, or the lengths differ.
            MismatchError: if the dimension is another than the store's.
        """
        if not len(ids) == len(keys) == len(vectors):
            raise DataError(f"{len(ids)} ids and {len(keys)} keys for {len(vectors)} vectors")
        known = self._waiting[0].schema[3].type.list_size if self._waiting else self._current().dim
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
        if not self._waiting:
            self._began = time.monotonic()
        schema = _schema(self._empty.dtype, stored.shape[1])
        columns = [
            pa.array(ids, schema[0].type),
            pa.array([bytes(key).ljust(16, b"\0") for key in keys.tolist()], schema[1].type),
            pa.array(np.zeros(len(ids), bool) if degraded is None else degraded),
            pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), type=schema[3].type),
        ]
        self._waiting.append(pa.record_batch(columns, schema=schema))
        waited = time.monotonic() - self._began
        if sum(map(len, self._waiting)) >= self._shard_rows or waited >= self._shard_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what was added as a shard."""
        if self._waiting:
            self._locked(self._add_shard)
            self._waiting = []

    def finish(self, complete: bool = True) -> None:
        """Write the rest, and whether all that was wanted is there."""
        self.flush()

        def mark() -> None:
            manifest = self._current()
            if manifest.complete != complete:
                write_manifest(self.folder, replace(manifest, complete=complete))

        self._locked(mark)

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
            if problem := shard.problem(self.folder):
                self.damaged[shard.name] = problem
        if self.damaged:
            kept = tuple(s for s in manifest.shards if s.name not in self.damaged)
            manifest = replace(manifest, shards=kept, complete=False)
            write_manifest(self.folder, manifest)
        self._sweep(manifest)

    def _sweep(self, manifest: Manifest) -> None:
        listed = {shard.file(self.folder) for shard in manifest.shards}
        for path in set(self.folder.glob("*.arrow")) - listed:
            with suppress(OSError):
                path.unlink()

    def _add_shard(self) -> None:
        manifest = self._current()
        self._sweep(manifest)
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        name = f"{len(manifest.shards):06}-{secrets.token_hex(4)}"
        path = self.folder / f"{name}.arrow"
        with (
            replacing_path(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        shards = (*manifest.shards, Shard(name, len(table), sha256(path)))
        dim = table.schema[3].type.list_size
        write_manifest(self.folder, replace(manifest, dim=dim, shards=shards, complete=False))
