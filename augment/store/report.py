"""``python -m augment report``: one static page about the texts of a store.

It answers whether the texts are good enough: headline numbers, what failed and why, the worst and
a random sample of texts beside their pictures, distributions, and how the texts were made. The page
is a single file that works from ``file://`` and asks the network for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt

from augment.enrichment import pipeline as cli
from augment.enrichment.prices import NO_PRICES, Prices, add_price_options
from augment.enrichment.progress import duration
from augment.errors import StoreError
from augment.records import Side
from augment.store import RunRecord, Store
from augment.store.charts import quantile
from augment.store.page import percent, write_page
from augment.store.reporting.collect import SideReport, collect, sides

#: Most samples of a kind: a page of some 5 MB.
MOST_SAMPLES = 200

#: Share of the generations that may share their words with another picture's, before it is said.
REPEATED = 0.05

#: Share of the scored texts that a CLIP model may doubt before the page warns; of true ones it
#: doubts about 5 % (see :data:`augment.store.reporting.faithful.DOUBTFUL`).
DOUBTED = 0.2

#: Takes the recipes that the store means.
NO_RECIPES: Mapping[Side, str | None] = {}

_TITLES = {"corpus": "Candidates", "query": "Queries"}


class Verdict(NamedTuple):
    """The first sentence about a side; ``tone`` is good, warn or bad."""

    tone: str
    text: str


class Bill(NamedTuple):
    """What a side took.

    Attributes:
        read: tokens.
        written: tokens.
        runs: runs of the recipe.
        seconds: that those of them took which ended by themselves.
        cost: of tokens and time, at the prices given; None without prices.
    """

    read: int
    written: int
    runs: int
    seconds: float
    cost: float | None


def report(
    store: Path,
    root: Path,
    out: Path,
    *,
    recipes: Mapping[Side, str | None] = NO_RECIPES,
    samples: int = 24,
    seed: int = 0,
    prices: Prices = NO_PRICES,
) -> Path:
    """Write ``report.html`` about a store.

    Args:
        store: folder of the generated texts.
        root: folder in M-BEIR's layout that they were made from.
        out: folder of the page; made if absent.
        recipes: side -> id of the recipe; None or absent as in ``Store.recipe``.
        samples: how many random and how many worst texts of each side to show.
        seed: of the random choice.
        prices: of tokens, for the cost.

    Returns:
        The path of the page.

    Raises:
        DataError: if the root cannot be read or the page cannot be written.
        StoreError: if there is no such store, or nothing is in it.
    """
    if not store.is_dir():
        raise StoreError(f"{store}: no such store")
    opened = Store(store)
    found = [
        collect(opened, root, side, recipes.get(side), samples=samples, seed=seed)
        for side in sides(opened)
    ]
    page = out / "report.html"
    write_page(
        page,
        "report.html",
        name=store.resolve().name,
        store=str(store),
        root=str(root),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        sides=found,
        titles=_TITLES,
        verdicts={one.side: verdict(one) for one in found},
        medians={one.side: quantile(one.tally.words, 0.5) for one in found if one.tally.texts},
        bills={one.side: bill(one, opened.runs(), prices) for one in found},
        duration=duration,
        damaged=opened.damaged,
    )
    return page


def bill(one: SideReport, runs: Sequence[RunRecord], prices: Prices) -> Bill:
    """What a side took, and its price: a run is taken to occupy one device."""
    read, written = one.tally.tokens
    mine = [run for run in runs if run.recipe == one.recipe.id]
    seconds = sum(run.ended - run.started for run in mine if run.ended is not None)
    costs = (prices.tokens(read, written), prices.hours(seconds / 3600))
    known = [cost for cost in costs if cost is not None]
    return Bill(read, written, len(mine), seconds, sum(known) if known else None)


def verdict(one: SideReport) -> Verdict:
    """What a reader must know first, in a sentence or two."""
    tally = one.tally
    asked = tally.texts + one.failures
    if tally.accepted == 0:
        return Verdict("bad", f"None of {asked:,} items has an accepted text.")
    share = "All" if tally.accepted == asked else f"{percent(tally.accepted, asked)} of"
    said = [f"{share} {asked:,} items have an accepted text"]
    if one.failures:
        said.append(f"{one.failures:,} failed")
    if tally.refused:
        (reason, number), *_ = tally.refused.most_common(1)
        said.append(f"{tally.refused.total():,} were refused, most often for {reason} ({number:,})")
    text = "; ".join(said) + "."
    again = one.repeats
    same = again.contents / tally.generations
    if same > REPEATED:
        text += (
            f" {again.contents:,} different {again.noun} share {again.texts:,} texts, the most"
            f" frequent one stands for {again.most:,} of them: search cannot tell these apart by"
            " their text. Read the first of the worst texts below: if they are too general, change"
            " the prompt or the model."
        )
    if one.used.others:
        text += (
            f" {one.used.others:,} verdicts are not from the limits of the latest run; run the"
            " command again over all items, which judges them and generates nothing."
        )
    doubted = 0.0
    if one.faithful and one.faithful.doubtful:
        doubted = one.faithful.doubtful / one.faithful.scored
        text += (
            f" The CLIP model doubts a word or a sentence of {one.faithful.doubtful:,} of the"
            f" {one.faithful.scored:,} that it scored."
        )
    lost = 1 - tally.accepted / asked
    good = lost < 0.02 and same <= REPEATED and doubted <= DOUBTED
    tone = "good" if good else "warn" if lost < 0.2 else "bad"
    return Verdict(tone, text)


def command(arguments: Sequence[str] | None) -> int:
    """Parse, write, print; the exit code."""
    parser = ArgumentParser(
        prog="python -m augment report",
        description="Write one static HTML page about the texts of a store.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    parser.add_argument("store", type=str, metavar="STORE", help="Generated texts.")
    for name, text in (("root", "Folder in M-BEIR's layout."), ("out", "Folder of report.html.")):
        parser.add_argument(f"--{name}", type=str, required=True, metavar="DIR", help=text)
    parser.add_argument(
        "--samples", type=NonNegativeInt, default=24, metavar="N",
        help=f"Random and worst texts to show of each side, at most {MOST_SAMPLES}.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Of the random choice.")
    for side in _TITLES:
        parser.add_argument(
            f"--{side}-recipe", type=str, default=None, metavar="ID",
            help="Default: the recipe that the store means.",
        )  # fmt: skip
    add_price_options(parser)
    given = parser.parse_args(arguments)
    samples = min(given.samples, MOST_SAMPLES)
    prices = Prices(given.price_read, given.price_written, given.price_gpu_hour)
    page = report(
        Path(given.store), Path(given.root), Path(given.out),
        recipes={"corpus": given.corpus_recipe, "query": given.query_recipe},
        samples=samples, seed=given.seed, prices=prices,
    )  # fmt: skip
    sys.stdout.write(f"{page}  {page.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    cli.main(command)
