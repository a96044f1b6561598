"""``python -m augment retry corpus|queries``: ask again what failed or was refused, by reason.

Failures are asked again as they were (``corpus`` and ``queries`` do that with every failure but
``engine-died``, too). A refused text is asked for at rising temperatures until one is accepted,
which helps against repetition and the truncation that comes of it; it then stands in for the
refused one wherever that is used, in the same recipe. A text that stays refused stays as it is.
The other options are those of the command itself, and must name the same prompt and model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from jsonargparse.typing import PositiveFloat

from augment import corpus, queries
from augment.enrichment import pipeline as cli

_COMMANDS = {"corpus": corpus, "queries": queries}

#: Refused for these reasons, a text is often better at another temperature.
REASONS = ("repetition", "truncated")
TEMPERATURES = (0.3, 0.6, 0.9)


def command(arguments: Sequence[str] | None, supervised: bool = False) -> int:
    """Parse, run, print; the exit code. See :func:`augment.enrichment.pipeline.execute`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given else ""
    if name not in _COMMANDS:
        sys.stderr.write("usage: python -m augment retry corpus|queries --reason R ... --help\n")
        return 0 if name in ("-h", "--help") else 2
    module = _COMMANDS[name]
    made = module.parser(f"python -m augment retry {name}", "Ask again, by reason.")
    made.add_argument(
        "--reason",
        type=str,
        nargs="+",
        default=list(REASONS),
        metavar="REASON",
        help="Of failures and refusals, as python -m augment status counts them.",
    )
    made.add_argument(
        "--temperatures",
        type=list[PositiveFloat],
        default=list(TEMPERATURES),
        metavar="[T,...]",
        help="For refused texts, one after the other.",
    )
    return cli.execute(made, module.plan_of, given, supervised)


if __name__ == "__main__":
    cli.main(partial(command, supervised=True))
