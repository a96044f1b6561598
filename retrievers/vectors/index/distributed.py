"""Search over shards on several machines: Ray workers, each exact, merged exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from augment.errors import DataError, EngineError, ToolkitError
from retrievers.vectors.embeddings.manifest import Shard
from retrievers.vectors.embeddings.store import EmbeddingStore
from retrievers.vectors.index.base import Found, Index
from retrievers.vectors.index.exact import MatrixIndex
from retrievers.vectors.index.ids import Ids


@final
class ShardWorker:
    """What runs in a Ray worker: exact search over some shards of a store.

    Args:
        folder: the store, at the same path on every machine (a shared disk, or copies).
        shards: names of those to search.
        made_by: fingerprint that is expected.
        device: where the products run.
        threads: of the processor.
    """

    def __init__(
        self, folder: str, shards: Sequence[str], made_by: str, device: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        store = EmbeddingStore.open(folder, made_by, shards=shards)
        self._index = MatrixIndex(made_by, device)
        self._index.add_source(store.ids(), store, made_by)

    def search(self, vectors: Float32[np.ndarray, "queries dim"], k: int) -> tuple[Any, ...]:
        """Rows of these shards, scores, and ids as an Arrow array, all of at most ``k`` hits."""
        found = self._index.search(torch.tensor(vectors), min(k, len(self._index)))
        return found.rows, found.scores, self._index.ids.column.take(found.rows.ravel())

    def names(self, rows: Int64[np.ndarray, " n"]) -> list[str]:
        """Ids of rows."""
        return self._index.names(rows)


@final
class RayIndex(Index):
    """An :class:`retrievers.vectors.index.Index` whose vectors lie with Ray workers.

    Each worker maps its shards and answers with its own best k; the best k of all of these are the
    best k of the whole, and since scores and ties do not depend on how shards are dealt out, so
    does no rank. A worker that dies with its machine is started elsewhere and asked again.

    Args:
        folder: a finished store, readable at this path on every machine.
        workers: processes.
        cpus: cores of each; its threads.
        gpus: graphics cards of each; above 0 the products run there.
        restarts: of each worker.

    Raises:
        EngineError: if Ray is not installed or its workers cannot start.
        StoreError: if the store is damaged or not finished.
        DataError: if it holds an id twice, i.e. embeddings that were replaced.
    """

    def __init__(
        self,
        folder: str | Path,
        workers: int = 2,
        cpus: int = 1,
        gpus: float = 0,
        restarts: int = 2,
    ) -> None:
        self._ray = _import_ray()
        store = EmbeddingStore.open(folder, verify=False)  # each worker verifies its own shards
        super().__init__(store.made_by)
        if len(store.live) != len(store):
            raise DataError(
                f"{len(store) - len(store.live)} embeddings were replaced by newer ones; embed "
                "into an empty folder before searching it with several workers",
                str(folder),
            )
        if not len(store):
            raise DataError("no embeddings", str(folder))
        if not self._ray.is_initialized():
            self._ray.init()
        dealt = deal(store.manifest.shards, workers)
        self._firsts = np.cumsum([0, *(sum(s.rows for s in part) for part in dealt)])
        self._dim = store.dim
        actor = self._ray.remote(ShardWorker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=restarts,
            max_task_retries=restarts,
            scheduling_strategy="SPREAD",
        )
        device = "cuda" if gpus else "cpu"
        place = str(Path(folder).resolve())
        self._workers = [
            actor.remote(place, [s.name for s in part], store.made_by, device, cpus)
            for part in dealt
        ]

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._dim

    def names(self, rows: Int64[np.ndarray, " n"]) -> list[str]:
        """Ids of some rows, asked of the workers that have them."""
        owner = np.searchsorted(self._firsts, rows, side="right") - 1
        names = np.empty(len(rows), dtype=object)
        asked = np.unique(owner).tolist()
        answers = self._get(
            [self._workers[n].names.remote(rows[owner == n] - self._firsts[n]) for n in asked]
        )
        for number, answer in zip(asked, answers, strict=True):
            names[owner == number] = answer
        return [str(name) for name in names]

    def close(self) -> None:
        """Stop the workers; the cluster goes on."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []

    def __enter__(self) -> RayIndex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _find(self, vectors: Float32[Tensor, "queries dim"], k: int) -> Found:
        sent = self._ray.put(vectors.numpy())
        answers = self._get([worker.search.remote(sent, k) for worker in self._workers])
        rows = np.hstack(
            [r + first for (r, _, _), first in zip(answers, self._firsts, strict=False)]
        )
        scores = np.hstack([s for _, s, _ in answers])
        ranks = self._ranks([(i, r.shape) for r, _, i in answers])
        order = np.lexsort((ranks, -scores), axis=1)[:, :k]
        return Found(
            np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        )

    def _ranks(self, found: list[tuple[Any, tuple[int, int]]]) -> Int64[np.ndarray, "queries n"]:
        """Rank of each hit's id among all hits, descending."""
        ids = Ids()
        for column, _ in found:
            ids.extend(column)
        ranks = np.split(ids.ranks(), np.cumsum([len(column) for column, _ in found])[:-1])
        return np.hstack([r.reshape(shape) for r, (_, shape) in zip(ranks, found, strict=True)])

    def _get(self, pending: list[Any]) -> Any:
        try:
            return self._ray.get(pending)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ToolkitError):
                raise error.cause from error
            raise EngineError(f"a search worker failed: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            raise EngineError(
                f"a search worker died and could not be started again: {error}; look at its "
                "machine, then open the index again"
            ) from error


def deal(shards: Sequence[Shard], workers: int) -> list[list[Shard]]:
    """Consecutive shards for each worker, about the same number of rows; none goes without.

    Args:
        shards: in order.
        workers: at least 1; those beyond the number of shards are left out.
    """
    if workers < 1:
        raise ValueError(f"at least one worker is needed, got {workers}")
    workers = min(workers, len(shards))
    ends = np.cumsum([shard.rows for shard in shards])
    total = int(ends[-1])
    parts: list[list[Shard]] = []
    for number in range(workers):
        start = sum(map(len, parts))
        stop = int(np.searchsorted(ends, total * (number + 1) / workers)) + 1
        most = len(shards) - (workers - number - 1)
        parts.append(list(shards[start : max(start + 1, min(stop, most))]))
    parts[-1].extend(shards[sum(map(len, parts)) :])
    return parts


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise EngineError(
            "searching with several workers needs Ray: pip install "
            "'reasoning-augmented-retrieval[ray]'"
        ) from error
    return ray
