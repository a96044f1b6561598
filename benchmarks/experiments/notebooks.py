"""What the notebooks read, and what runs them.

``python -m benchmarks.experiments.notebooks PATH ...`` executes them in place (``make notebooks``),
so that a code host shows their figures, or writes them to ``--out``. A cell that fails is the
command's failure. Needs nbclient and ipykernel (extra ``dev``).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.files import homes, read_json, say

if TYPE_CHECKING:
    from PIL import Image

#: Where ``make results`` puts what the commands wrote; the environment may name another folder.
RESULTS = Path(__file__).parent.parent / "results"
#: Seconds that a cell may take.
TIMEOUT = 1800


def load(name: str, paper: str = "rar") -> dict[str, Any]:
    """Results of an experiment, from ``benchmarks/results/PAPER``; of RAR, from ``$RAR_RESULTS``.

    Raises:
        DataError: if there are none.
    """
    named = os.environ.get("RAR_RESULTS") if paper == "rar" else None
    return dict(read_json(Path(named or RESULTS / paper) / f"{name}.json"))


def about(value: Mapping[str, Any]) -> str:
    """What was measured, in a sentence."""
    setup, seeds = value["setup"], value["seeds"]
    return (
        f"Data: {setup['root']}; texts: {setup['model']}; {setup['steps']} steps of training; "
        f"seeds {', '.join(map(str, seeds))}; {value['metric']}, {value['pool']} pools; source "
        f"{(value['commit'] or 'unknown')[:12]}."
    )


def picture(value: Mapping[str, Any], path: str, width: int = 160) -> Image.Image:
    """A picture of the Flagland that was measured, drawn again from its seed.

    Raises:
        ValueError: if the data is no Flagland that ``benchmarks.experiments`` made.
    """
    from benchmarks.flagland.world import WorldConfig, build_countries, draw

    world = re.fullmatch(r"world-(\d+)-(\d+)(?:-named)?", value["setup"]["root"])
    place = re.fullmatch(r".*/(flat|photo)/\d+/(\d+)\.jpg", path)
    if world is None or place is None:
        raise ValueError(f"{path} of {value['setup']['root']} is no picture of a made Flagland")
    config = WorldConfig(int(world[1]), int(world[2]))
    country = next(islice(build_countries(config), int(place[2]), None))
    drawn = draw(config, country, place[1] == "photo")
    return drawn.resize((width, round(width * drawn.height / drawn.width)))


def execute(notebook: Path, out: Path) -> None:
    """Execute one notebook in the current folder and write it with its outputs."""
    nbformat: Any = importlib.import_module("nbformat")
    nbclient: Any = importlib.import_module("nbclient")
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        book, timeout=TIMEOUT, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": "."}},
    ).execute()  # fmt: skip
    for cell in book.cells:
        # Warnings about the machine that ran it, with its paths; a cell that fails ends the run.
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, out)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.notebooks", description=__doc__
    )
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="folder of the executed ones; none: in place")
    args = parser.parse_args(homes(sys.argv[1:]))
    for path in args.notebooks:
        say(f"== {path}")
        execute(path, path if args.out is None else args.out / path.name)


if __name__ == "__main__":
    main()
