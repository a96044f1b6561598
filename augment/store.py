"""The store of generated text: append-only, content-addressed, many writers, no server.

::

    STORE/wal/<host>-<pid>-<random>.jsonl   one file per writer, never appended to by another
    STORE/recipes/<side>-<id>.json          every recipe that ever ran here
    STORE/recipe-<side>.json                the recipe that ran last (what ``recipe=None`` means)

A line is one of three records: ``text`` (an :class:`Enrichment`, once per key), ``link`` (this item
uses this key under this recipe) and ``fail`` (this item failed, and why; tried again next time).
Each line is flushed at once, so that a killed process loses nothing it wrote, and synced to the
disk at most every :data:`SYNC_SECONDS`, so that a power cut loses no more than that. A line torn by
a crash is the last of its file; every writer starts its own file, so nothing is ever glued to it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, final

from augment.errors import StoreError
from augment.keys import Recipe
from augment.records import Enrichment, Sampling, Side

#: A power cut loses at most this much finished work, in seconds. A killed process loses none.
SYNC_SECONDS = 1.0

_LOG = logging.getLogger(__name__)


class Failure(NamedTuple):
    """An item that got no text; ``reason`` starts with a short class, then ``:`` and details."""

    item_id: str
    image: str | None
    reason: str


class _Stamped(NamedTuple):
    at: int
    value: Any


@final
class Store:
    """Generated texts of one folder, read whole on opening.

    The folder is created by the first write. Texts of a key that two writers generated at the same
    time are settled the same way by every reader: the earlier one counts.

    Args:
        folder: where the store lives.
        sync_seconds: see :data:`SYNC_SECONDS`.

    Attributes:
        damaged: ``file:line`` of lines in the middle of a file that cannot be read. Their texts
            count as absent and are generated again.

    Raises:
        StoreError: if the folder is there and cannot be read.
    """

    def __init__(self, folder: Path, sync_seconds: float = SYNC_SECONDS) -> None:
        self.folder = Path(folder)
        self.damaged: list[str] = []
        self._texts: dict[str, _Stamped] = {}
        self._links: dict[str, dict[str, _Stamped]] = {}
        self._failures: dict[str, dict[str, _Stamped]] = {}
        self._file: BinaryIO | None = None
        self._sync_seconds = sync_seconds
        self._synced = 0.0
        try:
            for path in sorted(self.folder.glob("wal/*.jsonl")):
                self._read(path)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot read the store: {error}") from error
        for where in self.damaged:
            _LOG.warning("%s: unreadable record; its text will be generated again", where)

    # Reading

    def _read(self, path: Path) -> None:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                # Without a newline it is the torn end of a writer that was killed.
                if not self._take_line(line) and line.endswith(b"\n"):
                    self.damaged.append(f"{path}:{number}")

    def _take_line(self, line: bytes) -> bool:
        try:
            self._take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def _take(self, record: Mapping[str, Any]) -> None:
        kind, at = record["kind"], int(record["at"])
        if kind == "text":
            text = _enrichment(record["text"])
            known = self._texts.get(text.key)
            if known is None or at < known.at:
                self._texts[text.key] = _Stamped(at, text)
            return
        group = self._links if kind == "link" else self._failures
        value = (
            str(record["key"])
            if kind == "link"
            else Failure(record["item"], record["image"], record["reason"])
        )
        items = group.setdefault(record["recipe"], {})
        known = items.get(record["item"])
        if known is None or at >= known.at:
            items[record["item"]] = _Stamped(at, value)

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Enrichment]:
        return (stamped.value for stamped in self._texts.values())

    def get(self, key: str) -> Enrichment | None:
        """The text of a key, or None."""
        stamped = self._texts.get(key)
        return stamped.value if stamped else None

    def key_of(self, recipe: str, item_id: str) -> str | None:
        """The key that an item uses under a recipe, or None."""
        stamped = self._links.get(recipe, {}).get(item_id)
        return stamped.value if stamped else None

    def texts(self, side: Side, recipe: str | None = None) -> Mapping[str, Enrichment]:
        """Item id -> generated text under a recipe; None is the recipe that ran last.

        Raises:
            StoreError: if no such recipe ran here for this side.
        """
        links = self._links.get(self.recipe(side, recipe).id, {})
        found = ((item, self.get(stamped.value)) for item, stamped in links.items())
        return {item: text for item, text in found if text is not None}

    def failures(self, side: Side, recipe: str | None = None) -> Mapping[str, Failure]:
        """Item id -> why it has no text, for items that failed and have not been mended since.

        Raises:
            StoreError: if no such recipe ran here for this side.
        """
        name = self.recipe(side, recipe).id
        links = self._links.get(name, {})
        return {
            item: stamped.value
            for item, stamped in self._failures.get(name, {}).items()
            if item not in links or links[item].at < stamped.at
        }

    def recipe(self, side: Side, recipe: str | None = None) -> Recipe:
        """A recipe that ran here, by id; None is the one that ran last.

        Raises:
            StoreError: if there is none, with the ids that there are.
        """
        name = f"recipe-{side}.json" if recipe is None else f"recipes/{side}-{recipe}.json"
        path = self.folder / name
        try:
            return Recipe.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            known = sorted(p.stem.partition("-")[2] for p in self.folder.glob(f"recipes/{side}-*"))
            program = "corpus" if side == "corpus" else "queries"
            raise StoreError(
                f"{self.folder}: no {side} recipe {recipe or ''} in this store"
                f" (known: {', '.join(known) or 'none'}); make one with"
                f" python -m augment.{program} --store {self.folder}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: cannot read the recipe: {error}") from error

    # Writing

    def append(self, text: Enrichment) -> None:
        """Save a text. A key that is known already keeps its text, and nothing is written.

        Raises:
            StoreError: if it cannot be written.
        """
        if text.key in self._texts:
            return
        self._write({"kind": "text", "text": asdict(text)})

    def link(self, recipe: str, item_id: str, key: str, route: str = "") -> None:
        """Save that an item uses a key under a recipe; nothing is written if it is known.

        Args:
            recipe: id of the recipe.
            item_id: the item.
            key: key of its text.
            route: how its prompt was chosen, for people.
        """
        if self.key_of(recipe, item_id) != key:
            self._write(
                {"kind": "link", "recipe": recipe, "item": item_id, "key": key, "route": route}
            )

    def fail(self, recipe: str, failure: Failure) -> None:
        """Save that an item failed under a recipe, and why."""
        item, image, reason = failure
        record = {"kind": "fail", "recipe": recipe, "item": item, "image": image}
        self._write({**record, "reason": reason})

    def save_recipe(self, recipe: Recipe) -> None:
        """Make this the recipe that ran last on its side.

        Raises:
            StoreError: if it cannot be written.
        """
        text = json.dumps(recipe.to_json(), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        try:
            (self.folder / "recipes").mkdir(parents=True, exist_ok=True)
            for name in (f"recipes/{recipe.side}-{recipe.id}.json", f"recipe-{recipe.side}.json"):
                _replace(self.folder / name, text)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot write the recipe: {error}") from error

    def _write(self, record: dict[str, Any]) -> None:
        record["at"] = time.time_ns()
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )
        try:
            file = self._file or self._open()
            file.write(line + b"\n")
            file.flush()
            if time.monotonic() - self._synced > self._sync_seconds:
                self._sync(file)
        except OSError as error:
            # The line may be torn: what follows must not be glued to it.
            self._abandon()
            raise StoreError(
                f"{self.folder}: cannot write the store: {error}; everything before is saved,"
                " run the same command again when this is mended"
            ) from error
        self._take(record)

    def _open(self) -> BinaryIO:
        folder = self.folder / "wal"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._file = (folder / name).open("xb")
        self._synced = time.monotonic()
        return self._file

    def _sync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                _LOG.debug("closing a broken file failed", exc_info=True)

    def close(self) -> None:
        """Sync and close. The store may be read on, and a further write opens a new file."""
        if self._file is not None:
            self._file.flush()
            self._sync(self._file)
            self._file.close()
            self._file = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _enrichment(record: Mapping[str, Any]) -> Enrichment:
    return Enrichment(**{**record, "sampling": Sampling(**record["sampling"])})


def _replace(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
