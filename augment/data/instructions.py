"""Query instructions: a table of prompts by dataset, query modality and candidate modality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, final

from augment.data.modality import MODALITIES
from augment.errors import DataError
from augment.files import replacing, text_lines
from augment.records import Modality

_COLUMNS = ("query_modality", "cand_modality", "dataset_name", "dataset_id")
_WIDTH = 4  # M-BEIR has prompt_1 to prompt_4


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

    Args:
        rows: the table.
        where: the file, named in errors.

    Raises:
        DataError: if two rows have the same key.
    """

    def __init__(self, rows: Iterable[InstructionRow], where: str = "instructions") -> None:
        self.rows = tuple(rows)
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
        """The prompts of one kind of query, at least one.

        Raises:
            DataError: if the table has no row, or only an empty one, for this kind.
        """
        prompts = self._by_key.get((dataset_id, query_modality, candidate_modality), ())
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
