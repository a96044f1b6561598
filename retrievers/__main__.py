"""``python -m retrievers fit | validate | test | embed | mine | audit | search | serve``."""

from __future__ import annotations

import sys
from importlib import import_module

#: Commands that need no trainer, and where they are.
_COMMANDS = {"search": "retrievers.search.answers", "serve": "retrievers.search.serve"}


def main() -> int:
    """Hand the arguments to the command that the first one names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _COMMANDS:
        status: int = import_module(_COMMANDS[name]).main(sys.argv[2:])
        return status
    from retrievers import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
