"""Write a view as a plain M-BEIR root that other tools read.

Queries and pools get the text of their view; qrels and instructions are copied as they are;
pictures are linked or copied. A dataset card, ``README.md``, says what was generated and how.

``modality`` stays as published, whatever text an entry gains: UniIR
keys its instructions on it and reads ``txt`` in any case. Keys that M-BEIR does not define are not
carried over.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import normpath
from typing import Any, Literal, final

from markupsafe import Markup

from augment.data import DataRoot, read_candidates, read_queries, write_candidates, write_queries
from augment.data.images import resolve
from augment.data.root import RECORDS, TABLES
from augment.data.sources.writing import linked
from augment.errors import DataError, ImageError
from augment.files import new_folder, write_text
from augment.records import Enrichment, Item, Side
from augment.store.page import markdown
from augment.store.report import packaged
from augment.views import TextView

Images = Literal["link", "copy", "symlink", "none"]


#: Names that no picture may have in an export: those of its other files.
_RESERVED = re.compile(
    r"(?:query|cand_pool|qrels|instructions)(?:/|$)|readme|licen[cs]e", re.IGNORECASE
)

NAMES: Mapping[Side, str] = {"query": "queries", "corpus": "candidates"}


@final
@dataclass
class SideShown:
    """What became of one side's entries; an entry in several files counts once per file.

    Attributes:
        name: of the entries, ``queries`` or ``candidates``.
        view: how generated text was used.
        recipe: how it was made, as ``TextView.recipe``; empty for the raw view.
        entries: written.
        generated: entries that show generated text.
        refused: reason -> entries whose text a check refused; they show the published text.
        models: model and revision -> entries that show its text.
    """

    name: str
    view: str
    recipe: Mapping[str, Any]
    entries: int = 0
    generated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item, shown: str | None, text: Enrichment | None) -> None:
        """Count one entry."""
        self.entries += 1
        if text is None:
            return
        if text.rejected:
            self.refused[text.rejected.partition(":")[0]] += 1
        elif shown != item.text:
            self.generated += 1
            self.models[f"{text.model} at {text.revision[:12]}"] += 1

    def provenance(self) -> Markup:
        """Markdown: which model, prompts and settings wrote the texts."""
        prompts, models = self.recipe.get("prompts"), self.models.most_common()
        known = packaged(prompts) if isinstance(prompts, Mapping) else ()
        return markdown(
            "made.md", entries=self.name, recipe=self.recipe, models=models, prompts=list(known)
        )


@final
@dataclass
class Exported:
    """What was written.

    Attributes:
        items: queries and candidates, those in several files counted once per file.
        changed: of these, how many have another text than published.
        images: picture files.
        absent: reason -> pictures that an entry names and that could not be taken along.
    """

    items: int
    changed: int
    images: int
    absent: Counter[str]

    def __str__(self) -> str:
        rows = [
            f"{self.items:>9,} queries and candidates, {self.changed:,} with generated text",
            f"{self.images:>9,} pictures",
        ]
        rows += [f"{number:>9,} pictures {reason}" for reason, number in self.absent.items()]
        return "\n".join(rows)


def export(
    root: Path, out: Path, corpus: TextView, queries: TextView, images: Images = "link"
) -> Exported:
    """Write a view as a plain M-BEIR root. It appears under its name when it is complete.

    Args:
        root: folder in M-BEIR's layout.
        out: folder to make.
        corpus: texts of the candidates.
        queries: texts of the queries.
        images: ``link`` (hard links; copies where the disk differs), ``copy``, ``symlink`` (our
            own commands refuse pictures that lie outside the root) or ``none``.

    Raises:
        DataError: if the root cannot be read, or ``out`` exists.
    """
    data = DataRoot(root)
    with new_folder(out) as partial:
        return _Export(data.path, partial, images).write(corpus, queries, out.name)


@final
@dataclass
class _Export:
    _root: Path
    _out: Path
    _images: Images
    _taken: set[str] = field(default_factory=set)
    _done: Exported = field(default_factory=lambda: Exported(0, 0, 0, Counter()))

    def write(self, corpus: TextView, queries: TextView, name: str) -> Exported:
        sides: dict[Side, SideShown] = {
            "query": SideShown(NAMES["query"], queries.view, queries.recipe),
            "corpus": SideShown(NAMES["corpus"], corpus.view, corpus.recipe),
        }
        for source, target in self._files("cand_pool", RECORDS):
            before = self._done.items
            write_candidates(target, self._seen(read_candidates(source), corpus, sides["corpus"]))
            _check_lines(target, self._done.items - before)
        for source, target in self._files("query", RECORDS):
            found = list(read_queries(source))
            items = self._seen((query.item for query in found), queries, sides["query"])
            pairs = zip(found, items, strict=True)
            write_queries(target, (replace(query, item=item) for query, item in pairs))
            _check_lines(target, len(found))
        for folder, endings in (("qrels", TABLES), ("instructions", (".tsv",))):
            for source, target in self._files(folder, endings):
                shutil.copyfile(source, target)
        for source in sorted(self._root.glob("LICEN[CS]E*")):
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, self._out / source.name, symlinks=True)
            elif source.is_file() and not source.is_symlink():
                shutil.copyfile(source, self._out / source.name)
        card = markdown("card.md", name=name, sides=list(sides.values()))
        write_text(self._out / "README.md", card)
        return self._done

    def _files(self, folder: str, endings: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
        """Files of a folder and where they go; records are written as JSONL whatever they were."""
        taken: set[Path] = set()
        for source in sorted((self._root / folder).rglob("*")):
            ending = next((one for one in endings if source.name.endswith(one)), None)
            inside = source.relative_to(self._root)
            if ending is None or any(part.startswith(".") for part in inside.parts):
                continue
            if not source.is_file():
                continue
            if not source.resolve().is_relative_to(self._root.resolve()):
                raise DataError(
                    "is a link that leaves the root; put the file itself there", str(source)
                )
            target = self._out / inside
            if endings is RECORDS:
                target = target.with_name(source.name.removesuffix(ending) + RECORDS[0])
            if target not in taken:  # else the same in another form, which nothing reads
                taken.add(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                yield source, target

    def _seen(self, items: Iterable[Item], view: TextView, shown: SideShown) -> Iterator[Item]:
        for item in items:
            text = view.text(item)
            self._done.items += 1
            self._done.changed += text != item.text
            shown.add(item, text, view.enrichment(item.id))
            image = item.image and normpath(item.image)
            if image and image not in self._taken:
                self._taken.add(image)
                self._take(image)
            yield replace(item, text=text)

    def _take(self, path: str) -> None:
        if self._images == "none":
            return
        try:
            source = resolve(self._root, path)
        except ImageError as error:
            self._done.absent[error.reason] += 1
            return
        if _RESERVED.match(path):  # a file of the export would be written through such a link
            self._done.absent["under a name that an export needs itself"] += 1
            return
        target = self._out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._images == "symlink":
            target.symlink_to(source)
        elif self._images == "copy" or not linked(source, target):
            shutil.copyfile(source, target)
        self._done.images += 1


def _check_lines(path: Path, meant: int) -> None:
    """Compare what a file holds with what was meant to be in it."""
    with path.open("rb") as file:
        written = sum(1 for _ in file)
    if written != meant:
        raise DataError(f"{written:,} of {meant:,} entries were written; nothing is exported")
