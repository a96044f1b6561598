"""``python -m augment diff``: the texts that differ between two recipes, or two stores.

Exit code 0 if they are the same, 1 if they differ, as the program of that name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt

from augment.enrichment import pipeline as cli
from augment.records import Enrichment, Side
from augment.store import Store


class Difference(NamedTuple):
    """An item whose texts differ; None where one side has none."""

    item: str
    before: Enrichment | None
    after: Enrichment | None

    def __str__(self) -> str:
        return "\n".join([f"@ {self.item}", *_lines("-", self.before), *_lines("+", self.after)])


def _lines(mark: str, text: Enrichment | None) -> list[str]:
    if text is None:
        return []
    refused = f"  [{text.rejected}]" if text.rejected else ""
    return [f"{mark} {line}" for line in f"{text.text}{refused}".splitlines()]


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


def command(arguments: Sequence[str] | None) -> int:
    """Parse, compare, print; the exit code."""
    parser = ArgumentParser(
        prog="python -m augment diff", description="Texts that differ, by recipe or by store."
    )
    for name, required, text in (
        ("store", True, "Store of the first recipe."),
        ("other-store", False, "Store of the second; default: the same."),
    ):
        parser.add_argument(f"--{name}", type=str, required=required, metavar="DIR", help=text)
    parser.add_argument("--side", choices=("corpus", "query"), default="corpus")
    for name in ("recipe", "other-recipe"):
        parser.add_argument(
            f"--{name}", type=str | None, default=None, metavar="ID", help="null: the one meant."
        )
    parser.add_argument(
        "--show", type=NonNegativeInt | None, default=20, metavar="N", help="null: all of them."
    )
    parser.add_argument("--json", action="store_true", help="One JSON object a line.")
    given = parser.parse_args(arguments)
    side: Side = given.side
    first = Store(Path(given.store)).texts(side, given.recipe)
    second = Store(Path(given.other_store or given.store)).texts(side, given.other_recipe)
    found = differences(first, second)
    number = 0
    for one in islice(found, given.show):
        number += 1
        sys.stdout.write(f"{_json(one) if given.json else one}\n")
    number += sum(1 for _ in found)
    sys.stderr.write(f"{number:,} of {len(first):,} and {len(second):,} items differ\n")
    return 1 if number else 0


def _json(one: Difference) -> str:
    texts = {
        name: None if text is None else {"text": text.text, "rejected": text.rejected}
        for name, text in (("before", one.before), ("after", one.after))
    }
    return json.dumps({"item": one.item, **texts}, ensure_ascii=False)


if __name__ == "__main__":
    cli.main(command)
