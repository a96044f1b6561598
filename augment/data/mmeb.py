"""MMEB (VLM2Vec, 2410.05160; V2 2507.04590): files, candidate lists, categories of 78 data sets.

A data set of pictures is a folder of parquet files, or a ``.jsonl`` file, with a row a query::

    qry_text, qry_img_path       the query; "" is absent. Version 2 has its instruction in qry_inst
    tgt_text[], tgt_img_path[]   its own candidates, parallel lists; the first one is right.
                                 Version 2 has an instruction in tgt_inst

MMEB-train has ``qry``, ``qry_image_path``, ``pos_text``, ``pos_image_path``, ``neg_text`` and
``neg_image_path`` in files called ``original`` and ``diverse_instruction``: a list of one or two.

Every query is ranked against its own list. A candidate is its text and its picture together, so
that a list naming the right one twice does not punish finding the second; ties go by id, as
everywhere in this package (the authors' code takes whatever sorts first). A path may name the
folder of a video's frames (:func:`augment.data.images.frames`).

V2 adds 18 data sets of videos, with columns of their own (:mod:`augment.data.mmeb_videos`), and 24
of documents: folders ``queries``, ``corpus`` and ``qrels`` of parquet files, in which every page is
a candidate, its picture ``NAME/ID.png`` as in the published archive, and judgements have grades.
The authors' code scores these by nDCG@5, the others by hit@1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import chain
from os.path import commonprefix
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.images import PICTURES
from augment.data.root import Instructions
from augment.errors import DataError
from augment.files import PACKED_ENDINGS, objects

_ROWS = [
    line.split("\t")
    for line in resources.files("augment.data").joinpath("mmeb.tsv").read_text().splitlines()[1:]
]

#: Category -> data sets, as published folders are called (2410.05160, Table 1; V2: the names of
#: experiments/public/eval/*.yaml in TIGER-AI-Lab/VLM2Vec).
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    category: tuple(name for name, _, of, _ in _ROWS if of == category)
    for category in dict.fromkeys(of for _, _, of, _ in _ROWS)
}

#: image, video, documents -> data sets. V1 is the first.
PARTS: Mapping[str, tuple[str, ...]] = {
    part: tuple(name for name, of, *_ in _ROWS if of == part)
    for part in dict.fromkeys(of for _, of, *_ in _ROWS)
}

#: Those of V1 with a training subset; the other 16 are out of distribution.
IN_DISTRIBUTION = frozenset(name for name, *_, trained in _ROWS if trained == "yes")

#: Phi-3's mark of a picture, which the published texts carry.
_IMAGE_MARK = "<|image_1|>"
#: Endings of a data set that is a file.
_LINES = tuple(f".jsonl{ending}" for ending in PACKED_ENDINGS)
#: Columns of a test, and of a training set.
_ASKED = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
_TRAINED = ("qry", "qry_image_path", "pos_text", "pos_image_path")
#: All of them.
KNOWN = frozenset(name for name, *_ in _ROWS)


#: What stands beside the picture of a page (VLM2Vec, vidore_dataset.py), and before a query.
_PAGE = "Understand the content of the provided document image."
_FIND_PAGE = "Find a document image that matches the given query:"


class Target(NamedTuple):
    """A query or candidate: text and path of a picture or of frames, either may be None."""

    text: str | None
    image: str | None


@dataclass(frozen=True)
class Subset:
    """One data set.

    Attributes:
        name: as its folder.
        queries: in file order.
        candidates: each once, in order of first appearance.
        lists: for each query the places of its candidates, a right one first; a range of all of
            them where a query has no list of its own.
        right: for each query the places of right candidates, with their grades.
    """

    name: str
    queries: list[Target] = field(default_factory=list)
    candidates: list[Target] = field(default_factory=list)
    lists: list[Sequence[int]] = field(default_factory=list)
    right: list[Mapping[int, int]] = field(default_factory=list)

    def qid(self, row: int) -> str:
        """Id of a query, by its row from 0."""
        return f"{self.name}:q{row + 1}"

    def did(self, row: int) -> str:
        """Id of a candidate, by its place from 0."""
        return f"{self.name}:c{row + 1}"

    @property
    def grades(self) -> dict[str, dict[str, int]]:
        """The right candidates of each query."""
        return {
            self.qid(row): {self.did(place): grade for place, grade in own.items()}
            for row, own in enumerate(self.right)
        }


def subset_names(root: Path, files: str = "test") -> list[str]:
    """Data sets of a folder, those of MMEB in its order, then others by name.

    ``files`` is how the names of parquet files begin.

    Raises:
        DataError: if there are none.
    """
    if not root.is_dir():
        raise DataError("no such folder", str(root))
    lines = (path.name for path in root.iterdir() if path.name.endswith(_LINES))
    found = {name[: name.rindex(".jsonl")] for name in lines}
    found |= {path.name for path in root.iterdir() if path.is_dir() and (
        _parquet(path, "" if path.name in PARTS["video"] else files)
        or (files == "test" and _parquet(path / "qrels", ""))
    )}  # fmt: skip
    if not found:
        raise DataError(
            f"holds no data set; expected NAME/{files}-*.parquet or NAME.jsonl", str(root)
        )
    known = [name for names in CATEGORIES.values() for name in names if name in found]
    return [*known, *sorted(found - KNOWN)]


def read_subset(
    root: Path,
    name: str,
    limit: int | None = None,
    files: str = "test",
    images: Path | None = None,
) -> Subset:
    """Read one data set, from parquet files whose names begin with ``files``.

    Args:
        root: folder of the data sets.
        name: of the data set.
        limit: read no more queries.
        files: how names of parquet files begin.
        images: folder that paths of pictures start from, whose folders are the clips of two of V2's
            data sets; the root if it is None.

    Raises:
        DataError: with file and row, if there is none, a column is missing, the lists of a row are
            empty or not parallel, or a query or candidate has neither text nor picture.
    """
    if _parquet(root / name / "qrels", ""):
        return _documents(root, name, limit)
    if name in PARTS["video"]:
        from augment.data import mmeb_videos

        read = list(rows(root, name, ""))
        if read and not {*_ASKED} <= {*read[0][1]}:  # not yet in the rows of the others
            return mmeb_videos.read(name, read, images or root, limit)
    subset = Subset(name)
    places: dict[Target, int] = {}
    for where, row in rows(root, name, files):
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
        subset.right.append({next(iter(own)): 1})
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


def _documents(root: Path, name: str, limit: int | None) -> Subset:
    """A data set in BEIR's three tables, whose pages are all candidates of every query."""
    subset = Subset(name)
    places: dict[str, int] = {}
    for _, row in _table(root / name / "corpus", "", ("corpus-id",)):
        places.setdefault(str(row["corpus-id"]), len(places))
    subset.candidates.extend(Target(_PAGE, f"{name}/{_page_file(page)}") for page in places)
    judged: dict[str, dict[int, int]] = {}
    for where, row in _table(root / name / "qrels", "", ("query-id", "corpus-id", "score")):
        page = str(row["corpus-id"])
        if page not in places:
            raise DataError(f"judges a page that is not in the corpus: {page!r}", where)
        judged.setdefault(str(row["query-id"]), {})[places[page]] = int(row["score"])
    for where, row in _table(root / name / "queries", "", ("query-id", "query")):
        if limit is not None and len(subset.queries) >= limit:
            break
        right = judged.get(str(row["query-id"]), {})
        if not any(grade > 0 for grade in right.values()):
            raise DataError(f"query {row['query-id']!r} has no relevant page", where)
        subset.queries.append(Target(f"{_FIND_PAGE} {row['query']}", None))
        subset.lists.append(range(len(places)))
        subset.right.append(right)
    if not subset.queries:
        raise DataError("holds no query", str(root / name))
    return subset


def _page_file(page: str) -> str:
    """The file of a page; long names are cut as in the authors' code (visrag_dataset.py)."""
    path = PurePosixPath(page)
    if path.suffix.lower() not in PICTURES:
        return f"{page}.png"
    begun = page.removesuffix(path.suffix)[:50]
    return (
        f"{begun}_{hashlib.md5(page.encode(), usedforsecurity=False).hexdigest()[:8]}{path.suffix}"
    )


def rows(root: Path, name: str, files: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows and their places: those to train on as those of a test, of all files as they are."""
    lines = next(filter(Path.is_file, (root / f"{name}{ending}" for ending in _LINES)), None)
    wanted = {"": (), "test": _ASKED}.get(files, _TRAINED)
    for where, row in _table(root / name, files, wanted) if lines is None else objects(lines):
        yield where, _as_asked(row) if files else row


def _table(
    folder: Path, files: str, wanted: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of parquet files with some columns; of tables (all files) these columns alone."""
    for path in _parquet(folder, files):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                names = file.schema_arrow.names
                lacking = set(wanted) - set(names)
                if lacking:
                    raise DataError(f"lacks the columns {', '.join(sorted(lacking))}", str(path))
                read = file.iter_batches(64, columns=None if files or not wanted else list(wanted))
                found = chain.from_iterable(batch.to_pylist() for batch in read)
                for number, row in enumerate(found, start=1):
                    yield f"{path}: row {number}", row
        except (pa.ArrowException, OSError) as error:  # noqa: PERF203 - names its file
            raise DataError(f"is no parquet file: {error}", str(path)) from error


def _as_asked(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a test; of one to train on, the right candidate and the wrong one, if it has one."""
    if "pos_text" not in row:
        return row
    kinds = [kind for kind in ("pos", "neg")
             if kind == "pos" or row.get("neg_text") or row.get("neg_image_path")]  # fmt: skip
    lists = ([row.get(f"{kind}_{part}") for kind in kinds] for part in ("text", "image_path"))
    return dict(zip(_ASKED, (row.get("qry"), row.get("qry_image_path"), *lists), strict=True))


def _parquet(folder: Path, files: str) -> list[Path]:
    """Files as published (``test-00000-of-00001.parquet``) or as converted (``test/0000``)."""
    inner = folder.glob(f"{files or '*'}/*.parquet")
    return sorted({*folder.glob(f"{files}*.parquet"), *inner})


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
