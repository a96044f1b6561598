"""The one writer of a data root from entries: every row is written or counted with its reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from posixpath import normpath
from typing import Any, Literal, TextIO, final

from PIL import Image, ImageOps

from augment.data.images import (
    MAX_PIXELS,
    PICTURES,
    frames,
    holder,
    open_image,
    read_picture,
    resolve,
    tar_part,
)
from augment.data.records import derive_task, item_record, write_qrels, write_queries
from augment.data.root import INSTRUCTIONS, InstructionRow, write_instructions
from augment.data.sources.entries import Entries, LeftOut, SourceEntry
from augment.errors import DataError, ImageError
from augment.files import digest, new_folder, write_json
from augment.records import TASKS, Item, Modality, Qrel, Query, one_picture

#: Hard links of pictures and of tars that pictures are in (copies on another disk), copies, or
#: files, also of pictures that are in tars.
Pictures = Literal["link", "copy", "files"]

_SPLITS = ("train", "val", "test")
_BLANK = re.compile(r"[\x00\t-\r ]")
#: First bytes of a file -> ending, for pictures that come without a name.
_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp", b"GI": ".gif"}


@final
@dataclass
class Imported:
    """What became of every row.

    Attributes:
        kept: what was written -> how many.
        left_out: reason -> how many.
        examples: reason -> the first such row.
    """

    kept: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave(self, reason: str, where: str, number: int = 1) -> None:
        """Count what is not written."""
        self.left_out[reason] += number
        self.examples.setdefault(reason, where)

    def __str__(self) -> str:
        rows = [f"{number:>9,} {what}" for what, number in self.kept.items() if number]
        rows += [
            f"{number:>9,} left out: {why} (such as {self.examples[why]})"
            for why, number in self.left_out.items()
        ]
        return "\n".join(rows)


@dataclass(frozen=True)
class Bounds:
    """What is taken at most.

    Attributes:
        max_rows: Rows read; null reads all.
        max_bytes: Bytes of a picture.
        max_pixels: Width times height of a picture.
        several: Of an entry with several pictures, or a video's frames: the first, or all beside
            one another as one (as mteb does).
    """

    max_rows: int | None = None
    max_bytes: int = 64 << 20
    max_pixels: int = MAX_PIXELS
    several: Literal["first", "beside"] = "first"


def write_root(
    entries: Entries,
    out: Path,
    name: str,
    images: Path,
    pictures: Pictures,
    instruction: str | None,
    bounds: Bounds,
    settings: Mapping[str, Any],
) -> Imported:
    """Write entries as a data root, which appears under its name when it is complete.

    Takes what :func:`augment.data.sources.import_data` says; candidates may come before or after
    queries. ``settings`` are kept in ``import.json`` beside the counts.
    """
    with new_folder(out) as partial, ExitStack() as streams:
        writer = _Writer(partial, slug(name), images, pictures, bounds, streams)
        for number, entry in enumerate(entries):
            if number == bounds.max_rows:
                writer.done.leave("rows beyond --max-rows, not counted", f"row {number + 1}")
                break
            writer.add(entry)
        writer.finish(instruction)
        told = {"kept": writer.done.kept, "left_out": writer.done.left_out}
        write_json(partial / "import.json", {**settings, **told})
    return writer.done


def slug(name: str) -> str:
    """A name that can stand in the names of M-BEIR's files, whose parts underscores part."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data"


@final
class _Writer:
    def __init__(
        self, out: Path, name: str, images: Path, how: str, bounds: Bounds, streams: ExitStack
    ) -> None:
        self.done = Imported()
        self._out, self._name, self._images = out, name, images
        self._how, self._bounds, self._opened = how, bounds, streams
        self._pools: dict[str, tuple[TextIO, dict[str, Modality]]] = {}
        self._queries: dict[tuple[str, str], dict[str, tuple[Item, SourceEntry]]] = {}
        self._pictures: dict[tuple[str, str], str | None] = {}

    def add(self, entry: SourceEntry | LeftOut) -> None:
        """Write a candidate, or keep a query until all candidates are known."""
        if isinstance(entry, LeftOut):
            self.done.leave(*entry)
            return
        pool = slug(entry.pool) if entry.pool else self._name
        image = self._image(entry, pool)
        text = entry.text.strip() if entry.text else None
        kind = "queries" if entry.side == "query" else "candidates"
        if not entry.id:
            self.done.leave(f"{kind} without an id", entry.text or "a picture")
        elif entry.side == "query" and image is None and entry.image is not None:
            self.done.leave("queries whose picture is left out", entry.id)
        elif text is None and image is None and entry.image is not None:
            self.done.leave("candidates whose only content is a picture left out", entry.id)
        elif text is None and image is None:
            self.done.leave(f"{kind} with neither text nor picture", entry.id)
        else:
            modality: Modality = (
                "text" if image is None else "image,text" if text is not None else "image"
            )
            source = entry.source
            if source is not None and not isinstance(source, str):
                source = json.dumps(source, default=str)
            item = Item(plain_id(entry.id), text, one_picture(image), modality, source)
            known = self._query(item, entry, pool) if entry.side == "query" else (
                self._candidate(item, pool, bool(entry.image) and image is None)
            )  # fmt: skip
            if known:
                self.done.leave(f"{kind} whose id stood there before", entry.id)

    def _candidate(self, item: Item, pool: str, bare: bool) -> bool:
        if pool not in self._pools:
            path = self._out / "cand_pool" / "local" / f"mbeir_{pool}_cand_pool.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path.open("x", encoding="utf-8", newline="\n")
            self._pools[pool] = self._opened.enter_context(made), {}
        stream, known = self._pools[pool]
        if item.id in known:
            return True
        known[item.id] = item.modality
        stream.write(json.dumps(item_record(item), ensure_ascii=False) + "\n")
        self.done.kept["candidates"] += 1
        self.done.kept["candidates of them, by their text alone: the picture is left out"] += bare
        return False

    def _query(self, item: Item, entry: SourceEntry, pool: str) -> bool:
        if entry.split not in _SPLITS:
            raise DataError(f"no split {entry.split!r}; there are {', '.join(_SPLITS)}")
        queries = self._queries.setdefault((pool, entry.split), {})
        return queries.setdefault(item.id, (item, entry))[1] is not entry

    def _image(self, entry: SourceEntry, pool: str) -> str | None:
        """The one picture of an entry, in the root; None where there is none to be shown."""
        if entry.image is None:
            return None
        try:
            shown = frames(self._images, entry.image) if isinstance(entry.image, str) else ()
        except ImageError as error:
            self.done.leave(f"pictures: {error.reason}", str(error))
            return None
        given: list[str | bytes] = [*(shown or (entry.image,)), *entry.more]
        parts = given if self._bounds.several == "beside" else given[:1]
        if further := len(given) - len(parts):
            self.done.leave("further pictures of an entry", entry.id, further)
        paths = [self._picture(part, pool) for part in parts]
        if None in paths or (len(paths) == 1 and entry.box is None):
            return paths[0] if None not in paths else None
        name = f"mbeir_images/{pool}_images/made/{digest([paths, entry.box])[:24]}.png"
        if not (self._out / name).exists():
            (self._out / name).parent.mkdir(exist_ok=True)
            opened = [open_image(self._out, str(path), self._bounds.max_pixels) for path in paths]
            (beside(opened) if entry.box is None else cut(opened[0], entry.box)).save(
                self._out / name
            )
        return name

    def _picture(self, image: str | bytes, pool: str) -> str | None:
        """Put a picture into the root, once; its path there, or None where it is left out."""
        if self._how == "files" and isinstance(image, str) and tar_part(image):
            image = read_picture(self._images, image)
        if isinstance(image, bytes):
            name = hashlib.sha256(image).hexdigest()[:24] + _ENDINGS.get(image[:2], "")
        else:
            image = str(image)  # cells hold numbers, too
            name = normpath(image)
        if (pool, name) not in self._pictures:
            self._pictures[pool, name] = self._checked(image, name, pool)
        return self._pictures[pool, name]

    def _checked(self, image: str | bytes, name: str, pool: str) -> str | None:
        try:
            source = None if isinstance(image, bytes) else self._found(image)
            part = None if isinstance(image, bytes) else tar_part(image)
            size = part.size if part else len(image) if source is None else source.stat().st_size
            if size > self._bounds.max_bytes:
                raise ImageError(f"has {size:,} bytes", name, "too-large")
            name = name if source is None or Path(name).suffix else name + source.suffix
            inner = f"mbeir_images/{pool}_images/{name}"
            target = self._out / holder(inner)
            if part is None or not target.exists():
                self._put(image if source is None else source, target)
            try:
                open_image(self._out, inner, self._bounds.max_pixels)
            except ImageError:
                if part is None:
                    target.unlink()
                raise
        except (ImageError, OSError) as error:
            self.done.leave(f"pictures: {getattr(error, 'reason', 'unreadable')}", str(error))
            return None
        self.done.kept["pictures"] += 1
        return inner

    def _put(self, source: str | bytes | Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        elif self._how == "copy" or not linked(Path(source), target):
            shutil.copyfile(source, target)

    def _found(self, path: str) -> Path:
        """The file of a picture; where a set names it without its ending, any that fits."""
        if not path.lower().endswith(PICTURES):
            for ending in PICTURES:
                try:
                    return resolve(self._images, path + ending)
                except ImageError:  # noqa: PERF203
                    continue
        return resolve(self._images, path)

    def finish(self, instruction: str | None) -> None:
        """Write queries, judgements, and lists of excluded and of own candidates."""
        if not self._pools:
            raise DataError(f"no candidate is left of all that was read:\n{self.done}")
        for folder in ("excluded", "subsets"):
            for split in _SPLITS:
                kept = {
                    qid: [plain_id(did) for did in listed]
                    for (_, of), queries in self._queries.items() if of == split
                    for qid, (_, entry) in queries.items()
                    if (listed := entry.excluded if folder == "excluded" else entry.subset)
                }  # fmt: skip
                if kept:
                    write_json(self._out / folder / f"{split}.json", kept)
        for (pool, split), queries in self._queries.items():
            self._write_queries(pool, split, queries.values())
        if instruction:
            pairs = TASKS.values()
            rows = [InstructionRow(q, c, "all", "*", (instruction,)) for q, c in pairs]
            write_instructions(self._out / INSTRUCTIONS, rows)

    def _write_queries(
        self, pool: str, split: str, queries: Iterable[tuple[Item, SourceEntry]]
    ) -> None:
        known = self._pools[pool][1] if pool in self._pools else {}
        usual = Counter(known.values()).most_common(1)
        files: dict[int | None, tuple[list[Query], list[Qrel]]] = {}
        for item, entry in queries:
            grades = {plain_id(did): grade for did, grade in entry.grades.items()}
            held = {did: grade for did, grade in grades.items() if did in known}
            if len(held) < len(grades):
                self.done.leave("judgements of candidates that are not there", item.id,
                                len(grades) - len(held))  # fmt: skip
            positives = tuple(did for did, grade in held.items() if grade > 0)
            if not positives:
                self.done.kept["queries without a relevant candidate (searched, not scored)"] += 1
            wanted = known[positives[0]] if positives else usual[0][0] if usual else None
            task = derive_task(item.modality, wanted)
            written, judged = files.setdefault(task if split != "train" else None, ([], []))
            negatives = tuple(did for did, grade in held.items() if split == "train" and not grade)
            written.append(Query(item, task, positives, negatives))
            judged += [Qrel(item.id, did, grade, task) for did, grade in held.items()]
            self.done.kept["queries"] += 1
            self.done.kept["judgements"] += len(held)
        for task, (written, judged) in files.items():
            stem = f"mbeir_{pool}{'' if task is None else f'_task{task}'}_{split}"
            write_queries(self._out / "query" / split / f"{stem}.jsonl", written)
            write_qrels(self._out / "qrels" / split / f"{stem}_qrels.txt", judged)


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, from left to right, as high as the highest."""
    height, widths = max(one.height for one in pictures), [one.width for one in pictures]
    made = Image.new("RGB", (sum(widths), height))
    for picture, left in zip(pictures, accumulate(widths, initial=0), strict=False):
        made.paste(picture, (left, 0))
    return made


def cut(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """What of a box lies in a picture, in the middle of a black square."""
    right, bottom = min(picture.width, box[2]), min(picture.height, box[3])
    part = picture.crop((round(box[0]), round(box[1]), round(right), round(bottom)))
    return ImageOps.pad(part, (max(part.size), max(part.size)))


def plain_id(id: str) -> str:  # noqa: A002 - the word of the format
    """An id without blanks, which are written as in addresses (``%20``)."""
    return _BLANK.sub(lambda blank: f"%{ord(blank[0]):02X}", id)


def linked(source: Path, target: Path) -> bool:
    """Hard-link where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
