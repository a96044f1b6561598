"""Prompts: versioned template files, rendered into requests.

A template is a Markdown file with YAML front matter and two bodies, system and user, separated
by ``---`` lines. The body is Jinja (sandboxed, undefined names are errors) over ``text``,
``query``, ``max_words`` and ``max_added_words``. The file declares whether the model may see the
picture (``shows_image``); a prompt that does not show it leaves the picture out by construction.
Only with ``target_seen`` is a query's positive shown, too: as ``target``, or its picture in place
of the query's (``shows_image: target``); whatever is written then says so in its recipe.

Text of the data stands between ``<<<`` and ``>>>``; :mod:`augment.prompts.fence` sees to it that a
passage can neither close its own fence nor speak in the name of the template.

A budget for captions is what a retriever's text encoder will read of them, in words or tokens. A
caption that is longer than the encoder's context is cut without a word, in the middle of the facts.
The cheapest remedy is a shorter caption: the prompt asks for it, the checks refuse what is longer,
and a refused caption leaves the published text in its place.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from augment.data.tokens import MARKS
from augment.errors import DataError
from augment.prompts.fence import fenced
from augment.records import Item, Request, Side

#: Kinds of text: what is said of an item, or said in place of its text, or what stands in its
#: picture. Checks go by them.
KINDS = ("caption", "rewrite", "transcript")
PromptForm = Literal["plain", "lengths", "ecr", "tags"]

#: CLIP's tokens to an English word of a caption, punctuation included: a caption of 100 words has
#: about 120 tokens and two marks, so that a context of 77 holds 62 words.
TOKENS_PER_WORD = 1.2

_BUDGET = re.compile(r"\s*(\d+)\s*(words?|tokens?)\s*", re.IGNORECASE)

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
#: Compiled once: that takes a hundred times as long as to render it.
_compiled = lru_cache(maxsize=64)(_ENVIRONMENT.from_string)
_REQUIRED = ("name", "version", "kind", "side", "shows_image", "max_words", "max_new_tokens")
_OPTIONAL = (
    "source", "keeps", "max_added_words", "form", "max_tokens", "target_seen", "needs_image",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One prompt template.

    Attributes:
        name: how commands and configs call it, ``paper/what`` for packaged ones.
        version: for people; the hash is what counts.
        kind: of text, one of :data:`KINDS`.
        side: the side it is meant for.
        shows_image: whether the model sees the item's picture, or that of its target.
        max_words: limit named in the text, and checked afterwards.
        max_new_tokens: decoding limit that goes with it.
        system: system message.
        user: Jinja source of the user message.
        source: paper and section, and what deviates.
        keeps: whether the answer must keep the negations and numbers of the item's text, and
            stay a question if that is one; for rewrites the default is that it must.
        max_added_words: most words that a rewrite may add to the item's text; None for any.
        form: ``plain`` text, or ``lengths``: several lengths in one answer, see
            :mod:`augment.checks.lengths`, or ``ecr``: a thought and a final text, see
            :mod:`augment.checks.ecr`, or ``tags``: a chain, see :mod:`augment.checks.tags`.
        max_tokens: most tokens of CLIP, start and end marks included; checked, and not told to the
            model, which cannot count them. None for any.
        target_seen: whether the model sees what the query is looking for.
        needs_image: leave candidates without a picture alone.
    """

    name: str
    version: int
    kind: str
    side: Side
    shows_image: bool | Literal["target"]
    max_words: int
    max_new_tokens: int
    system: str
    user: str
    source: str = ""
    keeps: bool = False
    max_added_words: int | None = None
    form: PromptForm = "plain"
    max_tokens: int | None = None
    target_seen: bool = False
    needs_image: bool = True

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits over what is sent: bodies, word limit and whether the picture shows."""
        parts = [self.system, self.user, str(self.max_words), str(self.shows_image)]
        # Later fields count only where they are used, so that older prompts keep their hashes.
        if self.max_added_words is not None:
            parts.append(f"adds {self.max_added_words}")
        if self.form != "plain":
            parts.append(self.form)
        if self.max_tokens is not None:
            parts.append(f"tokens {self.max_tokens}")
        if self.target_seen:
            parts.append("target seen")
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> str:
        """``name@hash``, the form stored with every generated text."""
        return f"{self.name}@{self.hash}"

    def render(self, item: Item, target: Item | None = None, asked: str = "") -> Request:
        """The request for one item; the picture is left out unless ``shows_image``.

        Args:
            item: a candidate, or a query's.
            target: what a query looks for; shown by prompts that have ``target_seen`` alone.
            asked: the query in whose sight a candidate is written about, for prompts of pairs.

        Raises:
            DataError: if the template does not render for this item.
        """
        shown = {"text": fenced(item.text), "query": fenced(asked)}
        seen = target if self.target_seen else None
        if seen is not None:
            shown["target"] = fenced(seen.text)
        try:
            user = _compiled(self.user).render(
                **shown, max_words=self.max_words, max_added_words=self.max_added_words
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise DataError(f"prompt {self.id} does not render: {error}", item.id) from error
        images = item.images if self.shows_image else ()
        if self.shows_image == "target":
            images = seen.images if seen is not None else ()
        return Request(item.id, self.system, user.strip(), images)


def parse_prompt(source: str, where: str) -> Prompt:
    """Read a template from its file's text.

    Raises:
        DataError: if the front matter or one of the two bodies is missing or malformed.
    """
    parts = re.split(r"^---[ \t]*$", source, maxsplit=3, flags=re.MULTILINE)
    if len(parts) != 4 or parts[0].strip():
        raise DataError(
            "expected '---', front matter, '---', system message, '---', user message", where
        )
    try:
        head = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise DataError(f"front matter is not YAML: {error}", where) from error
    missing = [key for key in _REQUIRED if not isinstance(head, dict) or key not in head]
    if missing:
        raise DataError(f"front matter lacks {', '.join(missing)}", where)
    unknown = set(head) - {*_REQUIRED, *_OPTIONAL}
    if unknown:
        raise DataError(f"front matter has unknown keys: {', '.join(sorted(unknown))}", where)
    if head["kind"] not in KINDS:
        raise DataError(f"unknown kind {head['kind']!r}; known are {', '.join(KINDS)}", where)
    if head["shows_image"] == "target" and not head.get("target_seen"):
        raise DataError("shows_image: target needs target_seen: true", where)
    head.setdefault("keeps", head["kind"] == "rewrite")
    return Prompt(system=parts[2].strip(), user=parts[3].strip(), **head)


def load_prompt(name: str) -> Prompt:
    """A packaged prompt such as ``rar/corpus``, or a template file (anything ending in ``.md``).

    Raises:
        DataError: if there is no such prompt; lists the packaged ones.
    """
    if name.endswith(".md"):
        path = Path(name)
        if not path.is_file():
            raise DataError("no such prompt file", name)
        return parse_prompt(path.read_text(encoding="utf-8"), name)
    folder = resources.files("augment.prompts")
    known = {
        f"{papers.name}/{entry.name.removesuffix('.md')}": entry
        for papers in folder.iterdir()
        if papers.is_dir()
        for entry in papers.iterdir()
        if entry.name.endswith(".md")
    }
    if name not in known:
        raise DataError(f"no prompt named {name!r}; packaged prompts: {', '.join(sorted(known))}")
    return parse_prompt(known[name].read_text(encoding="utf-8"), f"{name}.md")


def within(prompt: Prompt, budget: str) -> Prompt:
    """A prompt within a budget; one that rewrites, or is stricter, is left as it is.

    Args:
        prompt: any.
        budget: ``45 words``, or ``77 tokens`` of CLIP, marks included: these are checked exactly
            and told to the model as the words that fit (:data:`TOKENS_PER_WORD`). Empty for none.

    Raises:
        DataError: if the budget is neither or leaves no word, or the prompt names no limit to its
            model.
    """
    if not budget.strip():
        return prompt
    match = _BUDGET.fullmatch(budget)
    if match is None:
        raise DataError(f"budget {budget!r} is neither '45 words' nor '77 tokens'")
    number, in_tokens = int(match[1]), match[2].lower().startswith("token")
    words = int((number - MARKS) / TOKENS_PER_WORD) if in_tokens else number
    if words < 1:
        raise DataError(f"budget {budget!r} leaves no word")
    if prompt.kind != "caption":
        return prompt
    if "max_words" not in prompt.system + prompt.user:
        raise DataError("its text does not use {{ max_words }}; no budget", prompt.name)
    tokens = prompt.max_tokens
    if in_tokens:
        tokens = number if tokens is None else min(tokens, number)
    return replace(prompt, max_words=min(prompt.max_words, words), max_tokens=tokens)
