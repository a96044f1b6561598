"""Runs notebooks from top to bottom: ``python -m benchmarks.experiments.execute NOTEBOOK ... [--out DIR]``.

Without ``--out`` they are executed in place (``make notebooks``), so that a code host shows their
figures. A cell that fails is the command's failure. Needs nbclient and ipykernel (extra ``dev``).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Seconds that a cell may take.
TIMEOUT = 1800


def execute(notebook: Path, out: Path) -> None:
    """Execute one notebook in the current folder and write it with its outputs.

    Raises:
        SystemExit: if nbclient is not installed.
    """
    try:
        nbformat: Any = importlib.import_module("nbformat")
        nbclient: Any = importlib.import_module("nbclient")
    except ImportError as error:
        raise SystemExit(f"{error}; install the extra dev: pip install -e '.[dev]'") from error
    book = nbformat.read(notebook, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": "."}}
    )
    client.execute()
    for cell in book.cells:  # when a cell ran is no news to a reader, and makes every diff differ
        cell.metadata.pop("execution", None)
        # Warnings about the machine that ran it, with its paths; a cell that fails ends the run.
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.execute", description=__doc__
    )
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="folder of the executed ones; none: in place")
    args = parser.parse_args(arguments)
    for path in args.notebooks:
        print(f"== {path}", flush=True)
        execute(path, path if args.out is None else args.out / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
