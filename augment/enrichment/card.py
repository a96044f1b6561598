"""The dataset card of an exported root, filled from the recipes and from what was written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from augment.errors import DataError
from augment.prompts import Prompt, load_prompt
from augment.records import Enrichment, Item, Side
from augment.store.page import percent, visible

_NAMES: Mapping[Side, str] = {"query": "queries", "corpus": "candidates"}


@final
@dataclass
class Shown:
    """What became of one side's entries; an entry in several files counts once per file.

    Attributes:
        view: how generated text was used.
        recipe: how it was made, as ``TextView.recipe``; empty for the raw view.
        entries: written.
        generated: entries that show generated text.
        refused: reason -> entries whose text a check refused; they show the published text.
        models: model and revision -> entries that show its text.
    """

    view: str
    recipe: Mapping[str, object]
    entries: int = 0
    generated: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item, shown: str | None, text: Enrichment | None) -> None:
        """Count one entry."""
        self.entries += 1
        if text is None:
            return
        if text.rejected:
            self.refused[text.rejected.partition(":")[0]] += 1
        elif shown != item.text:
            self.generated += 1
            self.models[f"{text.model} at {text.revision[:12]}"] += 1


def dataset_card(name: str, sides: Mapping[Side, Shown]) -> str:
    """A ``README.md`` for the root: what was generated, by which model and prompt, and its limits.

    Args:
        name: of the exported folder.
        sides: what became of each side.
    """
    return "\n".join(_lines(name, sides)) + "\n"


def _lines(name: str, sides: Mapping[Side, Shown]) -> Iterator[str]:
    yield from ("---", "license: other", "tags:", "- multimodal-retrieval", "- m-beir")
    if any(shown.generated for shown in sides.values()):
        yield "- synthetic-text"
    yield from ("---", "", f"# {_plain(name)}", "")
    yield (
        "A data root in the layout of M-BEIR whose texts were enriched by a vision-language model."
        " Ids, pictures, modalities, relevance lists and judgements are those of the root it was"
        " made from; only texts differ, and only where this card says so."
    )
    yield from (
        "",
        "| entries | view | number | with generated text | refused, text as published |",
    )
    yield "|---|---|--:|--:|--:|"
    for side, shown in sides.items():
        share = percent(shown.generated, shown.entries)
        yield (
            f"| {_NAMES[side]} | {shown.view} | {shown.entries:,} | {shown.generated:,} ({share})"
            f" | {shown.refused.total():,} |"
        )
    yield from ("", "An entry that stands in several files counts once for each.")
    yield (
        "Views: `append` is the published text, a line break and the generated text; `replace` is"
        " the generated text alone; `raw` is the published text. Where a text is absent, failed or"
        " was refused, the published text stands."
    )
    for side, shown in sides.items():
        if shown.recipe:
            yield from provenance(side, shown)
    yield from ("", "## Checks", "")
    yield from _checks(sides)
    yield from ("", "## Limits and licences", "")
    yield (
        "Generated text is machine-written and may be wrong: it can name what is not in a picture"
        " and leave out what is. It has not been read by people unless you did."
    )
    yield ""
    yield (
        "Pictures and published texts keep the licences of their sources, which an export does not"
        " change; licence files of the root are beside this card. The terms of the models named"
        " above may bind what they wrote. Check both before you pass this folder on, and replace"
        " `license: other` above."
    )


def provenance(side: Side, shown: Shown) -> Iterator[str]:
    """Lines of Markdown: which model, prompts and settings wrote the texts of one side."""
    recipe = shown.recipe
    yield from ("", f"## How the texts of the {_NAMES[side]} were made", "")
    yield f"- model: `{_plain(recipe['model'])}`, revision `{_plain(recipe['revision'])}`"
    if len(shown.models) > 1:
        listing = ", ".join(f"{_plain(name)} ({n:,})" for name, n in shown.models.most_common())
        yield f"- written by: {listing}"
    yield f"- recipe: `{_plain(recipe['id'])}`"
    prompts, sampling = _table(recipe, "prompts"), _table(recipe, "sampling")
    for kind, prompt in _table(recipe, "routes").items():
        if prompt is None:
            yield f"- {_plain(kind)}: left as published"
        else:
            values = ", ".join(f"{key} {value}" for key, value in sampling[prompt].items())
            yield f"- {_plain(kind)}: prompt `{_plain(prompts[prompt])}`; {_plain(values)}"
    for key, value in _table(recipe, "settings").items():
        yield f"- {_plain(key)}: {_plain(value)}"
    for prompt in packaged(prompts):
        yield from ("", f"Prompt `{prompt.id}`:", "")
        yield from (
            f"    {line}".rstrip() for line in f"{prompt.system}\n\n{prompt.user}".split("\n")
        )


def packaged(prompts: Mapping[str, str]) -> Iterator[Prompt]:
    """The packaged prompts among those of a recipe; one that has changed since is left out."""
    for name, identity in sorted(prompts.items()):
        try:
            prompt = load_prompt(name)
        except DataError:
            continue  # a file of the user's own
        if prompt.id == identity:
            yield prompt


def _table(recipe: Mapping[str, object], name: str) -> Mapping[str, Any]:
    value = recipe.get(name)
    return value if isinstance(value, Mapping) else {}


def _checks(sides: Mapping[Side, Shown]) -> Iterator[str]:
    yield (
        "Every text was cleaned of Markdown and checked for refusals, repetition, truncation,"
        " language, filler and length; rewritten queries also for lost negations and numbers and"
        " for words of the answer."
    )
    for side, shown in sides.items():
        if shown.refused:
            listing = ", ".join(
                f"{_plain(reason)} {n:,}" for reason, n in shown.refused.most_common()
            )
            yield f"Refused among the {_NAMES[side]}: {listing}."


def _plain(value: object) -> str:
    """A value that cannot leave its place in Markdown."""
    return re.sub(r"[`|<>\[\]\s]+", " ", visible(str(value))).strip()
