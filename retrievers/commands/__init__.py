"""Commands beside Lightning's: ``python -m retrievers compare | export | ...``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from augment.errors import DataError

#: Word on the command line -> module with ``main(arguments)``, imported when it is asked for.
COMMANDS = {
    "compare": "retrievers.commands.compare",
    "evaluate": "retrievers.commands.evaluate",
    "bm25": "retrievers.commands.bm25",
    "fuse": "retrievers.commands.fuse",
    "mmeb": "retrievers.commands.mmeb",
    "export": "retrievers.commands.export",
}


def run(arguments: Sequence[str]) -> None:
    """Run the command that the first argument names.

    Raises:
        ToolkitError: if a user can mend it.
    """
    module = import_module(COMMANDS[arguments[0]])
    try:
        module.main(list(arguments[1:]))
    except ValueError as error:  # an unknown metric, scores that do not pair up
        raise DataError(str(error)) from error
