"""What verdicts depend on besides text and item: said with every run, marked on every verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from augment.checks import RULES, Limits
from augment.prompts import Prompt
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
