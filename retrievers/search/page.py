"""The page as HTML. Everything that comes from data or from the user is escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, cast
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from augment.errors import DataError
from augment.records import Modality
from augment.store.page import Piece
from retrievers.search.answers import Answer, Result, told
from retrievers.vectors.words import analyser

if TYPE_CHECKING:
    from retrievers.search.searcher import Searcher, Suggestion

#: Longest typed query, in characters.
MAX_QUERY = 4000

#: Most results of one search on the page.
MAX_RESULTS = 100

#: Most fields that an address may have.
_MAX_FIELDS = 20

#: Longer texts are folded, in characters.
_SHORT = 200

#: Candidates and queries of the root that an empty page shows.
_SAMPLE, _EXAMPLES = 24, 8

_RUN = re.compile(r"\w+")

_READS = {
    "raw": "reads published text",
    "append": "reads published and generated text",
    "replace": "reads generated text",
}
_SIGNS: Mapping[str, str] = {"text": "text", "image": "picture", "image,text": "picture + text"}
_KINDS: dict[str, str] = {"": "of any kind", "asked": "as the instruction asks", **_SIGNS}


@dataclass(frozen=True)
class Question:
    """What the form was sent with.

    Attributes:
        query: typed text.
        picture: name of an uploaded picture, or empty.
        k: how many results.
        instruction: ``auto``, ``none``, or the instruction itself.
        own: an instruction in the user's words; counts before ``instruction``.
        modality: of the wanted candidates, ``asked`` for the instruction's, or empty for any.
        own_picture: ``keep``, or ``content`` to leave out candidates with the query's picture.
        like: id of a candidate; asked with where there is neither text nor picture.
        draw: which sample an empty page shows.
    """

    query: str = ""
    picture: str = ""
    k: int = 12
    instruction: str = "auto"
    own: str = ""
    modality: Modality | Literal["", "asked"] = ""
    own_picture: Literal["keep", "content"] = "keep"
    like: str = ""
    draw: int = 0

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Question:
        """The fields of the form.

        Raises:
            DataError: if one cannot be used.
        """
        if len(fields) > _MAX_FIELDS:
            raise DataError("too many fields in the address")
        query, k, like = (fields.get(*given) for given in (("q", ""), ("k", "12"), ("like", "")))
        if len(query) > MAX_QUERY:
            raise DataError(f"the query has {len(query):,} characters; the most is {MAX_QUERY:,}")
        if not (k.isascii() and k.isdigit() and 1 <= int(k[:9]) <= MAX_RESULTS):
            raise DataError(f"cannot find {k[:20]!r} results; ask for 1 to {MAX_RESULTS}")
        modality = fields.get("modality", "")
        if modality not in _KINDS:
            raise DataError(f"no modality {modality[:20]!r}; there are {'; '.join(_SIGNS)}")
        return cls(
            query=query,
            picture=fields.get("picture", ""),
            k=int(k),
            instruction=fields.get("instruction", "auto")[:MAX_QUERY],
            own=fields.get("own", "").strip()[:MAX_QUERY],
            modality=cast("Modality", modality),
            own_picture="content" if fields.get("own_picture") == "content" else "keep",
            like="" if query.strip() or fields.get("picture") else like[:MAX_QUERY],
            draw=int(draw) if (draw := fields.get("draw", "")[:9]).isdecimal() else 0,
        )

    @property
    def given_instruction(self) -> str | None:
        """As :meth:`retrievers.search.searcher.Searcher.search` takes it."""
        if self.own:
            return self.own
        return {"auto": None, "none": ""}.get(self.instruction, self.instruction)


class Card(NamedTuple):
    """One candidate as drawn.

    Attributes:
        result: what was found.
        alt: what stands for its picture.
        address: of the picture.
        also: where a cascade's first stage and the other retriever have it; may be empty.
        published: its text, shared words marked if the retriever read them.
        generated: likewise.
        rewritten: what a cascade wrote of it for the query, likewise.
    """

    result: Result
    alt: str
    address: str
    also: str = ""
    published: Collection[Piece] = ()
    generated: Collection[Piece] = ()
    rewritten: Collection[Piece] = ()


def render_page(
    searchers: Mapping[str, Searcher],
    asked: Question,
    answers: Mapping[str, Answer],
    problem: str,
    max_bytes: int,
) -> str:
    """The whole page.

    Args:
        searchers: by name.
        asked: what the form shows.
        answers: by name of the searcher; empty where nothing was asked.
        problem: shown above the results; empty if there is none.
        max_bytes: largest picture.
    """
    first = next(iter(searchers.values()))
    opening = not (answers or problem)
    asking = next((one for one in searchers.values() if one.instructions()), first)
    return _template().render(
        title=first.root.resolve().name,
        size=len(first),
        searchers={
            name: {
                "view": searcher.corpus_view,
                "reads": _READS[searcher.corpus_view],
                "vlm": searcher.vlm,
                "score": searcher.score,
                "notes": searcher.notes,
                "pace": searcher.pace,
            }
            for name, searcher in searchers.items()
        },
        asked=asked,
        answers=answers,
        cards={name: _cards(name, searchers[name].corpus_view, answers) for name in answers},
        like=first.item(asked.like),
        sample=[_card(one) for one in first.sample(_SAMPLE, asked.draw)] if opening else [],
        examples=[(one, _address(one)) for one in asking.examples(_EXAMPLES, asked.draw)]
        if opening
        else [],
        groups=_groups(searchers),
        modalities=_KINDS,
        problem=problem,
        max_bytes=max_bytes,
        short=_SHORT,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("retrievers.search", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _groups(searchers: Mapping[str, Searcher]) -> dict[str, list[tuple[str, str]]]:
    """Data set -> instruction and how it is listed; the first one of every kind of query."""
    rows = dict.fromkeys(row for searcher in searchers.values() for row in searcher.instructions())
    groups: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        signs = f"{_SIGNS[row.query_modality]} → {_SIGNS[row.candidate_modality]}"
        prompt = row.prompts[0]
        groups.setdefault(row.dataset_name, []).append((prompt, f"{signs}: {prompt}"))
    return groups


def _address(one: Suggestion) -> str:
    """Where a suggested query is asked, behind the instruction of its own data set."""
    fields = {"q": one.text, "picture": one.picture, "instruction": one.instruction or "auto"}
    return f"/?{urlencode(fields)}"


def _cards(name: str, view: str, answers: Mapping[str, Answer]) -> list[Card]:
    ranks = {
        other: {result.id: result.rank for result in answer}
        for other, answer in answers.items()
        if other != name
    }
    cards = []
    for result in answers[name]:
        also = "; ".join(
            f"{other}: rank {known[result.id]}"
            if result.id in known
            else (f"{other}: not in the first {len(known)}" if known else f"{other}: found nothing")
            for other, known in ranks.items()
        )
        moved = told(result.cascade) if result.cascade else ""
        cards.append(_card(result, view, "; ".join(filter(None, (moved, also)))))
    return cards


def _card(result: Result, view: str = "append", also: str = "") -> Card:
    words = frozenset(result.shared)
    told = result.text or result.generated or "no text"
    return Card(
        result,
        f"Candidate {result.id}: {_cut(told, 120)}",
        f"/image/{quote(result.id, safe='')}",
        also,
        _marked(result.text, words if view != "replace" or not result.generated else ()),
        _marked(result.generated, words if view != "raw" else ()),
        _marked(result.cascade.rewritten, words) if result.cascade else (),
    )


def _marked(text: str | None, words: Collection[str]) -> list[Piece]:
    """A text in pieces, those changed that are among the words."""
    pieces, done, analysed = [], 0, analyser("english")
    for found in _RUN.finditer(text or "") if words else ():
        if not set(analysed(found.group())).isdisjoint(words):
            pieces += [Piece((text or "")[done : found.start()], False), Piece(found.group(), True)]
            done = found.end()
    return [piece for piece in (*pieces, Piece((text or "")[done:], False)) if piece.text]


def _cut(text: str, length: int) -> str:
    """The beginning of a text, whole words."""
    if len(text) <= length:
        return text
    return text[:length].rsplit(None, 1)[0].rstrip(" .,;:") + " …"
