"""``python -m benchmarks.experiments [EXPERIMENT ...]``: what enrichment buys, where and why.

Without an experiment: training view x query view x corpus view (raw or enriched each) on any M-BEIR
root, with any store of texts and any retriever config. With some: files
(``benchmarks/rar/*.yaml``), folders (``rar``) or names.

The eight experiments of ``rar`` with three seeds on the Flagland of 600 countries are 57 trainings
of 50 steps, 120 tests and 30 other steps, which they share: about 75 minutes on two cores. Killed,
it goes on where it was; started N times with one --out, it is N workers.

With ``--test-root`` the retrievers are trained on the one root and tested on the other: transfer.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.enrichment.command import entry
from augment.errors import DataError
from augment.files import say
from benchmarks.experiments import spec

if TYPE_CHECKING:
    from benchmarks.experiments.build import Setup
    from benchmarks.experiments.results import ArmReader
    from benchmarks.experiments.texts import Enriching


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        epilog=f"experiments: {', '.join(spec.packaged())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("files", nargs="*", metavar="EXPERIMENT", help="YAML files or names")
    made.add_argument("--experiment", nargs="+", default=[], metavar="NAME",
                      help="the same; all: every packaged one; none: the grid")  # fmt: skip
    made.add_argument("--out", type=Path, default=Path("runs/rar"), help="steps and results")
    made.add_argument("--root", type=Path, help="M-BEIR root; none: a Flagland is made")
    made.add_argument("--test-root", type=Path,
                      help="test on this root instead, also described by the model")  # fmt: skip
    made.add_argument("--countries", type=int, default=600, help="of that Flagland")
    made.add_argument("--world-seed", type=int, default=1, help="of that Flagland")
    made.add_argument("--named", type=float, default=0.0,
                      help="share of its questions of task 6 that name the country")  # fmt: skip
    made.add_argument("--store", type=Path, help="texts that exist; none: they are generated")
    made.add_argument("--model", default="flagland-vlm",
                      help="the describing model; oracle: the truth of a Flagland")  # fmt: skip
    made.add_argument("--tolerate", action="store_true",
                      help="skip pictures and items that cannot be used")  # fmt: skip
    made.add_argument("--config", default="flagland", help="of the retriever: packaged or a file")
    made.add_argument("--steps", type=int, help="optimiser steps of a training [flagland: 50]")
    made.add_argument("--batch-size", type=int, help="training pairs per step [the config's]")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    made.add_argument("--tasks", type=int, nargs="+", default=[], help="M-BEIR codes; none: all")
    made.add_argument("--split", default="test", help="of the queries that are asked")
    made.add_argument("--metric", default="success@1", help="per-query score")
    made.add_argument("--pool", default="local", choices=("local", "union"))
    made.add_argument("--fit", nargs="+", default=[], metavar="ARG",
                      help="further arguments of `python -m retrievers`, without their dashes: "
                      "data.on_bad_image=skip")  # fmt: skip
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    return made


def setup_of(args: argparse.Namespace) -> Setup:
    """The setup that parsed arguments ask for; makes the world if no root is named.

    Raises:
        DataError: if a root cannot be used.
    """
    from benchmarks.experiments.build import Setup
    from benchmarks.experiments.texts import Enriching

    def enriching(root: Path, store: Path | None) -> Enriching:
        return Enriching(root, store, args.model, args.threads, args.tolerate)

    root, asked = args.root, args.test_root
    if root is None:
        name = f"world-{args.countries}-{args.world_seed}"
        root = args.out / (f"{name}-named" if args.named else name)
        _make_world(root, args.countries, args.world_seed, args.named, args.threads)
    steps = args.steps or (50 if args.config == "flagland" else None)
    fit = [one.lstrip("-") for one in args.fit]
    fit += ["data.on_bad_image=skip"] if args.tolerate else []
    return Setup(
        enriching(root, args.store), args.config, steps, args.batch_size, tuple(args.seeds),
        args.split, tuple(args.tasks), tuple(fit),
        None if asked is None else enriching(asked, None),
    )  # fmt: skip


def _make_world(root: Path, countries: int, seed: int, named: float, workers: int) -> None:
    """Write a Flagland unless it is there."""
    from augment.files import new_folder
    from benchmarks.flagland.world import WorldConfig, write_world

    if root.exists():
        return
    try:
        config = WorldConfig(countries, seed, named=named)
    except ValueError as error:
        raise DataError(f"no Flagland: {error}") from error
    with new_folder(root) as partial:
        write_world(partial, config, workers=workers)


def readers(args: argparse.Namespace) -> list[ArmReader]:
    """One for each experiment that has an arm to run here.

    Raises:
        DataError: if none has, or there is no such experiment.
    """
    from dataclasses import replace

    from benchmarks.experiments.build import Builder
    from benchmarks.experiments.results import ArmReader

    experiments = spec.load_all([*args.files, *args.experiment] or ["grid"])
    if args.model == "oracle":
        experiments = [spec.by_oracle(one) for one in experiments]
    if args.pool == "union":
        experiments = [replace(one, union=True) for one in experiments]
    setup = setup_of(args)
    made = [ArmReader(Builder(one, setup), args.out, args.metric, args.pool) for one in experiments]
    if not any(reader.builder.names for reader in made):
        raise DataError("no arm of these experiments can be run on this data", str(setup.root))
    return [reader for reader in made if reader.builder.names]


def plan(made: Sequence[ArmReader]) -> str:
    """What would be done, and which arms cannot be run here."""
    from benchmarks.experiments import graph

    steps = [step for reader in made for step in reader.steps()]
    lines = [graph.describe(steps, made[0].out)]
    for builder in (reader.builder for reader in made):
        absent = ", ".join(name for name in builder.experiment.arms if name not in builder.names)
        lines += [f"{builder.experiment.name}: cannot be run here: {absent}"] if absent else []
    return "\n".join(lines)


def run(reader: ArmReader) -> dict[str, Any]:
    """Do what is not done and write ``OUT/results/NAME.json``, ``.md`` and figures.

    The folder is ``results-ROOT`` where other data is asked about.
    """
    from augment.files import write_json, write_text
    from benchmarks.experiments import graph, plots, results, tables

    graph.run(reader.steps(), reader.out)
    value = results.collect(reader)
    setup = reader.builder.setup
    folder = reader.out / ("results" if setup.asked is None else f"results-{setup.root.name}")
    write_json(folder / f"{value['experiment']}.json", value)
    write_text(folder / f"{value['experiment']}.md", tables.report(value))
    plots.save(value, folder)
    return value


@entry
def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status."""
    args = parser().parse_args(arguments)
    from benchmarks.experiments import tables

    made = readers(args)
    say(plan(made))
    if args.dry_run:
        return 0
    for reader in made:
        say(f"\n{tables.report(run(reader))}")
    say(f"results: {args.out / 'results'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
