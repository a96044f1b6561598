"""``python -m retrievers serve``: open the searchers, listen, say where."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from augment.errors import DataError
from retrievers.search.command import add_opening, opening, told
from retrievers.search.pictures import QueryPictures
from retrievers.search.searcher import Searcher
from retrievers.search.serve.guard import is_loopback
from retrievers.search.serve.server import PageServer
from retrievers.search.serve.site import Site

_OPEN_TO_ALL = (
    "warning: {host} is not loopback: whoever can reach this machine can search here and see the "
    "texts and pictures of these pools. There is no password and no encryption. To use the page "
    "from elsewhere, leave --host at 127.0.0.1 and forward the port: "
    "ssh -L {port}:127.0.0.1:{port} HOST\n"
)


def command(args: Sequence[str]) -> int:
    """Parse, open, serve until interrupted; the exit code."""
    parser = ArgumentParser(
        prog="python -m retrievers serve",
        description="Search on a small local page, with one retriever or two side by side.",
    )
    parser.add_argument(
        "--checkpoint",
        type=str,
        nargs="+",
        required=True,
        metavar="[NAME=]FILE",
        help="One or two, written by fit, or model names such as flagland-clip; or bm25.",
    )
    add_opening(parser)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=NonNegativeInt, default=8000, help="0 takes any free one.")
    parser.add_argument(
        "--allow-host",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="Further names of this server, where a proxy asks for it under them.",
    )
    parsed = parser.parse_args(args)
    if not is_loopback(parsed.host):
        sys.stderr.write(_OPEN_TO_ALL.format(host=parsed.host, port=parsed.port))
    site = Site({})
    # Listening comes first: a port in use is told before anything is embedded.
    server = PageServer(parsed.host, parsed.port, site, parsed.allow_host)
    try:
        site.searchers = open_searchers(parsed)
        for name, searcher in site.searchers.items():
            for note in searcher.notes:
                sys.stderr.write(f"note: {name}: {note}\n")
        sys.stdout.write(f"serving on {server.address} until Ctrl-C\n")
        sys.stdout.flush()
        server.serve_forever()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
    finally:
        server.server_close()
    return 0


def open_searchers(parsed: Namespace) -> dict[str, Searcher]:
    """The searchers that the options name; the VLM serves those that know rewritten queries.

    Raises:
        DataError: if there are more than two.
    """
    named = names(parsed.checkpoint)
    if parsed.embeddings and len(named) > 1:
        raise DataError(
            "--embeddings belongs to one checkpoint; leave it out, and of each checkpoint OUT/"
            "checkpoints/last.ckpt the folder OUT/embeddings is taken if it is there"
        )
    pictures = QueryPictures()
    searchers = {
        name: Searcher.open(checkpoint, pictures=pictures, **opening(parsed))
        for name, checkpoint in named.items()
    }
    if parsed.vlm:
        every = list(searchers.values())
        for searcher in [s for s in every if s.query_view != "raw"] or every:
            searcher.rewrite_with(parsed.vlm, parsed.allow_mismatch)
    return searchers


def names(checkpoints: Sequence[str]) -> Mapping[str, str]:
    """Name -> checkpoint: the given name, else that of the run's folder or of the model.

    Raises:
        DataError: if there are more than two, or two have one name.
    """
    if len(checkpoints) > 2:
        raise DataError(f"{len(checkpoints)} checkpoints; the page compares two at most")
    named: dict[str, str] = {}
    for given in checkpoints:
        before, equals, after = given.partition("=")
        if equals and before and "/" not in before:
            name, checkpoint = before, after
        else:
            name, checkpoint = _name_of(given), given
        if name in named:
            raise DataError(f"two checkpoints are named {name}; name them: --checkpoint NAME=FILE")
        named[name] = checkpoint
    return named


def _name_of(checkpoint: str) -> str:
    path = Path(checkpoint)
    if path.suffix != ".ckpt":
        return path.name
    folder = path.absolute().parent
    return folder.parent.name if folder.name == "checkpoints" else path.stem


def main(args: Sequence[str]) -> int:
    """Run the command; an error that a user can mend becomes one line and exit code 2."""
    return told(command, args)
