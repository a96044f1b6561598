"""``python -m augment export``: write a view as a plain M-BEIR root that other tools read.

Queries and pools get the text of their view; qrels and instructions are copied as they are;
pictures are linked or copied. A dataset card, ``README.md``, says what was generated and how.

``modality`` stays as published, whatever text an entry gains: UniIR
keys its instructions on it and reads ``txt`` in any case. Keys that M-BEIR does not define are not
carried over.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, final

from jsonargparse import ArgumentParser

from augment.checks.lengths import LENGTHS, Length
from augment.data import DataRoot, read_candidates, read_queries, write_candidates, write_queries
from augment.data.images import resolve
from augment.enrichment import pipeline as cli
from augment.enrichment.card import Shown, dataset_card
from augment.errors import DataError, ImageError
from augment.records import Item, Side
from augment.views import VIEWS, TextView, open_view

Images = Literal["link", "copy", "symlink", "none"]


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
    if out.exists():
        raise DataError("exists; remove it or name another --out", str(out))
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        done = _Export(data.path, partial, images).write(corpus, queries, out.name)
        partial.rename(out)
    except OSError as error:
        raise DataError(f"cannot be written: {error}", str(out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


@final
class _Export:
    def __init__(self, root: Path, out: Path, images: Images) -> None:
        self._root = root
        self._out = out
        self._images = images
        self._taken: set[str] = set()
        self._done = Exported(0, 0, 0, Counter())

    def write(self, corpus: TextView, queries: TextView, name: str) -> Exported:
        sides: dict[Side, Shown] = {
            "query": Shown(queries.view, queries.recipe),
            "corpus": Shown(corpus.view, corpus.recipe),
        }
        for source, target in self._files("cand_pool", ".jsonl"):
            write_candidates(target, self._seen(read_candidates(source), corpus, sides["corpus"]))
        for source, target in self._files("query", ".jsonl"):
            found = list(read_queries(source))
            items = self._seen((query.item for query in found), queries, sides["query"])
            pairs = zip(found, items, strict=True)
            write_queries(target, (replace(query, item=item) for query, item in pairs))
        for folder, suffix in (("qrels", ".txt"), ("instructions", ".tsv")):
            for source, target in self._files(folder, suffix):
                shutil.copyfile(source, target)
        for source in sorted(self._root.glob("LICEN[CS]E*")):
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, self._out / source.name, symlinks=True)
            elif source.is_file() and not source.is_symlink():
                shutil.copyfile(source, self._out / source.name)
        (self._out / "README.md").write_text(dataset_card(name, sides), encoding="utf-8")
        return self._done

    def _files(self, folder: str, suffix: str) -> Iterator[tuple[Path, Path]]:
        for source in sorted((self._root / folder).rglob(f"*{suffix}")):
            inside = source.relative_to(self._root)
            if source.is_file() and not any(part.startswith(".") for part in inside.parts):
                target = self._out / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                yield source, target

    def _seen(self, items: Iterable[Item], view: TextView, shown: Shown) -> Iterator[Item]:
        for item in items:
            text = view.text(item)
            self._done.items += 1
            self._done.changed += text != item.text
            shown.add(item, text, view.enrichment(item.id))
            for image in set(item.images) - self._taken:
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
        target = self._out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._images == "symlink":
            target.symlink_to(source)
        elif self._images == "copy" or not _linked(source, target):
            shutil.copyfile(source, target)
        self._done.images += 1


def _linked(source: Path, target: Path) -> bool:
    """Hard-link where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def command(arguments: Sequence[str] | None) -> int:
    """Parse, export, print; the exit code."""
    parser = ArgumentParser(
        prog="python -m augment export",
        description="Write views of both sides as a plain M-BEIR root that other tools read.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    for name, text in (("root", "Folder in M-BEIR's layout."), ("out", "Folder to make.")):
        parser.add_argument(f"--{name}", type=str, required=True, metavar="DIR", help=text)
    parser.add_argument("--store", type=str, default=None, metavar="DIR", help="Generated texts.")
    for side, default in (("corpus", "append"), ("query", "replace")):
        parser.add_argument(
            f"--{side}-view", choices=VIEWS, default=default, help=f"What the {side} shows."
        )
        parser.add_argument(
            f"--{side}-recipe",
            type=str,
            default=None,
            metavar="ID",
            help="Default: the only complete one.",
        )
        parser.add_argument(
            f"--{side}-length", choices=LENGTHS, default="dense", help="Of the generated text."
        )
    parser.add_argument(
        "--images",
        choices=("link", "copy", "symlink", "none"),
        default="link",
        help="Hard links (or copies on another disk), copies, symbolic links, or none.",
    )
    given = parser.parse_args(arguments)
    store = Path(given.store) if given.store else None
    done = export(
        Path(given.root),
        Path(given.out),
        open_view(
            "corpus",
            given.corpus_view,
            store,
            given.corpus_recipe,
            cast("Length", given.corpus_length),
        ),
        open_view(
            "query",
            given.query_view,
            store,
            given.query_recipe,
            cast("Length", given.query_length),
        ),
        given.images,
    )
    sys.stdout.write(f"{done}\n")
    return 0


if __name__ == "__main__":
    cli.main(command)
