"""The interface of every engine, and the factory.

An engine turns requests into replies. It owns batching; it does not know the store, prompts or
checks. One item's trouble is a :class:`~augment.records.Reply` with ``finish == "error"``; a model
that cannot go on raises :class:`~augment.errors.EngineError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from augment.errors import EngineError
from augment.records import Reply, Request, Sampling

#: Replies that became known together: (position of the request, reply), in any order.
Replies = Sequence[tuple[int, Reply]]

SCRIPTED = "scripted:"


class Engine(ABC):
    """Answers requests, batch by batch."""

    @property
    @abstractmethod
    def model(self) -> str:
        """Name of the model; part of every key."""

    @property
    @abstractmethod
    def revision(self) -> str:
        """Revision or content hash of the model; part of every key. Does not load the weights."""

    @property
    def settings(self) -> Mapping[str, object]:
        """Further settings that change answers, JSON-serialisable; part of every key."""
        return {}

    @abstractmethod
    def batches(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Replies]:
        """Answer all requests, each once, yielding replies as soon as their batch is done.

        Closing the iterator between two batches leaves the rest undone and loses nothing.

        Args:
            requests: in the order that the yielded positions refer to.
            sampling: decoding parameters, the same for all.

        Raises:
            EngineError: if the model cannot be loaded or has died.
        """

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Reply]:
        """The replies in the order of the requests.

        Raises:
            EngineError: if the model cannot be loaded or has died.
        """
        waiting: dict[int, Reply] = {}
        position = 0
        for batch in self.batches(requests, sampling):
            waiting.update(batch)
            while position in waiting:
                yield waiting.pop(position)
                position += 1
        if waiting or position != len(requests):
            raise EngineError(f"{self.model} answered {position} of {len(requests)} requests")


def make_engine(name: str, *, root: Path, batch_size: int = 16, **options: Any) -> Engine:
    """An engine by the name of its model.

    Args:
        name: ``scripted:...`` for the scripted one (see :mod:`augment.engines.scripted`);
            otherwise a vision-language model: ``flagland-vlm`` (packaged), a folder written by
            ``save_pretrained``, or a name on the Hugging Face Hub.
        root: folder that the requests' image paths are relative to.
        batch_size: most requests answered together.
        **options: of :class:`augment.engines.hf.HFEngine`; the scripted engine ignores them.

    Raises:
        EngineError: if there is no such model.
    """
    if name.startswith(SCRIPTED):
        from augment.engines.scripted import parse_scripted

        return parse_scripted(name[len(SCRIPTED) :], root=root, batch_size=batch_size)
    # By name, so that the import contract can promise that only this engine needs torch.
    engine: Callable[..., Engine] = import_module("augment.engines.hf").HFEngine
    return engine(name, root=root, batch_size=batch_size, **options)
