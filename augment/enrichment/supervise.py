"""Signals, and a parent process that survives the death of the one that works.

A segmentation fault or the kernel's out-of-memory killer ends a process without a word. The parent
sees it, and starts another one, which asks what was in the engine in halves until the item at fault
is found (see :mod:`augment.enrichment.enrich`). The parent holds no model and loads nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from augment.store import log

#: Exit code of a worker whose engine has died and that wants a successor.
SUCCESSOR = 75

#: Deaths in a row without a single new text after which the engine, not an item, is at fault.
#: Halving a batch of 256 and trying the last item twice takes ten.
MOST_DEATHS = 12

#: Signals that come within this many seconds are one: a terminal sends Ctrl-C to the parent and the
#: worker, and the parent hands it on.
SAME_SIGNAL_SECONDS = 0.5

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Signal -> what handles it, as Python tells.
Handlers = dict[signal.Signals, Any]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[Handlers]:
    """Give Ctrl-C and SIGTERM to a handler; what handled them before.

    Outside the main thread, where Python sets no handlers, it is never called.
    """
    before: Handlers = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield before
    finally:
        _restore(before)


@contextmanager
def draining() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C or SIGTERM asked to stop.

    The first signal only asks: the running batch is finished and saved. The second ends the
    process as usual.
    """
    asked_at: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
            sys.stderr.write("\nfinishing the running batch; once more to stop at once\n")
        elif time.monotonic() - asked_at[0] > SAME_SIGNAL_SECONDS:
            _restore(before)
            if before[signal.Signals(number)] == signal.SIG_IGN:  # so shells start jobs with "&"
                interrupt = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if interrupt else signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with handling(ask) as before:
        yield lambda: bool(asked_at)


def _restore(handlers: Handlers) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def supervise(work: Callable[[Collection[int]], int], store: Path) -> int:
    """Work in a child process; begin again with another one when it dies over an item.

    ``work`` is given the processes that died so far, and returns the exit code.

    Returns:
        The exit code of the last child, or 4 if beginning again is pointless.
    """
    dead: list[int] = []
    barren = 0
    while True:
        pid, code, asked = _run_child(work, dead)
        if code >= 0 and code != SUCCESSOR:
            return code
        if asked:
            return 4
        dead.append(pid)
        trace, end = _trace(store, pid), _ended(code)
        if trace is None:
            sys.stderr.write(
                f"the worker {end} before it asked the model anything; if the model does not"
                " fit into memory, take a smaller one\n"
            )
            return 4
        barren = 0 if trace else barren + 1
        if barren >= MOST_DEATHS:
            sys.stderr.write(
                f"the worker {end}; that was the {barren}th time without a new text, so"
                " the model, not an item, is at fault; finished texts are saved\n"
            )
            return 4
        sys.stderr.write(
            f"the worker {end}; finished texts are saved, going on with another one, which"
            " asks the last batch in halves to find the item at fault\n"
        )


def _ended(code: int) -> str:
    """What became of a child, by its exit code; that of one that was killed is below 0."""
    if code >= 0:
        return "lost its model"
    often = " (often the system, for lack of memory)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{often}"


def _run_child(
    work: Callable[[Collection[int]], int], dead: Collection[int]
) -> tuple[int, int, int]:
    """Fork, work in the child, hand signals on to it; its pid, its end, how many signals came."""
    sys.stdout.flush()
    sys.stderr.flush()
    alive, parent_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(parent_end)
        _work_and_exit(work, dead, alive)
    os.close(alive)
    asked = 0

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        os.kill(pid, number)

    with handling(hand_on):
        _, status = os.waitpid(pid, 0)
    os.close(parent_end)
    return pid, os.waitstatus_to_exitcode(status), asked


def _work_and_exit(
    work: Callable[[Collection[int]], int], dead: Collection[int], alive: int
) -> NoReturn:
    """What the child does; it never returns to the caller's code."""
    threading.Thread(target=_watch, args=(alive,), name="parent", daemon=True).start()
    code = 1
    try:
        code = work(dead)
    except KeyboardInterrupt:
        code = 4
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - printed as Python would, then the process ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(alive: int) -> None:
    """Stop in order when the parent is gone: the pipe then has no writer any more."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _trace(store: Path, pid: int) -> bool | None:
    """Whether a dead process wrote new texts; None if it wrote nothing at all."""
    alive = written = False
    for path in (store / "wal").glob("*.jsonl"):
        if log.writer_pid(path.name) == pid:
            with path.open("rb") as file:
                kinds = {line.record["kind"] for line in log.read(file) if line.record}
            alive |= bool(kinds)
            written |= "text" in kinds
    return written if alive else None
