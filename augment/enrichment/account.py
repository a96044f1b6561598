"""The account of a running enrichment: every item is settled here, once, and saved with it."""

from __future__ import annotations

from typing import final

from augment.engines import Engine
from augment.enrichment.jobs import Job
from augment.enrichment.progress import Progress
from augment.enrichment.summary import NAMED_FAILURES, Summary, reason_class
from augment.records import Reply
from augment.store import Failure, Judged, Store


@final
class Account:
    """Settles items.

    Args:
        store: where links and failures are saved.
        recipe: id of the recipe.
        engine: tells how long its model waited.
        progress: told about every settled item; None for nobody.

    Attributes:
        summary: the counts.
    """

    def __init__(
        self, store: Store, recipe: str, engine: Engine, progress: Progress | None
    ) -> None:
        self.summary = Summary()
        self._store = store
        self._recipe = recipe
        self._engine = engine
        self._progress = progress

    def read(self, reply: Reply, refused: str) -> None:
        """Count what a model wrote, and why it is refused; empty if it is not."""
        self.summary.prompt_tokens += reply.prompt_tokens
        self.summary.output_tokens += reply.output_tokens
        if refused:
            self.summary.rejected[reason_class(refused)] += 1

    def generated(self, job: Job, key: str, judged: Judged, tokens: int) -> None:
        """The item for which a model wrote a text."""
        self._link(job, key, judged)
        self.summary.generated += 1
        self._tell(1, new=1, tokens=tokens)

    def shared(self, job: Job, key: str, judged: Judged) -> None:
        """An item that shares a text of this run."""
        self._link(job, key, judged)
        self._cached(duplicate=True)

    def known(self, job: Job, key: str, found: tuple[Judged, bool], duplicate: bool) -> None:
        """An item whose text the store has, its verdict, and whether that is new."""
        judged, new = found
        if new and not duplicate:
            self.summary.judged[reason_class(judged.rejected) or "accepted"] += 1
        if new or self._store.failed(self._recipe, job.item.id):
            self._link(job, key, judged)
        else:
            self.summary.routed[job.reason] += 1
        self._cached(duplicate)

    def skipped(self, reason: str) -> None:
        """An item that is left alone."""
        self.summary.skipped[reason] += 1
        self._tell(1)

    def failed(self, failure: Failure) -> None:
        """An item that gets no text."""
        self._store.fail(self._recipe, failure)
        self.still_failed(failure)

    def still_failed(self, failure: Failure) -> None:
        """An item whose failure the store has."""
        self.summary.failed[reason_class(failure.reason)] += 1
        if len(self.summary.failures) < NAMED_FAILURES:
            self.summary.failures.append(failure)
        self._tell(1, failed=1)

    def _link(self, job: Job, key: str, judged: Judged) -> None:
        self._store.link(self._recipe, job.item.id, key, job.reason, judged)
        self.summary.routed[job.reason] += 1

    def _cached(self, duplicate: bool) -> None:
        self.summary.cached += 1
        self.summary.duplicates += duplicate
        self._tell(1)

    def _tell(self, done: int, new: int = 0, failed: int = 0, tokens: int = 0) -> None:
        if self._progress is not None:
            self._progress.waited(self._engine.waited)
            self._progress.add(done, new, failed, tokens)
