"""The command line: which verb is where, errors without tracebacks, packaged configs by name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from augment.errors import DataError, ToolkitError, printable
from augment.files import legible_output, say
from retrievers.data.named import expand

if TYPE_CHECKING:
    from retrievers.data.module import MBeirData
    from retrievers.models.base import Encoder
    from retrievers.search.mining import MiningConfig
    from retrievers.search.rewriting import PairRewriting

#: Exit status of a run that a user can mend.
USER_ERROR = 2

#: Verb -> the module of this package whose ``main``, or other function, runs it, and what it does.
VERBS: Mapping[str, tuple[str, str]] = {
    "quickstart": ("commands.quickstart", "a folder of pictures as a page to search"),
    "fit": ("training.command", "train an encoder on an M-BEIR root"),
    "validate": ("training.command", "the small search of a fit, for a checkpoint"),
    "test": ("training.command", "embed, search and score the test queries"),
    "embed": ("cli:embed", "embed pools and queries into a folder that test and search read"),
    "mine": ("cli:mine", "mine hard negatives of the training queries"),
    "rerank": ("cli:rerank", "put a run's best candidates in a reranker's order"),
    "budget": ("search.budget:budget", "plot a cascade's quality against the tokens it reads"),
    "doubts": ("commands.doubts:doubts", "judgements that a run's reranked scores say are missing"),
    "loop": ("commands.loop", "train again on what a reranker says of a retriever's finds"),
    "audit": ("models.audit:audit", "count what the text encoder's context cuts off"),
    "search": ("search.command:search", "search a root with a text, a picture or both"),
    "serve": ("search.command:serve", "the same as a page in the browser"),
    "bm25": ("vectors.bm25:bm25", "search a root by words"),
    "fuse": ("evaluation.command:run_fuse", "put the runs of several systems together"),
    "evaluate": ("evaluation.evaluate:evaluate", "score run files"),
    "compare": ("evaluation.command:compare_runs", "is the second run better than the first?"),
    "submission": ("evaluation.command:submission", "a run for the servers of CIRR and CIRCO"),
    "pairs": ("export.records:pairs", "training pairs and negatives for ms-swift and Tevatron"),
    "export": ("export.folder:export", "a checkpoint, or a pool with vectors, for other libraries"),
    "mmeb": ("commands.mmeb:evaluate_mmeb", "evaluate on MMEB, versions 1 and 2"),
    "calibrate": ("data.writings:calibrate", "choose whose vectors are written for, by tokens"),
    "leaks": ("commands.leaks:audit_leaks", "do generated texts of queries tell their targets?"),
}

#: Verbs whose options are their function's parameters, which is documented where it is.
SIGNED = frozenset({
    "embed", "mine", "rerank", "doubts", "audit", "bm25", "pairs", "export", "mmeb", "calibrate",
    "leaks",
})  # fmt: skip

#: Verbs whose options are spelled as those of ``augment``, and what is given without its name.
WORDED: Mapping[str, Sequence[str]] = {
    "budget": ("first", "reranked"), "evaluate": ("run",), "compare": ("first", "second"),
    "submission": ("run",),
}  # fmt: skip

#: Task -> its verbs, in the order of work.
TASKS: Mapping[str, Sequence[str]] = {
    "start": ("quickstart",),
    "train": ("fit", "validate", "mine", "audit", "calibrate"),
    "search": ("search", "serve", "embed", "test", "bm25", "mmeb"),
    "put in order": ("fuse", "rerank", "loop", "budget"),
    "judge runs and data": ("evaluate", "compare", "doubts", "leaks"),
    "hand on": ("export", "pairs", "submission"),
}


#: Verb -> what usually comes next, where the verb itself does not say so.
NEXT = {
    "mine": "fit --config CONFIG --data.root=ROOT --data.negatives.path=OUT",
    "embed": "search --root ROOT --checkpoint CHECKPOINT --embeddings EMBEDDINGS WORDS",
    "test": "compare OTHER OUT --root ROOT",
    "bm25": "compare OTHER OUT --root ROOT, or fuse OTHER OUT --out FUSED",
    "fuse": "compare FIRST OUT --root ROOT",
    "rerank": "compare FIRST OUT --root ROOT",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: as after ``python -m retrievers``; None takes the process's own.

    Returns:
        The exit status: 0, or 2 after an error that a user can mend, told in one line.
    """
    legible_output()
    given = list(sys.argv[1:] if args is None else args)
    answer = _help() if not given or given[0] in ("-h", "--help") else kept_answer(given)
    if answer:
        sys.stdout.write(answer)
        return 0
    arguments = expand(given)
    if arguments[0] not in VERBS:
        say(f"error: no command {arguments[0]!r}; there are {', '.join(VERBS)}", sys.stderr)
        return USER_ERROR
    try:
        code = run(arguments, args is None)
        if code == 0 and arguments[0] in NEXT and os.environ.get("LOCAL_RANK", "0") == "0":
            say(f"next: python -m retrievers {NEXT[arguments[0]]}")
        return code
    except ToolkitError as error:
        say(f"error: {printable(_last(error), lines=True)}", sys.stderr)
    except OSError as error:  # a folder that is read-only, a full disk
        say(f"error: {printable(str(error), lines=True)}", sys.stderr)
    except ValueError as error:
        # jsonargparse puts what a constructor raises behind one of its own.
        if not isinstance(error.__cause__, ToolkitError):
            raise
        say(f"error: {printable(_last(error.__cause__), lines=True)}", sys.stderr)
    return USER_ERROR


def versions() -> dict[str, str]:
    """What the words of a parser's help depend on, besides this package."""
    names = ("jsonargparse", "lightning")
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            **{name: metadata.version(name) for name in names}}  # fmt: skip


def kept_answer(arguments: Sequence[str]) -> str:
    """Help or a packaged config as its parser tells it, without the seconds that torch takes.

    ``python -m tests.retrievers.test_help`` asks the parsers and writes ``help.json``; a test
    compares. Other versions than those it was made with are asked themselves.

    Args:
        arguments: as after ``python -m retrievers``.

    Returns:
        The answer; empty where the parser is to be asked.
    """
    words = ["--help" if word == "-h" else word for word in arguments]
    if words[-1] not in ("--help", "--print_config"):
        return ""
    if any(Path(word.partition("=")[2]).is_file() for word in words if "=" in word):
        return ""  # a file that is called as a packaged config
    kept = json.loads((resources.files("retrievers") / "help.json").read_text(encoding="utf-8"))
    lines = kept["answers"].get(" ".join(words), ())
    return "\n".join(lines) if kept["versions"] == versions() else ""


def run(arguments: Sequence[str], ours: bool = False) -> int:
    """Run a verb whose arguments are complete.

    Args:
        arguments: verb and what follows, as :func:`expand` gives them.
        ours: whether they are those of this process.

    Raises:
        ToolkitError: if a user can mend it.
        SystemExit: after help, or settings that do not parse.
    """
    from augment.enrichment import command  # lets ``~`` stand in configs

    verb, *rest = arguments
    module, _, name = VERBS[verb][0].partition(":")
    if module == "training.command":
        if ours:  # in place, because Lightning starts the other processes of DDP with the same
            sys.argv[1:] = arguments
        import_module("retrievers.training.command").main(None if ours else list(arguments))
        return 0
    try:
        function = getattr(import_module(f"retrievers.{module}"), name or "main")
        if verb in WORDED:
            return command.call(function, rest, f"python -m retrievers {verb}", WORDED[verb])
        return _call(verb, function, rest) if verb in SIGNED else int(function(rest) or 0)
    except ValueError as error:  # an unknown metric, scores that do not pair up
        if isinstance(error.__cause__, ToolkitError):
            raise
        raise DataError(str(error)) from error


def _help() -> str:
    from augment.__main__ import by_task, listed

    own = {task: [(f"retrievers {verb}", VERBS[verb][1]) for verb in verbs]
           for task, verbs in TASKS.items()}  # fmt: skip
    start = {task: own.pop(task) for task in ("start",)}
    return f"usage: python -m COMMAND ...\n\n{listed({**start, **by_task(), **own})}"


def embed(
    model: Encoder | str,
    data: MBeirData,
    out: Path = Path("runs/retriever"),
    embeddings: Path | None = None,
    device: str = "auto",
    precision: str = "32-true",
    allow_mismatch: bool = False,
) -> None:
    """Embed what a test needs: candidates into FOLDER/corpus, its queries into FOLDER/query.

    What the folder has already is kept; what is new, changed or damaged is embedded. A run that was
    killed goes on where it stood. A root without queries gives all its pools.

    Args:
        model: a checkpoint, an exported folder, a name that ``search`` takes, or an encoder.
        data: the root and what is shown of it.
        out: folder of the run.
        embeddings: folder of the vectors; OUT/embeddings if none is named here or as
            ``data.embeddings.folder``.
        device: auto, cpu, cuda, cuda:N.
        precision: 32-true, bf16-mixed or 16-mixed.
        allow_mismatch: embed text of another recipe than the one trained on.
    """
    from retrievers.data.plan import plan_pools
    from retrievers.models.load import loaded
    from retrievers.vectors import embed as embedding

    folder = data.keep_embeddings(embeddings, out)
    alone = not data.root.query_files(data.test.split)
    vectors = embedding.embed(
        loaded(model), data, plan_pools(data.root) if alone else None, device=device,
        precision=precision, allow_mismatch=allow_mismatch,
    )  # fmt: skip
    say("\n".join([*vectors.lines(), f"embeddings: {folder}"]))


def mine(
    data: MBeirData,
    mining: MiningConfig,
    model: Encoder | str | None = None,
    run: Path | None = None,
    judge: Path | None = None,
    out: Path = Path("runs/retriever"),
    embeddings: Path | None = None,
    device: str = "auto",
    precision: str = "32-true",
    allow_mismatch: bool = False,
) -> None:
    """Write hard negatives of the training queries for ``data.negatives.path``.

    Args:
        model: ranks the candidates: a checkpoint, an exported folder, a name that ``search`` takes,
            or an encoder.
        data: the root and what is shown of it.
        mining: which candidates become hard negatives.
        run: in place of a model, a TREC run of the training queries, or a folder of runs.
        judge: run or folder whose scores, a reranker's, count in place of those of the run.
        out: folder of the table.
        embeddings: folder of the vectors; OUT/embeddings if none is named here or as
            ``data.embeddings.folder``.
        device: auto, cpu, cuda, cuda:N.
        precision: 32-true, bf16-mixed or 16-mixed.
        allow_mismatch: embed text of another recipe than the one trained on.
    """
    from retrievers.models.load import loaded
    from retrievers.search.mining import mine_negatives

    if run is None and model is None:
        raise DataError("mining needs a ranking; name a model with --model or a run with --run")
    data.keep_embeddings(embeddings, out)
    tally = mine_negatives(
        run or loaded(model or ""), data, out, mining, device=device, precision=precision,
        allow_mismatch=allow_mismatch, judge=judge,
    )  # fmt: skip
    say(f"{tally.table()}\n{out}/negatives.parquet")


def rerank(
    model: Encoder | str,
    data: MBeirData,
    run: Path,
    out: Path,
    rewrite: PairRewriting,
    depth: int = 50,
    batch: int = 8,
    pictures: bool = True,
    device: str = "auto",
    allow_mismatch: bool = False,
) -> None:
    """Rerank the runs of a folder, score the result, and say what the first stage's recall caps.

    Scores are kept in OUT/scores: a run that was killed goes on where it stood. ``fuse`` puts the
    result together with its first stage.

    Args:
        model: a language model whose layout is a reranker's: a checkpoint, an exported folder, or a
            class (``--model=retrievers.models.mllm.encoder.Mllm``) with name and preset.
        data: the root that was searched, what is shown of it, and its split.
        run: folder that ``test``, ``bm25`` or ``fuse`` wrote.
        out: folder of the reranked runs.
        rewrite: rewrite the best candidates in sight of the query first (TTE-v2).
        depth: candidates of each query that are scored; the others are left out.
        batch: candidates scored at a time.
        pictures: show them; without, texts alone are read.
        device: auto, cpu, cuda, cuda:N.
        allow_mismatch: show text of another recipe than the one trained on.
    """
    from retrievers.models import load, reranker
    from retrievers.search import cascade

    found = cascade.rerank(
        reranker.scorer(load.loaded(model), pictures), data, run, out, depth, batch=batch,
        device=device, allow_mismatch=allow_mismatch, rewrite=rewrite,
    )  # fmt: skip
    ties = sum(row["cap"]["ties"] for row in found.rows)
    hits = sum(row["cap"]["hits"] for row in found.rows)
    told = f"{ties} of {hits} scores tied and stand as in the first stage"
    sys.stdout.write(f"{found.table()}\n\n{told}\nruns: {out}\n")


def _call(verb: str, function: Callable[..., Any], args: Sequence[str]) -> int:
    """Call a function with the options of a command line or a run's settings; the exit status.

    What it returns is printed, and says the status where it has an ``exit_code``.
    """
    import jsonargparse

    names = set(function.__annotations__) - {"return"}
    words = list(args)
    if "data" in names:
        from retrievers.data import module
        from retrievers.models import base, load  # noqa: F401 - encoders are found by their names
        from retrievers.search import mining, rewriting

        globals().update(
            MBeirData=module.MBeirData, Encoder=base.Encoder, MiningConfig=mining.MiningConfig,
            PairRewriting=rewriting.PairRewriting,
        )  # fmt: skip
        words = _narrowed(args, names)
    prog = f"python -m retrievers {verb}"
    found = jsonargparse.auto_cli(function, args=words, as_positional=False, prog=prog)
    if found is not None:
        say(found)
    return getattr(found, "exit_code", 0)


def _narrowed(args: Sequence[str], names: set[str]) -> list[str]:
    """Of a config that ``fit`` takes or has written, only what a function has an option for."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.clear_resolver("oc.env")  # a config reads no environment
    narrowed: list[str] = []
    left = iter(args)
    for arg in left:
        flag, equals, value = arg.partition("=")
        if flag not in ("--config", "-c"):
            narrowed.append(arg)
            continue
        path = Path(value if equals else next(left, ""))
        if not path.is_file():
            raise DataError("no such config; name a YAML file or a packaged config", str(path))
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(told, Mapping):
            raise DataError("is no mapping of settings", str(path))
        try:
            told = OmegaConf.to_container(OmegaConf.create(dict(told)), resolve=True)
        except OmegaConfBaseException as error:
            raise DataError(f"{error}; ${{...}} names another setting", str(path)) from error
        kept = {name: value for name, value in cast("Any", told).items() if name in names}
        if isinstance(kept.get("model"), Mapping) and "encoder" in kept["model"]:
            kept["model"] = kept["model"]["encoder"]
        narrowed.append(f"--config={yaml.safe_dump(kept)}")
    return narrowed


def _last(error: ToolkitError) -> str:
    """The message; of an error from a loader process, its last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    worker = lines[0].startswith("Caught ") if lines else False
    return lines[-1].partition(": ")[2] if worker else str(error)
