"""Checks that need one file alone: lines, ids, modalities, tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar, final

from augment.data.records import parse_candidate, parse_query, task_in_name
from augment.data.validation.lengths import Reservoir
from augment.data.validation.report import FileStats, Report
from augment.errors import DataError
from augment.files import numbered_lines, opened
from augment.records import TASKS, Item, Modality, Query

#: UniIR hashes ids as ``dataset * bound + n`` and checks no bound (its data utilities).
QUERY_BOUND = 500_000
CANDIDATE_BOUND = 10_000_000

_Parsed = TypeVar("_Parsed", Item, Query)


class Link(NamedTuple):
    """What a query asks of a pool."""

    qid: str
    line: int
    task: int | None
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@final
@dataclass
class Pictures:
    """Pictures named by records: path -> the first record that names it, as ``file:line (id)``."""

    named: dict[str, str] = field(default_factory=dict)

    def note(self, item: Item, where: str) -> None:
        """Remember who names a picture first."""
        if item.image:
            self.named.setdefault(item.image, f"{where} ({item.id})")


@final
class FileCheck:
    """Checks of one file.

    Args:
        path: the file.
        name: the path relative to the root, for the report.
        report: where findings go.
        pictures: where pictures are remembered.
        texts: texts to keep for measuring lengths; None keeps all, 0 none.
    """

    def __init__(
        self, path: Path, name: str, report: Report, pictures: Pictures, texts: int | None
    ) -> None:
        self.path = path
        self.name = name
        self.texts = Reservoir(texts)
        self._report = report
        self._pictures = pictures

    def pool(self) -> tuple[FileStats, dict[str, Modality]]:
        """Check a pool; returns what it holds, and the modality of every id."""
        stats = FileStats(self.name, "corpus")
        lines: dict[str, int] = {}
        modalities: dict[str, Modality] = {}
        for number, item in self._parsed(parse_candidate):
            if item.id in lines:
                self._add("duplicate-id", number, f"{item.id}, first in line {lines[item.id]}")
            else:
                lines[item.id] = number
                modalities[item.id] = item.modality
            self._item(item, number, CANDIDATE_BOUND)
            stats.records += 1
            stats.modalities[item.modality] += 1
        self._count(stats)
        return stats, modalities

    def queries(self) -> tuple[FileStats, list[Link]]:
        """Check a file of queries; returns what it holds and what it asks of pools."""
        stats = FileStats(self.name, "query")
        hint = task_in_name(self.path)
        links: list[Link] = []
        first: dict[str, tuple[int, Query]] = {}
        for number, query in self._parsed(lambda line, where: parse_query(line, where, hint)):
            qid = query.item.id
            line, earlier = first.setdefault(qid, (number, query))
            if line != number and earlier == query:
                self._add("repeated", number, f"{qid}, first in line {line}")
            elif line != number:
                self._add("duplicate-id", number, f"{qid}, first in line {line}, other content")
            self._query(query, number)
            stats.records += 1
            stats.modalities[query.item.modality] += 1
            stats.tasks["none" if query.task is None else str(query.task)] += 1
            stats.positives += len(query.positives)
            stats.negatives += len(query.negatives)
            links.append(Link(qid, number, query.task, query.positives, query.negatives))
        self._count(stats)
        return stats, links

    def _count(self, stats: FileStats) -> None:
        if not stats.records:
            self._report.add("no-records", self.name)

    def _parsed(self, parse: Callable[[bytes, str], _Parsed]) -> Iterator[tuple[int, _Parsed]]:
        """Records that can be used; the others become findings."""
        try:
            with opened(self.path) as stream:
                for number, line in numbered_lines(stream):
                    record = self._tried(parse, line, f"{self.name}:{number}")
                    if record is not None:
                        yield number, record
        except (DataError, OSError) as error:
            self._report.add("unreadable", self.name, str(error))

    def _tried(
        self, parse: Callable[[bytes, str], _Parsed], line: bytes, where: str
    ) -> _Parsed | None:
        try:
            return parse(line, where)
        except DataError as error:
            self._report.add("unreadable", self.name, str(error))
            return None

    def _query(self, query: Query, number: int) -> None:
        self._item(query.item, number, QUERY_BOUND)
        if query.task is None:
            self._add("no-task", number, query.item.id)
        elif TASKS[query.task][0] != query.item.modality:
            wanted = TASKS[query.task][0]
            self._add(
                "task-mismatch",
                number,
                f"{query.item.id}: task {query.task} wants {wanted}, is {query.item.modality}",
            )

    def _item(self, item: Item, number: int, bound: int) -> None:
        self._pictures.note(item, f"{self.name}:{number}")
        has_text = bool(item.text and item.text.strip())
        if item.text is not None and has_text:
            self.texts.offer(item.text)
        for kind, wrong in (
            ("no-image", "image" in item.modality and not item.image),
            ("extra-image", item.modality == "text" and bool(item.image)),
            ("no-text", "text" in item.modality and not has_text),
            ("extra-text", item.modality == "image" and has_text),
            ("id-overflow", not 1 <= int(item.id.partition(":")[2][:20]) <= bound),
        ):
            if wrong:
                self._add(kind, number, item.id)

    def _add(self, kind: str, number: int, example: str) -> None:
        self._report.add(kind, self.name, f"{self.name}:{number}: {example}")
