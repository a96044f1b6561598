"""What the commands share: options, their parser, errors and exit codes."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from augment.checks import DEFAULT_LIMITS, Limits, checks_of
from augment.engines import Engine, EngineOptions, make_engine
from augment.enrichment.enrich import Job, Retry, Summary, enrich
from augment.enrichment.progress import Progress
from augment.enrichment.shards import parse_shard
from augment.enrichment.supervise import SUCCESSOR, draining, supervise
from augment.errors import DataError, StoreWriteError, ToolkitError
from augment.prompts import Prompt
from augment.records import Sampling, Side
from augment.store import Scope, Store
from augment.store.keys import Recipe, greedy

T = TypeVar("T")

#: Failures printed by name at the end of a run.
SHOWN_FAILURES = 20

EXIT_CODES = """exit codes:
  0  complete: every item has a text or is left alone for a stated reason
  2  the command or its input cannot be used; nothing more was done
  3  some items failed; they are named, and the same command tries them again
  4  cut short by a signal or a dead model; the same command goes on
  5  the store cannot be written (disk full, read-only); the same command goes on when mended

Ctrl-C or SIGTERM finishes the running batch and saves it; once more stops at once."""


@dataclass(frozen=True, kw_only=True)
class Options(EngineOptions):
    """How to generate, for both sides: the options of the engine, and these.

    Attributes:
        model: ``flagland-vlm`` (packaged), a model folder, a Hugging Face name, or ``scripted:``.
        limit: only the first N items; None takes all.
        max_new_tokens: most tokens to generate; None takes each prompt's own limit.
        temperature: 0 decodes greedily.
        seed: of sampling; counts where the temperature is above 0, and on the ladder of a retry.
        limits: what the checks of generated text refuse.
        shard: ``i/n``, or ``auto`` under srun or torchrun; None takes everything.
    """

    model: str = "flagland-vlm"
    limit: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    limits: Limits = DEFAULT_LIMITS
    shard: str | None = None

    def engine(self, root: Path) -> Engine:
        """The engine that these options describe.

        Raises:
            EngineError: if there is no such model.
        """
        shared = {name: getattr(self, name) for name in EngineOptions.__dataclass_fields__}
        return make_engine(self.model, root=root, **shared)

    def sampling(self, prompt: Prompt) -> Sampling:
        """Decoding parameters for a prompt."""
        tokens = prompt.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        return greedy(Sampling(tokens, temperature=self.temperature, seed=self.seed))


#: What the commands do when nothing else is said.
DEFAULT_OPTIONS = Options()


class Plan(NamedTuple):
    """What a command is about to do.

    Attributes:
        side: query or corpus.
        routes: kind of item -> prompt, None where it is left alone.
        jobs: all of them; read once.
        total: how many.
    """

    side: Side
    routes: Mapping[str, Prompt | None]
    jobs: Iterable[Job]
    total: int


def recipe(
    side: Side, engine: Engine, routes: Mapping[str, Prompt | None], options: Options
) -> Recipe:
    """The recipe of a run.

    Args:
        side: query or corpus.
        engine: what answers.
        routes: kind of item -> prompt, None where it is left alone.
        options: give the sampling.
    """
    prompts = {prompt.name: prompt for prompt in routes.values() if prompt is not None}
    return Recipe(
        side=side,
        prompts={name: prompt.id for name, prompt in prompts.items()},
        model=engine.model,
        revision=engine.revision,
        sampling={name: options.sampling(prompt) for name, prompt in prompts.items()},
        routes={kind: prompt.name if prompt else None for kind, prompt in routes.items()},
        settings=dict(engine.settings),
    )


def carry_out(
    plan: Plan,
    root: Path,
    store: Path,
    options: Options,
    engine: Engine | None = None,
    retry: Retry | None = None,
    seen_dead: Collection[int] = (),
) -> Summary:
    """Run :func:`augment.enrichment.enrich.enrich` with progress, draining on the first signal.

    Args:
        plan: what to do.
        root: folder that image paths are relative to.
        store: folder of the generated texts.
        options: model, sampling, limits and share.
        engine: answers in place of the model that ``options`` names.
        retry: try this again, and generate nothing else.
        seen_dead: processes that were seen to die in this job.

    Raises:
        DataError: if the data or a prompt cannot be used.
        EngineError: if there is no such model.
        StoreError: if the store cannot be read or written.
    """
    shard = parse_shard(options.shard)
    engine = engine or options.engine(root)
    jobs = islice((job for job in plan.jobs if shard.takes(job.item)), options.limit)
    # Shares are equal within a percent or so; the exact number is known at the end.
    share = -(-plan.total // shard.shares)
    total = share if options.limit is None else min(share, options.limit)
    prompts = [prompt for prompt in plan.routes.values() if prompt is not None]
    scope = Scope(
        options.limit,
        str(shard),
        retry.reasons if retry else (),
        str(root.resolve()),
        checks_of(options.limits, prompts),
    )
    progress = Progress(plan.side, total)
    try:
        with draining() as stop, Store(store) as opened:
            return enrich(
                jobs,
                engine,
                opened,
                recipe(plan.side, engine, plan.routes, options),
                root,
                progress=progress,
                stop=stop,
                limits=options.limits,
                scope=scope,
                retry=retry,
                seen_dead=seen_dead,
            )
    finally:
        progress.close()


class _Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults behind every option; the exit codes keep their lines."""


def parser(prog: str, description: str) -> ArgumentParser:
    """A parser with the options that all commands have."""
    made = ArgumentParser(
        prog=prog, description=description, epilog=EXIT_CODES, formatter_class=_Help
    )
    made.add_argument("--config", action="config", metavar="FILE", help="YAML with these options.")
    made.add_argument(
        "--root", type=str, required=True, metavar="DIR", help="Folder in M-BEIR's layout."
    )
    made.add_argument(
        "--store", type=str, required=True, metavar="DIR", help="Generated texts; made if absent."
    )
    return made


def add_options(made: ArgumentParser) -> None:
    """Add the fields of :class:`Options`."""
    for name, kind, metavar, text in (
        (
            "model",
            str,
            "NAME",
            "flagland-vlm (packaged), a model folder, a Hugging Face name,"
            " vllm:NAME, ray:NAME, or with --urls a name that servers know.",
        ),
        ("batch-size", PositiveInt, "N", "Most requests answered together."),
        ("limit", NonNegativeInt | None, "N", "Only the first N items."),
        ("shard", str | None, "I/N", "One of N shares, from 0; auto under srun or torchrun."),
        ("max-new-tokens", PositiveInt | None, "N", "Most new tokens; null: the prompt's limit."),
        ("temperature", NonNegativeFloat, "T", "0 decodes greedily."),
        ("seed", int, "N", "Of sampling, where the temperature is above 0."),
        ("min-pixels", PositiveInt | None, "N", "Enlarge smaller pictures; null: model's limit."),
        ("max-pixels", PositiveInt | None, "N", "Shrink larger pictures; null: model's limit."),
        (
            "device",
            str,
            "NAME",
            "auto, cpu, cuda, cuda:N; several with commas, or all: a copy of"
            " the model on each; split: one model over all GPUs.",
        ),
        ("threads", PositiveInt | None, "N", "CPU threads; null: torch's choice."),
        ("workers", PositiveInt, "N", "Threads that decode and resize pictures."),
        ("concurrency", PositiveInt, "N", "Most requests in flight at one server."),
        ("timeout", PositiveFloat, "S", "Seconds to wait for a server's answer."),
        ("patience", PositiveFloat, "S", "Seconds without a usable server before giving up."),
        ("encoding", Literal["png", "jpeg"], "png|jpeg", "Of pictures sent to servers."),
        ("revision", str | None, "REV", "Of the model, e.g. a commit of the Hub."),
        ("canaries", bool, "BOOL", "Try a server with a few pictures before the first request."),
        ("server-python", str | None, "FILE", "Interpreter that has vLLM; null: this one."),
        ("server-args", str, "TEXT", "Further arguments of vllm serve."),
        ("replicas", PositiveInt | None, "N", "Copies on a Ray cluster; null: one for each GPU."),
    ):
        value = getattr(DEFAULT_OPTIONS, name.replace("-", "_"))
        made.add_argument(f"--{name}", type=kind, default=value, metavar=metavar, help=text)
    made.add_argument(
        "--urls",
        type=str,
        default=[],
        nargs="+",
        metavar="URL",
        help="Servers of the OpenAI API, up to /v1; requests are balanced over them.",
    )
    made.add_class_arguments(Limits, "limits")


def options(parsed: Namespace) -> Options:
    """The :class:`Options` among parsed arguments."""
    fields = {name: getattr(parsed, name) for name in Options.__dataclass_fields__}
    return Options(**{**fields, "limits": Limits(**vars(fields["limits"]))})


def execute(
    made: ArgumentParser,
    plan: Callable[[Namespace], Plan],
    arguments: Sequence[str] | None,
    supervised: bool = False,
) -> int:
    """Parse, run, print; the exit code.

    Args:
        made: the parser.
        plan: what the parsed arguments ask for.
        arguments: of the command line; None takes those of this process.
        supervised: work in a child process, so that the command survives its death.
    """
    parsed = made.parse_args(arguments)
    root, store = Path(parsed.root), Path(parsed.store)
    retry = None
    if "reason" in parsed:
        retry = Retry(tuple(parsed.reason), tuple(parsed.temperatures), parsed.seed)

    def work(dead: Collection[int]) -> int:
        summary = carry_out(plan(parsed), root, store, options(parsed), retry=retry, seen_dead=dead)
        if supervised and summary.died:
            sys.stderr.write(f"{summary.incomplete}\n")
            return SUCCESSOR
        return finish(summary, store)

    if supervised:
        return supervise(lambda dead: guarded(lambda: work(dead)), store)
    return work(())


def finish(summary: Summary, store: Path) -> int:
    """Print what became of every item; the exit code."""
    sys.stdout.write(f"{summary}\n")
    for item, image, reason, _ in summary.failures[:SHOWN_FAILURES]:
        where = f"{item} ({image})" if image else item
        sys.stderr.write(f"failed: {where}: {reason}\n")
    hidden = summary.failed.total() - SHOWN_FAILURES
    if hidden > 0:
        sys.stderr.write(
            f"failed: {hidden:,} more; python -m augment status --store {store} --failures names"
            " them all\n"
        )
    return summary.exit_code


def guarded(command: Callable[[], int]) -> int:
    """Run a command: errors that a user can mend become one line and an exit code."""
    try:
        return command()
    except StoreWriteError as error:
        sys.stderr.write(f"error: {error}\n")
        return 5
    except ToolkitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command again to go on\n")
        return 4


def main(command: Callable[[Sequence[str] | None], int]) -> None:
    """Run a command with the arguments of this process, and exit."""
    sys.exit(guarded(lambda: command(None)))


def chosen(name: Any) -> str | None:
    """A prompt's name from the command line; ``none`` leaves such items alone."""
    return None if name is None or str(name).lower() == "none" else str(name)


def not_empty(found: Sequence[T], what: str, root: Path) -> Sequence[T]:
    """The sequence itself.

    Raises:
        DataError: if it is empty.
    """
    if not found:
        raise DataError(f"no {what}; name the files or check --root", str(root))
    return found
