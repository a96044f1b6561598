"""Enrichment: look up, ask, check, save. Every item ends up counted exactly once.

Jobs are read in windows. In each, the keys are computed (pictures are hashed in threads), what the
store has is linked, equal requests are grouped, so that one picture with one text is described once
however often it occurs, and the rest goes to the engine. Replies are saved as their batch arrives;
a killed process loses its running batch and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple, final

from augment.checks import DEFAULT_LIMITS, Forbidden, Limits, Verdict, judge
from augment.engines import Engine
from augment.errors import EngineError, ImageError
from augment.images import content_hash
from augment.keys import Recipe, text_key
from augment.progress import Progress
from augment.prompts import Prompt
from augment.records import Enrichment, Item, Reply, Request, Sampling
from augment.store import Failure, Store

#: Items whose keys are computed before the engine is asked; bounds memory, not batches.
WINDOW = 2048

#: Failures that a summary names; the store has them all.
NAMED_FAILURES = 1000


class Job(NamedTuple):
    """An item and what to do with it.

    Attributes:
        item: the item.
        prompt: how to ask about it; None leaves it alone.
        reason: how the prompt was chosen, or why it is left alone.
        forbidden: what a rewrite must not say, asked for when the text is judged; None where
            nothing is known.
    """

    item: Item
    prompt: Prompt | None
    reason: str
    forbidden: Callable[[], Forbidden] | None = None


@final
@dataclass
class Summary:
    """What became of every item: ``total`` is the sum of the outcomes.

    Attributes:
        total: items read.
        generated: items that a model answered for in this run.
        cached: items whose text was known, among them ``duplicates``.
        duplicates: items that share the text of another item of this run.
        skipped: reason -> items left alone.
        failed: reason -> items without a text.
        pending: items read but not settled, because the run was cut short.
        rejected: reason -> new texts that a check refused (they are among ``generated``).
        routed: how the prompt was chosen -> items with a text, refused ones included.
        failures: the first :data:`NAMED_FAILURES` failures.
        incomplete: why the run was cut short; empty if it was not.
    """

    total: int = 0
    generated: int = 0
    cached: int = 0
    duplicates: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    routed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    incomplete: str = ""

    @property
    def exit_code(self) -> int:
        """0 complete, 3 items failed, 4 cut short."""
        if self.incomplete:
            return 4
        return 3 if self.failed else 0

    def verify(self) -> None:
        """Check that every item was counted once.

        Raises:
            RuntimeError: if the sum does not fit, which is a defect of this program.
        """
        settled = self.generated + self.cached + self.skipped.total() + self.failed.total()
        if settled + self.pending != self.total:
            raise RuntimeError(f"items do not add up, please report this: {self}")

    def __str__(self) -> str:
        rows = [
            f"{self.total:>9,} items",
            f"{self.generated:>9,} generated{_reasons(self.rejected, ', refused by checks: ')}",
            f"{self.cached:>9,} cached ({self.duplicates:,} share the text of another item)",
            f"{self.skipped.total():>9,} left alone{_reasons(self.skipped, ': ')}",
            f"{self.failed.total():>9,} failed{_reasons(self.failed, ': ')}",
        ]
        if len(self.routed) > 1:
            rows += [f"{number:>9,} with a text: {route}" for route, number in self.routed.items()]
        if self.incomplete:
            rows += [f"{self.pending:>9,} read, not settled", f"incomplete: {self.incomplete}"]
        return "\n".join(rows)


def _reasons(counts: Counter[str], before: str) -> str:
    listing = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
    return before + listing if listing else ""


@dataclass(slots=True)
class _Group:
    """Items that send the very same."""

    key: str
    request: Request
    prompt: Prompt
    members: list[Job]


def enrich(
    jobs: Iterable[Job],
    engine: Engine,
    store: Store,
    recipe: Recipe,
    root: Path,
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    window: int = WINDOW,
    limits: Limits = DEFAULT_LIMITS,
) -> Summary:
    """Give every job's item a text, from the store or from the engine.

    Args:
        jobs: items with their prompts; an id that comes again is left alone.
        engine: answers the requests.
        store: where texts are looked up and saved. The recipe is saved in it.
        recipe: how this side is made; holds the sampling of every prompt.
        root: folder that image paths are relative to.
        progress: told about every settled item.
        stop: asked after every batch; true ends the run with all finished batches saved.
        window: see :data:`WINDOW`.
        limits: what checks refuse.

    Returns:
        What became of every item. Items that failed are retried by the next run.

    Raises:
        StoreError: if the store cannot be written.
        DataError: if a prompt does not render.
    """
    store.save_recipe(recipe)
    run = _Run(engine, store, recipe, root, progress, stop, limits)
    remaining = iter(jobs)
    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
        while not run.summary.incomplete and (batch := list(islice(remaining, window))):
            run.window(batch, pool)
    run.summary.verify()
    return run.summary


@final
class _Run:
    """The state of one call of :func:`enrich`."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        recipe: Recipe,
        root: Path,
        progress: Progress | None,
        stop: Callable[[], bool],
        limits: Limits,
    ) -> None:
        self.summary = Summary()
        self._engine = engine
        self._store = store
        self._recipe = recipe
        self._progress = progress
        self._stop = stop
        self._limits = limits
        self._seen: dict[str, int] = {}
        self._written: set[str] = set()
        # Many candidates share a picture; its file is read once.
        self._image_hash = lru_cache(maxsize=200_000)(lambda path: content_hash(root, path))

    def window(self, jobs: Sequence[Job], pool: ThreadPoolExecutor) -> None:
        """Settle one window of jobs, or leave some pending if the run is cut short."""
        self.summary.total += len(jobs)
        asked = [(job, job.prompt) for job in jobs if job.prompt is not None]
        for job in jobs:
            if job.prompt is None:
                self._skip(job.reason)
        groups = self._grouped([pair for pair in asked if self._is_new(pair[0])], pool)
        self.summary.pending = sum(len(group.members) for group in groups)
        by_sampling: dict[Sampling, list[_Group]] = defaultdict(list)
        for group in groups:
            by_sampling[self._recipe.sampling[group.prompt.name]].append(group)
        for sampling, members in by_sampling.items():
            if not self.summary.incomplete:
                self._ask(members, sampling)

    def _grouped(
        self, asked: Sequence[tuple[Job, Prompt]], pool: ThreadPoolExecutor
    ) -> list[_Group]:
        """What must be generated; what the store has is settled here."""
        groups: dict[str, _Group] = {}
        for (job, prompt), planned in zip(asked, pool.map(self._plan, asked), strict=True):
            if isinstance(planned, Failure):
                self._fail(planned)
                continue
            key, request = planned
            if self._store.get(key) is not None:
                self._share(job, key, key in self._written)
            else:
                groups.setdefault(key, _Group(key, request, prompt, [])).members.append(job)
        return list(groups.values())

    def _is_new(self, job: Job) -> bool:
        """Settle an id that comes again, in a second pool or by mistake."""
        item = job.item
        content = hash((item.text, item.image))
        if item.id not in self._seen:
            self._seen[item.id] = content
            return True
        if self._seen[item.id] == content:
            self._skip("listed again")
        else:
            reason = (
                "duplicate-id: an earlier item with this id has another text or picture;"
                " give each its own id"
            )
            self._fail(Failure(item.id, item.image, reason))
        return False

    def _plan(self, asked: tuple[Job, Prompt]) -> tuple[str, Request] | Failure:
        """The key and request of a job; runs in a thread."""
        job, prompt = asked
        request = prompt.render(job.item)
        try:
            image_hash = None if request.image is None else self._image_hash(request.image)
        except ImageError as error:
            return Failure(job.item.id, job.item.image, f"{error.reason}: {error}")
        engine = self._engine
        sampling = self._recipe.sampling[prompt.name]
        key = text_key(
            request, image_hash, engine.model, engine.revision, sampling, engine.settings
        )
        return key, request

    def _ask(self, groups: Sequence[_Group], sampling: Sampling) -> None:
        batches = self._engine.batches([group.request for group in groups], sampling)
        try:
            for batch in batches:
                for position, reply in batch:
                    self._settle(groups[position], reply, sampling)
                if self._stop():
                    self.summary.incomplete = "stopped; run the same command again to go on"
                    break
        except EngineError as error:
            self.summary.incomplete = f"{error}; everything before is saved"
        finally:
            if isinstance(batches, Generator):
                batches.close()

    def _settle(self, group: _Group, reply: Reply, sampling: Sampling) -> None:
        self.summary.pending -= len(group.members)
        if reply.finish == "error":
            for job in group.members:
                self._fail(Failure(job.item.id, job.item.image, reply.reason))
            return
        first, *others = group.members
        verdict = self._judge(group, reply)
        written = Enrichment(
            key=group.key,
            item_id=first.item.id,
            text=verdict.text,
            prompt=group.prompt.id,
            model=self._engine.model,
            revision=self._engine.revision,
            sampling=sampling,
            finish=reply.finish,
            prompt_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            rejected=verdict.rejected,
            raw=verdict.raw,
            checks=verdict.scores,
            lengths=verdict.lengths,
        )
        self._store.append(written)
        self._written.add(group.key)
        if verdict.rejected:
            self.summary.rejected[_class(verdict.rejected)] += 1
        self.summary.generated += 1
        self._link(first, group.key)
        self._tell(1, new=1)
        for job in others:
            self._share(job, group.key, duplicate=True)

    def _judge(self, group: _Group, reply: Reply) -> Verdict:
        """Check a text that all members share against what any of them forbids."""
        asked = [job.forbidden for job in group.members if job.forbidden is not None]
        known = [forbidden() for forbidden in asked]
        forbidden = Forbidden(
            tuple(text for one in known for text in one.texts),
            tuple(answer for one in known for answer in one.answers),
        )
        original = group.members[0].item.text
        return judge(reply, group.prompt, original, forbidden if known else None, self._limits)

    def _share(self, job: Job, key: str, duplicate: bool) -> None:
        self.summary.cached += 1
        self.summary.duplicates += duplicate
        self._link(job, key)
        self._tell(1)

    def _link(self, job: Job, key: str) -> None:
        self._store.link(self._recipe.id, job.item.id, key, job.reason)
        self.summary.routed[job.reason] += 1

    def _skip(self, reason: str) -> None:
        self.summary.skipped[reason] += 1
        self._tell(1)

    def _fail(self, failure: Failure) -> None:
        self._store.fail(self._recipe.id, failure)
        self.summary.failed[_class(failure.reason)] += 1
        if len(self.summary.failures) < NAMED_FAILURES:
            self.summary.failures.append(failure)
        self._tell(1, failed=1)

    def _tell(self, done: int, new: int = 0, failed: int = 0) -> None:
        if self._progress is not None:
            self._progress.add(done, new, failed)


def _class(reason: str) -> str:
    return reason.partition(":")[0]
