"""Runs a command that must not outlive us: ``python -m augment.engines.leash COMMAND...``.

The command gets a process group of its own. When the pipe at our standard input closes, because
whoever holds it closed it or was killed in any way, the whole group is asked to end, and killed
after :data:`GRACE` seconds. A server that holds a GPU is thus never left behind. SIGTERM is handed
on to the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

#: Seconds between asking and killing.
GRACE = 10.0


def main(command: Sequence[str]) -> int:
    """Run the command; its exit code."""
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    children.append(child)
    watch = threading.Thread(target=_end_with_pipe, args=(child,), daemon=True)
    watch.start()
    code = child.wait()
    # Its own children may still be there, and hold the GPU.
    _signal(child.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_with_pipe(child: subprocess.Popen[bytes]) -> None:
    # Not through sys.stdin, whose lock a thread must not hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    _signal(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        _signal(child.pid, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    # Signals from a terminal are for whoever holds the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
