"""Retrievers and losses side by side: the same start, data, steps and seeds, one thing changed.

``python -m benchmarks.retrievers --root flagland ROOT --out FOLDER``. ``flagland`` stands for a
generated Flagland; any other M-BEIR root follows it. Killed, it goes on where it was; trainings and
tests that rows share are made once.

All 20 rows with three seeds are 51 trainings, 3 minings and 58 tests on each root. On one core a
step of 128 pairs takes 2 s and a test 16 s (Flagland of 600 countries), so that 50 steps come to
about 2 hours and a half a root; two cores take half of it. Parts: ``--rows infonce margin`` and
``--seeds 0``; the same ``--out`` without them puts the parts together. ``--dry-run`` says what is
left and how long it takes, ``--table`` prints what is done; fewer ``--steps`` make shorter
trainings.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from augment.errors import DataError, ToolkitError
from augment.files import write_text
from benchmarks.experiments import graph
from benchmarks.experiments.build import digest_root, make_world
from benchmarks.experiments.texts import Enriching
from benchmarks.retrievers.rows import ROWS, choose
from benchmarks.retrievers.steps import Bench
from benchmarks.retrievers.table import Results
from benchmarks.speed.machine import machine

RESULTS = Path("benchmarks/results/retrievers.md")
_NOTE = (
    "Every row starts from the packaged flagland-clip and changes one thing of the first (a fusion "
    "starts fresh on top of it). Means over tasks and seeds, ± standard deviation over seeds. "
    "Intervals: paired bootstrap over queries of scores averaged over the seeds; p: paired "
    "randomisation test, corrected for the rows of a table (Holm). They say how far the queries "
    "carry, not other worlds or models. Negatives are mined, and the teacher's scores given, by "
    "the first row's checkpoint of the same seed. Training: optimiser steps and loading, without "
    "start, validation and mining. A miniature world and a small root: they compare ways of "
    "training, and predict no other model's numbers."
)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.retrievers", description=__doc__,
        epilog=f"rows: {', '.join(row.key for row in ROWS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--root", nargs="+", default=["flagland"], metavar="ROOT",
                      help="M-BEIR roots; flagland: one is made")  # fmt: skip
    made.add_argument("--out", type=Path, default=Path("runs/retrievers"), help="steps")
    made.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="none: all")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    made.add_argument("--steps", type=int, default=50, help="optimiser steps of each training")
    made.add_argument("--batch-size", type=int, default=128, help="training pairs per step")
    made.add_argument("--text", default="raw", choices=("raw", "vlm", "oracle"),
                      help="published text, or generated text with it")  # fmt: skip
    made.add_argument("--countries", type=int, default=600, help="of the Flagland")
    made.add_argument("--world-seed", type=int, default=1, help="of the Flagland")
    made.add_argument("--fit", nargs="+", default=[], metavar="ARG",
                      help="further arguments of `python -m retrievers` for all rows, without "
                      "their dashes: model.model_name=...")  # fmt: skip
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    made.add_argument("--table", action="store_true", help="print what is done, and train nothing")
    made.add_argument("--results", type=Path, help=f"write the table, such as to {RESULTS}")
    return made


def benches(args: argparse.Namespace) -> list[Bench]:
    """The data sets that parsed arguments name; makes the Flagland if one is asked for.

    Raises:
        DataError: if a root cannot be used, or numbers are out of range.
    """
    if args.steps < 1 or args.batch_size < 2:
        raise DataError(f"--steps is at least 1 and --batch-size 2, got {args.steps} and "
                        f"{args.batch_size}")  # fmt: skip
    found = []
    for name in args.root:
        root, title = Path(name), Path(name).resolve().name
        if name == "flagland":
            root = args.out / f"world-{args.countries}-{args.world_seed}"
            title = f"Flagland, {args.countries} countries, seed {args.world_seed}"
            make_world(root, args.countries, args.world_seed, args.threads)
        elif not root.is_dir():
            raise DataError("no such folder; name an M-BEIR root, or flagland", name)
        enriching = Enriching(root, digest_root(root), threads=args.threads, tolerate=True)
        fit = tuple(f"--{one.lstrip('-')}" for one in args.fit)
        pictures = args.out / "pictures" / enriching.root_digest[:12]
        found.append(Bench(title, enriching, args.steps, args.batch_size, args.text, fit, pictures))
    return found


def report(found: Sequence[Results], args: argparse.Namespace) -> str:
    """The whole page."""
    footer = machine("retrievers", min(args.seeds), f"Threads: {args.threads}")
    return "\n\n".join(["# Retrievers and losses", _NOTE, *(one.table() for one in found), footer])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        rows = choose(args.rows)
        found = [Results(bench, rows, args.seeds, args.out) for bench in benches(args)]
        steps = [one.bench.test(row, seed) for one in found for seed in args.seeds for row in rows]
        if args.dry_run:
            print(graph.told(graph.plan(steps, args.out)))
            return 0
        if not args.table:
            graph.run(steps, args.out)
        text = report(found, args)
        print(text)
        if args.results is not None:
            write_text(args.results, f"{text}\n")
    except ToolkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
