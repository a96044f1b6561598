"""Progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any, final

from tqdm import tqdm

#: Seconds between two plain lines.
LINE_SECONDS = 10.0

#: Share of the time between two lines that a model may wait for pictures before this is said.
WAITING = 0.2


@final
class Progress:
    """Shows how far a run is, on the standard error.

    Args:
        what: what is counted, e.g. ``corpus``.
        total: number of items, None if unknown.
        line_seconds: see :data:`LINE_SECONDS`; only used where there is no terminal.
    """

    def __init__(self, what: str, total: int | None, line_seconds: float = LINE_SECONDS) -> None:
        self._what = what
        self._total = total
        self._line_seconds = line_seconds
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit="item", dynamic_ncols=True)
        self._done = self._new = self._failed = self._tokens = 0
        self._waited = self._noted = self._share = 0.0
        self._start = self._shown = time.monotonic()

    def add(self, done: int, new: int = 0, failed: int = 0, tokens: int = 0) -> None:
        """Count items that are settled.

        Args:
            done: how many.
            new: of these, how many a model answered; the remaining time is estimated from them.
            failed: of these, how many failed.
            tokens: that a model wrote for them.
        """
        self._done += done
        self._new += new
        self._failed += failed
        self._tokens += tokens
        due = time.monotonic() - self._shown > self._line_seconds
        if self._bar is not None:
            self._bar.update(done)
        if due:
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
            sys.stderr.write(self.line() + "\n")
            sys.stderr.flush()

    def line(self) -> str:
        """The state in one line."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        # What was in the store costs no time, so it must not make the rest look cheap.
        rate = (self._new or self._done) / elapsed
        text = f"{self._what}: {self._done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" items, {rate:.3g}/s"
        if self._total is not None and rate > 0:
            text += f", {duration((self._total - self._done) / rate)} left"
        return ", ".join([text, *self._details()])

    def _details(self) -> list[str]:
        found = []
        if self._tokens:
            elapsed = max(time.monotonic() - self._start, 1e-9)
            found.append(f"{self._tokens / elapsed:.3g} tokens/s")
        if self._failed:
            found.append(f"{self._failed:,} failed")
        if self._share > WAITING:
            found.append(f"the model is waiting for images ({100 * self._share:.0f} % of the time)")
        return found

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._details()), refresh=False)
            self._bar.close()


def duration(seconds: float) -> str:
    """``3 s``, ``2 min 05 s`` or ``1 h 07 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
