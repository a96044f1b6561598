"""The main job end to end on a small Flagland; at most ten minutes on two CPU cores.

``python -m benchmarks.demo --out demo`` (or ``make demo``).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from augment.flagland.world import WorldConfig, write_world
from benchmarks.pipeline import Clock, Experiment, run


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything")
    parser.add_argument("--countries", type=int, default=600, help="of the world")
    parser.add_argument("--seed", type=int, default=1, help="of the world and both trainings")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each training")
    parser.add_argument("--batch-size", type=int, default=128, help="training pairs per step")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--model", default="flagland-vlm", help="the describing model")
    args = parser.parse_args()
    root, clock = args.out / "world", Clock()

    def world() -> None:
        if not root.exists():
            half_made = args.out / "world.partial"
            shutil.rmtree(half_made, ignore_errors=True)  # left over from a run cut short
            write_world(half_made, WorldConfig(args.countries, args.seed), workers=args.threads)
            half_made.rename(root)

    clock.run(f"world: {args.countries} countries, seed {args.seed}", world)
    experiment = Experiment(
        root=root, out=args.out, model=args.model, seed=args.seed, steps=args.steps,
        batch_size=args.batch_size, threads=args.threads, metric="success@1",
    )  # fmt: skip
    run(experiment, clock)


if __name__ == "__main__":
    main()
