"""Many devices and machines: shards of one job, each a command of its own, as writers of one store.

``--device all`` (or ``cuda:0,cuda:1``) runs the command again for every device, with ``--shard``.
``--model ray:NAME`` has a Ray cluster run the same commands wherever it has room; pictures and the
store are then on paths that all machines share, and nothing but the account of a shard travels.
A command that is killed is started again, which costs what was in flight; requests that kill the
worker inside it are its own affair (:mod:`augment.enrichment.supervise`).
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple, final

from augment.engines import EngineOptions
from augment.enrichment.jobs import parse_shard
from augment.enrichment.supervise import handling
from augment.errors import EngineError

#: How often a command that is killed (for memory, say) is started, all in all.
STARTS = 4

#: Machines that Ray may lose under one shard.
RETRIES = 20

#: Exit codes from the best to the worst; any other one is worse.
_GRAVITY = (0, 3, 4, 2, 5)


class Portion(NamedTuple):
    """A part of the job.

    Attributes:
        name: for people.
        options: of the command, behind those that were given, which they overrule.
    """

    name: str
    options: tuple[str, ...]


class Ended(NamedTuple):
    """What became of a share: the exit code of its command, and what that wrote."""

    code: int
    account: str


def shares(
    model: str,
    device: str = "auto",
    shard: str | None = None,
    limit: int | None = None,
    replicas: int | None = None,
) -> list[Portion]:
    """The parts that a job is to be run in; one part, if this process is to do it alone.

    Args:
        model: as the command line names it.
        device: one, several with commas between them, or ``all``.
        shard: of which this job is all; it is divided further.
        limit: of items, divided among the parts.
        replicas: parts on a Ray cluster; None is one for each GPU, or each machine.

    Raises:
        DataError: if the shard is malformed.
        EngineError: if Ray is wanted and not installed.
    """
    if model.startswith("ray:"):
        inner = model.removeprefix("ray:")
        number = replicas or _cluster()[1]
        parts = [(f"on Ray, {n} of {number}", ("--model", inner)) for n in range(number)]
    elif model.startswith("vllm:"):
        return [Portion(device, ())]  # it takes all GPUs by itself
    else:
        devices = device.split(",")
        if device == "all":
            from augment.engines.vllm import gpus

            devices = [f"cuda:{number}" for number in range(len(gpus()))] or ["cpu"]
        if len(devices) == 1:
            return [Portion(device, ("--device", devices[0]))]
        parts = [(name, ("--device", name)) for name in devices]
    whole, count = parse_shard(shard), len(parts)
    done = []
    for number, (name, options) in enumerate(parts):
        # What leaves n when divided by m leaves n + m i, for one of k values of i, divided by m k.
        place = f"{whole.number + number * whole.shares}/{whole.shares * count}"
        most = () if limit is None else ("--limit", str((limit + number) // count))
        done.append(Portion(f"{name}, shard {place}", (*options, "--shard", place, *most)))
    return done


def launch(
    prog: str,
    arguments: Sequence[str],
    model: str,
    options: EngineOptions,
    shard: str | None,
    limit: int | None,
) -> int | None:
    """Run a command in parts, if it is to be run so; the worst of their exit codes.

    Returns:
        None, with nothing done, for a job that one process does alone.
    """
    parts = shares(model, options.device, shard, limit, options.replicas)
    on_ray = model.startswith("ray:")
    if not on_ray and (len(parts) == 1 or options.urls):  # servers have no device of ours
        return None
    return run([*prog.split()[1:], *arguments], parts, Cluster() if on_ray else Machine())


def run(words: Sequence[str], parts: Sequence[Portion], crew: Machine | Cluster) -> int:
    """Run all parts, print their accounts, hand on Ctrl-C and SIGTERM; the worst exit code."""
    codes = []
    with handling(lambda number, frame: crew.stop()):
        for part, ended in zip(parts, crew.run(words, parts), strict=True):
            sys.stdout.write(f"{part.name}: exit code {ended.code}\n{ended.account}")
            sys.stdout.flush()
            codes.append(ended.code)
    return max(codes, key=lambda code: _GRAVITY.index(code) if code in _GRAVITY else len(_GRAVITY))


@final
class Machine:
    """Runs the parts as processes of this machine, all at once."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._stopped = False

    def run(self, words: Sequence[str], parts: Sequence[Portion]) -> Iterator[Ended]:
        """How the parts ended, in their order."""
        with ThreadPoolExecutor(len(parts), "share") as threads:
            yield from threads.map(lambda part: self._one(words, part), parts)

    def stop(self) -> None:
        """Ask all to finish what they are at; once more, to end at once."""
        self._stopped = True
        for process in list(self._running.values()):
            process.send_signal(signal.SIGTERM)

    def _one(self, words: Sequence[str], part: Portion) -> Ended:
        def started(process: subprocess.Popen[str]) -> None:
            self._running[part.name] = process
            if self._stopped:
                process.send_signal(signal.SIGTERM)

        folder = str(Path.cwd())
        return run_share(words, part, folder, started=started, again=lambda: not self._stopped)


@final
class Cluster:
    """Has Ray run the parts as tasks."""

    def __init__(self) -> None:
        self._ray, _ = _cluster()
        self._tasks: list[Any] = []

    def run(self, words: Sequence[str], parts: Sequence[Portion]) -> Iterator[Ended]:
        """How the parts ended, in their order."""
        gpu = 1 if self._ray.cluster_resources().get("GPU") else 0
        task = self._ray.remote(
            num_cpus=1, num_gpus=gpu, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )(run_share)
        self._tasks = [task.remote(list(words), part, str(Path.cwd())) for part in parts]
        for one in self._tasks:
            try:
                yield self._ray.get(one)
            except self._ray.exceptions.RayError as error:  # noqa: PERF203
                yield Ended(4, f"{str(error).splitlines()[0]}\n")

    def stop(self) -> None:
        """End all tasks; what is finished is saved."""
        for one in self._tasks:
            self._ray.cancel(one)


def run_share(
    words: Sequence[str],
    part: Portion,
    folder: str,
    *,
    started: Callable[[subprocess.Popen[str]], object] = lambda process: None,
    again: Callable[[], bool] = lambda: True,
) -> Ended:
    """Run one part to its end; it does not outlive this process.

    Args:
        words: of the command, behind the interpreter.
        part: what is added.
        folder: to run it in.
        started: told about the process; a signal to it reaches the command.
        again: whether to start it again when it is killed.
    """
    command = [sys.executable, "-m", "augment.engines.leash", sys.executable, *words, *part.options]
    for start in range(1, STARTS + 1):
        process = subprocess.Popen(  # noqa: S603  # our own command
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        with process:
            started(process)
            teller = threading.Thread(target=_tell, args=(process.stderr, part.name))
            teller.start()
            account = process.stdout.read() if process.stdout else ""
            teller.join()
        code = process.returncode
        if 0 <= code <= 128 or not again():
            break
        more = "starting it again" if start < STARTS else "given up"
        sys.stderr.write(f"{part.name}: ended with code {code}, as when it is killed; {more}\n")
    return Ended(code if 0 <= code <= 128 else 4, account)


def _tell(lines: IO[str], name: str) -> None:
    for line in lines:
        sys.stderr.write(f"{name}: {line}")
        sys.stderr.flush()


def _cluster() -> tuple[Any, int]:
    """Ray, connected to its cluster, and how many shares that has room for.

    The cluster is the one that ``RAY_ADDRESS`` names, else the one this machine belongs to; where
    there is none, Ray starts one on this machine.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise EngineError(
            "Ray is not installed: pip install 'reasoning-augmented-retrieval[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    machines = sum(node["Alive"] for node in ray.nodes())
    return ray, int(ray.cluster_resources().get("GPU", 0)) or machines
