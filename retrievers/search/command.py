"""``python -m retrievers search`` prints what is found; ``serve`` is the same as a page."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from augment.errors import DataError, printable
from augment.files import say
from augment.records import Modality
from retrievers.search.answers import name_of, render

if TYPE_CHECKING:
    from retrievers.search.searcher import Searcher

#: Exit status of a command that was stopped, as shells give it after Ctrl-C.
STOPPED = 130

_OPEN_TO_ALL = (
    "warning: {host} is not loopback: whoever can reach this machine can search here and see the "
    "texts and pictures of these pools. There is no password and no encryption. To use the page "
    "from elsewhere, leave --host at 127.0.0.1 and forward the port: "
    "ssh -L {port}:127.0.0.1:{port} HOST\n"
)


def search(args: Sequence[str]) -> int:
    """Find candidates for one query, and print them; the exit code."""
    return stoppable(_search, args)


def serve(args: Sequence[str]) -> int:
    """Serve the page until interrupted; the exit code."""
    return stoppable(_serve, args)


def stoppable(work: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """The exit code of a command that forgets what it was asked when it is told to end.

    SIGTERM, or a terminal that is closed, does what Ctrl-C does: temporary folders with pictures
    and texts of queries are deleted on the way out.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # of nohup, it is ignored and stays so
            signal.signal(number, signal.default_int_handler)
    try:
        return work(args)
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
        return STOPPED


def _search(args: Sequence[str]) -> int:
    """Parse, search, print; the exit code."""
    parser = ArgumentParser(
        prog="python -m retrievers search",
        description="Find candidates for a typed query, a picture or both.",
    )
    parser.add_argument("query", type=str, nargs="?", default="", help="Text of the query.")
    parser.add_argument("--image", type=str | None, metavar="FILE", help="Picture of the query.")
    parser.add_argument(
        "--checkpoint",
        type=str,
        required=True,
        metavar="FILE",
        help="Written by fit (OUT/checkpoints/last.ckpt), a model name such as flagland-clip, or "
        "bm25: words instead of vectors.",
    )
    _add_opening(parser)
    parser.add_argument("-k", "--k", type=PositiveInt, default=10, metavar="N", help="Results.")
    parser.add_argument(
        "--instruction",
        type=str | None,
        metavar="TEXT",
        help="Put before the query; none leaves it out. Default: the root's first one that fits.",
    )
    parser.add_argument(
        "--modality",
        type=Modality | Literal["asked"] | None,
        help="Only candidates that consist of this: text, image or image,text; asked: of what the "
        "instruction asks for.",
    )
    parser.add_argument(
        "--own-picture",
        type=Literal["keep", "content"],
        default="keep",
        help="content leaves out candidates whose picture is that of the query, byte for byte.",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON, one object.")
    parsed = parser.parse_args(args)
    from retrievers.search.searcher import Searcher

    searcher = Searcher.open(parsed.checkpoint, vlm=parsed.vlm, **_opening(parsed))
    _rerank(parsed, searcher)
    given = parsed.instruction
    instruction = "" if given is not None and given.lower() == "none" else given
    answer = searcher.search(
        parsed.query,
        parsed.image,
        parsed.k,
        instruction,
        modality=parsed.modality,
        own_picture=parsed.own_picture,
    )
    for note in (*searcher.notes, *answer.notes):
        say(f"note: {printable(note)}", sys.stderr)
    if parsed.json:
        say(json.dumps(answer.to_json(), ensure_ascii=False, indent=1))
    else:
        sys.stdout.write(render(answer, searcher.root))
    return 0


def _serve(args: Sequence[str]) -> int:
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
    _add_opening(parser)
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
    from retrievers.search.serve import is_loopback, listen

    if not is_loopback(parsed.host):
        sys.stderr.write(_OPEN_TO_ALL.format(host=parsed.host, port=parsed.port))
    # Listening comes first: a port in use is told before anything is embedded.
    listening = listen(parsed.host, parsed.port)
    try:
        return show(_open_searchers(parsed), listening, [parsed.host, *parsed.allow_host])
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
        return 0
    finally:
        listening.close()


def show(
    searchers: Mapping[str, Searcher],
    listening: socket.socket,
    names: Sequence[str] = (),
    browser: bool = False,
) -> int:
    """Serve the page until it is interrupted; the exit code.

    Args:
        searchers: name -> searcher, one or two.
        listening: where.
        names: further names of this server.
        browser: open one, where there is a screen.
    """
    from retrievers.search.serve import address_of, make_server, search_app

    for name, searcher in searchers.items():
        for note in searcher.notes:
            say(f"note: {name}: {printable(note)}", sys.stderr)
    app, address = search_app(searchers, names), address_of(listening)
    say(f"serving on {address} until Ctrl-C")
    # Without a screen a browser in the terminal would be opened.
    screen = sys.platform in ("win32", "darwin") or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    if browser and screen:
        webbrowser.open(address)
    try:
        make_server(app).run(sockets=[listening])
    except KeyboardInterrupt:
        say("stopped", sys.stderr)
    return 0


def _open_searchers(parsed: Namespace) -> dict[str, Searcher]:
    """The searchers that the options name; the VLM serves those that know rewritten queries."""
    named = names_of(parsed.checkpoint)
    if parsed.embeddings and len(named) > 1:
        raise DataError(
            "--embeddings belongs to one checkpoint; leave it out, and of each checkpoint OUT/"
            "checkpoints/last.ckpt the folder OUT/embeddings is taken if it is there"
        )
    from retrievers.search.pictures import QueryPictures
    from retrievers.search.searcher import Searcher

    pictures = QueryPictures()
    searchers = {
        name: Searcher.open(checkpoint, pictures=pictures, **_opening(parsed))
        for name, checkpoint in named.items()
    }
    _rerank(parsed, list(searchers.values())[-1])
    if parsed.vlm:
        every = list(searchers.values())
        for searcher in [s for s in every if s.query_view != "raw"] or every:
            searcher.rewrite_with(parsed.vlm, parsed.allow_mismatch)
    return searchers


def names_of(checkpoints: Sequence[str]) -> Mapping[str, str]:
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
            name, checkpoint = name_of(Path(given)), given
        if name in named:
            raise DataError(f"two checkpoints are named {name}; name them: --checkpoint NAME=FILE")
        named[name] = checkpoint
    return named


def _add_opening(parser: ArgumentParser) -> None:
    """Options that say what is searched, shared with ``serve``."""
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML with these.")
    parser.add_argument(
        "--root", type=str, required=True, metavar="DIR", help="Folder in M-BEIR's layout."
    )
    parser.add_argument(
        "--store",
        type=str | None,
        metavar="DIR",
        help="Generated texts. A checkpoint trained on them needs them.",
    )
    parser.add_argument(
        "--recipe",
        type=str | None,
        metavar="ID",
        help="Whose texts bm25 searches and others show; A+B: both. Default: the one meant.",
    )
    parser.add_argument(
        "--pool",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="Data sets (flags) or local pools (flags_task0). Default: all of them.",
    )
    parser.add_argument(
        "--vlm",
        type=str | None,
        metavar="NAME",
        help="Rewrites queries as those of the training were: flagland-vlm or another model.",
    )
    parser.add_argument(
        "--embeddings",
        type=str | None,
        metavar="DIR",
        help="Made by embed. Default: those beside the checkpoint; without any, embeds now.",
    )
    parser.add_argument(
        "--reranker",
        type=str | None,
        metavar="NAME",
        help="Reads the best again: a checkpoint, an exported folder, or, with --preset, a "
        "published one. Of two checkpoints it follows the last.",
    )
    parser.add_argument(
        "--preset",
        type=str | None,
        metavar="NAME",
        help="Layout of a published reranker: qwen3-vl-reranker, jina-reranker-m0, listwise.",
    )
    parser.add_argument(
        "--depth", type=PositiveInt, default=50, metavar="N", help="Candidates it reads."
    )
    parser.add_argument(
        "--weights",
        type=tuple[float, float] | None,
        metavar="[A,B]",
        help="Of the first stage's scores and its own, as fuse chose them. Default: its order.",
    )
    parser.add_argument(
        "--rewriter",
        type=str | None,
        metavar="NAME",
        help="Rewrites the best in sight of the query before that: flagland-vlm or another VLM.",
    )
    parser.add_argument(
        "--rewritten", type=PositiveInt, default=10, metavar="N", help="Candidates it rewrites."
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="Go on with text of another recipe than the one trained on.",
    )


def _rerank(parsed: Namespace, searcher: Searcher) -> None:
    """Have what is found read again where a reranker is named.

    Raises:
        DataError: if there are settings of one, and none is named.
    """
    if parsed.reranker is None:
        if parsed.preset or parsed.weights or parsed.rewriter:
            raise DataError("--preset, --weights and --rewriter are a reranker's: name --reranker")
        return
    from retrievers.search.rewriting import PairRewriting
    from retrievers.search.second_stage import Reranking

    rewrite = PairRewriting()
    if parsed.rewriter:
        rewrite = PairRewriting(parsed.rewritten, parsed.rewriter)
    config = Reranking(
        parsed.reranker, parsed.preset, parsed.depth, parsed.weights, rewrite=rewrite
    )
    names = ("store", "device", "allow_mismatch")
    searcher.rerank_with(config, **{name: parsed[name] for name in names})


def _opening(parsed: Namespace) -> dict[str, Any]:
    """What :meth:`Searcher.open` takes from these options, but for the VLM."""
    names = ("root", "store", "recipe", "embeddings", "device", "allow_mismatch")
    return {"pools": parsed.pool, **{name: parsed[name] for name in names}}
