"""Write a view as a plain M-BEIR root, or in another format, that other tools read.

Queries and pools get the text of their view; all else is as it was. Of the root, that is copied:
judgements, instructions, lists of excluded and of own candidates; pictures are linked or copied.
A dataset card, ``README.md``, says what was generated and how.

``modality`` stays as published, whatever text an entry gains: UniIR
keys its instructions on it and reads ``txt`` in any case. Keys that M-BEIR does not define are not
carried over.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

from markupsafe import Markup

from augment.data import DataRoot, read_candidates, read_queries, write_candidates, write_queries
from augment.data.items import SPLITS
from augment.data.root import INSTRUCTIONS, RECORDS, TABLES
from augment.data.sources.forms import WRITERS, Form, Images, PicturesOut, PoolParts
from augment.errors import DataError
from augment.files import new_folder, write_text
from augment.records import Enrichment, Item, Side
from augment.store.page import markdown
from augment.store.report import packaged
from augment.views import TextView, trace_row, write_traces

To = Literal["mbeir", Form]

#: Folders of which a selection takes only its files.
_CHOSEN = ("query", "cand_pool", "qrels")

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
        made, models = Markup(), self.models.most_common()
        for recipe in self.recipe.get("joined") or [self.recipe]:
            prompts = list(packaged(recipe.get("prompts") or {}))
            made += markdown(
                "made.md", entries=self.name, recipe=recipe, models=models, prompts=prompts
            )
        return made


@final
@dataclass
class Exported:
    """What was written.

    Attributes:
        items: queries and candidates, those in several files counted once per file.
        changed: of these, how many have another text than published.
        images: picture files.
        absent: reason -> pictures that an entry names and that could not be taken along.
        notes: what the format has no place for.
    """

    items: int
    changed: int
    images: int
    absent: Counter[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            f"{self.items:>9,} queries and candidates, {self.changed:,} with generated text",
            f"{self.images:>9,} pictures",
        ]
        rows += [f"{number:>9,} pictures {reason}" for reason, number in self.absent.items()]
        return "\n".join([*rows, *self.notes])


def export(
    root: Path,
    out: Path,
    corpus: TextView,
    queries: TextView,
    images: Images = "link",
    to: To = "mbeir",
    datasets: Collection[str] = (),
    tasks: Collection[int] = (),
    traces: TextView | None = None,
    only: Collection[str] | None = None,
) -> Exported:
    """Write a view as a plain M-BEIR root, or in another format.

    It appears under its name when it is complete, and what was killed leaves nothing of that name.

    Args:
        root: folder in M-BEIR's layout.
        out: folder to make.
        corpus: texts of the candidates.
        queries: texts of the queries.
        images: ``link`` (hard links; copies where the disk differs), ``copy``, ``symlink`` (our
            own commands refuse pictures that lie outside the root) or ``none``. Where the format
            has pictures inside, they are copied or left out.
        to: the format (:mod:`augment.data.sources.forms`).
        datasets: only these of the root; empty takes all.
        tasks: only these task codes; empty takes all.
        traces: what queries are to write before their vectors (TRACE), as tables beside a root.
        only: ids of the queries that are to write; None for all that have a text.

    Raises:
        DataError: if the root cannot be read or has nothing of what is wanted, or ``out`` exists.
    """
    data = DataRoot(root)
    if traces is not None and to != "mbeir":
        raise DataError("tables of traces stand beside a root; leave --to out")
    chosen = to != "mbeir" or datasets or tasks
    parts = PoolParts(data, datasets, tasks) if chosen else None
    with new_folder(out) as partial:
        pictures = PicturesOut(data.path, partial, images)
        made = _Export(data.path, partial, pictures, {"query": queries, "corpus": corpus}, parts)
        if traces is not None:
            made.trace(traces, only)
        if to == "mbeir" or parts is None:
            made.write()
        else:
            made.convert(to, parts)
        return made.finish(out.name, to)


@final
class _Export:
    def __init__(
        self,
        root: Path,
        out: Path,
        pictures: PicturesOut,
        views: Mapping[Side, TextView],
        parts: PoolParts | None,
    ) -> None:
        self._root, self._out, self._pictures, self._views = root, out, pictures, views
        self._parts, self._chosen = parts, parts.files() if parts else None
        self._done = Exported(0, 0, 0, Counter())
        self._sides: dict[str, SideShown] = {
            side: SideShown(NAMES[side], view.view, view.recipe) for side, view in views.items()
        }

    def write(self) -> None:
        """The root as a root."""
        for source, target in self._files("cand_pool", RECORDS):
            before = self._done.items
            write_candidates(
                target, (self._taken("corpus", item) for item in read_candidates(source))
            )
            _check_lines(target, self._done.items - before)
        wanted = self._parts.wanted if self._parts else lambda _: True
        for source, target in self._files("query", RECORDS):
            before, found = self._done.items, filter(wanted, read_queries(source))
            write_queries(
                target, (replace(one, item=self._taken("query", one.item)) for one in found)
            )
            _check_lines(target, self._done.items - before)
        for folder, endings in (("qrels", TABLES), ("instructions", (".tsv",)),
                                ("excluded", (".json",)), ("subsets", (".json",))):  # fmt: skip
            for source, target in self._files(folder, endings):
                shutil.copyfile(source, target)
        if self._parts and (self._root / "cand_pool/global").is_dir():
            self._done.notes.append("union pools are left out of a selection")

    def trace(self, view: TextView, only: Collection[str] | None) -> None:
        """Tables of what queries write, a split each."""
        shown = self._sides["trace"] = SideShown("traces of queries", view.view, view.recipe)
        wanted = self._parts.wanted if self._parts else lambda _: True
        for split in SPLITS:
            rows: dict[str, dict[str, Any]] = {}
            for file in DataRoot(self._root).query_files(split):
                for one in filter(wanted, read_queries(file.path)):
                    asked = only is None or one.item.id in only
                    rows[one.item.id] = trace_row(view, one.item, one.task, asked)
                    text = rows[one.item.id]["text"] or None
                    shown.add(one.item, text, view.enrichment(one.item.id) if asked else None)
            path = self._out / "trace" / f"{split}-00000.parquet"
            path.parent.mkdir(exist_ok=True)
            if rows:
                write_traces(path, view.recipe, list(rows.values()))

    def convert(self, to: Form, parts: PoolParts) -> None:
        """Another format."""
        all_of = list(parts)
        for part in all_of:
            prefix = f"{part.name}-" if len(all_of) > 1 else ""
            if prefix and to == "beir":
                self._pictures.out = self._out / part.name
            WRITERS[to](parts.entries(part, self._shown), prefix, self._pictures)
        notes = {
            f"{parts.homeless:,} queries have no positive in a pool and are left out":
                parts.homeless,
            "instructions are left out": (self._root / INSTRUCTIONS).is_file(),
            "BEIR's own readers see texts alone; pictures are named under metadata":
                to == "beir" and self._pictures.taken,
        }  # fmt: skip
        self._done.notes += [note for note, true in notes.items() if true]

    def finish(self, name: str, to: To) -> Exported:
        """Write the card, take licences along."""
        for source in sorted(self._root.glob("LICEN[CS]E*")):
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, self._out / source.name, symlinks=True)
            elif source.is_file() and not source.is_symlink():
                shutil.copyfile(source, self._out / source.name)
        splits: dict[str, list[str]] = {}
        for path in sorted(self._out.glob("*/*-00000.parquet")):
            splits.setdefault(path.parent.name, []).append(path.name[: -len("-00000.parquet")])
        card = markdown("card.md", name=name, sides=list(self._sides.values()), to=to,
                        splits=splits, notes=self._done.notes)  # fmt: skip
        write_text(self._out / "README.md", card)
        self._done.images, self._done.absent = self._pictures.taken, self._pictures.absent
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
            if self._chosen is not None and folder in _CHOSEN and source not in self._chosen:
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

    def _shown(self, side: Side, item: Item) -> Item:
        view = self._views[side]
        text = view.text(item)
        self._done.items += 1
        self._done.changed += text != item.text
        self._sides[side].add(item, text, view.enrichment(item.id))
        return replace(item, text=text)

    def _taken(self, side: Side, item: Item) -> Item:
        for image in item.images:
            self._pictures.take(image)
        return self._shown(side, item)


def _check_lines(path: Path, meant: int) -> None:
    """Compare what a file holds with what was meant to be in it."""
    with path.open("rb") as file:
        written = sum(1 for _ in file)
    if written != meant:
        raise DataError(f"{written:,} of {meant:,} entries were written; nothing is exported")
