"""``--dry-run`` and ``--preview``: what a command would do and take, and what its texts look like.

A dry run looks at every item and its picture, times a small sample on the real engine, and writes
nothing. A preview is a small run: its texts are saved as usual, so that none is paid for twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from augment.enrichment import pipeline as cli
from augment.enrichment.estimate import SAMPLE_BATCHES, describe, measure, survey
from augment.enrichment.jobs import Job
from augment.enrichment.preview import choose, show
from augment.enrichment.prices import Prices, add_price_options
from augment.enrichment.shards import parse_shard
from augment.errors import DataError
from augment.store import Store


def execute(
    made: ArgumentParser,
    plan: Callable[[Namespace], cli.Plan],
    arguments: Sequence[str] | None,
    supervised: bool = False,
) -> int:
    """:func:`augment.enrichment.pipeline.execute` with the options of this module."""
    made.add_argument(
        "--dry-run", action="store_true", help="Count, time a sample, estimate; write nothing."
    )
    made.add_argument(
        "--preview", type=PositiveInt | None, default=None, metavar="N",
        help="Generate for N random items only, save as usual, show before and after.",
    )  # fmt: skip
    add_price_options(made)
    parsed = made.parse_args(arguments)
    if parsed.dry_run and parsed.preview:
        raise DataError("--dry-run writes nothing and --preview saves: give one of them")
    root, store, options = Path(parsed.root), Path(parsed.store), cli.options(parsed)
    if parsed.dry_run:
        prices = Prices(parsed.price_read, parsed.price_written, parsed.price_gpu_hour)
        return dry_run(plan(parsed), root, store, options, prices)
    if parsed.preview:
        return preview(plan(parsed), root, store, options, parsed.preview)
    return cli.execute(made, plan, arguments, supervised)


def dry_run(plan: cli.Plan, root: Path, store: Path, options: cli.Options, prices: Prices) -> int:
    """Print the estimate; the exit code.

    Raises:
        DataError: if the data or a prompt cannot be used.
        EngineError: if there is no such model, or it dies.
        StoreError: if the store cannot be read.
    """
    engine = options.engine(root)
    used = cli.recipe(plan.side, engine, plan.routes, options)
    found = survey(
        _jobs(plan, options), engine, Store(store), used, root,
        sample=SAMPLE_BATCHES * options.batch_size, seed=options.seed,
    )  # fmt: skip
    sys.stdout.write(describe(found, measure(engine, found.sample), prices) + "\n")
    return 0


def preview(plan: cli.Plan, root: Path, store: Path, options: cli.Options, number: int) -> int:
    """Generate for some items, save and show them; the exit code.

    Raises:
        DataError: if the data or a prompt cannot be used.
        EngineError: if there is no such model.
        StoreError: if the store cannot be read or written.
    """
    engine = options.engine(root)
    chosen = choose(_jobs(plan, options), number, options.seed)
    # With a limit, the store knows that the recipe was not run to the end.
    summary = cli.carry_out(
        plan._replace(jobs=chosen, total=len(chosen)), root, store,
        replace(options, limit=number, shard=None), engine,
    )  # fmt: skip
    with Store(store) as opened:
        texts = opened.texts(plan.side, cli.recipe(plan.side, engine, plan.routes, options).id)
        sys.stdout.write(show(chosen, texts) + "\n\n")
    return cli.finish(summary, store)


def _jobs(plan: cli.Plan, options: cli.Options) -> Iterator[Job]:
    shard = parse_shard(options.shard)
    return islice((job for job in plan.jobs if shard.takes(job.item)), options.limit)
