"""``python -m benchmarks.report A B``: a static page about two runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from augment.errors import ToolkitError
from benchmarks.report.page import EXAMPLES, write_report


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="A static page about two runs: scores by task with paired intervals, ranks "
        "before and after, wins and losses with pictures, and where the texts come from.",
    )
    made.add_argument("first", type=Path, help="folder that `test` or `bm25` wrote")
    made.add_argument("second", type=Path, help="the same of the other run")
    made.add_argument("--out", type=Path, default=Path("report.html"), help="the page")
    made.add_argument("--names", nargs=2, metavar=("A", "B"), help="of the two runs")
    made.add_argument("--root", type=Path, help="data root; none: the one that the runs name")
    made.add_argument("--metric", default="success@5", help="success@k, recall@k, ndcg@k, ...")
    made.add_argument("--pool", default="local", choices=("local", "union"))
    made.add_argument("--examples", type=int, default=EXAMPLES, help="cards in each gallery")
    made.add_argument("--seed", type=int, default=0, help="of the resampling")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = parser().parse_args(arguments)
    try:
        write_report(
            args.first, args.second, args.out, names=tuple(args.names) if args.names else None,
            metric=args.metric, pool=args.pool, root=args.root, examples=args.examples,
            seed=args.seed,
        )  # fmt: skip
    except (ToolkitError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
