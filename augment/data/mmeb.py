"""MMEB's 36 image data sets (VLM2Vec, 2410.05160): files, candidate lists, categories.

A data set is a folder of parquet files, or a ``.jsonl`` file, with a row for each query::

    qry_text, qry_img_path       the query; "" is absent. Version 2 has its instruction in qry_inst
    tgt_text[], tgt_img_path[]   its own candidates, parallel lists; the first one is right.
                                 Version 2 has an instruction in tgt_inst

Every query is ranked against its own list. A candidate is its text and its picture together, so
that a list naming the right one twice does not punish finding the second; ties go by id, as
everywhere in this package (the authors' code takes whatever sorts first).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import chain
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.root import Instructions
from augment.errors import DataError
from augment.files import PACKED_ENDINGS, objects

_ROWS = [
    line.split("\t")
    for line in resources.files("augment.data").joinpath("mmeb.tsv").read_text().splitlines()[1:]
]

#: Category -> data sets, as published folders are called (2410.05160, Table 1).
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    category: tuple(name for name, of, _ in _ROWS if of == category)
    for category in dict.fromkeys(of for _, of, _ in _ROWS)
}

#: Those with a training subset; the other 16 are out of distribution.
IN_DISTRIBUTION = frozenset(name for name, _, trained in _ROWS if trained == "yes")

#: Phi-3's mark of a picture, which the published texts carry.
_IMAGE_MARK = "<|image_1|>"
#: Endings of a data set that is a file.
_LINES = tuple(f".jsonl{ending}" for ending in PACKED_ENDINGS)
#: All of them.
KNOWN = frozenset(name for name, *_ in _ROWS)


class Target(NamedTuple):
    """A query or candidate: text and picture path, either may be None."""

    text: str | None
    image: str | None


@dataclass(frozen=True)
class Subset:
    """One data set.

    Attributes:
        name: as its folder.
        queries: in file order.
        candidates: each once, in order of first appearance.
        lists: for each query the places of its candidates, the right one first.
    """

    name: str
    queries: list[Target] = field(default_factory=list)
    candidates: list[Target] = field(default_factory=list)
    lists: list[tuple[int, ...]] = field(default_factory=list)

    def qid(self, row: int) -> str:
        """Id of a query, by its row from 0."""
        return f"{self.name}:q{row + 1}"

    def did(self, row: int) -> str:
        """Id of a candidate, by its place from 0."""
        return f"{self.name}:c{row + 1}"

    @property
    def grades(self) -> dict[str, dict[str, int]]:
        """The right candidate of each query."""
        return {self.qid(row): {self.did(own[0]): 1} for row, own in enumerate(self.lists)}


def subset_names(root: Path) -> list[str]:
    """Data sets of a folder, those of MMEB in its order, then others by name.

    Raises:
        DataError: if there are none.
    """
    if not root.is_dir():
        raise DataError("no such folder", str(root))
    lines = (path.name for path in root.iterdir() if path.name.endswith(_LINES))
    found = {name[: name.rindex(".jsonl")] for name in lines}
    found |= {path.name for path in root.iterdir() if path.is_dir() and _parquet(path)}
    if not found:
        raise DataError("holds no data set; expected NAME/test-*.parquet or NAME.jsonl", str(root))
    known = [name for names in CATEGORIES.values() for name in names if name in found]
    return [*known, *sorted(found - KNOWN)]


def read_subset(root: Path, name: str, limit: int | None = None) -> Subset:
    """Read one data set.

    Raises:
        DataError: with file and row, if there is none, a column is missing, the lists of a row are
            empty or not parallel, or a query or candidate has neither text nor picture.
    """
    subset = Subset(name)
    places: dict[Target, int] = {}
    for where, row in _rows(root, name):
        if limit is not None and len(subset.queries) >= limit:
            break
        query = _target(row, "qry", row.get("qry_text"), row.get("qry_img_path"), where)
        texts, images = row.get("tgt_text"), row.get("tgt_img_path")
        if not isinstance(texts, list) or not isinstance(images, list):
            raise DataError("tgt_text and tgt_img_path must be lists", where)
        if len(texts) != len(images) or not texts:
            raise DataError(
                f"{len(texts)} texts and {len(images)} pictures; a query needs parallel lists of "
                "at least one candidate, the right one first",
                where,
            )
        targets = [
            _target(row, "tgt", *both, f"{where}: candidate {n}")
            for n, both in enumerate(zip(texts, images, strict=True), start=1)
        ]
        own = dict.fromkeys(places.setdefault(target, len(places)) for target in targets)
        subset.queries.append(query)
        subset.lists.append(tuple(own))
    if not subset.queries:
        raise DataError("holds no query", str(root / name))
    subset.candidates.extend(places)
    return subset


def reworded(subset: Subset, instructions: Instructions) -> Subset:
    """A data set whose queries begin with other instructions.

    The published one is what all queries begin with, up to the last stop, colon or line end.

    Args:
        subset: with its queries as published.
        instructions: a table in which ``dataset_id`` is the name of the data set.

    Raises:
        DataError: if it has no row for the data set, or one query alone does not tell where its
            instruction ends.
    """
    prompts = [row.prompts for row in instructions.rows if row.dataset_id == subset.name]
    if not prompts or len(subset.queries) < 2:
        what = "one query does not tell it from its instruction" if prompts else "no instruction"
        raise DataError(f"{what}; leave instructions out", subset.name)
    texts = [query.text or "" for query in subset.queries]
    shared = commonprefix(texts)  # noqa: RUF071 - characters are meant
    end = max(shared.rfind(mark) for mark in ".?!:\n") + 1
    begun = len(shared) if shared in texts else end
    return replace(subset, queries=[
        Target(f"{prompts[0][0]} {text[begun:].strip()}".strip(), query.image)
        for text, query in zip(texts, subset.queries, strict=True)
    ])  # fmt: skip


def _rows(root: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in filter(Path.is_file, (root / f"{name}{ending}" for ending in _LINES)):
        yield from objects(file)
        return
    for path in _parquet(root / name):
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"is no parquet file: {error}", str(path)) from error
        lacking = {"qry_text", "qry_img_path", "tgt_text", "tgt_img_path"} - set(table.column_names)
        if lacking:
            raise DataError(f"lacks the columns {', '.join(sorted(lacking))}", str(path))
        batches = table.to_batches(max_chunksize=64)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, start=1):
            yield f"{path}: row {number}", row


def _parquet(folder: Path) -> list[Path]:
    """Files as published (``test-00000-of-00001.parquet``) or as converted (``test/0000``)."""
    return sorted({*folder.glob("test*.parquet"), *folder.glob("test/*.parquet")})


def _target(row: Mapping[str, Any], side: str, text: object, image: object, where: str) -> Target:
    if not isinstance(text, str | None) or not isinstance(image, str | None):
        raise DataError(f"{side}_text and {side}_img_path must be strings", where)
    instruction = row.get(f"{side}_inst") or ""
    # The published text, with the mark of another model's picture taken out.
    parts = [str(part).replace(_IMAGE_MARK, "").strip() for part in (instruction, text or "")]
    joined = " ".join(part for part in parts if part)
    if not joined and not image:
        raise DataError("has neither text nor picture", where)
    return Target(joined or None, image or None)
