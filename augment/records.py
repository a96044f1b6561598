"""The nouns of the toolkit: what flows from M-BEIR files to enriched text.

Standard library only. Names of views (:mod:`augment.views`) and of kinds of text
(:mod:`augment.prompts`) are open: they are refused where they are used and not known. Published
fields are never overwritten: generated text is an :class:`Enrichment`, and what an encoder sees is
decided when a view is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from augment.errors import DataError

Side = Literal["query", "corpus"]
Modality = Literal["text", "image", "image,text"]
#: What becomes of candidates that show a query's own picture: they are ranked (UniIR), or left out
#: of its ranking where they are the same file, or a file of the same bytes.
OwnPicture = Literal["keep", "file", "content"]
Finish = Literal["stop", "length", "error"]

#: M-BEIR task code -> (query modality, candidate modality). The code numbers tasks 0..8; the
#: UniIR paper (2311.17136, Table 1) numbers the same tasks 1..8. Code 5 is unused in M-BEIR.
TASKS: Mapping[int, tuple[Modality, Modality]] = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    5: ("image", "image,text"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}


def dataset_of(id: str) -> str:  # noqa: A002 - the word of the format
    """The dataset id in an id of M-BEIR's form, two numbers with a colon; empty in any other."""
    dataset, _, number = id.partition(":")
    return dataset if id.isascii() and dataset.isdigit() and number.isdigit() else ""


def one_picture(path: str | None) -> tuple[str, ...]:
    """The pictures of an item that has at most one."""
    return () if path is None else (path,)


def _only(images: tuple[str, ...], where: str) -> str | None:
    if len(images) > 1:
        raise DataError(f"has {len(images)} pictures where one can be shown", where)
    return images[0] if images else None


@dataclass(frozen=True, slots=True)
class Item:
    """One query or candidate as published.

    Attributes:
        id: ``"{dataset_id}:{n}"`` in M-BEIR, any string without blanks elsewhere; kept as a
            string everywhere so that ids cannot alias.
        text: the published text, or None.
        images: paths of pictures relative to the data root, with forward slashes. No file is
            opened. M-BEIR has at most one an item.
        modality: as published (``text,image`` is read as ``image,text``).
        source: the published ``src_content`` / ``query_src_content``, verbatim.
    """

    id: str
    text: str | None
    images: tuple[str, ...]
    modality: Modality
    source: str | None = None

    @property
    def image(self) -> str | None:
        """The picture, or None; for those that can show one and no more.

        Raises:
            DataError: if there are several.
        """
        return _only(self.images, self.id)

    @property
    def dataset(self) -> str:
        """The dataset id, see :func:`dataset_of`."""
        return dataset_of(self.id)


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its relevance lists.

    Attributes:
        item: the query itself; its id is the M-BEIR ``qid``.
        task: M-BEIR task code (see :data:`TASKS`); None where it is neither given nor derivable.
        positives: ids of relevant candidates.
        negatives: ids of published hard negatives.
    """

    item: Item
    task: int | None
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()


class Qrel(NamedTuple):
    """One relevance judgement; ``task`` is M-BEIR's fifth column, None in four-column files."""

    qid: str
    did: str
    relevance: int = 1
    task: int | None = None


class Hit(NamedTuple):
    """One retrieved candidate."""

    did: str
    score: float


#: query id -> hits, best first.
Run = Mapping[str, Sequence[Hit]]


@dataclass(frozen=True)
class Sampling:
    """How a model decodes. Part of the key of a generated text, but for a seed of no effect.

    Attributes:
        max_new_tokens: upper limit of generated tokens.
        temperature: 0 decodes greedily.
        top_p: nucleus; 1 keeps everything.
        seed: used when ``temperature`` > 0.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent to a model for one item, before the model's own chat template.

    The instruction stands before the picture, so that servers can reuse the shared prefix.

    Attributes:
        item_id: whose request this is; never sent.
        system: the system message.
        text: the user message's text.
        images: paths relative to the data root of the pictures shown after the text.
        expected: SHA-256 in hex of the bytes of its only picture, as the key of the text has them;
            other bytes are not to be shown. Empty where nobody has looked.
    """

    item_id: str
    system: str
    text: str
    images: tuple[str, ...] = ()
    expected: str = ""

    @property
    def image(self) -> str | None:
        """The picture, or None; for those that can show one and no more.

        Raises:
            DataError: if there are several.
        """
        return _only(self.images, self.item_id)


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer to one request; a failed item is a reply with ``finish == "error"``.

    Attributes:
        text: the generated text, stripped; empty on error.
        finish: ``stop``, ``length`` (cut at the limit) or ``error``.
        prompt_tokens: tokens read, image tokens included.
        output_tokens: tokens written.
        reason: why it failed, empty otherwise.
    """

    text: str
    finish: Finish = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Enrichment:
    """A generated text with its provenance. Stored apart from the published record.

    Attributes:
        key: content hash of everything that changes the answer (see ``augment.store``).
        item_id: the item it was generated for. Other items may share the key.
        text: the generated text.
        prompt: ``name@hash`` of the prompt template.
        model: name or content hash of the weights that wrote it.
        revision: revision or content hash of the weights.
        sampling: decoding parameters.
        finish: see :class:`Reply`.
        prompt_tokens: tokens read.
        output_tokens: tokens written.
        rejected: why a check refused the text; empty when accepted. The view then falls back.
        raw: what the model wrote, where cleaning changed it; else empty.
        checks: score of every check that applied, by name (see ``augment.checks``).
        lengths: the same text at several lengths, by name, where the prompt asked for them.
        retry_of: key of the refused text that this one was made to replace; else empty.
        candidate_id: the candidate that it was generated for together with the query
            ``item_id``; empty for the text of an item alone.
        picture: SHA-256 in hex of the bytes of the picture that the model saw; else empty.
    """

    key: str
    item_id: str
    text: str
    prompt: str
    model: str
    revision: str
    sampling: Sampling = field(default_factory=Sampling)
    finish: Finish = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0
    rejected: str = ""
    raw: str = ""
    checks: Mapping[str, float] = field(default_factory=dict, hash=False)
    lengths: Mapping[str, str] = field(default_factory=dict, hash=False)
    retry_of: str = ""
    candidate_id: str = ""
    picture: str = ""
