"""What a search answers, and ``python -m retrievers search``, which prints it."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from augment.errors import ToolkitError, printable
from augment.records import Modality

#: Exit status of a command that a user can mend.
USER_ERROR = 2

#: Exit status of a command that was stopped, as shells give it after Ctrl-C.
_STOPPED = 130

_WIDTH = 96


@dataclass(frozen=True)
class Result:
    """One candidate of an answer.

    Attributes:
        rank: from 1.
        score: cosine of query and candidate, or that of BM25.
        id: of the candidate.
        text: as published, or None.
        generated: accepted generated text, or None. Whether the retriever read it is said by
            :attr:`retrievers.Searcher.corpus_view`.
        image: path relative to the data root, or None.
    """

    rank: int
    score: float
    id: str
    text: str | None
    generated: str | None
    image: str | None


@dataclass(frozen=True)
class Answer(Sequence[Result]):
    """The candidates found, best first, and what became of the query.

    Attributes:
        results: the candidates.
        read: the text that the retriever read as the query; None if it read none.
        seen: whether the retriever saw a picture of the query.
        instruction: the instruction in front of it, or None.
        rewritten: what the VLM made of the typed query; None if it was not asked, left this kind
            of query alone, or its text was refused.
        notes: what a user should know about this search.
    """

    results: tuple[Result, ...]
    read: str | None
    seen: bool
    instruction: str | None
    rewritten: str | None
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, place: Any) -> Any:
        return self.results[place]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def described(self) -> str:
        """What the retriever read, for people."""
        if self.read is None:
            return "the picture alone" if self.seen else "nothing"
        return self.read

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def add_opening(parser: ArgumentParser) -> None:
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
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="Go on with text of another recipe than the one trained on.",
    )


def command(args: Sequence[str]) -> int:
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
    add_opening(parser)
    parser.add_argument("--k", type=PositiveInt, default=10, metavar="N", help="Results.")
    parser.add_argument(
        "--instruction",
        type=str | None,
        metavar="TEXT",
        help="Put before the query; none leaves it out. Default: the root's first one that fits.",
    )
    parser.add_argument(
        "--modality",
        type=Modality | None,
        help="Only candidates that consist of this: text, image or image,text.",
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

    searcher = Searcher.open(parsed.checkpoint, vlm=parsed.vlm, **opening(parsed))
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
        sys.stderr.write(f"note: {printable(note)}\n")
    if parsed.json:
        sys.stdout.write(json.dumps(answer.to_json(), ensure_ascii=False, indent=1) + "\n")
    else:
        sys.stdout.write(render(answer, searcher.root))
    return 0


def opening(parsed: Namespace) -> dict[str, Any]:
    """What :meth:`Searcher.open` takes from the options of :func:`add_opening`, but for the VLM."""
    names = ("root", "store", "embeddings", "device", "allow_mismatch")
    return {"pools": parsed.pool, **{name: parsed[name] for name in names}}


def render(answer: Answer, root: Path) -> str:
    """An answer as text for people.

    Args:
        answer: what was found.
        root: put before the paths of pictures, so that a terminal can open them.
    """
    lines = []
    if answer.rewritten:
        lines.append(f"rewritten  {_line(answer.rewritten)}")
    lines += [f"read as    {_line(answer.described())}", ""]
    for result in answer:
        lines.append(f"{result.rank:>3}  {result.score:.4f}  {printable(result.id)}")
        fields = {
            "text": result.text,
            "generated": result.generated,
            "image": printable(str(root / result.image)) if result.image else None,
        }
        for name, value in fields.items():
            if value:
                # A path stays on one line, so that it can be copied.
                plain = name == "image"
                lines.append(f"     {name:<9}  {value}" if plain else _wrapped(name, value))
    return "\n".join(lines) + "\n"


def _wrapped(name: str, value: str) -> str:
    return textwrap.fill(
        _line(value),
        _WIDTH,
        initial_indent=f"     {name:<9}  ",
        subsequent_indent=" " * 16,
        break_on_hyphens=False,
    )


def _line(text: str) -> str:
    return printable(" ".join(text.split()))


def main(args: Sequence[str]) -> int:
    """Run the command; an error that a user can mend becomes one line and exit code 2."""
    return run_command(command, args)


def run_command(work: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """The exit code of a command; its errors in one line.

    A command that is told to end, or whose terminal is closed, goes as by Ctrl-C: temporary folders
    with pictures and texts of queries are deleted on the way out.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # of nohup, it is ignored and stays so
            signal.signal(number, signal.default_int_handler)
    try:
        return work(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return _STOPPED
    except ToolkitError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return USER_ERROR
