"""``python -m benchmarks.flagland --out ROOT --countries 1000 --seed 0``: write a world."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.flagland.world import WorldConfig, write_world


def main() -> int:
    """Write a world and say what it holds; exit code 2 when asked for something impossible."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flagland", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder: an M-BEIR root")
    parser.add_argument("--countries", type=int, default=1000, help="200 to 200,000")
    parser.add_argument("--seed", type=int, default=0, help="same seed and size, same files")
    parser.add_argument(
        "--twin-share", type=float, default=0.5, help="chance of a one-fact twin of the flag before"
    )
    parser.add_argument("--width", type=int, default=192, help="width of flat pictures in pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    args = parser.parse_args()
    start = time.monotonic()
    try:
        config = WorldConfig(args.countries, args.seed, args.twin_share, args.width)
        countries = write_world(args.out, config, args.workers)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    families = len({country.family for country in countries})
    print(
        f"{args.out}: {len(countries)} countries in {families} families, "
        f"{2 * len(countries)} pictures, {time.monotonic() - start:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
