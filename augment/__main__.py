"""``python -m augment VERB``: what is done with data roots and stores beside enriching them.

Each verb is loaded when it is asked for, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

#: Verb -> the module whose ``command`` it is, and what it does.
VERBS = {
    "validate": ("augment.data.validate", "check a data root"),
    "status": ("augment.store.status", "what a store holds, what ran, what failed"),
    "verify": ("augment.store.verify", "check a store"),
    "retry": ("augment.enrichment.retry", "try failures again"),
    "merge": ("augment.store.merge", "join stores"),
    "diff": ("augment.store.diff", "texts that differ, by recipe or by store"),
    "report": ("augment.store.report", "one page about the texts of a store"),
    "scores": ("augment.store.scores", "scores of generated texts as a table"),
    "export": ("augment.enrichment.export", "write a plain M-BEIR root with the text"),
}


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {verb:9}{text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(["usage: python -m augment VERB [--help] ...", "", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if given else 2
    if given[0] not in VERBS:
        sys.stderr.write(f"error: no verb {given[0]!r}\n{usage()}")
        return 2
    from augment.enrichment.pipeline import guarded

    module = import_module(VERBS[given[0]][0])
    command = getattr(module, "command", None) or module.main
    return guarded(lambda: command(given[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
