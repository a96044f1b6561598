"""``python -m augment merge --into STORE OTHER ...``: join stores that were made elsewhere.

Texts, links, failures, recipes and runs of the others are added; nothing of them changes. Merging
twice adds nothing. Of two texts of one key the earlier counts, of two links of one item the later,
as everywhere.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from augment.enrichment import pipeline as cli
from augment.errors import StoreError, StoreWriteError
from augment.store import Store
from augment.store.verify import SIDES, verify


def merge(into: Path, others: Sequence[Path]) -> Counter[str]:
    """Add what other stores hold.

    Args:
        into: store to add to; made if absent.
        others: stores to read.

    Returns:
        How many texts, links and failures were added.

    Raises:
        StoreError: if one of the others is damaged or no store; nothing is added then.
        StoreWriteError: if the store cannot be written.
    """
    for other in others:
        problems = verify(other).problems
        if set(problems) - {"link without a text", "damaged line"}:
            raise StoreError(
                f"{other} is damaged ({', '.join(problems)}); see python -m augment verify --store"
                f" {other}"
            )
    done: Counter[str] = Counter()
    with Store(into) as store:
        for other in others:
            _add(store, Store(other), done)
            try:
                for path in (other / "runs").glob("*.json"):
                    (into / "runs").mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, into / "runs" / path.name)
            except OSError as error:
                raise StoreWriteError(f"{into}: cannot write the runs: {error}") from error
    return done


def _add(store: Store, other: Store, done: Counter[str]) -> None:
    for row in other.rows("text").scan():
        done["texts"] += store.put("text", "", row)
    for side in SIDES:
        for recipe in other.recipes(side):
            store.save_recipe(recipe)
            for row in other.rows("link", recipe.id).scan():
                done["links"] += store.put("link", recipe.id, row)
            for row in other.rows("fail", recipe.id).scan():
                done["failures"] += store.put("fail", recipe.id, row)


def command(arguments: Sequence[str] | None) -> int:
    """Parse, merge, print; the exit code."""
    parser = ArgumentParser(prog="python -m augment merge", description="Join stores.")
    parser.add_argument(
        "--into", type=str, required=True, metavar="DIR", help="Store to add to; made if absent."
    )
    parser.add_argument("others", type=str, nargs="+", metavar="OTHER", help="Stores to read.")
    given = parser.parse_args(arguments)
    done = merge(Path(given.into), [Path(other) for other in given.others])
    added = ", ".join(f"{done[kind]:,} {kind}" for kind in ("texts", "links", "failures"))
    sys.stdout.write(f"added {added}\n")
    return 0


if __name__ == "__main__":
    cli.main(command)
