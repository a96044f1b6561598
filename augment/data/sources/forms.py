"""Writers of other formats; the readers beside them take back, record by record, what they write.

BEIR (2104.08663) knows texts alone: a picture is a file beside, named under ``metadata``. The data
sets are mteb's fields for retrieval (mteb 2, ``retrieval_dataset_loaders.py``) as Parquet, pictures
in it as bytes. The tars of a webdataset have a picture and a JSON file for every entry. Entries go
through one by one; of a pool nothing is held.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any, Literal, NamedTuple, final

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.images import holder, read_picture, resolve
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

#: Names that no picture may have in an export: those of its other files.
_RESERVED = re.compile(
    r"(?:query|cand_pool|qrels|instructions|excluded|subsets)(?:/|$)|readme|licen[cs]e"
    r"|(?:corpus|queries)[.]jsonl$",
    re.IGNORECASE,
)
#: Bytes of a Parquet file or a tar, and of what of it is held.
_FILE_BYTES, _GROUP_BYTES = 400 << 20, 16 << 20
_Rows = Iterator[dict[str, Any]]


@final
@dataclass
class PicturesOut:
    """Pictures of a root on their way out.

    Attributes:
        root: folder that their paths are relative to.
        out: where they go.
        how: hard links (copies on another disk), copies, symbolic links, or none.
        taken: how many.
        absent: reason -> pictures that an entry names and that could not be taken along.
    """

    root: Path
    out: Path
    how: Images
    taken: int = 0
    absent: Counter[str] = field(default_factory=Counter)
    _lost: set[str] = field(default_factory=set)

    def take(self, path: str) -> None:
        """Put a picture under its own path into the folder, or the tar that it is in, once."""
        path = normpath(holder(path))
        target = self.out / path
        if _RESERVED.match(path):  # a file of the export would be written through such a link
            self._leave(path, "under a name that an export needs itself")
            return
        if self.how == "none" or target.is_symlink() or target.exists():
            return
        try:
            source = resolve(self.root, path)
        except ImageError as error:
            self._leave(path, error.reason)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.how == "symlink":
            target.symlink_to(source)
        elif self.how == "copy" or not linked(source, target):
            shutil.copyfile(source, target)
        self.taken += 1

    def read(self, path: str | bytes | None) -> bytes | None:
        """The bytes of a picture's file; None where there is none to be shown."""
        if not isinstance(path, str) or self.how == "none":
            return None
        try:
            data = read_picture(self.root, path)
        except ImageError as error:
            self._leave(path, error.reason)
            return None
        self.taken += 1
        return data

    def _leave(self, path: str, reason: str) -> None:
        """Count what is not taken along, once."""
        if path not in self._lost:
            self._lost.add(path)
            self.absent[reason] += 1


class PoolPart(NamedTuple):
    """A pool and its queries.

    Attributes:
        name: that of the pool's file without what all such names have.
        pool: its file.
        queries: split and file of queries, and whether these are searched in several pools.
    """

    name: str
    pool: DataFile
    queries: Sequence[tuple[str, DataFile, bool]]


@final
class PoolParts:
    """Pools of a root with their queries, as entries.

    Args:
        data: the root.
        datasets: only these; empty takes all.
        tasks: only queries of these task codes, and no pool that is another's; empty takes all.

    Attributes:
        homeless: queries left out, because no pool has a positive of theirs.

    Raises:
        DataError: if nothing is left.
    """

    def __init__(self, data: DataRoot, datasets: Collection[str], tasks: Collection[int]) -> None:
        self.homeless, self._tables = 0, dict[Path, CandidateTable]()
        self._data, self._tasks, pools = data, tasks, data.pools()
        self._names = set(datasets or (pool.dataset for pool in pools))
        self._pools = self._wanted_of(pools)
        if not self._pools or self._names - {pool.dataset for pool in pools}:
            there = ", ".join(sorted({pool.dataset for pool in pools})) or "none"
            raise DataError(f"no pools of what is wanted; there are data sets {there}",
                            str(data.path))  # fmt: skip

    def _wanted_of(self, files: list[DataFile]) -> list[DataFile]:
        return [
            file for file in files if file.dataset in self._names
            and (not self._tasks or file.task is None or file.task in self._tasks)
        ]  # fmt: skip

    def wanted(self, query: Query) -> bool:
        """Whether a query is of a task that is wanted."""
        return not self._tasks or query.task in self._tasks

    def files(self) -> set[Path]:
        """All files of pools, queries and judgements that are wanted."""
        lists = (self._data.query_files, self._data.qrels)
        asked = [file for split in SPLITS for listed in lists for file in listed(split)]
        return {file.path for file in self._pools + self._wanted_of(asked)}

    def __iter__(self) -> Iterator[PoolPart]:
        for pool in self._pools:
            queries = [
                (split, file, place is None)
                for split in SPLITS
                for file in self._wanted_of(self._data.query_files(split))
                if file.dataset == pool.dataset
                and (place := _or_none(self._data.pool_for, file, split)) in (None, pool.path)
            ]
            name = pool.path.name.partition(".")[0].removeprefix("mbeir_")
            yield PoolPart(name.removesuffix("_cand_pool"), pool, queries)

    def entries(self, part: PoolPart, show: Show) -> Iterator[SourceEntry]:
        """Candidates of a part, then its queries, split by split."""
        for item in read_candidates(part.pool.path):
            yield _entry(show("corpus", item), part)
        for split, file, shared in part.queries:
            excluded = self._data.excluded(split)
            lists = self._data.path / "subsets" / f"{split}.json"
            subsets = read_lists(lists) if lists.is_file() else {}
            path = _or_none(self._data.qrels_file, file, split)
            judged = grades_of(read_qrels(path)) if path else {}
            for query in read_queries(file.path):
                if not self.wanted(query) or (shared and not self._at_home(query, part)):
                    continue
                qid = query.item.id
                negatives = query.negatives if split == "train" else ()
                grades = dict.fromkeys(negatives, 0) | dict.fromkeys(query.positives, 1)
                yield replace(
                    _entry(show("query", query.item), part), side="query", split=split,
                    grades={**grades, **judged.get(qid, {})},
                    excluded=excluded.get(qid, ()), subset=subsets.get(qid, ()),
                )  # fmt: skip

    def _at_home(self, query: Query, part: PoolPart) -> bool:
        """Whether a part's pool is the first of its data set that has a positive of a query."""
        pools = [pool.path for pool in self._pools if pool.dataset == part.pool.dataset]
        for path in pools:
            if path not in self._tables:
                self._tables[path] = open_candidates(path)
            if (self._tables[path].rows_of(query.positives) >= 0).any():
                return path == part.pool.path
        self.homeless += part.pool.path == pools[0]
        return False


def _or_none(
    find: Callable[[str, int | None, str], Path], file: DataFile, split: str
) -> Path | None:
    """The file that belongs to one of queries, if there is one."""
    try:
        return find(file.dataset, file.task, split)
    except DataError:
        return None


def _entry(item: Item, part: PoolPart) -> SourceEntry:
    return SourceEntry(item.id, item.text, item.image, pool=part.name, source=item.source)


def _about(entry: SourceEntry) -> dict[str, Any]:
    """What :func:`~augment.data.sources.entries.extras` reads."""
    known = {"src_content": entry.source, "excluded": entry.excluded, "subset": entry.subset}
    return {name: value for name, value in known.items() if value}


def _grouped(
    entries: Iterator[SourceEntry],
) -> Iterator[tuple[str, Iterator[SourceEntry]]]:
    """Candidates, then the queries of each split; the split is empty for candidates."""
    return groupby(entries, lambda one: one.split if one.side == "query" else "")


def write_beir(entries: Iterator[SourceEntry], _: str, pictures: PicturesOut) -> None:
    """A folder of ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/{train,dev,test}.tsv``."""
    out, asked = pictures.out, set[str]()
    (out / "qrels").mkdir(parents=True)
    for split, own in _grouped(entries):
        judged = []
        with (out / ("queries.jsonl" if split else "corpus.jsonl")).open("ab") as stream:
            for entry in own:
                about = _about(entry)
                if isinstance(entry.image, str):
                    pictures.take(entry.image)
                    about["image"] = entry.image
                if split and not entry.grades:
                    about["split"] = split
                if not split or entry.id not in asked:
                    row = {"_id": entry.id, "title": "", "text": entry.text or ""}
                    stream.write(_line({**row, "metadata": about}))
                if split:
                    asked.add(entry.id)
                    judged += [f"{entry.id}\t{did}\t{n}\n" for did, n in entry.grades.items()]
        if judged:
            path = out / "qrels" / f"{'dev' if split == 'val' else split}.tsv"
            path.write_text("query-id\tcorpus-id\tscore\n" + "".join(judged), "utf-8")


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_datasets(entries: Iterator[SourceEntry], prefix: str, pictures: PicturesOut) -> None:
    """Parquet files of the configurations corpus, queries and qrels, each name behind a prefix."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = Features(id=text, text=text, image=Image(), src_content=text,
                       excluded=List(text), subset=List(text)).arrow_schema  # fmt: skip
    score = Features({"query-id": text, "corpus-id": text, "score": Value("int32")}).arrow_schema
    for split, own in _grouped(entries):
        judged: list[dict[str, Any]] = []

        def rows(own: Iterator[SourceEntry] = own, judged: list[Any] = judged) -> _Rows:
            for entry in own:
                data = pictures.read(entry.image)
                image = None if data is None else {"bytes": data, "path": entry.image}
                yield {"id": entry.id, "text": entry.text, "image": image, **_about(entry)}
                judged.extend({"query-id": entry.id, "corpus-id": did, "score": grade}
                              for did, grade in entry.grades.items())  # fmt: skip

        folder = pictures.out / f"{prefix}{'queries' if split else 'corpus'}"
        _write_parquet(rows(), folder, split or "corpus", columns)
        _write_parquet(iter(judged), pictures.out / f"{prefix}qrels", split, score)


def _write_parquet(rows: _Rows, folder: Path, split: str, schema: Any) -> None:
    """Rows as files of a bounded size, of which a bounded part is held; none for no row."""
    group = _group(rows)
    for number in count():
        if not group:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path, written = folder / f"{split}-{number:05}.parquet", 0
        with pq.ParquetWriter(path, schema) as file:
            while group and written < _FILE_BYTES:
                table = pa.Table.from_pylist(group, schema)
                file.write_table(table)
                written += table.nbytes
                group = _group(rows)


def _group(rows: _Rows) -> list[dict[str, Any]]:
    held, size = [], 0
    for row in rows:
        held.append(row)
        size += 256 + len((row.get("image") or {"bytes": b""})["bytes"])
        if size > _GROUP_BYTES:
            break
    return held


def write_webdataset(entries: Iterator[SourceEntry], prefix: str, pictures: PicturesOut) -> None:
    """Tars; the members of an entry are called after its number."""
    for split, own in _grouped(entries):
        kind, tar = f"queries-{split}" if split else "corpus", None
        for number, entry in enumerate(own):
            if tar is None or tar.offset > _FILE_BYTES:
                if tar is not None:
                    tar.close()
                path = pictures.out / f"{prefix}{kind}-{number:09}.tar"
                tar = tarfile.open(path, "w")  # noqa: SIM115
            data = pictures.read(entry.image)
            if data is not None:
                ending = PurePosixPath(str(entry.image)).suffix.lower()
                add_member(tar, f"{number:09}{ending}", data)
            row = {"_id": entry.id, "text": entry.text, "pool": prefix.removesuffix("-")}
            asked = {"side": "query", "split": split, "grades": entry.grades} if split else {}
            add_member(tar, f"{number:09}.json", _line({**row, **asked, **_about(entry)}))
        if tar is not None:
            tar.close()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Put a file into a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


WRITERS: Mapping[Form, Callable[[Iterator[SourceEntry], str, PicturesOut], None]] = {
    "beir": write_beir,
    "datasets": write_datasets,
    "webdataset": write_webdataset,
}
