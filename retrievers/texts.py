"""The text recipe: which text of an item a retriever reads, on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from augment.errors import MismatchError
from augment.lengths import Length
from augment.mbeir import Instructions, TextRule, format_text
from augment.records import Item, Modality, Query, Side, View
from augment.views import TextView, open_view


@dataclass(frozen=True)
class ViewConfig:
    """Which text of one side is shown.

    Args:
        view: raw (published), append (published, then generated) or replace (generated).
        store: folder of generated texts; needed unless raw.
        recipe: id of the recipe in the store; null takes the only one, or the only
            complete one; several are an error that lists them.
        length: of generated text: dense, short or sentences (see :mod:`augment.lengths`).
    """

    view: View = "raw"
    store: str | None = None
    recipe: str | None = None
    length: Length = "dense"

    def open(self, side: Side) -> TextView:
        """Open the view of one side (see :func:`augment.views.open_view`)."""
        store = Path(self.store) if self.store else None
        return open_view(side, self.view, store, self.recipe, self.length)


@dataclass(frozen=True)
class TextRecipe:
    """Renders queries and candidates.

    Attributes:
        query_view: text of queries.
        corpus_view: text of candidates.
        rule: how a text is tidied.
        instructions: put before a query's text; None leaves them out.
    """

    query_view: TextView
    corpus_view: TextView
    rule: TextRule
    instructions: Instructions | None

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint remembers of the text it was trained on; plain strings."""
        return {
            "query": f"{self.query_view.view}:{self.query_view.fingerprint}",
            "corpus": f"{self.corpus_view.view}:{self.corpus_view.fingerprint}",
            "rule": self.rule,
            "instructions": "off" if self.instructions is None else "on",
        }

    def candidate(self, item: Item) -> str | None:
        """Text of a candidate, never with an instruction; None if it has none."""
        return format_text(self.corpus_view.text(item), self.rule) or None

    def query(self, query: Query, target: Modality, random: Random | None = None) -> str | None:
        """Text of a query behind its instruction; None if there is neither.

        Args:
            query: the query.
            target: the wanted candidate's modality; part of the instruction's key.
            random: draws one of the instructions, as in training. None takes the first, so that
                evaluation does not depend on chance (UniIR draws in evaluation too).

        Raises:
            DataError: if instructions are on and the table has none for this kind of query.
        """
        text = self.query_view.text(query.item)
        if self.instructions is None:
            return self.instructed(text, None)
        prompts = self.instructions.get(query.item.dataset, query.item.modality, target)
        return self.instructed(text, random.choice(prompts) if random is not None else prompts[0])

    def instructed(self, text: str | None, prompt: str | None) -> str | None:
        """A query's text, tidied, behind an instruction; None if there is neither."""
        if not prompt:
            return format_text(text, self.rule) or None
        # UniIR formats the instruction, joins, and formats again.
        joined = f"{format_text(prompt, self.rule)} {(text or '').strip()}"
        return format_text(joined, self.rule) or None


def check_recipe(trained: Mapping[str, str], shown: Mapping[str, str], allow: bool) -> None:
    """Refuse text of another recipe than the one trained on, unless allowed.

    Raises:
        MismatchError: names what differs and how to go on.
    """
    differing = [name for name in trained if shown.get(name) != trained[name]]
    if allow or not differing:
        return
    seen = "; ".join(
        f"{name}: trained on {trained[name]}, data shows {shown.get(name)}" for name in differing
    )
    raise MismatchError(
        f"the checkpoint was trained on another text recipe ({seen}). Show the same text through "
        "data.query, data.corpus, data.text_rule and data.instructions, or pass "
        "--model.allow_mismatch=true to measure the shift on purpose"
    )
