"""Readers of other people's formats, and the one writer of a data root from what they yield.

A reader is a function of the file or folder and of its own options that yields an
:class:`~augment.data.sources.entries.SourceEntry` a candidate and a query, and a
:class:`~augment.data.sources.entries.LeftOut` for what it cannot use. A new one is entered in
:data:`READERS`: its signature and docstring are the options of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from augment.data.sources import parquet, records, sets, tables
from augment.data.sources.entries import Entries
from augment.data.sources.writing import Bounds as Bounds
from augment.data.sources.writing import Imported, Pictures, write_root
from augment.errors import DataError

#: Kind -> its reader.
READERS: Mapping[str, Callable[..., Entries]] = {
    reader.__name__: reader
    for reader in (
        tables.table, tables.folder, tables.datasets, tables.webdataset, sets.beir, sets.coco,
        sets.flickr30k, sets.urban1k, sets.sharegpt4v, sets.sugarcrepe, sets.cirr, sets.fashioniq,
        sets.circo, sets.genecis, sets.visdial, sets.vist, parquet.bright, parquet.mm_bright,
        parquet.mteb, sets.mmeb, records.ms_swift, records.tevatron,
    )
}  # fmt: skip


def import_data(
    kind: str,
    source: Path,
    out: Path,
    name: str | None = None,
    images: Path | None = None,
    pictures: Pictures = "link",
    instruction: str | None = None,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    **options: Any,
) -> Imported:
    """Make a data root of other data.

    Args:
        kind: One of :data:`READERS`.
        source: File or folder.
        out: Folder to make.
        name: Of the data set; null: that of the source.
        images: Folder that paths of pictures are relative to, and may not leave; null: the source,
            or the folder of the file.
        pictures: Hard links (copies on another disk) of pictures, or of the tars that they are in;
            copies; or files, also of pictures that are in tars.
        instruction: Put before every query by retrievers that read instructions.
        bounds: What is taken at most.
        **options: Of the kind.

    Raises:
        DataError: if there is no such kind, a file cannot be read, ``out`` exists, or no candidate
            is left.
    """
    if kind not in READERS:
        raise DataError(f"no kind {kind!r}; there are {', '.join(READERS)}")
    source, out = Path(source), Path(out)
    folder = images or (source if source.is_dir() else source.parent)
    settings = {"kind": kind, "source": source.name, "options": options}
    return write_root(
        _read(READERS[kind](source, **options), kind, source),
        out, name or source.name.partition(".")[0],
        Path(folder), pictures, instruction, bounds, settings,
    )  # fmt: skip


def _read(entries: Entries, kind: str, source: Path) -> Entries:
    """What a reader yields; a file of another shape than it expects is an error of the data."""
    try:
        yield from entries
    except KeyError as error:
        raise DataError(f"lacks {error}; is it of kind {kind}?", str(source)) from error
    except (TypeError, AttributeError, IndexError, ValueError, OSError) as error:
        raise DataError(f"has another form than kind {kind} ({error})", str(source)) from error
