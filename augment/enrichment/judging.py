"""Verdicts on texts: of this run's replies, and of what the store has."""

from __future__ import annotations

import json
from typing import final

from augment.checks import Limits, Verdict, judge, mark
from augment.enrichment.jobs import Job
from augment.prompts import Prompt
from augment.records import Enrichment, Reply
from augment.store import Judged, Store


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
        """See :func:`augment.checks.mark`."""
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
