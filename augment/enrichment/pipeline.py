"""From items and the name of a prompt to texts in a store; and the commands that do it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from augment.checks import DEFAULT_LIMITS, Forbidden, Limits, checks_of
from augment.checks.rewrite import forbidden
from augment.data.items import RootItems
from augment.data.tokens import token_counter
from augment.engines import Engine, EngineOptions, load_engine
from augment.engines.base import BATCH
from augment.enrichment import command
from augment.enrichment.account import Progress, Summary
from augment.enrichment.enrich import enrich_jobs
from augment.enrichment.estimate import SAMPLE_BATCHES, choose, describe, measure, show, survey
from augment.enrichment.jobs import Job, Retry, Share, parse_shard
from augment.enrichment.launch import launch
from augment.enrichment.supervise import SUCCESSOR, draining, supervise
from augment.errors import DataError, printable
from augment.files import say
from augment.prompts import Prompt, load_prompt
from augment.prompts.route import Kind, classify
from augment.records import Item, Query, Sampling, Side
from augment.store import Scope, Store
from augment.store.keys import Recipe, greedy
from augment.store.runs import Prices

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
        model: ``flagland-vlm`` (packaged), a model folder, a Hugging Face name, ``vllm:NAME``,
            with ``--urls`` a name that servers know, ``scripted:``, or ``ray:`` before any of them.
        limit: only the first N items; null takes all.
        max_new_tokens: most tokens to generate; null takes each prompt's own limit.
        temperature: 0 decodes greedily.
        seed: of sampling; counts where the temperature is above 0, and on the ladder of a retry.
        limits: what the checks of generated text refuse.
        shard: ``i/n``, one of n shares, from 0; ``auto`` under srun or torchrun; null takes all.
    """

    model: str = "flagland-vlm"
    limit: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    limits: Limits = DEFAULT_LIMITS
    shard: str | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "seed" or not isinstance(value, int | float) or value is False:
                continue
            if value < 0 or (value == 0 and one.name not in ("limit", "temperature")):
                raise DataError(f"--{one.name.replace('_', '-')} {value}: must be above 0")

    def engine(self, root: Path) -> Engine:
        """The engine that these options describe."""
        shared = {name: getattr(self, name) for name in EngineOptions.__dataclass_fields__}
        return load_engine(self.model, root=root, **shared)

    def sampling(self, prompt: Prompt) -> Sampling:
        """Decoding parameters for a prompt."""
        tokens = prompt.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        return greedy(Sampling(tokens, temperature=self.temperature, seed=self.seed))


#: What the commands do when nothing else is said.
DEFAULT_OPTIONS = Options()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a command would do and take, and what its texts look like.

    Attributes:
        dry_run: count, time a sample on the real model, estimate; write nothing.
        preview: generate for N random items only, save as usual, show before and after.
        price_read: of a million tokens read, for the costs.
        price_written: of a million tokens written, for the costs.
        price_gpu_hour: of one device for an hour, for the costs.
    """

    dry_run: bool = False
    preview: int | None = None
    price_read: float | None = None
    price_written: float | None = None
    price_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        if self.dry_run and self.preview:
            raise DataError("--dry-run writes nothing and --preview saves: give one of them")
        if self.preview is not None and self.preview < 1:
            raise DataError(f"--preview {self.preview}: must be above 0")


class JobPlan(NamedTuple):
    """What a command is about to do.

    Attributes:
        side: query or corpus.
        routes: kind of item -> prompt, None where it is left alone.
        jobs: all of them; read once.
        total: how many, None where that is not known before.
    """

    side: Side
    routes: Mapping[str, Prompt | None]
    jobs: Iterable[Job]
    total: int | None = None

    def share(self, options: Options) -> tuple[Iterator[Job], Share]:
        """The jobs that the options take, and which share of all these are."""
        shard = parse_shard(options.shard)
        return islice((job for job in self.jobs if shard.takes(job.item)), options.limit), shard


def candidate_plan(items: Iterable[Item], prompt: Prompt, total: int | None = None) -> JobPlan:
    """Describe every candidate that has a picture, or all where the prompt needs none."""
    jobs = (
        Job(item, prompt, "picture") if item.image is not None
        else Job(item, None if prompt.needs_image else prompt, "no picture")
        for item in items
    )  # fmt: skip
    return JobPlan("corpus", {"image": prompt}, jobs, total)


def query_plan(
    queries: Iterable[Query],
    prompts: Mapping[Kind, Prompt | None],
    told: Callable[[Query], Forbidden] | None = None,
    total: int | None = None,
    target: Callable[[Query], Item | None] | None = None,
) -> JobPlan:
    """Refine queries, each kind in its own way.

    ``told`` says what a rewrite must not say; ``target`` finds what a query looks for, for prompts
    that show it.
    """

    def job(query: Query) -> Job:
        found = classify(query)
        unsaid = None if told is None else partial(told, query)
        prompt, reason, seen = prompts[found.kind], str(found), None
        if prompt is not None and prompt.target_seen:
            seen = None if target is None else target(query)
            if seen is None:
                prompt, reason = None, "no target"
        return Job(query.item, prompt, reason, unsaid, seen)

    routes = {str(kind): prompt for kind, prompt in prompts.items()}
    return JobPlan("query", routes, map(job, queries), total)


def forbidden_of(
    root: Path, prompts: Iterable[Prompt | None], options: Options
) -> Callable[[Query], Forbidden] | None:
    """What the rewrite of a query must not say, and the answer of a chain touches on.

    That is what its positives in the pools of a root say. None where the root has no pools, no
    prompt rewrites or writes chains, or the options do not ask.
    """
    kinds = {(prompt.kind, prompt.form) for prompt in prompts if prompt is not None}
    rewrites = options.limits.leak != "off" and any(kind == "rewrite" for kind, _ in kinds)
    chains = any(form == "tags" for _, form in kinds)
    if not (rewrites or chains) or not (root / "cand_pool").is_dir():
        return None
    return partial(forbidden, RootItems(root, "corpus"))


def target_of(
    root: Path, prompts: Iterable[Prompt | None]
) -> Callable[[Query], Item | None] | None:
    """Finds the first positive of a query in the pools; None where no prompt shows it."""
    if not any(prompt is not None and prompt.target_seen for prompt in prompts):
        return None
    find = RootItems(root, "corpus").find
    return lambda query: next(filter(None, map(find, query.positives)), None)


def enrich(
    items: Iterable[Item] | Iterable[Query],
    prompt: str | Mapping[Kind, str | None],
    engine: Engine,
    store: Store,
    *,
    root: Path,
    options: Options = DEFAULT_OPTIONS,
) -> Summary:
    """Give items a text each, from the store or else from a model.

    It may be interrupted at any time and called again: what is in the store is not asked again.

    Args:
        items: candidates, of which those with a picture are described; or queries.
        prompt: name of a packaged prompt or path of an ``.md`` file; for queries also kind of
            query -> such a name (None leaves the kind alone), as
            :data:`augment.prompts.route.QUERY_PROMPTS`. One name takes all queries with a picture.
        engine: what answers, as :func:`augment.engines.load_engine` makes it.
        store: where texts are looked up and saved.
        root: folder that image paths are relative to; rewrites are compared with its pools.
        options: sampling, limits and share; of its options of the engine none counts here.

    Returns:
        What became of every item.

    Raises:
        DataError: if the data or a prompt cannot be used.
        StoreError: if the store cannot be read or written.
    """
    given = iter(items)
    first = next(given, None)
    everything: Iterator[Any] = given if first is None else chain([first], given)
    total = len(items) if isinstance(items, Sized) else None
    if isinstance(prompt, str) and not isinstance(first, Query):
        plan = candidate_plan(everything, load_prompt(prompt), total)
    else:
        names = prompt
        if isinstance(names, str):
            names = {"image": names, "question": names, "modification": names, "text": None}
        prompts = {kind: load_prompt(name) if name else None for kind, name in names.items()}
        told = forbidden_of(root, prompts.values(), options)
        plan = query_plan(everything, prompts, told, total, target_of(root, prompts.values()))
    return carry_out(plan, root, store, options, engine)


def recipe(
    side: Side, engine: Engine, routes: Mapping[str, Prompt | None], options: Options
) -> Recipe:
    """The recipe of a run."""
    prompts = {prompt.name: prompt for prompt in routes.values() if prompt is not None}
    return Recipe(
        side=side,
        prompts={name: prompt.id for name, prompt in prompts.items()},
        model=engine.model,
        revision=engine.revision,
        sampling={name: options.sampling(prompt) for name, prompt in prompts.items()},
        routes={kind: prompt.name if prompt else None for kind, prompt in routes.items()},
        settings=dict(engine.settings),
        target_seen=any(prompt.target_seen for prompt in routes.values() if prompt is not None),
    )


def carry_out(
    plan: JobPlan,
    root: Path,
    store: Path | Store,
    options: Options = DEFAULT_OPTIONS,
    engine: Engine | None = None,
    retry: Retry | None = None,
    seen_dead: Collection[int] = (),
) -> Summary:
    """Run :func:`~augment.enrichment.enrich.enrich_jobs` with progress; drain on the first signal.

    ``engine`` answers in place of the model that the options name; with ``retry`` nothing else is
    made.

    Raises:
        DataError: if the data or a prompt cannot be used.
        EngineError: if there is no such model.
        StoreError: if the store cannot be read or written.
    """
    jobs, shard = plan.share(options)
    if any(prompt is not None and prompt.form == "tags" for prompt in plan.routes.values()):
        token_counter(options.limits.tokenizer)  # refused now, not when a model has answered
    engine = engine or options.engine(root)
    scope = Scope(
        options.limit,
        str(shard),
        tuple(retry.reason) if retry else (),
        str(root.resolve()),
        checks_of(options.limits, [prompt for prompt in plan.routes.values() if prompt]),
    )
    # Shares are equal within a percent or so; the exact number is known at the end.
    share = None if plan.total is None else -(-plan.total // shard.shares)
    total = min((one for one in (share, options.limit) if one is not None), default=None)
    opened = store if isinstance(store, Store) else Store(store)
    used = recipe(plan.side, engine, plan.routes, options)
    known = 0 if retry else len(opened.rows("link", used.id)) // shard.shares
    with closing(Progress(plan.side, total, known)) as progress, draining() as stop, opened:
        return enrich_jobs(
            jobs,
            engine,
            opened,
            used,
            root,
            progress=progress,
            stop=stop,
            limits=options.limits,
            scope=scope,
            retry=retry,
            seen_dead=seen_dead,
        )


def run_plan(
    plan: Callable[..., JobPlan],
    root: Path,
    store: Path,
    *,
    options: Options = DEFAULT_OPTIONS,
    engine: Engine | None = None,
    **chosen: Any,
) -> Summary:
    """What the command of a plan does, with progress; raises what :func:`carry_out` raises."""
    return carry_out(plan(root, options=options, **chosen), root, store, options, engine)


def run_command(
    prog: str,
    plan: Callable[..., JobPlan],
    arguments: Sequence[str],
    supervised: bool = False,
    retry: bool = False,
) -> int:
    """Parse, run, print; the exit code.

    ``supervised``, it works in a child process, so that the command survives its death; a ``retry``
    asks again what failed or was refused, in place of trials.
    """
    more, ours = (Retry, {"seed"}) if retry else (Trial, set[str]())
    made = command.parser(prog, plan.__doc__.partition("\n\n")[0], EXIT_CODES)  # type: ignore[union-attr]
    made.add_argument("--store", type=str, required=True, metavar="PATH", help="Generated texts.")
    command.add_options(made, plan, skip={"options"})
    command.add_options(made, Options, skip={"limits"})
    command.add_options(made, more, skip=ours)
    made.add_class_arguments(Limits, "limits")
    parsed = made.parse_args(list(arguments))
    limits = Limits(**vars(parsed.limits))
    options = Options(**command.values(parsed, Options, skip={"limits"}), limits=limits)
    chosen = command.values(parsed, plan, skip={"options"})
    work = partial(plan, **chosen, options=options)
    root, store, asked = chosen["root"], Path(parsed.store), command.values(parsed, more, skip=ours)
    ladder = None
    if retry:
        ladder = Retry(**asked, seed=options.seed)
    elif asked["dry_run"] or asked["preview"] is not None:
        return _trial(work(), root, store, options, Trial(**asked))
    code = launch(prog, arguments, options.model, options, options.shard, options.limit)
    if code is not None:
        return code

    def one(dead: Collection[int]) -> int:
        summary = carry_out(work(), root, store, options, retry=ladder, seen_dead=dead)
        if supervised and summary.died:
            say(summary.incomplete, sys.stderr)
            return SUCCESSOR
        code = finish(summary, store)
        if not summary.incomplete:
            say(f"next: python -m augment report {store} --root {root} --out FOLDER")
        return code

    if supervised:
        return supervise(lambda dead: command.guarded(lambda: one(dead)), store)
    return one(())


def _trial(plan: JobPlan, root: Path, store: Path, options: Options, trial: Trial) -> int:
    """Estimate, or generate for some items and show their texts; the exit code."""
    engine = options.engine(root)
    used = recipe(plan.side, engine, plan.routes, options)
    jobs, _ = plan.share(options)
    if not trial.preview:
        size = SAMPLE_BATCHES * (options.batch_size or BATCH)
        found = survey(jobs, engine, Store(store), used, root, sample=size, seed=options.seed)
        prices = Prices(trial.price_read, trial.price_written, trial.price_gpu_hour)
        say(describe(found, measure(engine, found.sample), prices))
        return 0
    chosen = choose(jobs, trial.preview, options.seed)
    # A small run, so that nothing is paid for twice. With a limit, the store knows that the recipe
    # was not run to the end.
    small = replace(options, limit=trial.preview, shard=None)
    opened = Store(store)
    summary = carry_out(plan._replace(jobs=chosen, total=len(chosen)), root, opened, small, engine)
    say(f"{show(chosen, opened.texts(plan.side, used.id))}\n")
    return finish(summary, store)


def finish(summary: Summary, store: Path) -> int:
    """Print what became of every item; the exit code."""
    say(summary)
    for item, image, reason, _ in summary.failures[:SHOWN_FAILURES]:
        where = f"{item} ({image})" if image else item
        say(printable(f"failed: {where}: {reason}"), sys.stderr)
    hidden = summary.failed.total() - SHOWN_FAILURES
    if hidden > 0:
        sys.stderr.write(
            f"failed: {hidden:,} more; python -m augment status --store {store} --failures names"
            " them all\n"
        )
    return summary.exit_code
