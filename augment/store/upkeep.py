"""What is done with whole stores: what they hold, whether they are sound, joined, compared."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augment.errors import StoreError, printable
from augment.records import Enrichment, Side
from augment.store import runs
from augment.store.keys import Recipe
from augment.store.runs import SIDES, RunRecord
from augment.store.schema import (
    FOLDERS,
    SCHEMAS,
    Kind,
    Link,
    code,
    enrichment,
    name_of,
    reason_class,
)
from augment.store.segments import REMEDY, numbers, opened, sound
from augment.store.store import Store

_REMEDIES: Mapping[str, str] = {
    "damaged segment": "restore it from a copy, or delete it: its texts are generated again",
    "damaged line": "its text is generated again by the next run",
    "damaged scores": "delete the file; python -m augment scores makes it again",
    "wrong code": "the segment was written by something else; delete it",
    "malformed text": "the segment was written by something else; delete it",
    "link without a text": "the next run of its recipe generates the text",
    "recipe": "restore the file from a copy; it must not be edited",
    "choice": "delete the file and choose again",
    "run": "delete the file, or restore it from a copy",
}

#: Problems of a store that may be merged all the same: nothing wrong is taken over.
_HARMLESS = {"link without a text", "damaged line", "damaged scores"}


def duration(seconds: float) -> str:
    """``3 s``, ``2 min 05 s`` or ``1 h 07 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listing(counts: Mapping[str, int], before: str = "", after: str = "") -> str:
    """``3 missing, 1 corrupt``, the most frequent first; empty where nothing was counted."""
    named = ", ".join(f"{n:,} {name}" for name, n in Counter(counts).most_common())
    return f"{before}{named}{after}" if named else ""


# What a store holds


@final
@dataclass(frozen=True)
class RecipeStatus:
    """What a store holds under one recipe.

    Attributes:
        side: query or corpus.
        recipe: its id.
        model: its model.
        prompts: ``name@hash`` of each.
        complete: whether it was run to the end of its input.
        items: items (or pairs) with a text.
        refused: class of reason -> items whose text is refused.
        failed: class of reason -> items without a text.
        runs: what is known of each, the earliest first.
    """

    side: Side
    recipe: str
    model: str
    prompts: Sequence[str]
    complete: bool
    items: int
    refused: Mapping[str, int]
    failed: Mapping[str, int]
    runs: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        state = "complete" if self.complete else "not run to the end of its input"
        rows = [
            f"{self.side} recipe {self.recipe}: {state}",
            f"  {self.model}, {', '.join(self.prompts)}",
            f"  {self.items:>9,} items with a text{listing(self.refused, ' (refused: ', ')')}",
        ]
        if self.failed:
            rows.append(
                f"  {sum(self.failed.values()):>9,} failed{listing(self.failed, ' (', ')')}"
            )
        return "\n".join([*rows, *(f"  run {_run_line(run)}" for run in self.runs[-5:])])


def status(store: Store) -> list[RecipeStatus]:
    """What a store holds, recipe by recipe.

    Raises:
        StoreError: if the store cannot be read.
    """
    refused = store.rows("text").where("rejected", "key")
    reasons = {row["key"]: reason_class(row["rejected"]) for row in refused}
    ran = runs.load_runs(store.folder)
    return [
        RecipeStatus(
            side,
            recipe.id,
            recipe.model,
            list(recipe.prompts.values()),
            recipe.id in runs.complete_recipes(store.folder, side),
            len(store.rows("link", recipe.id)),
            dict(_refused(store, recipe.id, reasons)),
            dict(Counter(reason_class(one.reason) for one in failures.values())),
            [_run(run) for run in ran if run.recipe == recipe.id],
        )
        for side in SIDES
        for recipe in store.recipes(side)
        for failures in [store.failures(side, recipe.id)]
    ]


def _refused(store: Store, recipe: str, reasons: Mapping[str, str]) -> Counter[str]:
    """Class of reason -> items whose text is refused, by the link's verdict or else the text's."""
    found: Counter[str] = Counter()
    for row in store.rows("link", recipe).scan("key", "judged", "rejected", "at"):
        link = Link.of(row)
        judged = link.judged
        reason = reason_class(judged.rejected) if judged.mark else reasons.get(link.key, "")
        if reason:
            mended = store.mended(link.key)
            found[reason] += mended is None or link.judged_since(mended)
    return +found


def _run(run: RunRecord) -> dict[str, Any]:
    state = "complete" if run.complete else "ended"
    if run.ended is None:
        state = "running" if run.alive else "killed, or running on another machine"
    elif run.counts.get("incomplete"):
        state = "cut short"
    return {
        "state": state,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started)),
        "seconds": None if run.ended is None else round(run.ended - run.started, 1),
        "generated": run.counts.get("generated"),
        "limit": run.scope.limit,
        "shard": run.scope.shard,
        "retry": list(run.scope.retry),
        "host": run.host.partition("_")[0],
        "warnings": run.counts.get("drift", {}).get("warnings", []),
    }


def _run_line(run: Mapping[str, Any]) -> str:
    parts = [run["started"], run["state"]]
    parts += [duration(run["seconds"])] if run["seconds"] is not None else []
    parts += [f"{run['generated']:,} generated"] if run["generated"] is not None else []
    parts += [f"limit {run['limit']}"] if run["limit"] is not None else []
    parts += [f"shard {run['shard']}"] if run["shard"] else []
    parts += [f"retry of {', '.join(run['retry'])}"] if run["retry"] else []
    return "\n    warning: ".join([", ".join(parts), *run["warnings"]])


# Whether it is sound


@final
@dataclass
class Soundness:
    """What a check found.

    Attributes:
        texts: keys with a text.
        linked: recipe -> items with a text.
        copies: rows that repeat a key, of writers that worked on the same items or of a crash
            while sealing; harmless, one of them counts for every reader.
        problems: kind of problem -> where.
    """

    texts: int = 0
    linked: dict[str, int] = field(default_factory=dict)
    copies: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """3 if something is damaged, else 0."""
        return 3 if self.problems else 0

    def add(self, kind: str, where: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(where)

    def __str__(self) -> str:
        rows = [f"{self.texts:>9,} texts, {self.copies:,} harmless copies"]
        rows += [f"{number:>9,} items by {recipe}" for recipe, number in self.linked.items()]
        for kind, places in self.problems.items():
            rows.append(f"{len(places):>9,} {kind}: {_REMEDIES[kind]}")
            rows += [f"          {printable(place)}" for place in places[:10]]
        return "\n".join(rows if self.problems else [*rows, "all is well"])


def verify(store: Path) -> Soundness:
    """Check lines, segments, codes, texts, links, recipes and runs.

    Exit code 3 if something is damaged.

    Args:
        store: What to check.

    Raises:
        StoreError: if there is no store, or it cannot be read.
    """
    runs.check_folder(store, needed=True)
    found = Soundness()
    sound.cache_clear()  # what was looked at before may be damaged since
    _check_segments(store, found)
    for path in sorted(store.glob("scores/[!.]*.parquet")):
        with _noting(found, "damaged scores", str(path)):
            pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
    if set(found.problems) - _HARMLESS:
        return found  # what follows would read the damaged files
    read = Store(store)
    for where in read.damaged:
        found.add("damaged line", where)
    texts = read.rows("text")
    found.texts, found.copies = len(texts), texts.copies()
    for side, recipe in _sound_recipes(store, found):
        links = read.rows("link", recipe.id)
        found.linked[f"{side} recipe {recipe.id}"] = len(links)
        for link in links.scan("item", "key"):
            if link["key"] not in read:
                found.add("link without a text", f"{link['item']} under {recipe.id}")
    return found


def _sound_recipes(folder: Path, found: Soundness) -> Iterator[tuple[Side, Recipe]]:
    """The recipes that can be read; notes those that cannot, and such runs and choices."""
    for path in sorted((folder / "runs").glob(runs.WHOLE)):
        with _noting(found, "run"):
            runs.load_run(path)
    for side in SIDES:
        with _noting(found, "choice"):
            runs.chosen(folder, side)
        for name in runs.recipe_ids(folder, side):
            with _noting(found, "recipe"):
                yield side, runs.load_recipe(folder, side, name)


@contextlib.contextmanager
def _noting(found: Soundness, kind: str, where: str = "") -> Iterator[None]:
    try:
        yield
    except (StoreError, OSError, pa.ArrowException) as error:
        said = str(error).removesuffix(REMEDY)
        found.add(kind, f"{where}: {said}" if where else said)


def _check_segments(folder: Path, found: Soundness) -> None:
    """Compute checksums and codes again."""
    for kind in FOLDERS:
        for path in sorted((folder / FOLDERS[kind]).rglob("*.parquet")):
            with _noting(found, "damaged segment"):
                file = opened(path)
                same = file.schema_arrow.names == SCHEMAS[kind].names
                problems = (_rows_problem(kind, part) for part in file.iter_batches())
                problem = next(filter(None, problems), "") if same else "wrong code"
                if problem:
                    found.add(problem, str(path))


def _rows_problem(kind: Kind, part: Any) -> str:
    """What is wrong with some rows; empty if nothing is."""
    if kind == "picture":  # the names are not kept
        return ""
    rows = part.to_pylist()
    codes = b"".join(code(name_of(kind, row)) for row in rows)
    if codes != numbers(part.column("code"), np.uint64, 2).tobytes():
        return "wrong code"
    if kind == "text":
        try:
            for row in rows:
                enrichment(row)
        except (KeyError, TypeError, ValueError):
            return "malformed text"
    return ""


# Joined


def merge(into: Path, others: Sequence[Path]) -> Counter[str]:
    """Add what other stores hold: texts, links, failures, recipes and runs.

    Nothing of the others changes, and merging twice adds nothing. Of two texts of one key the
    earlier counts, of two links of one item the later, as everywhere.

    Returns:
        How many texts, links and failures were added.

    Raises:
        StoreError: if one of the others is damaged or no store; nothing is added then.
        StoreWriteError: if the store cannot be written.
    """
    for other in others:
        problems = verify(other).problems
        if set(problems) - _HARMLESS:
            raise StoreError(
                f"{other} is damaged ({', '.join(problems)}); see python -m augment verify --store"
                f" {other}"
            )
    done = Counter(texts=0, links=0, failures=0)
    with Store(into) as store:
        for other in others:
            theirs = Store(other)
            parts: list[tuple[Kind, str]] = [("text", "")]
            for recipe in (one for side in SIDES for one in theirs.recipes(side)):
                store.save_recipe(recipe)
                parts += [("link", recipe.id), ("fail", recipe.id)]
            for kind, name in parts:
                for row in theirs.rows(kind, name).scan():
                    done[FOLDERS[kind]] += store.put(kind, name, row)
            for run in runs.load_runs(other):
                runs.save_run(into, run)
    return done


# Compared


class Difference(NamedTuple):
    """An item whose texts differ; None where one side has none."""

    item: str
    before: Enrichment | None
    after: Enrichment | None

    def __str__(self) -> str:
        return "\n".join(
            [f"@ {printable(self.item)}", *_lines("-", self.before), *_lines("+", self.after)]
        )


def _lines(mark: str, text: Enrichment | None) -> list[str]:
    if text is None:
        return []
    refused = f"  [{text.rejected}]" if text.rejected else ""
    return [f"{mark} {printable(line)}" for line in f"{text.text}{refused}".splitlines()]


def differences(
    before: Mapping[str, Enrichment], after: Mapping[str, Enrichment]
) -> Iterator[Difference]:
    """Items whose text, or whose refusal, differs; first those of ``before``, in its order."""
    for item, old in before.items():
        new = after.get(item)
        if new is None or (old.text, old.rejected) != (new.text, new.rejected):
            yield Difference(item, old, new)
    for item, new in after.items():
        if item not in before:
            yield Difference(item, None, new)
