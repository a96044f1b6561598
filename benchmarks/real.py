"""The main job on real pictures: ``../shared/data/mbeir_real`` or any other root with a test split.

``python -m benchmarks.real --root ROOT --out FOLDER``. The packaged VLM knows flags only: on other
pictures its texts are out of their depth, and what is shown is that the path holds.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.pipeline import Clock, Experiment, run

DEFAULT_ROOT = Path("../shared/data/mbeir_real")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--model", default="flagland-vlm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    if not args.root.is_dir():
        raise SystemExit(f"{args.root}: no such folder; name an M-BEIR root with --root")
    # Published pictures may be missing or broken; an item then keeps what else it has.
    fit = ("--data.on_bad_image=skip",)
    run(Experiment(fit=fit, tolerate=True, **vars(args)), Clock())


if __name__ == "__main__":
    main()
