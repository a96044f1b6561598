"""Many machines through Ray, which places the workers and carries requests and replies.

No more than that: pictures are opened by the workers, from a path that all machines share, so that
no pixel enters Ray's object store; and what is finished is known to the ledger alone, so that a
lost cluster costs only what was in flight.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.engines.base import Engine, EngineOptions, load_engine
from augment.engines.parallel import Crew, Event, Numbered, ParallelEngine
from augment.errors import EngineError


class _Worker(NamedTuple):
    actor: Any
    pending: Any
    is_chunk: bool


class _Actor:
    """What runs on the other machine."""

    def __init__(self, name: str, root: Path, options: EngineOptions) -> None:
        self._engine = load_engine(name, root=root, **asdict(options))

    def ready(self) -> None:
        """Returns once the engine is made."""

    def answer(self, chunk: Numbered) -> Any:
        """A stream of replies with their numbers, and the seconds that the model has waited."""
        numbers = [number for number, _ in chunk]
        for batch in self._engine.batches(ask for _, ask in chunk):
            replies = [(numbers[position], reply) for position, reply in batch]
            yield replies, self._engine.waited


@final
class RayCrew(Crew):
    """Actors spread over the machines of a cluster.

    Args:
        name: of the model, as :func:`~augment.engines.load_engine` takes it.
        root: folder that image paths are relative to, under the same path on all machines.
        options: of each worker.
        gpus: that a worker takes.
    """

    def __init__(self, name: str, root: Path, options: EngineOptions, gpus: float) -> None:
        import ray

        self._ray: Any = ray
        self._arguments = (name, root.resolve(), options)
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")
        self._class = remote(_Actor)
        self._workers: dict[int, _Worker] = {}
        self._number = 0

    def start(self) -> int:
        """See :class:`Crew`."""
        actor = self._class.remote(*self._arguments)
        self._number += 1
        # Told when it is placed: on a cluster that has shrunk it may wait for a machine.
        self._workers[self._number] = _Worker(actor, actor.ready.remote(), is_chunk=False)
        return self._number

    def give(self, worker: int, chunk: Numbered) -> None:
        """See :class:`Crew`."""
        actor = self._workers[worker].actor
        stream = actor.answer.options(num_returns="streaming").remote(list(chunk))
        self._workers[worker] = _Worker(actor, stream, is_chunk=True)

    def wait(self) -> Sequence[Event]:
        """See :class:`Crew`."""
        waiting = {
            worker.pending: number
            for number, worker in self._workers.items()
            if worker.pending is not None
        }
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=5.0, fetch_local=False)
        told = [self._event(waiting[pending]) for pending in ready]
        return [event for event in told if event is not None]

    def stop(self) -> None:
        """See :class:`Crew`."""
        for worker in self._workers.values():
            self._ray.kill(worker.actor)
        self._workers.clear()

    def _event(self, number: int) -> Event | None:
        worker = self._workers[number]
        errors = self._ray.exceptions
        try:
            if worker.is_chunk:
                replies, waited = self._ray.get(next(worker.pending))
                return Event(number, "replies", replies, waited=waited)
            self._ray.get(worker.pending)
        except StopIteration:
            self._workers[number] = worker._replace(pending=None)
            return None
        except errors.RayTaskError as error:
            self._ray.kill(worker.actor)
            del self._workers[number]
            return Event(number, "failed", reason=str(error.cause or error))
        except errors.RayError as error:
            del self._workers[number]
            return Event(number, "died", reason=str(error).splitlines()[0])
        self._workers[number] = worker._replace(pending=None)
        return Event(number, "ready")


def make(name: str, root: Path, options: EngineOptions) -> Engine:
    """The engine ``name`` on every GPU of a cluster; without GPUs, on every machine.

    The cluster is the one that ``RAY_ADDRESS`` names, else the one this machine belongs to; where
    there is none, Ray starts one on this machine.

    Raises:
        EngineError: if Ray is not installed, or ``name`` cannot be made.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise EngineError(
            "Ray is not installed: pip install 'reasoning-augmented-retrieval[ray]'"
        ) from error
    inner = load_engine(name, root=root, **asdict(options))
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    size = options.replicas or gpus or machines
    crew = RayCrew(name, root, replace(options, replicas=None), 1 if gpus else 0)
    return ParallelEngine(inner, crew, size=size, batch_size=options.batch_size)
