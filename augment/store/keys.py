"""What identifies a generated text (its key) and a way of generating (a recipe).

A key hashes what is really sent and what changes the answer, no more and no less: the two messages,
the bytes of the picture (never its path), the model and its revision, the sampling, and the
engine's own settings such as pixel limits. A recipe names how a whole side was made; its id goes
into checkpoints, so that a retriever meets the kind of text it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, final

from augment.files import digest
from augment.records import Request, Sampling, Side


def greedy(sampling: Sampling) -> Sampling:
    """The parameters without a seed where it changes nothing: greedy decoding draws no numbers."""
    return replace(sampling, seed=0) if sampling.temperature == 0 else sampling


_plain = lru_cache(maxsize=64)(asdict)


def text_key(
    request: Request,
    image_hash: str | None,
    model: str,
    revision: str,
    sampling: Sampling,
    settings: Mapping[str, object],
) -> str:
    """Key of the text that a model writes for a request.

    Args:
        request: what is sent; its item id and image path do not count.
        image_hash: hash of the picture's bytes, None if the request shows no picture.
        model: name of the model.
        revision: revision or content hash of the model.
        sampling: decoding parameters; see :func:`greedy`.
        settings: of the engine, where they change the answer (see ``Engine.settings``).
    """
    sent: dict[str, object] = {
        "system": request.system,
        "text": request.text,
        "image": image_hash,
        "model": model,
        "revision": revision,
        "sampling": _plain(greedy(sampling)),
    }
    if settings:
        sent["settings"] = dict(settings)
    return digest(sent)


@final
@dataclass(frozen=True)
class Recipe:
    """How the texts of one side were made.

    Attributes:
        side: query or corpus.
        prompts: name -> ``name@hash`` of every prompt in use.
        model: name of the model.
        revision: revision or content hash of the model.
        sampling: prompt name -> decoding parameters.
        routes: kind of item -> name of the prompt, None where it is left alone.
        settings: of the engine, where they change the answer.
        target_seen: whether the model saw what queries look for.
    """

    side: Side
    prompts: Mapping[str, str]
    model: str
    revision: str
    sampling: Mapping[str, Sampling]
    routes: Mapping[str, str | None]
    settings: Mapping[str, object] = field(default_factory=dict)
    target_seen: bool = False

    @cached_property
    def id(self) -> str:
        """Twelve hex digits over all fields."""
        return digest(self._told())[:12]

    def _told(self) -> dict[str, Any]:
        """The fields; that no target was seen goes without saying, so that older ids stay."""
        told = asdict(self)
        return told if self.target_seen else {n: v for n, v in told.items() if n != "target_seen"}

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable form, with the id."""
        return {"id": self.id, **self._told()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: if the id does not fit the fields, i.e. the file was edited.
        """
        fields = {name: part for name, part in value.items() if name != "id"}
        sampling = {name: Sampling(**part) for name, part in fields.pop("sampling").items()}
        recipe = cls(**fields, sampling=sampling)
        if recipe.id != value["id"]:
            raise ValueError(f"id {value['id']} does not fit the fields ({recipe.id})")
        return recipe
