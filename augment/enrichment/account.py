"""The account of a run: every item is settled here, once, saved with it, and shown as it goes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, final

from tqdm import tqdm

from augment.checks.drift import Drift
from augment.engines import Engine
from augment.enrichment.jobs import Job
from augment.records import Reply
from augment.store import Failure, Judged, Store, reason_class
from augment.store.upkeep import duration, listing

#: Failures that a summary names; the store has them all.
NAMED_FAILURES = 1000

#: Seconds between two plain lines, which are written where there is no terminal.
LINE_SECONDS = 10.0

#: Share of the time between two lines that a model may wait for pictures before this is said.
WAITING = 0.2


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
        empty: accepted texts of no word, as of a picture without text (likewise).
        judged: reason, or ``accepted`` -> items whose stored text was judged anew, because it had
            not been judged for this item under these limits (they are among ``cached``).
        routed: how the prompt was chosen -> items with a text, refused ones included.
        failures: the first :data:`NAMED_FAILURES` failures.
        incomplete: why the run was cut short; empty if it was not.
        died: whether it was cut short by the death of a model that had worked.
        prompt_tokens: read by the model in this run.
        output_tokens: written by the model in this run.
        drift: what the accepted of the new texts say together.
    """

    total: int = 0
    generated: int = 0
    cached: int = 0
    duplicates: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    routed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    incomplete: str = ""
    died: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0
    drift: Drift = field(default_factory=Drift)

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

    def counts(self) -> dict[str, object]:
        """All fields but the named failures, JSON-serialisable."""
        fields = {name: value for name, value in vars(self).items() if name != "failures"}
        fields["drift"] = self.drift.scores()
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in fields.items()}

    def __str__(self) -> str:
        judged = listing(self.judged, ": ")
        rows = [
            f"{self.total:>9,} items",
            f"{self.generated:>9,} generated{listing(self.rejected, ', refused by checks: ')}"
            f"{f', {self.empty:,} of them empty: no text in the picture' if self.empty else ''}",
            f"{self.cached:>9,} cached ({self.duplicates:,} share the text of another item)",
        ]
        if judged:
            rows.append(f"{self.judged.total():>9,} of them judged by limits new to them{judged}")
        rows += [
            f"{self.skipped.total():>9,} left alone{listing(self.skipped, ': ')}",
            f"{self.failed.total():>9,} failed{listing(self.failed, ': ')}",
        ]
        if len(self.routed) > 1:
            rows += [f"{number:>9,} with a text: {route}" for route, number in self.routed.items()]
        if self.incomplete:
            rows += [f"{self.pending:>9,} read, not settled", f"incomplete: {self.incomplete}"]
        rows += [f"warning: {told}; look at the texts" for told in self.drift.warnings]
        return "\n".join(rows)


@final
@dataclass(eq=False)
class Account:
    """Settles items.

    Attributes:
        summary: the counts.
    """

    _store: Store
    _recipe: str
    _engine: Engine
    _progress: Progress | None
    summary: Summary = field(default_factory=Summary)

    def read(self, reply: Reply, refused: str) -> None:
        """Count what a model wrote, and why it is refused; empty if it is not."""
        self.summary.prompt_tokens += reply.prompt_tokens
        self.summary.output_tokens += reply.output_tokens
        if refused:
            self.summary.rejected[reason_class(refused)] += 1
        elif not reply.text:
            self.summary.empty += 1

    def generated(self, job: Job, key: str, judged: Judged, tokens: int) -> None:
        """The item for which a model wrote a text."""
        self._link(job, key, judged)
        self.summary.generated += 1
        self._tell(new=1, tokens=tokens)

    def known(self, job: Job, key: str, found: tuple[Judged, bool], duplicate: bool) -> None:
        """An item whose text the store has, its verdict, and whether that is new."""
        judged, new = found
        if new and not duplicate:
            self.summary.judged[reason_class(judged.rejected) or "accepted"] += 1
        if new or self._store.failure(self._recipe, job.item.id) is not None:
            self._link(job, key, judged)
        else:
            self.summary.routed[job.reason] += 1
        self.summary.cached += 1
        self.summary.duplicates += duplicate
        self._tell(cached=not duplicate)

    def skipped(self, reason: str) -> None:
        """An item that is left alone."""
        self.summary.skipped[reason] += 1
        self._tell()

    def failed(self, failure: Failure) -> None:
        """An item that gets no text."""
        self._store.fail(self._recipe, failure)
        self.still_failed(failure)

    def still_failed(self, failure: Failure) -> None:
        """An item whose failure the store has."""
        self.summary.failed[reason_class(failure.reason)] += 1
        if len(self.summary.failures) < NAMED_FAILURES:
            self.summary.failures.append(failure)
        self._tell(failed=1)

    def _link(self, job: Job, key: str, judged: Judged) -> None:
        self._store.link(self._recipe, job.item.id, key, job.reason, judged)
        self.summary.routed[job.reason] += 1

    def _tell(self, **more: int) -> None:
        if self._progress is not None:
            self._progress.waited(self._engine.waited)
            self._progress.add(1, **more)


@final
class Progress:
    """Shows how far a run is, on the standard error.

    Args:
        what: what is counted, e.g. ``corpus``.
        total: number of items, None if unknown.
        known: of these, how many have a text already: they cost no time when their turn comes.
    """

    def __init__(self, what: str, total: int | None, known: int = 0) -> None:
        self._what = what
        self._total = total
        self._known = known
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            form = "{l_bar}{bar}| {n_fmt} of {total_fmt} items [{elapsed}{postfix}]"
            self._bar = tqdm(total=total, desc=what, dynamic_ncols=True, bar_format=form)
        self._counts: Counter[str] = Counter()
        self._waited = self._noted = self._share = 0.0
        self._start = self._shown = time.monotonic()

    def add(self, done: int, **more: int) -> None:
        """Count items that are settled.

        Args:
            done: how many.
            **more: of these, how many a model answered (``new``; the remaining time is estimated
                from them), were known before the run (``cached``) or ``failed``; and the
                ``tokens`` that a model wrote for them.
        """
        self._counts.update(done=done, **more)
        if self._bar is not None:
            self._bar.update(done)
        if time.monotonic() - self._shown > LINE_SECONDS:
            self._show()

    def waited(self, seconds: float) -> None:
        """Tell how long the model has waited for pictures since the run began."""
        self._waited = seconds

    def _show(self) -> None:
        now = time.monotonic()
        self._share = (self._waited - self._noted) / max(now - self._shown, 1e-9)
        self._noted, self._shown = self._waited, now
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._details()), refresh=False)
        else:
            of = "" if self._total is None else f" of {self._total:,}"
            state = [f"{self._what}: {self._counts['done']:,}{of} items", *self._details()]
            sys.stderr.write(", ".join(state) + "\n")
            sys.stderr.flush()

    def _details(self) -> list[str]:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        # What was in the store costs no time, so it must not make the rest look cheap.
        rate = (self._counts["new"] or self._counts["done"]) / elapsed
        found = [f"{rate:.3g}/s"]
        if self._total is not None and rate > 0:
            found.append(f"{duration(self._to_ask(self._total) / rate)} left")
        if self._counts["tokens"]:
            found.append(f"{self._counts['tokens'] / elapsed:.3g} tokens/s")
        if self._counts["failed"]:
            found.append(f"{self._counts['failed']:,} failed")
        if self._share > WAITING:
            found.append(f"the model is waiting for images ({100 * self._share:.0f} % of the time)")
        return found

    def _to_ask(self, total: int) -> float:
        """How many of the items to come a model will be asked about.

        Those with a text are known; of the others, as many as so far are left alone, fail, or share
        the text of another.
        """
        done, new, cached = (self._counts[name] for name in ("done", "new", "cached"))
        known = min(cached, self._known)
        others, seen = total - done - (self._known - known), done - known
        return max(others, 0) * (new / seen if seen and new else 1.0)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._details()), refresh=False)
            self._bar.close()
