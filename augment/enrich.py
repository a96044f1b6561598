"""Enrichment: look up, ask, check, save. Every item ends up counted exactly once.

Jobs are read in windows. In each, the keys are computed (pictures are hashed in threads), what the
store has is linked, equal requests are grouped, so that one picture with one text is described once
however often it occurs, and the rest goes to the engine. Replies are saved as their batch arrives;
a killed process loses its running batch and nothing else.

If a process died over what was in its engine, the next one asks the same requests in halves, after
all others, until the item at fault stands alone; that is set aside as a failure, and asked again
only by a retry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, final

from augment.checks import DEFAULT_LIMITS, Forbidden, Limits, Verdict, judge
from augment.engines import Engine
from augment.errors import EngineDied, EngineError, ImageError, StoreWriteError
from augment.keys import Recipe, text_key
from augment.pictures import PictureHashes
from augment.progress import Progress
from augment.prompts import Prompt
from augment.records import Enrichment, Item, Reply, Request, Sampling
from augment.store import Failure, Scope, Store
from augment.summary import NAMED_FAILURES, Summary, reason_class

__all__ = ["Job", "Retry", "Summary", "enrich"]

#: Items whose keys are computed before the engine is asked; bounds memory, not batches.
WINDOW = 2048

#: Class of the failures of items over which the engine died.
SET_ASIDE = "engine-died"


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


class Retry(NamedTuple):
    """What to try again.

    Attributes:
        reasons: classes of failures (asked again as they were) and of refused texts (asked again
            at the temperatures, one after the other, until a text is accepted).
        temperatures: of the ladder.
    """

    reasons: tuple[str, ...]
    temperatures: tuple[float, ...] = (0.3, 0.6, 0.9)


@dataclass(slots=True)
class _Group:
    """Items that send the very same."""

    key: str
    request: Request
    image_hash: str | None
    prompt: Prompt
    sampling: Sampling
    members: list[Job]
    retry_of: str = ""


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
    scope: Scope | None = None,
    retry: Retry | None = None,
    seen_dead: Collection[int] = (),
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
        scope: how much of the input the jobs are; saved with the run. None saves no run.
        retry: try this again, and generate nothing else.
        seen_dead: processes that were seen to die in this job.

    Returns:
        What became of every item. Items that failed are retried by the next run.

    Raises:
        StoreError: if the store cannot be read.
        StoreWriteError: if it cannot be written.
        DataError: if a prompt does not render.
    """
    store.save_recipe(recipe)
    record = None
    if scope is not None:
        record = store.begin(recipe, scope)
        store.adopt(seen_dead)
    run = _Run(engine, store, recipe, root, progress, stop, limits, retry)
    remaining = iter(jobs)
    engine.on_start = run.starting
    try:
        with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
            while not run.summary.incomplete and (batch := list(islice(remaining, window))):
                run.window(batch, pool)
    except StoreWriteError as error:
        raise StoreWriteError(f"{error}\nup to then:\n{run.summary}") from error
    finally:
        engine.on_start = None
    if not run.summary.died:
        store.calm()
    run.summary.verify()
    if record is not None:
        store.finish(record, run.summary.counts())
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
        retry: Retry | None,
    ) -> None:
        self.summary = Summary()
        self._engine = engine
        self._store = store
        self._recipe = recipe
        self._progress = progress
        self._stop = stop
        self._limits = limits
        self._retry = retry
        self._suspects = store.suspects(recipe.id)
        self._pictures = PictureHashes(root, store)
        self._seen: dict[str, int] = {}
        self._written: set[str] = set()
        self._keys: dict[str, str] = {}

    def starting(self, requests: Sequence[Request]) -> None:
        """Save what enters the engine now; may be called from any thread."""
        self._store.starting([self._keys[request.item_id] for request in requests])

    def window(self, jobs: Sequence[Job], pool: ThreadPoolExecutor) -> None:
        """Settle one window of jobs, or leave some pending if the run is cut short."""
        self.summary.total += len(jobs)
        asked = [(job, job.prompt) for job in jobs if job.prompt is not None]
        for job in jobs:
            if job.prompt is None:
                self._skip(job.reason)
        groups = self._grouped([pair for pair in asked if self._is_new(pair[0])], pool)
        self.summary.pending = sum(len(group.members) for group in groups)
        again = [group for group in groups if group.key in self._store]
        self._ask_all([group for group in groups if group.key not in self._store])
        self._climb(again)

    def _grouped(
        self, asked: Sequence[tuple[Job, Prompt]], pool: ThreadPoolExecutor
    ) -> list[_Group]:
        """What must be generated; what the store has is settled here."""
        groups: dict[str, _Group] = {}
        for (job, _), planned in zip(asked, pool.map(self._plan, asked), strict=True):
            if isinstance(planned, Failure):
                self._fail(planned)
                continue
            group, picture = planned
            if picture and group.image_hash:
                self._store.save_picture(picture, group.image_hash)
            if self._wanted(job, group.key):
                groups.setdefault(group.key, group).members.append(job)
        return list(groups.values())

    def _wanted(self, job: Job, key: str) -> bool:
        """Whether to ask about an item; if not, it is settled here."""
        if key in self._store and not self._refused(key):
            self._share(job, key, key in self._written)
            return False
        if key in self._store:
            return True
        failure = self._store.failure(self._recipe.id, job.item.id)
        reason = "" if failure is None else reason_class(failure.reason)
        left = reason == SET_ASIDE and failure is not None and failure.key == key
        if self._retry is not None:
            left = reason not in self._retry.reasons
        if left and failure is not None:
            self._count_failure(failure)
        elif left:
            self._skip("not generated yet, nothing to retry")
        return not left

    def _refused(self, key: str) -> bool:
        """Whether a retry wants another text in the place of this one."""
        if self._retry is None or self._store.retried(key):
            return False
        text = self._store.get(key)
        return text is not None and reason_class(text.rejected) in self._retry.reasons

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

    def _plan(self, asked: tuple[Job, Prompt]) -> tuple[_Group, str] | Failure:
        """A group of its own for a job, and a picture to remember; runs in a thread."""
        job, prompt = asked
        request = prompt.render(job.item)
        image_hash, picture = None, ""
        if request.image is not None:
            try:
                image_hash, picture = self._pictures.hash(request.image)
            except ImageError as error:
                return Failure(job.item.id, job.item.image, f"{error.reason}: {error}")
        sampling = self._recipe.sampling[prompt.name]
        group = _Group("", request, image_hash, prompt, sampling, [])
        group.key = self._key(group)
        return group, picture

    def _key(self, group: _Group) -> str:
        engine = self._engine
        return text_key(
            group.request,
            group.image_hash,
            engine.model,
            engine.revision,
            group.sampling,
            engine.settings,
        )

    def _ask_all(self, groups: Sequence[_Group]) -> None:
        """Ask; over which the engine may have died, last and in halves."""
        suspected = frozenset().union(self._suspects.aside, *self._suspects.groups)
        self._ask([group for group in groups if group.key not in suspected])
        if not suspected:
            return
        by_key = {group.key: group for group in groups}
        for keys in self._suspects.groups:
            part = [by_key[key] for key in sorted(keys) if key in by_key]
            half = len(part) // 2
            self._ask(part[:half])
            self._ask(part[half:])
        for key in sorted(self._suspects.aside & by_key.keys()):
            if self._works():
                self._set_aside(by_key[key])
            else:
                self._ask([by_key[key]])

    def _works(self) -> bool:
        """Whether the engine has answered anything under this recipe."""
        links = self._store.rows("link", self._recipe.id)
        return bool(links.segments or links.tail)

    def _set_aside(self, group: _Group) -> None:
        self.summary.pending -= len(group.members)
        reason = (
            f"{SET_ASIDE}: the process died repeatedly with this item alone in the engine;"
            f" retry --reason {SET_ASIDE} tries it again"
        )
        for job in group.members:
            self._fail(Failure(job.item.id, job.item.image, reason, group.key))

    def _climb(self, groups: Sequence[_Group]) -> None:
        """Ask again at rising temperatures; what stays refused keeps its first text."""
        refused = list(groups)
        for rung, temperature in enumerate(self._retry.temperatures if self._retry else (), 1):
            raised = []
            for group in refused:
                sampling = replace(
                    group.sampling, temperature=temperature, seed=group.sampling.seed + rung
                )
                one = replace(group, sampling=sampling, retry_of=group.retry_of or group.key)
                one.key = self._key(one)
                raised.append(one)
            self._ask_all([group for group in raised if group.key not in self._store])
            if self.summary.incomplete:
                return
            refused = [g for g in refused if not self._store.retried(g.key)]
        for group in refused:
            self.summary.pending -= len(group.members)
            for job in group.members:
                self._share(job, group.key, duplicate=False)

    def _ask(self, groups: Sequence[_Group]) -> None:
        by_sampling: dict[Sampling, list[_Group]] = defaultdict(list)
        for group in groups:
            by_sampling[group.sampling].append(group)
        for sampling, members in by_sampling.items():
            if not self.summary.incomplete:
                self._ask_engine(members, sampling)

    def _ask_engine(self, groups: Sequence[_Group], sampling: Sampling) -> None:
        self._keys = {group.request.item_id: group.key for group in groups}
        batches = self._engine.batches([group.request for group in groups], sampling)
        try:
            for batch in batches:
                for position, reply in batch:
                    self._settle(groups[position], reply)
                if self._stop():
                    self.summary.incomplete = "stopped; run the same command again to go on"
                    break
        except EngineError as error:
            self.summary.incomplete = f"{error}; everything before is saved"
            self.summary.died = isinstance(error, EngineDied)
        finally:
            if isinstance(batches, Generator):
                batches.close()

    def _settle(self, group: _Group, reply: Reply) -> None:
        if reply.finish == "error":
            if group.retry_of:
                return  # it keeps its first text
            self.summary.pending -= len(group.members)
            for job in group.members:
                self._fail(Failure(job.item.id, job.item.image, reply.reason, group.key))
            return
        verdict = self._judge(group, reply)
        self._store.append(self._enrichment(group, reply, verdict))
        self.summary.prompt_tokens += reply.prompt_tokens
        self.summary.output_tokens += reply.output_tokens
        if group.retry_of and verdict.rejected:
            return  # the next rung, or its first text
        self.summary.pending -= len(group.members)
        key = group.retry_of or group.key
        self._written.add(key)
        if verdict.rejected:
            self.summary.rejected[reason_class(verdict.rejected)] += 1
        self.summary.generated += 1
        first, *others = group.members
        self._link(first, key)
        self._tell(1, new=1, tokens=reply.output_tokens)
        for job in others:
            self._share(job, key, duplicate=True)

    def _enrichment(self, group: _Group, reply: Reply, verdict: Verdict) -> Enrichment:
        return Enrichment(
            key=group.key,
            item_id=group.members[0].item.id,
            text=verdict.text,
            prompt=group.prompt.id,
            model=self._engine.model,
            revision=self._engine.revision,
            sampling=group.sampling,
            finish=reply.finish,
            prompt_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            rejected=verdict.rejected,
            raw=verdict.raw,
            checks=verdict.scores,
            lengths=verdict.lengths,
            retry_of=group.retry_of,
        )

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
        self._count_failure(failure)

    def _count_failure(self, failure: Failure) -> None:
        self.summary.failed[reason_class(failure.reason)] += 1
        if len(self.summary.failures) < NAMED_FAILURES:
            self.summary.failures.append(failure)
        self._tell(1, failed=1)

    def _tell(self, done: int, new: int = 0, failed: int = 0, tokens: int = 0) -> None:
        if self._progress is not None:
            self._progress.waited(self._engine.waited)
            self._progress.add(done, new, failed, tokens)
