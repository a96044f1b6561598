"""``python -m retrievers search`` prints what is found; ``serve`` is the same as a page."""

from __future__ import annotations

import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import getdoc
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from augment.enrichment.command import add_options, parser, values
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
    return stoppable(lambda words: find(**_given("search", find, words, "query")), args)


def serve(args: Sequence[str]) -> int:
    """Serve the page until interrupted; the exit code."""
    return stoppable(lambda words: serve_page(**_given("serve", serve_page, words)), args)


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


@dataclass(frozen=True)
class Opening:
    """What is searched, and what reads the best again: options of ``search`` and of ``serve``.

    Args:
        root: Folder in M-BEIR's layout.
        store: Generated texts. A checkpoint trained on them needs them.
        recipe: Whose texts bm25 searches and others show; A+B: both. None: the one meant.
        pool: Data sets (flags) or local pools (flags_task0); none: all of them.
        vlm: Rewrites queries as those of the training were: flagland-vlm or another model.
        embeddings: Made by embed. None: those beside the checkpoint; without any, embeds now.
        reranker: Reads the best again: a checkpoint, an exported folder, or, with --preset, a
            published one. Of two checkpoints it follows the last.
        preset: Layout of a published reranker: qwen3-vl-reranker, jina-reranker-m0, listwise.
        depth: Candidates it reads.
        weights: Of the first stage's scores and its own, as fuse chose them. None: its order.
        rewriter: Rewrites the best in sight of the query before that: flagland-vlm or another VLM.
        rewritten: Candidates it rewrites.
        device: auto, cpu, cuda or cuda:N.
        allow_mismatch: Go on with text of another recipe than the one trained on.
    """

    root: Path
    store: Path | None = None
    recipe: str | None = None
    pool: Sequence[str] = ()
    vlm: str | None = None
    embeddings: Path | None = None
    reranker: str | None = None
    preset: str | None = None
    depth: int = 50
    weights: tuple[float, float] | None = None
    rewriter: str | None = None
    rewritten: int = 10
    device: str = "auto"
    allow_mismatch: bool = False

    def open(self, checkpoint: str, **more: Any) -> Searcher:
        """A searcher; ``more`` is what :meth:`Searcher.open` takes besides."""
        from retrievers.search.searcher import Searcher

        names = ("root", "store", "recipe", "embeddings", "device", "allow_mismatch")
        given = {name: getattr(self, name) for name in names}
        return Searcher.open(checkpoint, pools=self.pool, **given, **more)

    def rerank(self, searcher: Searcher) -> None:
        """Have what is found read again where a reranker is named.

        Raises:
            DataError: if there are settings of one, and none is named.
        """
        if self.reranker is None:
            if self.preset or self.weights or self.rewriter:
                told = "--preset, --weights and --rewriter are a reranker's: name --reranker"
                raise DataError(told)
            return
        from retrievers.search.rewriting import PairRewriting
        from retrievers.search.second_stage import Reranking

        rewrite = PairRewriting(self.rewritten, self.rewriter) if self.rewriter else PairRewriting()
        config = Reranking(self.reranker, self.preset, self.depth, self.weights, rewrite=rewrite)
        searcher.rerank_with(
            config, store=self.store, device=self.device, allow_mismatch=self.allow_mismatch
        )


def _given(verb: str, function: Callable[..., Any], args: Sequence[str], *positional: str) -> Any:
    """The arguments of a function whose first one is what is opened."""
    made = parser(f"python -m retrievers {verb}", (getdoc(function) or "").partition("\n\nArgs")[0])
    add_options(made, function, positional=positional, skip=("opening",))
    add_options(made, Opening)
    parsed = made.parse_args(list(args))
    opening = Opening(**values(parsed, Opening))
    return {"opening": opening, **values(parsed, function, skip=("opening",))}


def find(
    opening: Opening,
    checkpoint: str,
    query: str = "",
    image: Path | None = None,
    k: int = 10,
    instruction: str | None = None,
    modality: Modality | Literal["asked"] | None = None,
    own_picture: Literal["keep", "content"] = "keep",
    json: bool = False,
) -> int:
    """Find candidates for a typed query, a picture or both, and print them.

    Args:
        opening: What is searched.
        checkpoint: Written by fit (OUT/checkpoints/last.ckpt), a model name such as flagland-clip,
            or bm25: words instead of vectors.
        query: Text of the query.
        image: Picture of the query.
        k: Results.
        instruction: Put before the query; the word none leaves it out. Not given: the root's first
            one that fits.
        modality: Only candidates that consist of this: text, image or image,text; asked: of what
            the instruction asks for.
        own_picture: content leaves out candidates whose picture is that of the query, byte for
            byte.
        json: Print JSON, one object.
    """
    searcher = opening.open(checkpoint, vlm=opening.vlm)
    opening.rerank(searcher)
    instruction = "" if (instruction or "").lower() == "none" else instruction
    answer = searcher.search(
        query, image, k, instruction, modality=modality, own_picture=own_picture
    )
    for note in (*searcher.notes, *answer.notes, f"answered in {answer.seconds:.3f} s"):
        say(f"note: {printable(note)}", sys.stderr)
    if json:
        say(dumps(answer.to_json(), ensure_ascii=False, indent=1))
    else:
        sys.stdout.write(render(answer, searcher.root))
    return 0


def serve_page(
    opening: Opening,
    checkpoint: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: Sequence[str] = (),
) -> int:
    """Search on a small local page, with one retriever or two side by side.

    Args:
        opening: What is searched.
        checkpoint: One or two ([NAME=]FILE), written by fit, or model names such as flagland-clip;
            or bm25.
        host: Address to listen on.
        port: 0 takes any free one.
        allow_host: Further names of this server, where a proxy asks for it under them.
    """
    from retrievers.search.serve import is_loopback, listen

    if not is_loopback(host):
        sys.stderr.write(_OPEN_TO_ALL.format(host=host, port=port))
    # Listening comes first: a port in use is told before anything is embedded.
    with listen(host, port) as listening:
        return show(_open_searchers(opening, checkpoint), listening, [host, *allow_host])


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
    for name, searcher in searchers.items():
        if pace := searcher.pace:
            say(f"{name}: {pace}")
    return 0


def _open_searchers(opening: Opening, checkpoints: Sequence[str]) -> dict[str, Searcher]:
    """The searchers of the checkpoints; the VLM serves those that know rewritten queries."""
    named = names_of(checkpoints)
    if opening.embeddings and len(named) > 1:
        raise DataError(
            "--embeddings belongs to one checkpoint; leave it out, and of each checkpoint OUT/"
            "checkpoints/last.ckpt the folder OUT/embeddings is taken if it is there"
        )
    from retrievers.search.pictures import QueryPictures

    pictures = QueryPictures()
    searchers = {name: opening.open(checkpoint, pictures=pictures)
                 for name, checkpoint in named.items()}  # fmt: skip
    every = list(searchers.values())
    opening.rerank(every[-1])
    if opening.vlm:
        for searcher in [s for s in every if s.query_view != "raw"] or every:
            searcher.rewrite_with(opening.vlm, opening.allow_mismatch)
    return searchers


def names_of(checkpoints: Sequence[str]) -> Mapping[str, str]:
    """Name -> checkpoint: the given name, else that of the run's folder or of the model.

    Raises:
        DataError: if there are more than two, or two have one name.
    """
    if not 1 <= len(checkpoints) <= 2:
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
