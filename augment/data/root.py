"""The layout of a data root: which file holds what. Only names are looked at, nothing is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from augment.data.instructions import Instructions, read_instructions
from augment.errors import DataError

_NAME = r"mbeir_(?P<dataset>.+?)(?:_task(?P<task>[0-8]))?"


class DataFile(NamedTuple):
    """One file of a root; ``task`` is None where the file mixes tasks."""

    dataset: str
    task: int | None
    path: Path


@final
@dataclass(frozen=True)
class DataRoot:
    """A folder in M-BEIR's layout (TIGER-Lab/M-BEIR), by its published file names.

    Attributes:
        path: the folder that holds ``query``, ``cand_pool``, ``qrels``, ``instructions`` and the
            pictures.

    Raises:
        DataError: if it is no folder, or holds neither queries nor pools.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not self.path.is_dir():
            raise DataError("no such folder", str(self.path))
        if not any((self.path / name).is_dir() for name in ("query", "cand_pool")):
            raise DataError(
                "is not a data root: it has neither a query/ nor a cand_pool/ folder",
                str(self.path),
            )

    def query_files(self, split: str) -> list[DataFile]:
        """Files of ``query/{split}``; ``union_train`` and ``union_val`` count as splits."""
        tail = split.removeprefix("union_")
        return self._list(f"query/{split}", rf"{_NAME}_{re.escape(tail)}\.jsonl")

    def query_file(self, dataset: str, task: int | None, split: str) -> Path:
        """Queries of one dataset and task; training files hold all tasks of a dataset.

        Args:
            dataset: name in lower case; ``union`` for the merged (in training: upsampled) file.
            task: task code, or None for the file that mixes tasks.
            split: ``train``, ``val`` or ``test``.

        Raises:
            DataError: if there is no such file; lists what there is.
        """
        if dataset == "union":
            name = "union_up_train" if split == "train" else f"union_{split}"
            return self._first(f"query/union_{split}", f"mbeir_{name}.jsonl")
        names = [f"mbeir_{dataset}_{split}.jsonl"]
        if task is not None:
            names.insert(0, f"mbeir_{dataset}_task{task}_{split}.jsonl")
        return self._first(f"query/{split}", *names)

    def pools(self) -> list[DataFile]:
        """Local pools. MSCOCO has one per split and task, told apart by their paths."""
        return self._list("cand_pool/local", rf"{_NAME}(?:_val|_test)?_cand_pool\.jsonl")

    def pool_for(self, dataset: str, task: int | None, split: str) -> Path:
        """The local pool that queries of this dataset, task and split are searched in.

        MSCOCO's validation and test pools differ and carry the split in their names.

        Raises:
            DataError: if there is no such pool; lists what there is.
        """
        stems = [f"mbeir_{dataset}_{split}", f"mbeir_{dataset}"]
        if task is not None:
            stems = [f"mbeir_{dataset}_task{task}_{split}", f"mbeir_{dataset}_task{task}", *stems]
        return self._first("cand_pool/local", *(f"{stem}_cand_pool.jsonl" for stem in stems))

    def union_pool(self, split: str) -> Path:
        """The pool of all datasets for one split.

        Raises:
            DataError: if there is none; lists what there is.
        """
        return self._first("cand_pool/global", f"mbeir_union_{split}_cand_pool.jsonl")

    def union_pools(self) -> list[DataFile]:
        """All union pools; the dataset's name is ``union_{split}``."""
        return self._list("cand_pool/global", rf"{_NAME}_cand_pool\.jsonl")

    def qrels(self, split: str) -> list[DataFile]:
        """Judgement files of one split."""
        return self._list(f"qrels/{split}", rf"{_NAME}_{re.escape(split)}_qrels\.txt")

    def qrels_file(self, dataset: str, task: int | None, split: str) -> Path:
        """Judgements of one dataset and task.

        Raises:
            DataError: if there are none; lists what there is.
        """
        names = [f"mbeir_{dataset}_{split}_qrels.txt"]
        if task is not None:
            names.insert(0, f"mbeir_{dataset}_task{task}_{split}_qrels.txt")
        return self._first(f"qrels/{split}", *names)

    def instructions(self) -> Instructions:
        """The table ``instructions/query_instructions.tsv``.

        Raises:
            DataError: if it is missing or malformed.
        """
        return read_instructions(self._first("instructions", "query_instructions.tsv"))

    def _list(self, folder: str, pattern: str) -> list[DataFile]:
        name = re.compile(pattern)
        found: list[DataFile] = []
        for path in sorted((self.path / folder).glob("mbeir_*")):
            match = name.fullmatch(path.name)
            if match and path.is_file():
                task = match["task"]
                found.append(DataFile(match["dataset"], int(task) if task else None, path))
        return found

    def _first(self, folder: str, *names: str) -> Path:
        place = self.path / folder
        for name in names:
            if (place / name).is_file():
                return place / name
        there = sorted(path.name for path in place.glob("*")) if place.is_dir() else []
        listing = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
        raise DataError(
            f"no {' or '.join(names)}; the folder holds {listing or 'nothing'}", str(place)
        )
