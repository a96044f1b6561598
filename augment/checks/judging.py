"""Verdicts on texts, of this run's replies and of what the store has.

A text belongs to all items that send the very same; a verdict belongs to one item, because what a
rewrite must keep and must not say differs between them. It is kept with the item's link, with a
mark of the limits it was made under, so that a run with other limits judges stored texts again and
generates nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, final

from augment.checks import RULES, Limits, Verdict, judge
from augment.enrichment.jobs import Job
from augment.prompts import Prompt
from augment.records import Enrichment, Reply
from augment.store import Judged, Store
from augment.store.keys import digest


def checks_of(limits: Limits, prompts: Iterable[Prompt]) -> dict[str, Any]:
    """All that verdicts depend on besides text and item, JSON-serialisable; saved with a run.

    Returns:
        ``rules``, ``limits``, and for every prompt in ``prompts`` its caps and its mark.
    """
    asked = {one.name: {**_caps(one), "mark": mark(limits, one)} for one in prompts}
    return {"rules": RULES, "limits": asdict(limits), "prompts": asked}


#: Checks that go without saying, those of the first checkpoints. They stay what they are, whatever
#: the defaults become, so that fingerprints do.
UNSAID: Mapping[str, Any] = MappingProxyType(
    {
        "rules": 2,
        "language": "en",
        "foreign": 0.5,
        "repetition": 0.3,
        "compression": 0.7,
        "truncation": 0.5,
        "filler": 0.2,
        "slack": 1.0,
        "leak": "names",
        "keep": True,
    }
)


def said(checks: Mapping[str, Any]) -> dict[str, Any]:
    """In what checks differ from those that go without saying.

    Caps of prompts are not among them: they are part of the prompts' hashes, so of the recipe.

    Args:
        checks: of :func:`checks_of`; empty where an earlier version did not keep them.
    """
    made = {"rules": max(checks.get("rules", 0), UNSAID["rules"]), **checks.get("limits", {})}
    return {name: value for name, value in made.items() if value != UNSAID.get(name)}


def mark(limits: Limits, prompt: Prompt) -> str:
    """Twelve hex digits over all that verdicts depend on besides text and item."""
    made = {"rules": RULES, "limits": asdict(limits), "kind": prompt.kind, **_caps(prompt)}
    return digest(made)[:12]


def _caps(prompt: Prompt) -> Mapping[str, Any]:
    caps: dict[str, Any] = {
        "max_words": prompt.max_words,
        "max_added_words": prompt.max_added_words,
        "keeps": prompt.keeps,
    }
    return caps if prompt.max_tokens is None else {**caps, "max_tokens": prompt.max_tokens}


@final
class Judge:
    """Judges under one set of limits.

    Args:
        limits: what is refused.
        store: of the texts.
        recipe: id of the recipe whose links hold the verdicts.
    """

    def __init__(self, limits: Limits, store: Store, recipe: str) -> None:
        self._limits = limits
        self._store = store
        self._recipe = recipe
        self._marks: dict[str, str] = {}

    def mark(self, prompt: Prompt) -> str:
        """See :func:`mark`."""
        if prompt.id not in self._marks:
            self._marks[prompt.id] = mark(self._limits, prompt)
        return self._marks[prompt.id]

    def reply(self, job: Job, prompt: Prompt, reply: Reply) -> Verdict:
        """The verdict on a reply as the text of an item."""
        forbidden = None if job.forbidden is None else job.forbidden()
        return judge(reply, prompt, job.item.text, forbidden, self._limits)

    def stored(self, job: Job, prompt: Prompt, key: str) -> tuple[Judged, bool]:
        """The verdict on a stored text as that of an item, and whether it is a new one.

        Where the text is refused, the one that a retry made in its place is judged, too.

        Args:
            job: the item.
            prompt: of the text.
            key: of the text.
        """
        now = self.mark(prompt)
        link = self._store.linked(self._recipe, job.item.id)
        mended = self._store.mended(key)
        known = link is not None and link.key == key and link.judged == now
        # A refusal stands until a retry has made another text since.
        if known and link and (not link.rejected or mended is None or mended.at <= link.at):
            return Judged(now, link.shown, link.rejected, link.checks), False
        found = self._text(job, prompt, key, "")
        if found.rejected and mended is not None:
            other = self._text(job, prompt, mended.key, mended.key)
            found = found if other.rejected else other
        return found, True

    def _text(self, job: Job, prompt: Prompt, key: str, shown: str) -> Judged:
        text = self._store.get(key)
        if text is None:
            return Judged(self.mark(prompt), shown)
        reply = Reply(text.raw or text.text, text.finish, text.prompt_tokens, text.output_tokens)
        return self.judged(prompt, self.reply(job, prompt, reply), text, shown)

    def judged(self, prompt: Prompt, verdict: Verdict, text: Enrichment, shown: str = "") -> Judged:
        """A verdict as a link keeps it: scores only where they differ from the text's own."""
        own = dict(verdict.scores) == dict(text.checks)
        scores = "" if own else json.dumps(dict(verdict.scores), sort_keys=True)
        return Judged(self.mark(prompt), shown, verdict.rejected, scores)
