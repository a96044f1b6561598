"""From jobs to requests with their keys, some way ahead of whoever asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, final

from augment.data.images import PictureHashes
from augment.engines import Engine
from augment.enrichment.jobs import Group, Job
from augment.errors import ImageError
from augment.store import Failure, Store
from augment.store.keys import Recipe, text_key

#: Items whose keys are computed before they are needed; bounds memory, not batches.
AHEAD = 2048


class Planned(NamedTuple):
    """A job, and what to ask for it.

    Attributes:
        job: the job.
        group: a group without members; None for a job without a prompt.
        failure: why there is no group for a job with a prompt.
        picture: name under which the hash of its picture is to be remembered; empty for none.
    """

    job: Job
    group: Group | None = None
    failure: Failure | None = None
    picture: str = ""


@final
class Planner(Iterator[Planned]):
    """Jobs in their order, planned in threads.

    Attributes:
        read: jobs read so far.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        engine: Engine,
        recipe: Recipe,
        root: Path,
        store: Store,
        ahead: int = AHEAD,
    ) -> None:
        self.read = 0
        self._jobs = iter(jobs)
        self._engine = engine
        self._recipe = recipe
        self._store = store
        self._pictures = PictureHashes(root, store.picture)
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(thread_name_prefix="hash")
        self._coming: deque[Future[Planned]] = deque()

    def __len__(self) -> int:
        """Jobs that are read and not returned yet."""
        return len(self._coming)

    def __next__(self) -> Planned:
        """The next job."""
        for job in islice(self._jobs, max(0, self._ahead - len(self))):
            self.read += 1
            self._coming.append(self._pool.submit(self._plan, job))
        if not self._coming:
            raise StopIteration
        planned = self._coming[0].result()
        self._coming.popleft()
        return planned

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _plan(self, job: Job) -> Planned:
        """Render, and hash the picture; runs in a thread."""
        if (prompt := job.prompt) is None:
            return Planned(job)
        request = prompt.render(job.item, job.target, job.asked)
        image_hash, picture = None, ""
        if request.image is not None:
            try:
                image_hash, picture = self._pictures.hash(request.image)
            except ImageError as error:
                failure = Failure(job.item.id, job.item.image, f"{error.reason}: {error}")
                return Planned(job, failure=failure)
            request = replace(request, expected=image_hash)
        sampling = self._recipe.sampling[prompt.name]
        group = Group("", request, image_hash, prompt, sampling, [])
        group.key = self.key(group)
        return Planned(job, group, picture=picture)

    def key(self, group: Group) -> str:
        """The key of what a group asks for."""
        engine = self._engine
        return text_key(
            group.request,
            group.image_hash,
            engine.model,
            engine.revision,
            group.sampling,
            engine.settings,
        )
