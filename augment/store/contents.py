"""What a store holds, as it was found and as it grows: records by kind, deaths, mended texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from augment.errors import StoreError
from augment.store import wal
from augment.store.evidence import Death
from augment.store.links import Mended
from augment.store.rows import Rows
from augment.store.segments import FOLDERS, KINDS, Kind

#: Version of the layout.
FORMAT = 2


@final
class Contents:
    """The records of a store's folder.

    Args:
        folder: where the store lives; need not exist.

    Attributes:
        damaged: ``file:line`` of lines in the middle of a log that cannot be read.
        deaths: of writers, by the names of their logs.

    Raises:
        StoreError: if the folder is there and cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self.deaths: dict[str, Death] = {}
        self._rows: dict[tuple[Kind, str], Rows] = {}
        self._better: dict[str, Mended] | None = None
        try:
            self._check_format()
            # Logs before segments: what is sealed in between is then seen twice, never missed.
            logs = [self.read(path) for path in sorted(self.folder.glob("wal/*.jsonl"))]
            for records in logs:
                for record in records:
                    self.take(record)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot read the store: {error}") from error

    def _check_format(self) -> None:
        try:
            found = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))["format"]
        except FileNotFoundError:
            older = any(self.folder.glob("recipe-*.json"))
            found = 1 if older else FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder}/store.json: cannot be read: {error}") from error
        if found != FORMAT:
            raise StoreError(
                f"{self.folder}: a store of format {found}, this version reads {FORMAT}; make the"
                " texts anew in another folder"
            )

    def read(self, path: Path, note: bool = True) -> list[dict[str, Any]]:
        """The records of a log; none if it was sealed in the meantime."""
        records = []
        try:
            with path.open("rb") as file:
                for line in wal.read(file):
                    if line.record is not None:
                        records.append(line.record)
                    elif not line.torn and note:
                        self.damaged.append(f"{path}:{line.number}")
        except FileNotFoundError:
            return []
        return records

    def rows(self, kind: Kind, recipe: str = "") -> Rows:
        """All records of a kind; links and failures by recipe.

        Raises:
            OSError: if the store cannot be read.
        """
        found = self._rows.get((kind, recipe))
        if found is None:
            segments = sorted((self.folder / FOLDERS[kind] / recipe).glob("*.parquet"))
            found = Rows(kind, segments, self.folder / "cache")
            self._rows[kind, recipe] = found
        return found

    def take(self, record: dict[str, Any]) -> None:
        """Take up a record of a log."""
        kind = record.pop("kind")
        if kind in KINDS:
            self.rows(kind, record.pop("recipe", "")).put(record)
            if kind == "text" and self._better is not None:
                self._note_retry(record)
        elif kind == "died":
            source = record["source"]
            self.deaths[source] = Death(
                source, frozenset(record["keys"]), record["seen"], record["at"]
            )

    def mended(self, key: str) -> Mended | None:
        """The earliest accepted text that a retry made in the place of this key's, or None."""
        if self._better is None:
            self._better = {}
            for record in self.rows("text").where("retry_of", "at", "key", "rejected"):
                self._note_retry(record)
        return self._better.get(key)

    def _note_retry(self, record: Mapping[str, Any]) -> None:
        base = record.get("retry_of")
        if base and not record["rejected"] and self._better is not None:
            mended = Mended(record["at"], record["key"])
            self._better[base] = min(self._better.get(base, mended), mended)
