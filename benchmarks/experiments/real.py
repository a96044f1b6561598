"""The main job on real pictures: ``../shared/data/mbeir_real`` or any other root with a test split.

``python -m benchmarks.experiments.real --root ROOT --out FOLDER``. The packaged VLM knows flags only: on other
pictures its texts are out of their depth, and what is shown is that the path holds. It is the demo
(:mod:`benchmarks.demo`) with other defaults, and goes on where single items cannot be used.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from augment.errors import ToolkitError
from benchmarks import demo

DEFAULT_ROOT = Path("../shared/data/mbeir_real")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status."""
    parser, started = demo.parser(), time.monotonic()
    parser.prog, parser.description = "python -m benchmarks.experiments.real", __doc__
    parser.set_defaults(
        root=DEFAULT_ROOT, out=Path("runs/real"), seed=0, steps=80, batch_size=64,
        metric="success@5",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if not args.root.is_dir():
        raise SystemExit(f"{args.root}: no such folder; name an M-BEIR root with --root")
    try:
        demo.run(demo.read(args, args.root, tolerate=True), started)
    except ToolkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
