"""A validation from start to end: queries, then pools one at a time, then pictures and lengths."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from tqdm import tqdm

from augment.checks.tokens import clip_token_counter
from augment.data import DataFile, DataRoot
from augment.data.images import open_image, refuse_pointer, resolve
from augment.data.validation.lengths import Reservoir, measure
from augment.data.validation.links import check_instructions, check_links, check_qrels, searches
from augment.data.validation.records import FileCheck, Link, Pictures
from augment.data.validation.report import FileStats, Report
from augment.errors import DataError, EngineError, ImageError

Extent = Literal["sample", "all", "none"]

SPLITS = ("train", "val", "test", "union_train", "union_val")

#: With ``sample``: pictures decoded in all, and texts measured per file.
SAMPLED_PICTURES = 500
SAMPLED_TEXTS = 5_000


@final
@dataclass(frozen=True)
class Options:
    """How much is checked.

    Attributes:
        images: ``sample`` looks every picture up and decodes some, ``all`` decodes every one,
            ``none`` touches none.
        texts: whether the lengths of some, all or no texts are measured.
        context: tokens an encoder reads; CLIP's 77 include start and end marks.
    """

    images: Extent = "sample"
    texts: Extent = "sample"
    context: int = 77


def validate_root(path: Path, options: Options | None = None) -> Report:
    """Check a data root. Problems become findings; the rest is still checked.

    Memory: the ids that all queries ask for, the ids of the largest pool and the picture paths;
    some hundreds of bytes a record.

    Raises:
        DataError: if the folder is no data root at all.
    """
    return _Validation(DataRoot(path), options or Options()).run()


@final
class _Validation:
    def __init__(self, root: DataRoot, options: Options) -> None:
        self.root = root
        self.options = options
        self.report = Report(str(root.path), options.context)
        self.pictures = Pictures()
        self._texts: list[tuple[FileStats, Reservoir]] = []

    def run(self) -> Report:
        """All checks in turn."""
        queries = {split: self.root.query_files(split) for split in SPLITS}
        links = {file.path: self._queries(file) for files in queries.values() for file in files}
        self._pools(queries, links)
        for split in ("train", "val", "test"):
            check_qrels(self.root, split, links, self.report)
        self._instructions(links)
        self._check_pictures()
        self._measure_texts()
        return self.report

    def _check(self, path: Path) -> FileCheck:
        texts = {"sample": SAMPLED_TEXTS, "all": None, "none": 0}[self.options.texts]
        return FileCheck(path, self._name(path), self.report, self.pictures, texts)

    def _queries(self, file: DataFile) -> list[Link]:
        check = self._check(file.path)
        stats, links = check.queries()
        self._keep(stats, check)
        return links

    def _pools(self, queries: dict[str, list[DataFile]], links: dict[Path, list[Link]]) -> None:
        asked = searches(self.root, queries, self.report)
        pools = [*self.root.pools(), *self.root.union_pools()]
        for pool in tqdm(pools, "pools", disable=None, leave=False):
            check = self._check(pool.path)
            stats, ids = check.pool()
            self._keep(stats, check)
            for file, task in asked.get(pool.path, []):
                name = self._name(file.path)
                both = f"{name} -> {pool.path.name}"
                check_links(links[file.path], task, ids, both, name, self.report)

    def _instructions(self, links: Mapping[Path, list[Link]]) -> None:
        try:
            table = self.root.instructions()
        except DataError as error:
            self.report.add("no-instructions", "instructions", str(error))
            return
        for path, asked in links.items():
            check_instructions(asked, table, self._name(path), self.report)

    def _keep(self, stats: FileStats, check: FileCheck) -> None:
        self.report.files.append(stats)
        self._texts.append((stats, check.texts))

    def _check_pictures(self) -> None:
        self.report.pictures["named"] = len(self.pictures.named)
        if self.options.images == "none":
            return
        paths = sorted(self.pictures.named)
        decoded = set(paths)
        if self.options.images == "sample" and len(paths) > SAMPLED_PICTURES:
            sampler = random.Random(0)  # noqa: S311 - a sample, not a secret
            decoded = set(sampler.sample(paths, SAMPLED_PICTURES))
        for path in tqdm(paths, "pictures", disable=None, leave=False):
            look = self._decode if path in decoded else self._look_up
            self._check_picture(path, look)

    def _check_picture(self, path: str, look: Callable[[str], None]) -> None:
        try:
            look(path)
        except ImageError as error:
            first = self.pictures.named[path]
            self.report.add(error.reason, first.partition(":")[0], f"{first}: {error}")

    def _look_up(self, path: str) -> None:
        self.report.pictures["looked_up"] += 1
        refuse_pointer(resolve(self.root.path, path), path)

    def _decode(self, path: str) -> None:
        self.report.pictures["decoded"] += 1
        open_image(self.root.path, path)

    def _measure_texts(self) -> None:
        if self.options.texts == "none":
            return
        try:
            count = clip_token_counter()
        except EngineError as error:
            self.report.add("no-lengths", "-", str(error))
            return
        for stats, texts in tqdm(self._texts, "text lengths", disable=None, leave=False):
            stats.lengths = measure(texts, count, self.options.context)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root.path).as_posix()
