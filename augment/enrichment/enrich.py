"""Enrichment: look up, ask, check, save. Every item ends up counted exactly once.

Jobs are a stream, read some way ahead (:mod:`augment.enrichment.plan`). What the store has is
linked; equal requests that are under way are grouped, so that one picture with one text is
described once however often it occurs; the rest goes to the engine, which reads the stream as fast
as it answers.
Replies are saved as their batch arrives; a killed process loses its running batch and nothing else.

If a process died over what was in its engine, the next one asks the same requests in halves, after
all others, until the item at fault stands alone; that is set aside as a failure, and asked again
only by a retry.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from augment import checks
from augment.checks import DEFAULT_LIMITS, Limits, Verdict, mark
from augment.engines import Ask, Engine, Pause
from augment.enrichment.account import Account, Progress, Summary
from augment.enrichment.jobs import SET_ASIDE, Group, Job, Retry
from augment.enrichment.plan import AHEAD, Planned, Planner
from augment.errors import EngineDied, EngineError, StoreWriteError
from augment.prompts import Prompt
from augment.records import Enrichment, Reply, Request
from augment.store import Failure, Judged, Scope, Store, reason_class
from augment.store.keys import Recipe
from augment.store.runs import RunRecord, load_runs
from augment.store.segments import Seen

#: Items settled without asking after which the engine may hand over what it has meanwhile done.
QUIET = 64


def enrich_jobs(
    jobs: Iterable[Job],
    engine: Engine,
    store: Store,
    recipe: Recipe,
    root: Path,
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    ahead: int = AHEAD,
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
        ahead: most jobs that are read before the engine takes them; see
            :data:`augment.enrichment.plan.AHEAD`.
        limits: what checks refuse. Stored texts that were judged under others are judged again.
        scope: how much of the input the jobs are; saved with the run. None saves no run.
        retry: try this again, and generate nothing else.
        seen_dead: processes that were seen to die in this job.

    Returns:
        What became of every item. Items that failed are retried by the next run.
    """
    store.save_recipe(recipe)
    record = None
    if scope is not None:
        record = store.begin(recipe, scope)
        _warn_of_others(store.folder, record)
        store.adopt(seen_dead)
    plan = Planner(jobs, engine, recipe, root, store, ahead)
    account = Account(store, recipe.id, engine, progress)
    judge = Judge(limits, store, recipe.id)
    run = _Run(plan, engine, store, recipe, account, stop, judge, retry)
    engine.on_start = run.starting
    try:
        run.all()
    except StoreWriteError as error:
        run.count()
        raise StoreWriteError(f"{error}\nup to then:\n{run.summary}") from error
    finally:
        engine.on_start = None
        plan.close()
    run.count()
    if not run.summary.died:
        store.calm()
    run.summary.verify()
    if record is not None:
        store.finish(record, run.summary.counts())
    return run.summary


def _warn_of_others(folder: Path, own: RunRecord) -> None:
    """Say that another run makes the same texts now; each asks for all that it did not find."""
    for run in load_runs(folder):
        same = (run.recipe, run.scope.shard) == (own.recipe, own.scope.shard)
        if same and run.alive and run.pid != own.pid:
            sys.stderr.write(
                f"process {run.pid} makes the same texts in this store now: both pay for them;"
                " stop one of the two, or give each a share (--shard 0/2 and --shard 1/2)\n"
            )


@final
@dataclass(eq=False)
class _Run:
    """The state of one call of :func:`enrich_jobs`."""

    _plan: Planner
    _engine: Engine
    _store: Store
    _recipe: Recipe
    _account: Account
    _stop: Callable[[], bool]
    _judge: Judge
    _retry: Retry | None

    def __post_init__(self) -> None:
        self.summary = self._account.summary
        self._suspects = self._store.suspects(self._recipe.id)
        self._suspected = frozenset().union(self._suspects.aside, *self._suspects.groups)
        #: Ids with a hash of what they stand for, and keys of the texts of this run.
        self._seen, self._written = Seen(), Seen()
        self._keys: dict[str, str] = {}
        #: Key -> group that is not settled; a group on the ladder under its first text's key.
        self._open: dict[str, Group] = {}
        #: Of these, those that wait to be asked in halves.
        self._held: dict[str, Group] = {}
        #: Of these, those that wait for the next rung of the ladder.
        self._again: deque[Group] = deque()

    def starting(self, requests: Sequence[Request]) -> None:
        """Save what enters the engine now; may be called from any thread."""
        self._store.starting([self._keys[request.item_id] for request in requests])

    def all(self) -> None:
        """Settle all jobs, or leave some pending if the run is cut short."""
        self._ask(self._stream())
        for keys in self._suspects.groups:
            part = [self._held.pop(key) for key in sorted(keys) if key in self._held]
            half = len(part) // 2
            self._ask(part[:half])
            self._ask(part[half:])
        for key in sorted(self._held):
            group = self._held.pop(key)
            # Only where the engine has answered anything under this recipe.
            if key in self._suspects.aside and len(self._store.rows("link", self._recipe.id)):
                self._set_aside(group)
            else:
                self._ask([group])

    def count(self) -> None:
        """Complete the account: what was read, and what of it is not settled."""
        self.summary.total = self._plan.read
        waiting = sum(len(group.members) for group in self._open.values())
        self.summary.pending = len(self._plan) + waiting

    # Jobs

    def _stream(self) -> Iterator[Group | Pause]:
        """What must be asked; what the store has is settled on the way."""
        quiet = 0
        for planned in self._plan:
            group = self._admit(planned)
            if group is not None:
                quiet = 0
                yield group
            elif (quiet := quiet + 1) % QUIET == 0:
                yield Pause.BRIEF

    def _admit(self, planned: Planned) -> Group | None:
        """The group to ask for a job; None if it needs none of its own."""
        job, group, failure, picture = planned
        if job.prompt is None:
            self._account.skipped(job.reason)
            return None
        if not self._is_new(job):
            return None
        if failure is not None:
            self._account.failed(failure)
        if group is None:
            return None
        if picture and group.image_hash and self._store.picture(picture) is None:
            self._store.save_picture(picture, group.image_hash)
        if not self._wanted(job, group):
            return None
        known = self._open.setdefault(group.key, group)
        known.members.append(job)
        if known is not group:
            return None
        return self._next_rung(group) if group.key in self._store else self._unless_held(group)

    def _unless_held(self, group: Group) -> Group | None:
        if group.key not in self._suspected:
            return group
        self._held[group.key] = group
        return None

    def _wanted(self, job: Job, group: Group) -> bool:
        """Whether to ask about an item; if not, it is settled here."""
        key = group.key
        if key in self._store:
            found = self._judge.stored(job, group.prompt, key)
            again = () if self._retry is None else self._retry.reason
            if reason_class(found[0].rejected) in again:
                return True
            self._account.known(job, key, found, duplicate=key in self._written)
            return False
        failure = self._store.failure(self._recipe.id, job.item.id)
        reason = "" if failure is None else reason_class(failure.reason)
        left = reason == SET_ASIDE and failure is not None and failure.key == key
        if self._retry is not None:
            left = reason not in self._retry.reason
        if left and failure is not None:
            self._account.still_failed(failure)
        elif left:
            self._account.skipped("not generated yet, nothing to retry")
        return not left

    def _is_new(self, job: Job) -> bool:
        """Settle an id that comes again, in a second pool or by mistake."""
        item = job.item
        content = hash((item.text, item.image))
        earlier = self._seen.add(item.id, content)
        if earlier is None:
            return True
        if earlier == content:
            self._account.skipped("listed again")
        else:
            reason = "duplicate-id: an earlier item with this id has another text or picture;"
            self._account.failed(Failure(item.id, item.image, f"{reason} give each its own id"))
        return False

    # Asking

    def _ask(self, groups: Iterable[Group | Pause]) -> None:
        """Ask about groups, and about what their replies make necessary."""
        while not self.summary.incomplete:
            under_way: dict[int, Group] = {}
            batches = self._engine.batches(self._numbered(groups, under_way))
            self._take(batches, under_way)
            if under_way and not self.summary.incomplete:
                self.summary.incomplete = f"the engine left {len(under_way):,} requests unanswered"
            if not self._again:
                return
            groups = ()

    def _numbered(
        self, groups: Iterable[Group | Pause], under_way: dict[int, Group]
    ) -> Iterator[Ask | Pause]:
        """The engine's stream; notes under which position a group goes out."""
        source, position = iter(groups), 0
        while True:
            one = self._again.popleft() if self._again else next(source, None)
            if isinstance(one, Group):
                under_way[position] = one
                position += 1
                self._keys[one.request.item_id] = one.key
                yield Ask(one.request, one.sampling)
            elif one is None:
                return
            else:
                yield one

    def _take(
        self, batches: Iterator[Sequence[tuple[int, Reply]]], under_way: dict[int, Group]
    ) -> None:
        try:
            for batch in batches:
                for position, reply in batch:
                    group = under_way.pop(position)
                    self._keys.pop(group.request.item_id, None)
                    self._settle(group, reply)
                if self._stop():
                    self.summary.incomplete = "stopped; run the same command again to go on"
                    break
        except EngineError as error:
            self.summary.incomplete = f"{error}; everything before is saved"
            self.summary.died = isinstance(error, EngineDied)
        finally:
            if isinstance(batches, Generator):
                batches.close()

    def _set_aside(self, group: Group) -> None:
        reason = (
            f"{SET_ASIDE}: the process died repeatedly with this item alone in the engine;"
            f" retry --reason {SET_ASIDE} tries it again"
        )
        for job in self._close(group):
            self._account.failed(Failure(job.item.id, job.item.image, reason, group.key))

    def _next_rung(self, group: Group) -> Group | None:
        """The group at the next temperature; None if there is none: its first text stays."""
        temperatures = self._retry.temperatures if self._retry else ()
        first = self._recipe.sampling[group.prompt.name]
        for rung in range(group.rung + 1, len(temperatures) + 1):
            seed = rung + (self._retry.seed if self._retry else 0)
            sampling = replace(first, temperature=temperatures[rung - 1], seed=seed)
            base = group.retry_of or group.key
            one = replace(group, sampling=sampling, retry_of=base, rung=rung)
            one.key = self._plan.key(one)
            if one.key not in self._store:
                self._open[base] = one
                return self._unless_held(one)
        key = group.retry_of or group.key
        for job in self._close(group):
            self._account.known(
                job, key, self._judge.stored(job, group.prompt, key), duplicate=False
            )
        return None

    # Replies

    def _settle(self, group: Group, reply: Reply) -> None:
        if reply.finish == "error":
            if group.retry_of:
                self._climb(group)
                return
            for job in self._close(group):
                self._account.failed(Failure(job.item.id, job.item.image, reply.reason, group.key))
            return
        verdicts = [self._judge.reply(job, group.prompt, reply) for job in group.members]
        # The text's own verdict is for those who see it without an item: the first that refuses.
        worst = next((one for one in verdicts if one.rejected), verdicts[0])
        text = self._enrichment(group, reply, worst)
        self._store.append(text)
        self._account.read(reply, worst.rejected if not group.retry_of else "")
        if group.retry_of and worst.rejected:
            self._climb(group)
            return
        if not verdicts[0].rejected and group.prompt.kind != "transcript":
            request = group.members[0].item.text if group.prompt.kind == "rewrite" else None
            self.summary.drift.add(verdicts[0].text, request)
        key = group.retry_of or group.key
        self._written.add(key)
        shown = group.key if group.retry_of else ""
        for number, (job, verdict) in enumerate(zip(self._close(group), verdicts, strict=True)):
            judged = self._judge.judged(group.prompt, verdict, text, shown)
            if number == 0:
                self._account.generated(job, key, judged, reply.output_tokens)
            else:
                self._account.known(job, key, (judged, True), duplicate=True)

    def _climb(self, group: Group) -> None:
        raised = self._next_rung(group)
        if raised is not None:
            self._again.append(raised)

    def _close(self, group: Group) -> list[Job]:
        """The members of a group, which is settled now."""
        del self._open[group.retry_of or group.key]
        return group.members

    def _enrichment(self, group: Group, reply: Reply, verdict: Verdict) -> Enrichment:
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
            picture=group.request.expected,
        )


@final
@dataclass(eq=False)
class Judge:
    """Judges texts under one set of limits: this run's replies, and what the store has.

    See :mod:`augment.checks.judge`; a verdict is kept with the item's link.
    """

    _limits: Limits
    _store: Store
    _recipe: str

    def reply(self, job: Job, prompt: Prompt, reply: Reply) -> Verdict:
        """The verdict on a reply as the text of an item."""
        forbidden = None if job.forbidden is None else job.forbidden()
        return checks.judge(reply, prompt, job.item.text, forbidden, self._limits)

    def stored(self, job: Job, prompt: Prompt, key: str) -> tuple[Judged, bool]:
        """The verdict on a stored text as that of an item, and whether it is a new one.

        Where the text is refused, the one that a retry made in its place is judged, too.
        """
        now = mark(self._limits, prompt)
        link = self._store.link_of(self._recipe, job.item.id)
        mended = self._store.mended(key)
        known = link if link and link.key == key and link.judged.mark == now else None
        # A refusal stands until a retry has made another text since.
        stands = known and (not known.judged.rejected or not mended or known.judged_since(mended))
        if known and stands:
            return known.judged, False
        found = self._text(job, prompt, key, "")
        if found.rejected and mended is not None:
            other = self._text(job, prompt, mended.key, mended.key)
            found = found if other.rejected else other
        return found, True

    def _text(self, job: Job, prompt: Prompt, key: str, shown: str) -> Judged:
        text = self._store.get(key)
        if text is None:
            return Judged(mark(self._limits, prompt), shown)
        reply = Reply(text.raw or text.text, text.finish, text.prompt_tokens, text.output_tokens)
        return self.judged(prompt, self.reply(job, prompt, reply), text, shown)

    def judged(self, prompt: Prompt, verdict: Verdict, text: Enrichment, shown: str = "") -> Judged:
        """A verdict as a link keeps it: scores only where they differ from the text's own."""
        own = dict(verdict.scores) == dict(text.checks)
        scores = "" if own else json.dumps(dict(verdict.scores), sort_keys=True)
        return Judged(mark(self._limits, prompt), shown, verdict.rejected, scores)
