"""``python -m benchmarks.flagland --out ROOT --countries 1000 --seed 0``: write a world."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from augment.enrichment.command import entry
from augment.files import say
from benchmarks.flagland.oracle import write_mmeb
from benchmarks.flagland.world import WorldConfig, write_world


def write(
    out: Path,
    countries: int = 1000,
    seed: int = 0,
    twin_share: float = 0.5,
    width: int = 192,
    named: float = 0.0,
    recall: bool = False,
    edits: int = 1,
    mmeb: Path | None = None,
    workers: int = 2,
) -> int:
    """Write a world and say what it holds; exit code 2 when asked for something impossible.

    Args:
        out: new folder: an M-BEIR root.
        countries: 200 to 200,000.
        seed: same seed and size, same files.
        twin_share: chance of a one-fact twin of the flag before.
        width: of flat pictures, in pixels.
        named: share of task 6's questions that name the country.
        recall: also ask for flags by name and by capital, whose looks must be known.
        edits: also ask for up to so many changes of a flag at once, 1 to 3; with a twin_share of .9
            there are enough.
        mmeb: new folder for tasks 6 and 8 in MMEB's files, their import and rationales.
        workers: processes that draw.
    """
    start = time.monotonic()
    try:
        config = WorldConfig(countries, seed, twin_share, width, named, recall, edits)
        written = write_world(out, config, workers)
        if mmeb is not None:
            write_mmeb(out, mmeb)
    except ValueError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    families = len({country.family for country in written})
    say(
        f"{out}: {len(written)} countries in {families} families, "
        f"{2 * len(written)} pictures, {time.monotonic() - start:.1f} s"
    )
    return 0


@entry
def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    prog = "python -m benchmarks.flagland"
    return int(auto_cli(write, args=list(arguments), as_positional=False, prog=prog))


if __name__ == "__main__":
    sys.exit(main())
