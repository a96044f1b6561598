"""Writers of other formats; the readers beside them take back, record by record, what they write.

BEIR (2104.08663) knows texts alone: a picture is a file beside, named under ``metadata``. The data
sets are mteb's fields for retrieval (mteb 2, ``retrieval_dataset_loaders.py``) as Parquet, pictures
in it as bytes. The tars of a webdataset have a picture and a JSON file for every entry. Entries go
through one by one; of a pool nothing is held.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TextIO, final

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.images import resolve
from augment.data.pools import CandidateTable, open_candidates
from augment.data.records import grades_of, read_candidates, read_qrels, read_queries
from augment.data.root import DataFile, DataRoot, read_lists
from augment.data.sources.entries import SourceEntry
from augment.data.sources.writing import linked
from augment.errors import DataError, ImageError
from augment.records import Item, Query, Side

Form = Literal["beir", "datasets", "webdataset"]
Images = Literal["link", "copy", "symlink", "none"]
SPLITS = ("train", "val", "test")
#: What an entry shows in place of what was published.
Show = Callable[[Side, Item], Item]

#: Bytes of a Parquet file or a tar, and of what of it is held.
_FILE_BYTES, _GROUP_BYTES = 400 << 20, 16 << 20
_GROUP_ROWS = 2048


@final
class PicturesOut:
    """Pictures of a root on their way out.

    Args:
        root: folder that their paths are relative to.
        out: where they go.
        how: hard links (copies on another disk), copies, symbolic links, or none.

    Attributes:
        taken: how many.
        absent: reason -> pictures that an entry names and that could not be taken along.
    """

    def __init__(self, root: Path, out: Path, how: Images) -> None:
        self.taken, self.absent = 0, Counter[str]()
        self._root, self._out, self._how = root, out, how
        self._lost: set[str] = set()

    def take(self, path: str) -> None:
        """Put a picture under its own path into the folder, once."""
        target = self._out / path
        if self._how == "none" or target.is_symlink() or target.exists():
            return
        source = self._found(path)
        if source is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._how == "symlink":
            target.symlink_to(source)
        elif self._how == "copy" or not linked(source, target):
            shutil.copyfile(source, target)
        self.taken += 1

    def read(self, path: str | bytes | None) -> bytes | None:
        """The bytes of a picture's file; None where there is none to be shown."""
        named = isinstance(path, str) and self._how != "none"
        source = self._found(str(path)) if named else None
        self.taken += source is not None
        return None if source is None else source.read_bytes()

    def leave(self, path: str, reason: str) -> None:
        """Count what is not taken along, once."""
        if path not in self._lost:
            self._lost.add(path)
            self.absent[reason] += 1

    def _found(self, path: str) -> Path | None:
        try:
            return resolve(self._root, path)
        except ImageError as error:
            self.leave(path, error.reason)
            return None


class PoolPart(NamedTuple):
    """A pool and its queries.

    Attributes:
        name: that of the pool's file without what all such names have.
        pool: its file.
        queries: split and file of queries, and whether these are searched in several pools.
    """

    name: str
    pool: DataFile
    queries: tuple[tuple[str, DataFile, bool], ...]


@final
class PoolParts:
    """Pools of a root with their queries, as entries.

    Args:
        data: the root.
        datasets: only these; empty takes all.
        tasks: only queries of these task codes, and no pool that is another's; empty takes all.

    Raises:
        DataError: if nothing is left.
    """

    def __init__(self, data: DataRoot, datasets: Collection[str], tasks: Collection[int]) -> None:
        self._data, self._tasks = data, tasks
        there = sorted({file.dataset for file in data.pools()})
        if unknown := set(datasets) - set(there):
            raise DataError(
                f"no data set {', '.join(sorted(unknown))}; there are {', '.join(there)}",
                str(data.path),
            )
        self._files = [
            file for file in data.pools() if self.has(file) and file.dataset in (datasets or there)
        ]
        if not self._files:
            raise DataError("has no pool to be exported", str(data.path))
        self._tables: dict[Path, CandidateTable] = {}
        self.homeless = 0

    def has(self, file: DataFile) -> bool:
        """Whether a file may hold what is wanted, by the task in its name."""
        return not self._tasks or file.task is None or file.task in self._tasks

    def files(self) -> set[Path]:
        """All files of pools, queries and judgements that are wanted."""
        names = {file.dataset for file in self._files}
        lists = [found(split) for found in (self._data.query_files, self._data.qrels)
                 for split in SPLITS]  # fmt: skip
        return {file.path for file in self._files} | {
            file.path for found in lists for file in found
            if file.dataset in names and self.has(file)
        }  # fmt: skip

    def __iter__(self) -> Iterator[PoolPart]:
        for pool in self._files:
            queries = [
                (split, file, place is None)
                for split in SPLITS
                for file in self._data.query_files(split)
                if file.dataset == pool.dataset and self.has(file)
                if (place := self._searched(file, split)) in (None, pool.path)
            ]
            name = pool.path.name.partition(".")[0].removeprefix("mbeir_")
            yield PoolPart(name.removesuffix("_cand_pool"), pool, tuple(queries))

    def _searched(self, file: DataFile, split: str) -> Path | None:
        try:
            return self._data.pool_for(file.dataset, file.task, split)
        except DataError:  # of several tasks, each with a pool of its own
            return None

    def entries(self, part: PoolPart, show: Show) -> Iterator[SourceEntry]:
        """Candidates of a part, then its queries."""
        for item in read_candidates(part.pool.path):
            yield _entry(show("corpus", item), part)
        for split, file, shared in part.queries:
            excluded = self._data.excluded(split)
            lists = self._data.path / "subsets" / f"{split}.json"
            subsets = read_lists(lists) if lists.is_file() else {}
            judged = self._judged(file, split)
            for query in read_queries(file.path):
                qid = query.item.id
                if self.wanted(query) and (not shared or self._at_home(query, part)):
                    grades = dict.fromkeys(query.positives, 1)
                    if split == "train":
                        grades = {**dict.fromkeys(query.negatives, 0), **grades}
                    yield replace(
                        _entry(show("query", query.item), part), side="query", split=split,
                        grades={**grades, **judged.get(qid, {})},
                        excluded=excluded.get(qid, ()), subset=subsets.get(qid, ()),
                    )  # fmt: skip

    def wanted(self, query: Query) -> bool:
        """Whether a query is of a task that is wanted."""
        return not self._tasks or query.task in self._tasks

    def _judged(self, file: DataFile, split: str) -> Mapping[str, Mapping[str, int]]:
        try:
            path = self._data.qrels_file(file.dataset, file.task, split)
        except DataError:  # then what the queries list is all that is known
            return {}
        return grades_of(read_qrels(path))

    def _at_home(self, query: Query, part: PoolPart) -> bool:
        """Whether a part's pool is the first of its data set that has a positive of a query."""
        pools = [file.path for file in self._files if file.dataset == part.pool.dataset]
        for path in pools:
            if path not in self._tables:
                self._tables[path] = open_candidates(path)
        home = next((path for path in pools for did in query.positives
                     if self._tables[path].find(did) is not None), None)  # fmt: skip
        self.homeless += home is None and part.pool.path == pools[0]
        return home == part.pool.path


def _entry(item: Item, part: PoolPart) -> SourceEntry:
    return SourceEntry(item.id, item.text, item.image, pool=part.name, source=item.source)


def _about(entry: SourceEntry) -> dict[str, Any]:
    """What :func:`~augment.data.sources.entries.extras` reads."""
    known = {"src_content": entry.source, "excluded": entry.excluded, "subset": entry.subset}
    return {name: value for name, value in known.items() if value}


def write_beir(entries: Iterator[SourceEntry], out: Path, _: str, pictures: PicturesOut) -> None:
    """A folder of ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/{train,dev,test}.tsv``."""
    (out / "qrels").mkdir(parents=True)
    asked: set[str] = set()
    with ExitStack() as streams:
        files: dict[str, TextIO] = {}

        def opened(name: str, head: str = "") -> TextIO:
            if name not in files:
                made = (out / name).open("x", encoding="utf-8", newline="\n")
                files[name] = streams.enter_context(made)
                files[name].write(head)
            return files[name]

        for entry in entries:
            about = _about(entry)
            if isinstance(entry.image, str):
                pictures.take(entry.image)
                about["image"] = entry.image
            row: dict[str, Any] = {"_id": entry.id, "text": entry.text or "", "metadata": about}
            if entry.side == "corpus":
                opened("corpus.jsonl").write(_line({**row, "title": ""}))
                continue
            if not entry.grades:
                about["split"] = entry.split
            if entry.id not in asked:
                asked.add(entry.id)
                opened("queries.jsonl").write(_line(row))
            name = {"val": "dev"}.get(entry.split, entry.split)
            for did, grade in entry.grades.items():
                opened(f"qrels/{name}.tsv", "query-id\tcorpus-id\tscore\n").write(
                    f"{entry.id}\t{did}\t{grade}\n"
                )


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_datasets(
    entries: Iterator[SourceEntry], out: Path, prefix: str, pictures: PicturesOut
) -> None:
    """Parquet files of the configurations corpus, queries and qrels, each name behind a prefix."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {"id": text, "text": text, "image": Image(), "src_content": text}
    lists = {"excluded": List(text), "subset": List(text)}
    judged = {"query-id": text, "corpus-id": text, "score": Value("int32")}
    schemas = {"corpus": Features(columns).arrow_schema, "qrels": Features(judged).arrow_schema,
               "queries": Features({**columns, **lists}).arrow_schema}  # fmt: skip
    files: dict[tuple[str, str], _Parquet] = {}
    with ExitStack() as streams:

        def add(config: str, split: str, row: dict[str, Any], size: int = 0) -> None:
            if (config, split) not in files:
                folder = out / f"{prefix}{config}"
                made = _Parquet(folder, split, schemas[config])
                files[config, split] = streams.enter_context(made)
            files[config, split].add(row, size)

        for entry in entries:
            data = pictures.read(entry.image)
            image = None if data is None else {"bytes": data, "path": entry.image}
            row = {"id": entry.id, "text": entry.text, "image": image, **_about(entry)}
            if entry.side == "corpus":
                add("corpus", "corpus", row, len(data or ""))
                continue
            add("queries", entry.split, row, len(data or ""))
            for did, grade in entry.grades.items():
                add("qrels", entry.split, {"query-id": entry.id, "corpus-id": did, "score": grade})


@final
class _Parquet(ExitStack):
    """Rows as Parquet files of a bounded size."""

    def __init__(self, folder: Path, split: str, schema: Any) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._names = (folder / f"{split}-{number:05}.parquet" for number in range(100_000))
        self._schema, self._rows, self._held, self._written = schema, list[Any](), 0, 0
        self._file: Any = None
        self.callback(self._flush, last=True)

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """Add a row whose picture has so many bytes."""
        self._rows.append(row)
        self._held += size + len(str(row.get("text") or ""))
        if self._held > _GROUP_BYTES or len(self._rows) == _GROUP_ROWS:
            self._flush()

    def _flush(self, last: bool = False) -> None:
        if self._rows:
            if self._file is None:
                self._file = pq.ParquetWriter(next(self._names), self._schema)
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._written += self._held
        self._rows, self._held = [], 0
        if self._file is not None and (last or self._written > _FILE_BYTES):
            self._file.close()
            self._file, self._written = None, 0


def write_webdataset(
    entries: Iterator[SourceEntry], out: Path, prefix: str, pictures: PicturesOut
) -> None:
    """Tars; the members of an entry are called after its number."""
    kind, pool = "", prefix.removesuffix("-")
    tar: Any = None
    with ExitStack() as opened:
        for number, entry in enumerate(entries):
            row = {"_id": entry.id, "text": entry.text, "pool": pool, **_about(entry)}
            asked = {"side": "query", "split": entry.split, "grades": dict(entry.grades)}
            now = "corpus" if entry.side == "corpus" else f"queries-{entry.split}"
            if now != kind or tar.offset > _FILE_BYTES:
                opened.close()
                path, kind = out / f"{prefix}{now}-{number:09}.tar", now
                tar = opened.enter_context(tarfile.open(path, "w"))
            data = pictures.read(entry.image)
            if data is not None:
                ending = PurePosixPath(str(entry.image)).suffix.lower()
                _member(tar, f"{number:09}{ending}", data)
            line = _line(row | asked if entry.side == "query" else row)
            _member(tar, f"{number:09}.json", line.encode())


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


WRITERS: Mapping[Form, Callable[[Iterator[SourceEntry], Path, str, PicturesOut], None]] = {
    "beir": write_beir,
    "datasets": write_datasets,
    "webdataset": write_webdataset,
}
