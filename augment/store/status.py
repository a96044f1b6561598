"""``python -m augment status --store STORE``: what a store holds, what ran, what failed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from augment.enrichment import pipeline as cli
from augment.enrichment.progress import duration
from augment.enrichment.summary import reason_class
from augment.errors import StoreError
from augment.records import Side
from augment.store import RunRecord, Store, as_link, wal
from augment.store.rows import Rows
from augment.store.verify import SIDES

#: Columns of a link that a verdict needs.
_VERDICT = ("key", "judged", "rejected", "at")


def status(store: Store) -> list[dict[str, Any]]:
    """Per recipe: items with a text, refusals and failures by reason, runs.

    Raises:
        StoreError: if the store cannot be read.
    """
    texts = {
        row["key"]: reason_class(row["rejected"])
        for row in store.rows("text").where("rejected", "key")
    }
    runs = store.runs()
    found = []
    for side in SIDES:
        complete = store.complete(side)
        for recipe in store.recipes(side):
            links = store.rows("link", recipe.id)
            failures = store.failures(side, recipe.id).values()
            found.append(
                {
                    "side": side,
                    "recipe": recipe.id,
                    "model": recipe.model,
                    "prompts": list(recipe.prompts.values()),
                    "complete": recipe.id in complete,
                    "items": len(links),
                    "refused": dict(_refused(store, links, texts)),
                    "failed": dict(Counter(reason_class(f.reason) for f in failures)),
                    "runs": [_run(run) for run in runs if run.recipe == recipe.id],
                }
            )
    return found


def _refused(store: Store, links: Rows, texts: Mapping[str, str]) -> Counter[str]:
    """Class of reason -> items whose text is refused, by the link's verdict or else the text's."""
    found: Counter[str] = Counter()
    for row in links.scan(*_VERDICT):
        link = as_link(row)
        reason = reason_class(link.rejected) if link.judged else texts.get(link.key, "")
        if reason:
            mended = store.mended(link.key)
            if mended is None or (link.judged and mended.at <= link.at):
                found[reason] += 1
    return found


def _run(run: RunRecord) -> dict[str, Any]:
    state = "complete" if run.complete else "ended"
    if run.ended is None:
        state = "running" if _alive(run) else "killed, or running on another machine"
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
    }


def _alive(run: RunRecord) -> bool:
    if run.host != wal.host():
        return False
    try:
        os.kill(run.pid, 0)
    except OSError:
        return False
    return True


def render(found: Sequence[dict[str, Any]]) -> str:
    """For people."""
    rows = []
    for one in found:
        state = "complete" if one["complete"] else "not run to the end of its input"
        rows.append(f"{one['side']} recipe {one['recipe']}: {state}")
        rows.append(f"  {one['model']}, {', '.join(one['prompts'])}")
        rows.append(f"  {one['items']:>9,} items with a text{_reasons(one['refused'], 'refused')}")
        if one["failed"]:
            rows.append(f"  {sum(one['failed'].values()):>9,} failed{_reasons(one['failed'], '')}")
        for run in one["runs"][-5:]:
            parts = [run["started"], run["state"]]
            parts += [duration(run["seconds"])] if run["seconds"] is not None else []
            parts += [f"{run['generated']:,} generated"] if run["generated"] is not None else []
            parts += [f"limit {run['limit']}"] if run["limit"] is not None else []
            parts += [f"shard {run['shard']}"] if run["shard"] else []
            parts += [f"retry of {', '.join(run['retry'])}"] if run["retry"] else []
            rows.append(f"  run {', '.join(parts)}")
    return "\n".join(rows)


def _reasons(counts: dict[str, int], word: str) -> str:
    listing = ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.items()))
    return f" ({word + ': ' if word else ''}{listing})" if counts else ""


def command(arguments: Sequence[str] | None) -> int:
    """Parse, print; the exit code."""
    parser = ArgumentParser(
        prog="python -m augment status", description="What a store holds, what ran, what failed."
    )
    parser.add_argument("--store", type=str, required=True, metavar="DIR", help="The store.")
    parser.add_argument("--failures", action="store_true", help="Name every failed item.")
    parser.add_argument("--json", action="store_true", help="For programs.")
    parser.add_argument(
        "--choose",
        type=str | None,
        default=None,
        metavar="ID",
        help="Make this recipe the one that views show when none is named.",
    )
    given = parser.parse_args(arguments)
    folder = Path(given.store)
    if not (folder / "store.json").is_file():
        raise StoreError(f"{folder}: no store here")
    store = Store(folder)
    if given.choose:
        store.choose(_side_of(store, given.choose), given.choose)
    found = status(store)
    sys.stdout.write((json.dumps(found, indent=2) if given.json else render(found)) + "\n")
    for one in found if given.failures else ():
        for failure in store.failures(one["side"], one["recipe"]).values():
            place = f" ({failure.image})" if failure.image else ""
            sys.stdout.write(f"{failure.item_id}{place}: {failure.reason}\n")
    return 0


def _side_of(store: Store, recipe: str) -> Side:
    for side in SIDES:
        if any(known.id == recipe for known in store.recipes(side)):
            return side
    known = ", ".join(recipe.id for side in SIDES for recipe in store.recipes(side))
    raise StoreError(f"{store.folder}: no recipe {recipe}; there are {known or 'none'}")


if __name__ == "__main__":
    cli.main(command)
