"""``python -m retrievers bm25 --root ROOT --out RUN``: search a data root by words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import jsonargparse

from retrievers.evaluation.results import Results
from retrievers.vectors.bm25 import bm25


def main(arguments: Sequence[str]) -> None:
    """Run the command; ``--config`` takes a YAML file, ``--help`` lists the settings."""
    results = cast(
        "Results",
        jsonargparse.auto_cli(bm25, args=list(arguments), as_positional=False, prog="bm25"),
    )
    sys.stdout.write(f"{results.table()}\n{results.notes()}")
