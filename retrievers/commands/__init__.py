"""Commands beside Lightning's: ``python -m retrievers compare | export | ...``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from augment.errors import DataError

#: Word on the command line -> module with ``main(arguments)``, or with another function of these
#: arguments, imported when it is asked for.
COMMANDS = {
    "compare": "retrievers.evaluation.command:run_compare",
    "evaluate": "retrievers.evaluation.command:run_evaluate",
    "bm25": "retrievers.commands.bm25",
    "fuse": "retrievers.evaluation.command:run_fuse",
    "mmeb": "retrievers.commands.mmeb",
    "export": "retrievers.commands.export",
}


def run(arguments: Sequence[str]) -> None:
    """Run the command that the first argument names.

    Raises:
        ToolkitError: if a user can mend it.
    """
    module, _, function = COMMANDS[arguments[0]].partition(":")
    try:
        getattr(import_module(module), function or "main")(list(arguments[1:]))
    except ValueError as error:  # an unknown metric, scores that do not pair up
        raise DataError(str(error)) from error
