"""Readers of sets that are handed out as Parquet files or data sets of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from augment.data.sources.entries import Entries, SourceEntry, extras, text_of
from augment.errors import DataError

#: Names of splits -> ours.
SPLITS = {"train": "train", "dev": "val", "val": "val", "validation": "val", "test": "test"}
_Rows = Iterable[Mapping[str, Any]]


def mteb(source: Path, subset: str | None = None) -> Entries:
    """Retrieval data in mteb's fields: ViDoRe, MIEB, MRMR, and what ``export --to datasets`` wrote.

    Configurations ``corpus``, ``queries`` and ``qrels`` (or ``default``), behind ``NAME-`` where
    there are several subsets, such as languages (mteb 2, retrieval_dataset_loaders.py). MRMR's
    names are ``query``, ``query_id`` and ``corpus_id`` (2510.09510), those of ViDoRe's first files
    ``query-id`` and ``corpus-id`` of every entry. Lists under ``top_ranked`` become subsets.

    Args:
        source: Folder with its card, or a name on the Hub.
        subset: One of its subsets; null takes all, a data set each.
    """
    from datasets import get_dataset_config_names

    configs = get_dataset_config_names(str(source))
    found = [name.removesuffix("corpus") for name in configs if name.endswith("corpus")]
    wanted = [prefix for prefix in found if subset in (None, prefix.removesuffix("-"))]
    if not wanted:
        raise DataError(f"no corpus of {subset or 'any subset'}; there are {', '.join(configs)}",
                        str(source))  # fmt: skip
    for prefix in wanted:
        yield from _mteb(source, prefix, configs)


def _mteb(source: Path, prefix: str, configs: list[str]) -> Entries:
    def splits(*names: str) -> Mapping[str, _Rows]:
        """Rows by split of the first configuration that there is."""
        config = next((name for name in names if name in configs), None)
        return {} if config is None else streams(source, config)

    pool = prefix.removesuffix("-")
    for rows in splits(f"{prefix}corpus").values():
        yield from (_entry(row, pool) for row in rows)
    grades: dict[str, dict[str, dict[str, int]]] = {}
    for split, rows in splits(f"{prefix}qrels", "default", "qrels").items():
        own = grades.setdefault(split, {})
        for row in rows:
            qid, did = (
                str(_first(row, f"{side}-id", f"{side}_id")) for side in ("query", "corpus")
            )
            own.setdefault(qid, {})[did] = int(row["score"])
    lists = {
        str(row["query-id"]): list(map(str, row["corpus-ids"]))
        for rows in splits(f"{prefix}top_ranked").values() for row in rows
    }  # fmt: skip
    for own_split, rows in splits(f"{prefix}queries", "query", "queries").items():
        for row in rows:
            entry = _entry(row, pool)
            judged = [split for split, own in grades.items() if entry.id in own]
            for split in [own_split] if own_split in grades else judged or [own_split]:
                yield replace(
                    entry, side="query", grades=grades.get(split, {}).get(entry.id, {}),
                    subset=entry.subset or lists.get(entry.id, ()),
                    split=SPLITS.get(split, "test"),
                )  # fmt: skip


def streams(source: Path, config: str) -> Mapping[str, _Rows]:
    """Rows of one configuration by split; pictures are bytes."""
    from datasets import load_dataset

    found = load_dataset(str(source), config, streaming=True)
    return {split: undecoded(rows) for split, rows in found.items()}


def undecoded(rows: Any) -> Any:
    """A data set of Hugging Face, whose pictures stay bytes."""
    from datasets import Image

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def _entry(row: Mapping[str, Any], pool: str) -> SourceEntry:
    shown = [
        cell["bytes"] or cell["path"] for name, cell in row.items()
        if (name == "image" or name.startswith("image ")) and isinstance(cell, Mapping)
    ]  # fmt: skip
    text = text_of(row.get("title"), _first(row, "text", "query"))
    name = str(_first(row, "id", "_id", "query-id", "corpus-id"))
    return SourceEntry(
        name, text, next(iter(shown), None), pool=pool, more=shown[1:], **extras(row)
    )


def _first(row: Mapping[str, Any], *names: str) -> Any:
    """The first of some columns that a row has; a row of none is of another kind."""
    return next((row[name] for name in names if name in row), None)


def bright(source: Path, domain: str | None = None) -> Entries:
    """BRIGHT (2407.12883), a folder of its Parquet files; what ``excluded_ids`` name is left out.

    Args:
        source: The folder that holds ``documents`` and ``examples``.
        domain: One of its domains, such as biology; null takes all, a data set each.
    """
    for name in _domains(source, domain):
        pool = f"bright-{name.replace('_', '-')}"
        for row in _rows(source / "documents", name):
            yield SourceEntry(f"{name}:{row['id']}", text_of(row["content"]), pool=pool)
        for row in _rows(source / "examples", name):
            gold, out = (_named(name, row.get(key)) for key in ("gold_ids", "excluded_ids"))
            yield SourceEntry(f"{name}:q{row['id']}", text_of(row["query"]), None, "query",
                              dict.fromkeys(gold, 1), out, pool=pool)  # fmt: skip


def mm_bright(source: Path, domain: str | None = None, task: int = 2) -> Entries:
    """MM-BRIGHT (2601.09562), a folder of its Parquet files (mm-bright/MM-BRIGHT, src/data.py).

    Task 1 asks with the text, 2 with text and pictures, both for documents, and leaves out what
    ``negative_ids`` name; 3 asks for the pictures of documents. Task 4, pairs of documents and
    pictures, is not read.

    Args:
        source: The folder that holds ``documents`` and ``examples``, or for tasks 2 and 3
            ``examples_multimodal`` and ``examples_images``, for task 3 ``document_images``.
        domain: One of its domains, such as academia; null takes all, a data set each.
        task: 1, 2 or 3.
    """
    if task not in (1, 2, 3):
        raise DataError(f"task {task} is not read; take 1, 2 or 3", str(source))
    asked = "examples" if task == 1 else "examples_multimodal"
    for name in _domains(source, domain, asked):
        pool = f"mm-bright-{name.replace('_', '-')}"
        for row in _rows(source / ("document_images" if task == 3 else "documents"), name):
            did, picture = (row["path"], row["bytes"]) if task == 3 else (row["id"], None)
            yield SourceEntry(f"{name}:{did}", text_of(row.get("content")), picture, pool=pool)
        seen = _rows(source / "examples_images", name) if task > 1 else ()
        pictures = {str(row["path"]): row["bytes"] for row in seen}
        for row in _rows(source / asked, name):
            gold = row["positive_images" if task == 3 else "gold_ids"] or ()
            named = [one["image_path"] if isinstance(one, Mapping) else one for one in gold]
            if task == 3:
                named = [one.replace("\\", "/") for one in named]
            shown = [pictures.get(str(path), str(path)) for path in row.get("image_paths") or ()]
            shown = shown if task > 1 else []
            out = _named(name, row.get("negative_ids")) if task < 3 else []
            yield SourceEntry(
                f"{name}:q{row['id']}", text_of(row["query"]), next(iter(shown), None), "query",
                {f"{name}:{one}": 1 for one in named}, out, pool=pool, more=shown[1:],
            )  # fmt: skip


def _domains(source: Path, domain: str | None, folder: str = "examples") -> list[str]:
    """Domains that have a file; of those that lie in several, what stands before the number."""
    found = {path.stem.partition("-")[0] for path in (source / folder).glob("*.parquet")}
    if domain is not None and domain not in found:
        raise DataError(f"no domain {domain!r}; there are {', '.join(sorted(found))}", str(source))
    return sorted(found if domain is None else {domain})


def _named(domain: str, ids: Any) -> list[str]:
    """Ids with their domain; "N/A" stands for none in the published files."""
    return [f"{domain}:{one}" for one in ids or () if one != "N/A"]


def _rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for path in sorted({*folder.glob(f"{name}.parquet"), *folder.glob(f"{name}-*.parquet")}):
        for batch in pq.ParquetFile(path).iter_batches(256):
            yield from batch.to_pylist()
