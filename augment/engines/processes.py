"""A crew of processes on this machine, one for each device."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, final

from augment.engines.base import Ask, EngineOptions, Pause, load_engine
from augment.engines.parallel import Crew, Event, Numbered
from augment.errors import EngineError


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection
    device: str


@final
class ProcessCrew(Crew):
    """Spawned processes; one that is started in place of a dead one takes over its device.

    Args:
        name: of the model, as :func:`~augment.engines.load_engine` takes it.
        root: folder that image paths are relative to.
        options: of each worker, except for the device.
        devices: one worker for each.
    """

    depth = 2

    def __init__(
        self, name: str, root: Path, options: EngineOptions, devices: Sequence[str]
    ) -> None:
        self._name = name
        self._root = root
        self._options = options
        self._devices = list(devices)
        self._free = list(reversed(devices))
        self._workers: dict[int, _Worker] = {}
        self._number = 0

    def start(self) -> int:
        """See :class:`Crew`."""
        # Spawned, because a process that has used CUDA cannot be forked.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        device = self._free.pop()
        process = context.Process(
            target=_serve,
            args=(theirs, self._name, self._root, replace(self._options, device=device)),
            daemon=True,
        )
        process.start()
        theirs.close()
        self._number += 1
        self._workers[self._number] = _Worker(process, ours, device)
        return self._number

    def give(self, worker: int, chunk: Numbered) -> None:
        """See :class:`Crew`."""
        try:
            self._workers[worker].pipe.send(list(chunk))
        except OSError:
            return  # it has just died; wait() tells

    def wait(self) -> Sequence[Event]:
        """See :class:`Crew`."""
        by_pipe = {worker.pipe: number for number, worker in self._workers.items()}
        # A pipe whose process has died is readable too, and reads as ended.
        return [self._event(by_pipe[pipe]) for pipe in wait(list(by_pipe)) if pipe in by_pipe]

    def stop(self) -> None:
        """See :class:`Crew`."""
        for worker in self._workers.values():
            worker.process.kill()
        for number in list(self._workers):
            self._bury(number)

    def _event(self, number: int) -> Event:
        try:
            event: Event = self._workers[number].pipe.recv()
        except (EOFError, OSError):
            code = self._bury(number)
            cause = ", as the kernel does when memory is short" if code == -signal.SIGKILL else ""
            return Event(number, "died", reason=f"the process ended with code {code}{cause}")
        if event.kind == "failed":
            self._bury(number)
        return event._replace(worker=number)

    def _bury(self, number: int) -> int | None:
        worker = self._workers.pop(number)
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        self._free.append(worker.device)
        return code


def _serve(pipe: Connection, name: str, root: Path, options: EngineOptions) -> None:
    """The worker's side: tell what happens, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        engine = load_engine(name, root=root, **asdict(options))
        pipe.send(Event(0, "ready"))
        numbers: dict[int, int] = {}
        for batch in engine.batches(_given(pipe, numbers)):
            replies = [(numbers.pop(position), reply) for position, reply in batch]
            pipe.send(Event(0, "replies", replies, waited=engine.waited))
    except EngineError as error:
        pipe.send(Event(0, "failed", reason=str(error)))
    except (EOFError, OSError):
        return


def _given(pipe: Connection, numbers: dict[int, int]) -> Iterator[Ask | Pause]:
    """What arrives, as the engine's stream; ``numbers`` maps positions of what is under way."""
    position = 0
    while True:
        if numbers and not pipe.poll():
            yield Pause.FLUSH
            continue
        for number, ask in pipe.recv():
            numbers[position] = number
            position += 1
            yield ask
