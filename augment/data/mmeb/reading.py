"""Data sets of MMEB out of their files; what stands where is in :mod:`augment.data.mmeb`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from os.path import commonprefix
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.mmeb import videos
from augment.data.mmeb.subsets import CATEGORIES, KNOWN, PARTS, Subset, Target
from augment.data.root import Instructions
from augment.errors import DataError
from augment.files import PACKED_ENDINGS, objects

#: Phi-3's mark of a picture, which the published texts carry.
_IMAGE_MARK = "<|image_1|>"
#: Endings of a data set that is a file.
_LINES = tuple(f".jsonl{ending}" for ending in PACKED_ENDINGS)
#: Columns of a test, and of a training set.
_ASKED = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
_TRAINED = ("qry", "qry_image_path", "pos_text", "pos_image_path")


#: What stands beside the picture of a page (VLM2Vec, vidore_dataset.py), and before a query.
PAGE = "Understand the content of the provided document image."
_FIND_PAGE = "Find a document image that matches the given query:"


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
        _parquet(path, "" if path.name in PARTS["video"] else files) or (path / "qrels").is_dir()
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
    if (root / name / "qrels").is_dir():
        return _documents(root, name, limit)
    if name in PARTS["video"] and (found := _videos(root, name, images or root, limit)):
        return found
    subset = Subset(name)
    places: dict[Target, int] = {}
    for where, row in _rows(root, name, files):
        if limit is not None and len(subset.queries) >= limit:
            break
        query = _target(row, "qry", row.get("qry_text"), row.get("qry_img_path"), where)
        texts, pictures = row.get("tgt_text"), row.get("tgt_img_path")
        if not isinstance(texts, list) or not isinstance(pictures, list):
            raise DataError("tgt_text and tgt_img_path must be lists", where)
        if len(texts) != len(pictures) or not texts:
            raise DataError(
                f"{len(texts)} texts and {len(pictures)} pictures; a query needs parallel lists of "
                "at least one candidate, the right one first",
                where,
            )
        targets = [
            _target(row, "tgt", *both, f"{where}: candidate {n}")
            for n, both in enumerate(zip(texts, pictures, strict=True), start=1)
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


def _videos(root: Path, name: str, images: Path, limit: int | None) -> Subset | None:
    """A data set in its own columns; None if it is written in the rows of the others."""
    files = videos.files_of(name)
    read = list(_lines(root, name) or ())
    for path in _parquet(root / name, files) if not read else ():
        config = path.relative_to(root / name).parts[0]  # MVBench's rows do not say theirs
        read += [(where, {"subset": config, **row}) for where, row in _table([path])]
    if not read:
        raise DataError(f"holds no row of {files}; expected files of that name", str(root / name))
    if {*_ASKED} <= {*read[0][1]}:
        return None
    return videos.read(name, read, images, limit)


def _documents(root: Path, name: str, limit: int | None) -> Subset:
    """A data set in BEIR's three tables, whose pages are all candidates of every query."""
    split = "train" if name.startswith("VisRAG") else "test"  # VisRAG's are called so
    tables = {
        table: _parquet(root / name / table, split) for table in ("corpus", "qrels", "queries")
    }
    if lacking := next((table for table, paths in tables.items() if not paths), None):
        raise DataError(f"holds no file of {split}; expected {split}-*.parquet",
                        str(root / name / lacking))  # fmt: skip
    subset, places = Subset(name, metric="ndcg@5"), dict[str, int]()
    for _, row in _table(tables["corpus"], "corpus-id"):
        places.setdefault(str(row["corpus-id"]), len(places))
    # V2's folders of ViDoRe-V2 leave its name out.
    folder = name.removeprefix("ViDoRe_") if "_v2" in name else name
    subset.candidates.extend(Target(PAGE, f"{folder}/{_page_file(name, page)}") for page in places)
    judged = _judged(tables["qrels"])
    english = f"{name}_multilingual" in KNOWN  # the three that are not among the 24
    for where, row in _table(tables["queries"], "query-id", "query"):
        if english and row.get("language", "english") != "english":
            continue
        if limit is not None and len(subset.queries) >= limit:
            break
        right = judged.get(str(row["query-id"]), {})
        if lost := next((page for page in right if page not in places), None):
            raise DataError(f"judges a page that is not in the corpus: {lost!r}", right[lost][1])
        if not right:
            raise DataError(f"query {row['query-id']!r} has no relevant page", where)
        subset.queries.append(Target(f"{_FIND_PAGE} {row['query']}", None))
        subset.lists.append(range(len(places)))
        subset.right.append({places[page]: grade for page, (grade, _) in right.items()})
    if not subset.queries:
        raise DataError("holds no query", str(root / name))
    return subset


def _judged(paths: Sequence[Path]) -> dict[str, dict[str, tuple[int, str]]]:
    """Query -> page -> its grade and where that stands.

    Of several the highest, as in the authors' code, which leaves out pages of grade 0.
    """
    judged: dict[str, dict[str, tuple[int, str]]] = {}
    for where, row in _table(paths, "query-id", "corpus-id", "score"):
        if not isinstance(row["score"], int | float):
            raise DataError(f"score must be a number, and is {row['score']!r}", where)
        own, page = judged.setdefault(str(row["query-id"]), {}), str(row["corpus-id"])
        if row["score"] > own.get(page, (0, ""))[0]:
            own[page] = int(row["score"]), where
    return judged


def _page_file(name: str, page: str) -> str:
    """The file of a page; VisRAG's long names are cut as in the authors' visrag_dataset.py."""
    if not name.startswith("VisRAG"):
        return f"{page}.png"
    ending = PurePosixPath(page).suffix
    begun = page.removesuffix(ending)[:50]
    return f"{begun}_{hashlib.md5(page.encode(), usedforsecurity=False).hexdigest()[:8]}{ending}"


def _lines(root: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """Rows of a file of lines and where each stands; None if there is no such file."""
    paths = (root / f"{name}{ending}" for ending in _LINES)
    path = next(filter(Path.is_file, paths), None)
    return None if path is None else objects(path)


def _rows(root: Path, name: str, files: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a data set and where each stands; those to train on in the form of a test's."""
    wanted = _ASKED if files == "test" else _TRAINED
    found = _lines(root, name) or _table(_parquet(root / name, files), *wanted)
    return ((where, _as_asked(row)) for where, row in found)


def _table(paths: Sequence[Path], *wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of parquet files that have some columns, without pictures, and where each stands."""
    for path in paths:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                names = file.schema_arrow.names
                lacking = set(wanted) - set(names)
                if lacking:
                    raise DataError(f"lacks the columns {', '.join(sorted(lacking))}", str(path))
                read = file.iter_batches(64, columns=[name for name in names if name != "image"])
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
    """Files of a split, or of a configuration and its split, in folders or names that begin so.

    As published (``test-00000-of-00001.parquet``) or as converted (``test/0000.parquet``).
    """
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        parts = iter(path.relative_to(folder).parts)  # each is looked at once, so in their order
        if all(any(part.startswith(wanted) for part in parts) for wanted in files.split("/")):
            found.append(path)
    return found


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
