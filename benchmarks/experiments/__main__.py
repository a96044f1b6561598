"""``python -m benchmarks.experiments``: what enrichment buys, where and why.

Without ``--experiment``: training view x query view x corpus view (raw or enriched each) on any
M-BEIR root, with any store of texts and any retriever config. With one: the named experiment of
``benchmarks/experiments``, or ``all`` of them.

``--experiment all`` with three seeds on the Flagland of 600 countries is 57 trainings of 50 steps
(those with twice the steps count as two: 60), 120 tests and 30 other steps, which the eight
experiments share. One core took 2.0 s for a step of 128 pairs and 16 s for a test; by the rates of
:data:`benchmarks.experiments.graph.RATES` (two cores: 1.05 s and 9 s) that is 60 x 52 s + 120 x 9 s +
3 min, about 75 minutes. ``--dry-run`` estimates again from what was measured in ``--out``. Killed,
it goes on where it was.

With ``--test-root`` the retrievers are trained on the one root and tested on the other: transfer.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from augment.errors import ToolkitError
from benchmarks.experiments import run as runs
from benchmarks.experiments import spec, tables
from benchmarks.experiments.build import Setup, digest_root, make_world
from benchmarks.experiments.parts import make_part
from benchmarks.experiments.texts import Enriching

#: Exit status of a run that a user can mend.
USER_ERROR = 2


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        epilog=f"experiments: {', '.join(spec.names())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--experiment", nargs="+", default=[], metavar="NAME",
                      help="names, YAML files, or all; none: the grid")  # fmt: skip
    made.add_argument("--out", type=Path, default=Path("runs/rar"), help="steps and results")
    made.add_argument("--root", type=Path, help="M-BEIR root; none: a Flagland is made")
    made.add_argument("--test-root", type=Path,
                      help="test on this root instead, also described by the model")  # fmt: skip
    made.add_argument("--test-datasets", nargs="+", default=[], metavar="NAME",
                      help="only these data sets of it; none: all")  # fmt: skip
    made.add_argument("--countries", type=int, default=600, help="of that Flagland")
    made.add_argument("--world-seed", type=int, default=1, help="of that Flagland")
    made.add_argument("--store", type=Path, help="texts that exist; none: they are generated")
    made.add_argument("--model", default="flagland-vlm", help="the describing model")
    made.add_argument("--tolerate", action="store_true",
                      help="go on when single items could not be enriched")  # fmt: skip
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


def experiments(names: Sequence[str], pool: str) -> list[spec.Experiment]:
    """The experiments that the command line names.

    Raises:
        DataError: if there is no such experiment.
    """
    union = pool == "union"
    if not names:
        return [grid(union)]
    wanted = spec.names() if "all" in names else names
    return [spec.with_union(spec.load(name), union) for name in wanted]


def grid(union: bool = False) -> spec.Experiment:
    """Training view x query view x corpus view."""
    return spec.parse(
        {
            "name": "grid",
            "question": "What is the text worth to training, queries and corpus?",
            "prediction": "None was written for this data.",
            "grid": True,
            "union": union,
            "compare": [
                [spec.grid_name("raw", "raw", "raw"), spec.grid_name(*("enriched",) * 3)],
                [spec.grid_name("raw", "raw", "raw"),
                 spec.grid_name("raw", "enriched", "enriched")],
            ],
        }
    )  # fmt: skip


def setup_of(args: argparse.Namespace) -> Setup:
    """The setup that parsed arguments ask for; makes the world if no root is named.

    Raises:
        DataError: if the root cannot be used.
    """
    root = args.root
    if root is None:
        root = args.out / f"world-{args.countries}-{args.world_seed}"
        make_world(root, args.countries, args.world_seed, args.threads)
    enriching = Enriching(
        root, digest_root(root), args.store, args.model, args.threads, args.tolerate
    )
    steps = args.steps or (50 if args.config == "flagland" else None)
    return Setup(
        enriching, args.config, steps, args.batch_size, tuple(args.seeds), args.split,
        tuple(args.tasks), tuple(f"--{one.lstrip('-')}" for one in args.fit), asked_of(args),
    )  # fmt: skip


def asked_of(args: argparse.Namespace) -> Enriching | None:
    """The other data that retrievers are tested on; makes the part of it that is asked for.

    Raises:
        DataError: if the root cannot be used.
    """
    root = args.test_root
    if root is None:
        return None
    if args.test_datasets:
        root = args.out / "-".join([*args.test_datasets, args.split])
        make_part(args.test_root, args.test_datasets, args.split, root)
    return Enriching(root, digest_root(root), None, args.model, args.threads, args.tolerate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = parser().parse_args(arguments)
    try:
        found = runs.readers(
            experiments(args.experiment, args.pool), setup_of(args), args.out, args.metric,
            args.pool,
        )  # fmt: skip
        print(runs.plan(found), flush=True)
        if args.dry_run:
            return 0
        for value in runs.run(found):
            print(f"\n{tables.report(value)}", flush=True)
        print(f"results: {args.out / 'results'}")
    except ToolkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
