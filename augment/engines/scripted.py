"""A scripted engine: the real protocol without a model, for tests, dry runs and teaching.

By name: ``scripted:[FILE.json][?delay=S&fail_every=N&die_after=N&kill_on=ID,ID]``, where the file
holds a list of answers (used in turn) or an object from item id to answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast, final
from urllib.parse import parse_qsl

from augment.data.images import content_hash, open_image
from augment.engines.base import BATCH, Ask, Asked, Engine, EngineOptions, Pause, Replies
from augment.errors import EngineError, ImageError
from augment.records import Reply, Request

Answers = Callable[[Request], str] | Sequence[str] | Mapping[str, str]


@final
class ScriptedEngine(Engine):
    """Answers from a callable, a list (in turn) or a mapping from item id.

    Without answers, the answer is derived from the request and the picture's bytes. Pictures are
    opened as a real engine opens them, and one that cannot be opened fails its item.

    Args:
        answers: see above; an item that a mapping lacks fails.
        root: folder that image paths are relative to.
        batch_size: requests answered together.
        delay: seconds slept before each batch.
        fail_every: fail every n-th request; 0 never.
        die_after: raise EngineError once this many requests were answered; None never.
        kill_on: items over which the whole process is killed, as the system does for lack of
            memory.
        model: name.
        revision: revision; None hashes the answers where they are data.
    """

    def __init__(
        self,
        answers: Answers | None = None,
        *,
        root: Path = Path(),
        batch_size: int = BATCH,
        delay: float = 0.0,
        fail_every: int = 0,
        die_after: int | None = None,
        kill_on: Sequence[str] = (),
        model: str = "scripted",
        revision: str | None = None,
    ) -> None:
        self._answers = answers
        self._root = root
        self._batch_size = batch_size
        self._delay = delay
        self._fail_every = fail_every
        self._die_after = die_after
        self._kill_on = frozenset(kill_on)
        self.model = model
        data = None if answers is None or callable(answers) else answers
        script = json.dumps(data, sort_keys=True)
        self.revision = revision or hashlib.sha256(script.encode()).hexdigest()[:12]
        self.calls: list[Request] = []
        self._seen = lru_cache(maxsize=4096)(self._look)

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`."""
        source, position = iter(asked), 0
        while True:
            batch: list[Request] = []
            said: Ask | Pause | None = None
            while len(batch) < self._batch_size and isinstance(said := next(source, None), Ask):
                batch.append(said.request)
            if batch:
                time.sleep(self._delay)
                self.starting(batch)
                if any(request.item_id in self._kill_on for request in batch):
                    os.kill(os.getpid(), signal.SIGKILL)
            if batch or said is not None:
                yield [(position + n, self._reply(request)) for n, request in enumerate(batch)]
                position += len(batch)
            if said is None:
                return

    def _reply(self, request: Request) -> Reply:
        if self._die_after is not None and len(self.calls) >= self._die_after:
            raise EngineError(f"scripted death after {self._die_after} requests")
        self.calls.append(request)
        if self._fail_every and len(self.calls) % self._fail_every == 0:
            return Reply("", "error", reason="scripted: failure asked for")
        try:
            return self._answer(request)
        except ImageError as error:
            return Reply("", "error", reason=f"{error.reason}: {error}")

    def _answer(self, request: Request) -> Reply:
        seen = self._seen(request.image, request.expected) if request.image is not None else ""
        text = self._text(request, seen)
        if text is None:
            return Reply("", "error", reason="scripted: no answer for this item")
        return Reply(text, "stop", len(request.text.split()), len(text.split()))

    def _look(self, path: str, expected: str) -> str:
        expected = expected or content_hash(self._root, path)
        width, height = open_image(self._root, path, expected=expected).size
        return f"{expected[:12]} of {width} by {height} pixels"

    def _text(self, request: Request, seen: str) -> str | None:
        if self._answers is None:
            asked = hashlib.sha256(f"{request.system}\0{request.text}".encode()).hexdigest()[:12]
            return f"answer to {asked}" + (f" about picture {seen}" if seen else "")
        if callable(self._answers):
            return self._answers(request)
        if isinstance(self._answers, Mapping):
            return self._answers.get(request.item_id)
        return self._answers[(len(self.calls) - 1) % len(self._answers)]


def make(spec: str, *, root: Path, options: EngineOptions) -> ScriptedEngine:
    """A scripted engine from what follows ``scripted:`` (see the module).

    Raises:
        EngineError: if an option is unknown, or the file is missing or malformed.
    """
    file, _, query = spec.partition("?")
    script = dict(parse_qsl(query, keep_blank_values=True))
    try:
        delay = float(script.pop("delay", 0))
        fail_every = int(script.pop("fail_every", 0))
        die_after = int(script.pop("die_after")) if "die_after" in script else None
        kill_on = [item for item in script.pop("kill_on", "").split(",") if item]
        answers = json.loads(Path(file).read_text(encoding="utf-8")) if file else None
    except (ValueError, OSError) as error:
        raise EngineError(f"scripted:{spec}: {error}") from error
    if script or not isinstance(answers, list | dict | None) or answers == []:
        raise EngineError(
            f"scripted:{spec}: expected FILE.json (a list or an object) and the options"
            " delay, fail_every, die_after, kill_on"
        )
    return ScriptedEngine(
        cast("Answers | None", answers),
        root=root,
        batch_size=options.batch_size or BATCH,
        delay=delay,
        fail_every=fail_every,
        die_after=die_after,
        kill_on=kill_on,
    )
