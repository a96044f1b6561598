"""How items become a conversation and what is read off it; layouts of published models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from augment.engines.inputs import chat
from augment.errors import DataError
from augment.records import Side

#: How the chat template of an exported folder begins, which writes a layout by itself.
LAYOUT_SET = "{%- set layout = "
#: Which state is the vector. ``last``: of the prompt's last token. ``before``: the one that
#: predicts the mark, which is the same where nothing is written. ``at``: of the mark itself.
#: ``after``: of the end of the turn behind it.
Pooling = Literal["last", "before", "at", "after"]


class Said(NamedTuple):
    """What a conversation holds of an item.

    Attributes:
        text: cut and without control tokens; may be empty.
        pictures: how many it has.
    """

    text: str
    pictures: int


@dataclass(frozen=True)
class CrossLayout:
    """The words between a query and its candidates, which a reranker reads together.

    Args:
        query: before the query.
        corpus: before each candidate; ``{n}`` is its number, from 1.
        ask: behind all of them.
        corpus_first: candidates stand before the query.
        yes: the score is how much likelier this word is next than ``no``; one token each. Empty
            takes the model's own head of two layers, as a classifier of sequences has it.
        no: the other word.
        end: ids of tokens behind the prompt.
        pictures: show them; without, texts alone are read, in training and reranking (TTE-v2).
    """

    query: str = "<Query>:"
    corpus: str = "\n<Document>:"
    ask: str = ""
    corpus_first: bool = False
    yes: str = "yes"
    no: str = "no"
    end: tuple[int, ...] = ()
    pictures: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", tuple(self.end))  # a list, where it comes from a file

    @property
    def listwise(self) -> bool:
        """Whether an order is asked for, in place of a score."""
        return bool(self.ask) and not self.yes

    def words(self, tokenizer: Any) -> tuple[int, int] | None:
        """Ids of yes and no; None where a head of layers scores.

        Raises:
            DataError: if one of them is not one token, or they are the same.
        """
        if not self.yes:
            return None
        ids = []
        for name, word in (("yes", self.yes), ("no", self.no)):
            found = tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(found) != 1:
                raise DataError(
                    f"layout.cross.{name} {word!r} is {len(found)} tokens of this tokenizer, and "
                    "the score is that of one; name a word that is one token, such as 'yes' of Qwen"
                )
            ids.append(int(found[0]))
        if ids[0] == ids[1]:
            raise DataError(f"layout.cross.yes and no are the same token, {self.yes!r}")
        return ids[0], ids[1]


@dataclass(frozen=True)
class Layout:
    """The words around an item and the state that is pooled.

    Args:
        chat: through the model's chat template, the answer begun; else the bare text.
        query: system prompt of queries; empty leaves the turn to the template.
        corpus: the same of candidates.
        ask: behind the content of an item with a text alone, a picture alone, and both.
        suffix: behind the begun answer.
        pictures_first: whether pictures stand before the text.
        pooling: the state that is the vector, see :data:`Pooling`.
        mark: special token that ends what the model writes; added to the vocabulary if absent.
            Needed unless ``pooling`` is ``last``.
        min_pixels: smaller pictures are enlarged; null takes the processor's own limit.
        max_pixels: larger pictures are shrunk; likewise.
        max_text: tokens of an item's own text; the rest is cut before the template is applied.
        cross: of a reranker, which reads a query and a candidate together (the system prompt is
            that of queries); null for an encoder, which reads each alone.
    """

    chat: bool = True
    query: str = ""
    corpus: str = ""
    ask: tuple[str, str, str] = ("", "", "")
    suffix: str = ""
    pictures_first: bool = True
    pooling: Pooling = "last"
    mark: str = ""
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_text: int = 512
    cross: CrossLayout | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ask", tuple(self.ask))  # a list, where it comes from a file
        told: Any = self.cross
        if isinstance(told, Mapping):
            object.__setattr__(self, "cross", CrossLayout(**told))
        if len(self.ask) != 3:
            raise DataError(f"layout.ask is three texts (text, picture, both), got {self.ask}")
        if self.pooling not in get_args(Pooling):
            known = ", ".join(get_args(Pooling))
            raise DataError(f"layout.pooling must be one of {known}, got {self.pooling!r}")
        if self.pooling != "last" and not self.mark:
            raise DataError(f"layout.pooling={self.pooling} needs layout.mark, such as <|emb|>")
        if self.pooling != "last" and self.suffix:
            raise DataError("layout.suffix stands where the mark would; leave one of them out")
        if self.cross is not None and self.pooling != "last":
            raise DataError("layout.cross scores the prompt's end; set layout.pooling to last")
        if self.max_text < 1:
            raise DataError(f"layout.max_text must be positive, got {self.max_text}")

    def behind(self, tokenizer: Any) -> list[int]:
        """Tokens that are read behind a prompt, or what was written, up to the vector."""
        read = ("last", "before", "at", "after").index(self.pooling) - 1
        ends = [self.mark, tokenizer.eos_token][: max(0, read)]
        return [int(one) for one in tokenizer.convert_tokens_to_ids(ends)]

    def render(self, processor: Any, side: Side, text: str, pictures: int) -> str:
        """The prompt of one item, a place for every picture in it, without the mark.

        Args:
            processor: of the model; its template is applied.
            side: query or corpus.
            text: of the item, cut and without control tokens; may be empty.
            pictures: how many it has.
        """
        kind = 2 if text and pictures else int(pictures > 0)
        if not self.chat:
            shown = [processor.image_token] * pictures
            return " ".join([*shown, text + self.ask[kind]]).strip() + self.suffix
        return self._chat(processor, side, self._content(text + self.ask[kind], pictures))

    def together(self, processor: Any, query: Said, candidates: Sequence[Said]) -> str:
        """The prompt of a query and its candidates, a place for every picture in it.

        Args:
            processor: of the model.
            query: what is asked.
            candidates: what is judged; one for a score of its own, several for an order of them.
        """
        cross = self.cross or CrossLayout()
        parts = [(cross.query, query)]
        given = [(cross.corpus.replace("{n}", str(n)), one) for n, one in enumerate(candidates, 1)]
        content: list[dict[str, str]] = []
        for words, shown in [*given, *parts] if cross.corpus_first else [*parts, *given]:
            content += [{"type": "text", "text": words}, *self._content(*shown)]
        if cross.ask:
            content.append({"type": "text", "text": cross.ask})
        if self.chat:
            return self._chat(processor, "query", content)
        place = f"<|vision_start|>{processor.image_token}<|vision_end|>"
        return "".join(part.get("text", place) for part in content) + self.suffix

    def _content(self, text: str, pictures: int) -> list[dict[str, str]]:
        shown = [{"type": "image"}] * pictures
        words = [{"type": "text", "text": text}] if text else []
        return [*shown, *words] if self.pictures_first else [*words, *shown]

    def _chat(self, processor: Any, side: Side, content: list[dict[str, str]]) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system := (self.query if side == "query" else self.corpus):
            told = [{"type": "text", "text": system}]
            messages.insert(0, {"role": "system", "content": told})
        return chat(processor, messages) + self.suffix


_FILE = yaml.safe_load(Path(__file__).with_name("layouts.yaml").read_text(encoding="utf-8"))
#: Version of each layout, for people; what counts is the hash of the prompts that it renders.
VERSIONS: dict[str, int] = {name: told.pop("version") for name, told in _FILE.items()}
#: Layouts by name, as ``layouts.yaml`` has them: what is added there is known here.
LAYOUTS: dict[str, Layout] = {name: Layout(**told) for name, told in _FILE.items()}


def layout_named(name: str) -> Layout:
    """A layout of :data:`LAYOUTS`.

    Raises:
        DataError: lists those that there are.
    """
    if name not in LAYOUTS:
        raise DataError(f"no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def cut(tokenizer: Any, text: str, most: int) -> str:
    """The beginning of a text that has at most so many tokens; never part of a character.

    Args:
        tokenizer: a fast one, which knows where its tokens stand.
        text: as shown.
        most: tokens.
    """
    if len(text) <= most:  # no token is shorter than a character, but in bytes of one
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(found) <= most:
            return text
    read = tokenizer(
        text, add_special_tokens=False, truncation=True, max_length=most,
        return_offsets_mapping=True,
    )  # fmt: skip
    offsets: Sequence[tuple[int, int]] = read["offset_mapping"]
    kept = text[: offsets[-1][1]] if offsets else ""
    while kept and len(tokenizer(kept, add_special_tokens=False)["input_ids"]) > most:
        kept = kept[:-1]
    return kept
