"""The main job end to end on a small Flagland; at most ten minutes on two CPU cores.

``python -m benchmarks.demo --out demo`` (or ``make demo``): the arms of ``demo.yaml``, run
by :mod:`benchmarks.experiments`. ``--root`` takes any other M-BEIR root instead; published data has
items that cannot be used: ``--tolerate`` goes on without them. The packaged model knows flags
only: on other pictures its texts are out of their depth, and what is shown is that the path holds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from augment.errors import ToolkitError

if TYPE_CHECKING:
    from benchmarks.experiments.results import ArmReader

#: Its arms.
DEMO = Path(__file__).with_suffix(".yaml")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    made.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything")
    made.add_argument("--root", type=Path, help="M-BEIR root; none: a Flagland is made")
    made.add_argument("--tolerate", action="store_true",
                      help="skip pictures and items that cannot be used")  # fmt: skip
    made.add_argument("--countries", type=int, default=600, help="of that Flagland")
    made.add_argument("--seed", type=int, default=1, help="of the world and both trainings")
    made.add_argument("--steps", type=int, default=60, help="optimiser steps of each training")
    made.add_argument("--batch-size", type=int, default=128, help="training pairs per step")
    made.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--model", default="flagland-vlm", help="the describing model, or oracle")
    made.add_argument("--metric", default="success@1", help="per-query score of the table")
    return made


def read(args: argparse.Namespace) -> ArmReader:
    """The demo's arms on the root that arguments name; the Flagland is made if none is.

    Raises:
        DataError: if the root cannot be used.
    """
    from benchmarks.experiments import spec
    from benchmarks.experiments.build import Builder, Setup
    from benchmarks.experiments.results import ArmReader
    from benchmarks.experiments.roots import digest_root, make_world
    from benchmarks.experiments.texts import Enriching

    root = args.root
    if root is None:
        root = args.out / "world"
        print(f"== world: {args.countries} countries, seed {args.seed}", flush=True)
        make_world(root, args.countries, args.seed, args.threads)
    experiment, model = spec.load_all([str(DEMO)])[0], args.model
    if model == "oracle":
        experiment, model = spec.by_oracle(experiment), "flagland-vlm"
    enriching = Enriching(root, digest_root(root), None, model, args.threads, args.tolerate)
    setup = Setup(
        enriching, steps=args.steps, batch_size=args.batch_size, seeds=(args.seed,),
        fit=("data.on_bad_image=skip",) if args.tolerate else (),
    )  # fmt: skip
    return ArmReader(Builder(experiment, setup), args.out, args.metric)


def run(reader: ArmReader) -> str:
    """Do what is not done, write ``demo.json``, ``table.md``, ``chart.png`` and ``report.html``.

    Returns:
        The table, with notes.

    Raises:
        ToolkitError: if a step fails.
        SystemExit: likewise, where a command of the toolkit has printed why.
    """
    from augment.files import write_json, write_text
    from benchmarks.experiments import graph, plots, results
    from benchmarks.report.page import write_report

    out = reader.out
    graph.run(reader.steps(), out)
    value = results.collect(reader)
    write_json(out / "demo.json", value)
    tables = {pool: replace(reader, pool=pool).compare("raw", "enriched")
              for pool in ("local", "union")}  # fmt: skip
    union = tables["union"].rows[-1]
    shift = value["arms"]["shift"]["mean"]["score"]
    notes = [
        f"In the union of all pools the means are {100 * union.first:.1f} (raw) and "
        f"{100 * union.second:.1f} (enriched).",
        "Trained on raw text and shown enriched text, the same retriever scores "
        f"{100 * shift:.1f} on average (local pools, {reader.metric}).",
    ]
    table = tables["local"].table()
    write_text(out / "table.md", table + "\n")
    plots.write(plots.tasks(value, ("raw", "enriched")), out / "chart.png")
    folders = [reader.folders(name)[0] for name in ("raw", "enriched")]
    write_report(
        folders[0], folders[1], out / "report.html", names=("raw", "enriched"),
        metric=reader.metric, notes=notes, seed=reader.seeds[0],
    )  # fmt: skip
    return "\n".join([table, *notes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status."""
    args, started = parser().parse_args(arguments), time.monotonic()
    try:
        print(run(read(args)))
    except ToolkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    report = args.out / "report.html"
    print(f"{time.monotonic() - started:.0f} s in all; report: {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
