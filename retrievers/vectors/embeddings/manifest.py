"""What a folder of embeddings holds: one small file that is replaced as a whole.

::

    STORE/manifest.json          what made the vectors, and the list of shards; the only truth
    STORE/<shard>.npy            vectors, float16 or float32, rows in the order of ...
    STORE/<shard>.arrow          ... id, key of the item's content, whether its picture was left out
    STORE/.lock                  held while a shard is being added

A shard counts once the manifest lists it; whatever else lies in the folder was left by a killed
run and is removed by the next writer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

from augment.errors import MismatchError, StoreError

Dtype = Literal["float16", "float32"]

#: Raised whenever the layout changes.
VERSION = 1
NAME = "manifest.json"


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
