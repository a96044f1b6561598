"""Recipes and runs of a store, and which recipe is meant when none is named.

::

    STORE/recipes/<side>-<id>.json   every recipe that was ever started here
    STORE/runs/<time>-<random>.json  every run: when, how much of its input, what became of it
    STORE/chosen-<side>.json         the recipe that somebody chose

The recipe that merely ran last is never taken: a trial on a few items would silently replace days
of work. Without a choice it is the only recipe, or else the only one that was run to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from augment.errors import StoreError, StoreWriteError
from augment.files import digest, write_json
from augment.records import Side
from augment.store import log
from augment.store.keys import Recipe

SIDES: tuple[Side, ...] = ("corpus", "query")


#: Names of runs; one that is being written, or was by a writer that was killed, begins with a dot.
WHOLE = "[!.]*.json"

#: Version of the layout.
FORMAT = 4


def make_folder(folder: Path) -> None:
    """Make the folder of a store, with the version of its layout."""
    if not (folder / "store.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "store.json", {"format": FORMAT})


def check_folder(folder: Path, needed: bool = False) -> None:
    """Look whether a folder can be read as a store.

    Raises:
        StoreError: if it is one of another version, or its ``store.json`` cannot be read; or if it
            is ``needed`` and there is none.
    """
    try:
        found = json.loads((folder / "store.json").read_text(encoding="utf-8"))["format"]
    except FileNotFoundError:
        if needed:
            raise StoreError(f"{folder}: no store here") from None
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder}/store.json: cannot be read: {error}") from error
    if found != FORMAT:
        raise StoreError(
            f"{folder}: a store of format {found}, this version reads {FORMAT}; make the texts"
            " anew in another folder"
        )


@final
@dataclass(frozen=True)
class Scope:
    """How much of its input a run was asked to take.

    Attributes:
        limit: only the first N items; None takes all.
        shard: ``i/n``, counted from 0; empty takes all.
        retry: reasons of the failures and refusals that were tried again; empty otherwise.
        root: the data.
        checks: what was refused; see :func:`augment.checks.checks_of`.
    """

    limit: int | None = None
    shard: str = ""
    retry: tuple[str, ...] = ()
    root: str = ""
    checks: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class RunRecord:
    """One run, as ``runs/*.json`` has it.

    Attributes:
        id: name of its file.
        side: query or corpus.
        recipe: id of its recipe.
        scope: how much was asked for.
        started: seconds since 1970.
        ended: seconds since 1970; None while it runs, and for ever if it was killed.
        counts: what became of the items; see :class:`augment.enrichment.account.Summary`.
        host: where it ran.
        pid: its process there.
    """

    id: str
    side: Side
    recipe: str
    scope: Scope
    started: float
    ended: float | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    pid: int = 0

    @property
    def alive(self) -> bool:
        """Whether it runs now, on this machine."""
        if self.ended is not None or self.host != log.host():
            return False
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True

    @property
    def complete(self) -> bool:
        """Whether it came to the end of all the input of its shard."""
        whole = self.scope.limit is None and not self.scope.retry
        return self.ended is not None and whole and not self.counts.get("incomplete")


@final
@dataclass(frozen=True)
class Prices:
    """Prices in any one currency; None where unknown. None are built in, because they change.

    Attributes:
        read: of a million tokens read.
        written: of a million tokens written.
        gpu_hour: of one device for one hour.
    """

    read: float | None = None
    written: float | None = None
    gpu_hour: float | None = None

    def tokens(self, read: float, written: float) -> float | None:
        """Price of tokens; None if no price of tokens is known."""
        if self.read is None and self.written is None:
            return None
        return (read * (self.read or 0.0) + written * (self.written or 0.0)) / 1e6

    def hours(self, gpu_hours: float) -> float | None:
        """Price of GPU-hours; None if it is unknown."""
        return None if self.gpu_hour is None else gpu_hours * self.gpu_hour


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of the system within are those of a store that cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(
            f"{folder}: cannot write the store: {error}; everything before is saved,"
            " run the same command again when this is mended"
        ) from error


def save_run(folder: Path, run: RunRecord) -> None:
    """Write a run, in place of what was there of it."""
    with writing(folder):
        write_json(folder / "runs" / f"{run.id}.json", _checked(asdict(run)))


def _checked(value: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be saved, with a checksum."""
    return {**value, "sum": digest(value)[:16]}


def _read_checked(path: Path) -> dict[str, Any]:
    """What :func:`_checked` made."""
    value = json.loads(path.read_text(encoding="utf-8"))
    found = value.pop("sum")
    if found != digest(value)[:16]:
        raise ValueError("it does not fit its checksum")
    return dict(value)


def load_runs(folder: Path) -> list[RunRecord]:
    """All runs of a store, the earliest first."""
    found = [load_run(path) for path in (folder / "runs").glob(WHOLE)]
    # By time, not by name: a name is exact to the second only.
    return sorted(found, key=lambda run: (run.started, run.id))


def load_run(path: Path) -> RunRecord:
    """One run.

    Raises:
        StoreError: if it cannot be read.
    """
    try:
        value = _read_checked(path)
        scope = value.pop("scope")
        return RunRecord(**value, scope=Scope(**{**scope, "retry": tuple(scope["retry"])}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: cannot read the run: {error}; delete the file") from error


def load_recipe(folder: Path, side: Side, name: str) -> Recipe:
    """A recipe by its id.

    Raises:
        StoreError: if there is none, or it was edited.
    """
    path = folder / "recipes" / f"{side}-{name}.json"
    try:
        return Recipe.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(recipe_ids(folder, side)) or "none"
        program = "corpus" if side == "corpus" else "queries"
        wanted = f"{side} recipe {name}".rstrip()
        raise StoreError(
            f"{folder}: no {wanted} in this store (known: {known}); make one with"
            f" python -m augment.{program} --store {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: cannot read the recipe: {error}") from error


def recipe_ids(folder: Path, side: Side) -> list[str]:
    """Ids of all recipes of one side."""
    return sorted(path.stem.partition("-")[2] for path in folder.glob(f"recipes/{side}-*.json"))


def complete_recipes(folder: Path, side: Side) -> set[str]:
    """Ids of the recipes that were run to the end of their input, if need be in shards."""
    done: dict[str, set[str]] = {}
    for run in load_runs(folder):
        if run.side == side and run.complete:
            done.setdefault(run.recipe, set()).add(run.scope.shard)
    return {name for name, shards in done.items() if _all_shards(shards)}


def checks_in_force(folder: Path, side: Side, recipe: str) -> list[Mapping[str, Any]]:
    """What texts of a recipe may have been judged under, each once; see :attr:`Scope.checks`.

    A run judges what it takes, also texts that were there before: so these are the checks of the
    latest run to the end of its input (if need be in shards), and of the runs since.
    """
    found: list[Mapping[str, Any]] = []
    done: set[str] = set()
    for run in reversed(list(load_runs(folder))):
        if (run.side, run.recipe) != (side, recipe):
            continue
        if run.scope.checks not in found:
            found.append(run.scope.checks)
        if run.complete:
            done.add(run.scope.shard)
        if done and _all_shards(done):
            break
    return found


def _all_shards(shards: set[str]) -> bool:
    numbers = {shard.partition("/")[2] for shard in shards if shard}
    return "" in shards or any(
        all(f"{part}/{number}" in shards for part in range(int(number))) for number in numbers
    )


def choose(folder: Path, name: str) -> None:
    """Make a recipe the one that is meant, and that views show, when none is named.

    Raises:
        StoreError: if there is no such recipe, or the choice cannot be written.
    """
    known = {one: side for side in SIDES for one in recipe_ids(folder, side)}
    if name not in known:
        raise StoreError(f"{folder}: no recipe {name}; there are {', '.join(known) or 'none'}")
    load_recipe(folder, known[name], name)
    value = _checked({"recipe": name})
    write_json(folder / f"chosen-{known[name]}.json", value, StoreWriteError)


def chosen(folder: Path, side: Side) -> str | None:
    """The recipe that somebody chose, or None."""
    path = folder / f"chosen-{side}.json"
    if not path.exists():
        return None
    try:
        return str(_read_checked(path)["recipe"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: is damaged ({error}); delete it and choose again") from error


def meant(folder: Path, side: Side) -> str:
    """The recipe that is meant when none is named; see the module.

    Raises:
        StoreError: if there is none, or several that could be meant; lists them.
    """
    ids = recipe_ids(folder, side)
    found = chosen(folder, side)
    if found is None and len(ids) == 1:
        found = ids[0]
    if found is not None:
        return found
    if not ids:
        load_recipe(folder, side, "")
    complete = complete_recipes(folder, side)
    if len(complete) == 1:
        return complete.pop()
    listing = "".join(f"\n  {_line(folder, side, name, name in complete)}" for name in ids)
    raise StoreError(
        f"{folder}: {len(ids)} {side} recipes, and it is not clear which is meant; name one, or"
        f" choose one for good with python -m augment status --store {folder} --choose ID:{listing}"
    )


def _line(folder: Path, side: Side, name: str, complete: bool) -> str:
    recipe = load_recipe(folder, side, name)
    prompts = ", ".join(recipe.prompts.values())
    state = "complete" if complete else "not run to the end of its input"
    return f"{name}  {recipe.model}  {prompts}  {state}"
