"""The layout of a data root: which file holds what, its instructions, how its texts are tidied."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from os.path import splitext
from pathlib import Path
from typing import Literal, NamedTuple, final

from augment.data.records import MODALITIES
from augment.errors import DataError
from augment.files import PACKED_ENDINGS, read_json, replacing, say, text_lines
from augment.records import Modality

_NAME = r"mbeir_(?P<dataset>.+?)(?:_task(?P<task>[0-8]))?"
#: Endings under which the same file is found, the first one first: as published, packed, Parquet.
RECORDS = (*(f".jsonl{ending}" for ending in PACKED_ENDINGS), ".parquet")
TABLES = tuple(f".txt{ending}" for ending in PACKED_ENDINGS)
INSTRUCTIONS = "instructions/query_instructions.tsv"

_COLUMNS = ("query_modality", "cand_modality", "dataset_name", "dataset_id")
_WIDTH = 4  # M-BEIR has prompt_1 to prompt_4

#: ``uniir`` for parity with published numbers, ``plain`` for text that is left as written.
TextRule = Literal["uniir", "plain"]


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
        DataError: if it is no folder, or holds neither queries nor pools; later, if there is no
            such file as is asked for: lists what there is.
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
        return self._list(f"query/{split}", rf"{_NAME}_{re.escape(tail)}", RECORDS)

    def query_file(self, dataset: str, task: int | None, split: str) -> Path:
        """Queries of one dataset and task; training files hold all tasks of a dataset.

        Args:
            dataset: name in lower case; ``union`` for the merged (in training: upsampled) file.
            task: task code, or None for the file that mixes tasks.
            split: ``train``, ``val`` or ``test``.
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
        return self._list("cand_pool/local", rf"{_NAME}(?:_val|_test)?_cand_pool", RECORDS)

    def pool_for(self, dataset: str, task: int | None, split: str) -> Path:
        """The local pool that queries of this dataset, task and split are searched in.

        MSCOCO's validation and test pools differ and carry the split in their names.
        """
        stems = [f"mbeir_{dataset}_{split}", f"mbeir_{dataset}"]
        if task is not None:
            stems = [f"mbeir_{dataset}_task{task}_{split}", f"mbeir_{dataset}_task{task}", *stems]
        return self._first("cand_pool/local", *(f"{stem}_cand_pool.jsonl" for stem in stems))

    def union_pool(self, split: str) -> Path:
        """The pool of all datasets for one split."""
        return self._first("cand_pool/global", f"mbeir_union_{split}_cand_pool.jsonl")

    def union_pools(self) -> list[DataFile]:
        """All union pools; the dataset's name is ``union_{split}``."""
        return self._list("cand_pool/global", rf"{_NAME}_cand_pool", RECORDS)

    def qrels(self, split: str) -> list[DataFile]:
        """Judgement files of one split."""
        return self._list(f"qrels/{split}", rf"{_NAME}_{re.escape(split)}_qrels", TABLES)

    def qrels_file(self, dataset: str, task: int | None, split: str) -> Path:
        """Judgements of one dataset and task."""
        names = [f"mbeir_{dataset}_{split}_qrels.txt"]
        if task is not None:
            names.insert(0, f"mbeir_{dataset}_task{task}_{split}_qrels.txt")
        return self._first(f"qrels/{split}", *names)

    def instructions(self, needed: bool = True) -> Instructions:
        """The table ``instructions/query_instructions.tsv``.

        Args:
            needed: else, where there is no such file, that is said and no query has a prompt.

        Raises:
            DataError: if it is needed and missing, or malformed.
        """
        if not needed and not (self.path / INSTRUCTIONS).is_file():
            say(f"{self.path}: no {INSTRUCTIONS}; queries are shown without one", sys.stderr)
            return Instructions((), "")
        return read_instructions(self._first(*INSTRUCTIONS.split("/")))

    def excluded(self, split: str) -> dict[str, list[str]]:
        """Query id -> candidates that its ranking leaves out by protocol: ``excluded/SPLIT.json``.

        Raises:
            DataError: if there is such a file and it holds something else.
        """
        path = self.path / "excluded" / f"{split}.json"
        return read_lists(path) if path.is_file() else {}

    def _list(self, folder: str, pattern: str, endings: Sequence[str]) -> list[DataFile]:
        name = re.compile(pattern)
        found: dict[str, DataFile] = {}
        for ending in endings:
            for path in (self.path / folder).glob(f"mbeir_*{ending}"):
                stem = path.name.removesuffix(ending)
                match = name.fullmatch(stem)
                if match and path.is_file() and stem not in found:
                    task = match["task"]
                    found[stem] = DataFile(match["dataset"], int(task) if task else None, path)
        return [found[stem] for stem in sorted(found)]

    def _first(self, folder: str, *names: str) -> Path:
        place = self.path / folder
        for stem, ending in map(splitext, names):
            found = next(forms for forms in (RECORDS, TABLES, (ending,)) if forms[0] == ending)
            for path in (place / f"{stem}{form}" for form in found):
                if path.is_file():
                    return path
        there = sorted(path.name for path in place.glob("*")) if place.is_dir() else []
        listing = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
        raise DataError(
            f"no {' or '.join(names)}; the folder holds {listing or 'nothing'}", str(place)
        )


def read_lists(path: Path) -> dict[str, list[str]]:
    """A JSON file of lists of ids: query id -> ids of candidates.

    Raises:
        DataError: if it cannot be read or holds something else.
    """
    lists = read_json(path)
    if not isinstance(lists, dict) or not all(
        isinstance(own, list) and all(isinstance(did, str) for did in own) for own in lists.values()
    ):
        raise DataError("expected a JSON object: query id -> list of candidate ids", str(path))
    return lists


class InstructionRow(NamedTuple):
    """One row of the table; ``prompts`` are the non-empty ones, in order."""

    query_modality: Modality
    candidate_modality: Modality
    dataset_name: str
    dataset_id: str
    prompts: tuple[str, ...]


@final
class Instructions:
    """Instructions by (dataset id, query modality, candidate modality).

    ``name`` is what checkpoints remember: ``on`` for a root's own table.

    Raises:
        DataError: if two rows have the same key.
    """

    def __init__(
        self, rows: Iterable[InstructionRow], where: str = "instructions", name: str = "on"
    ) -> None:
        self.rows = tuple(rows)
        self.name = name
        self._where = where
        self._by_key: dict[tuple[str, str, str], tuple[str, ...]] = {}
        for row in self.rows:
            key = (row.dataset_id, row.query_modality, row.candidate_modality)
            if key in self._by_key:
                raise DataError(f"two rows for {_show(*key)}; keep one", where)
            self._by_key[key] = row.prompts

    def get(
        self, dataset_id: str, query_modality: Modality, candidate_modality: Modality
    ) -> tuple[str, ...]:
        """The prompts of one kind of query, at least one; a row for data set ``*`` is for all.

        None where there is no table (:meth:`DataRoot.instructions`).

        Raises:
            DataError: if the table has no row, or only an empty one, for this kind.
        """
        if not self._where:
            return ()
        kind = (query_modality, candidate_modality)
        prompts = self._by_key.get((dataset_id, *kind)) or self._by_key.get(("*", *kind), ())
        if not prompts:
            raise DataError(
                f"no instruction for {_show(dataset_id, query_modality, candidate_modality)}; add "
                "a row to the table or turn instructions off",
                self._where,
            )
        return prompts


def read_instructions(path: str | Path) -> Instructions:
    """Read an instruction table (tab-separated, with a header, quotes are ordinary characters).

    Raises:
        DataError: with ``file:line``, if a column is missing or a modality unknown.
    """
    lines = text_lines(Path(path))
    first = next(lines, None)
    if first is None:
        raise DataError("is empty; expected a header row", str(path))
    header = [name.strip() for name in first[1].split("\t")]
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(f"header lacks {', '.join(missing)}", f"{path}:{first[0]}")
    return Instructions(_rows(lines, header, Path(path)), str(path))


def open_instructions(table: str) -> Instructions:
    """A table that takes the place of a root's own; its name has the hash of its bytes.

    Args:
        table: a file, or the paper whose table is packaged, such as ``rge``.

    Raises:
        DataError: if there is none.
    """
    packaged = resources.files("augment") / "prompts" / table / "instructions.tsv"
    path = Path(str(packaged)) if table.isidentifier() else Path(table)
    if not path.is_file():
        raise DataError("no table of instructions; name a .tsv file, or a paper such as rge", table)
    name = f"{table}:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    return Instructions(read_instructions(path).rows, str(path), name)


def write_instructions(path: str | Path, rows: Iterable[InstructionRow]) -> None:
    """Write an instruction table with at least four prompt columns, as published.

    Raises:
        DataError: if a field has a tab or a line end in it.
    """
    table = list(rows)
    width = max([_WIDTH, *(len(row.prompts) for row in table)])
    header = [*_COLUMNS, *(f"prompt_{number}" for number in range(1, width + 1))]
    with replacing(Path(path), DataError) as stream:
        stream.write("\t".join(header) + "\n")
        for row in table:
            blanks = [""] * (width - len(row.prompts))
            fields = [*row[:4], *row.prompts, *blanks]
            if any(mark in field for field in fields for mark in "\t\r\n"):
                raise DataError(f"a tab or line end in the row of {row.dataset_name}", str(path))
            stream.write("\t".join(fields) + "\n")


def _rows(
    lines: Iterable[tuple[int, str]], header: list[str], path: Path
) -> Iterator[InstructionRow]:
    prompt_columns = [name for name in header if name.startswith("prompt_")]
    for number, line in lines:
        fields = dict(zip(header, (field.strip() for field in line.split("\t")), strict=False))
        modalities = [MODALITIES.get(fields.get(name, "")) for name in _COLUMNS[:2]]
        query, candidate = modalities
        if query is None or candidate is None or not fields.get("dataset_id"):
            raise DataError(
                f"expected two modalities, a name and an id, found {line[:80]!r}",
                f"{path}:{number}",
            )
        prompts = tuple(fields[name] for name in prompt_columns if fields.get(name))
        yield InstructionRow(
            query, candidate, fields["dataset_name"], fields["dataset_id"], prompts
        )


def _show(dataset_id: str, query_modality: str, candidate_modality: str) -> str:
    return f"dataset {dataset_id}, {query_modality} -> {candidate_modality}"


def format_text(text: str | None, rule: TextRule = "uniir") -> str:
    """Tidy one text; None becomes the empty string.

    Args:
        text: published text.
        rule: ``uniir`` removes carriage returns, outer blanks and outer double quotes, raises the
            first character to upper case and ends the text with a full stop unless it ends with
            ``.``, ``?`` or ``!`` (UniIR, ``format_string`` in its data utilities). It makes
            ``iPhone`` ``IPhone`` and puts a Latin full stop after Chinese. ``plain`` only strips.

    Raises:
        DataError: if there is no such rule.
    """
    if rule == "plain":
        return (text or "").strip()
    if rule != "uniir":
        raise DataError(f"no text rule named {rule!r}; there are 'uniir' and 'plain'")
    tidy = (text or "").replace("\r", "").strip().strip('"')
    if not tidy:
        return ""
    tidy = tidy[0].upper() + tidy[1:]
    return tidy if tidy[-1] in ".?!" else tidy + "."
