"""Which limits the verdicts of a recipe's texts were made under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, final

from augment.checks import DEFAULT_LIMITS, Limits
from augment.store import RunRecord, Store


@final
@dataclass(frozen=True)
class Used:
    """The limits of the latest run.

    Attributes:
        limits: the limits; the default ones where no run tells.
        known: whether a run tells.
        caps: prompt -> its limits of length, in words.
        others: items whose verdict is from other limits, or from before verdicts were kept.
    """

    limits: Limits = DEFAULT_LIMITS
    known: bool = False
    caps: Mapping[str, str] = field(default_factory=dict)
    others: int = 0

    def rows(self) -> Iterator[tuple[str, object]]:
        """Names and values for people, the caps of prompts last."""
        for one in fields(Limits):
            yield one.name, getattr(self.limits, one.name)
        yield from self.caps.items()


def used(store: Store, recipe: str, runs: Sequence[RunRecord]) -> Used:
    """The limits of the latest run of a recipe that tells.

    Args:
        store: has the verdicts.
        recipe: id.
        runs: all runs, the earliest first.
    """
    told = [run.scope.checks for run in runs if run.recipe == recipe and run.scope.checks]
    if not told:
        return Used()
    checks: Mapping[str, Any] = told[-1]
    known = {one.name for one in fields(Limits)}
    limits = Limits(**{name: v for name, v in checks["limits"].items() if name in known})
    marks = {one["mark"] for one in checks["prompts"].values()}
    others = sum(
        row.get("judged") not in marks for row in store.rows("link", recipe).scan("judged")
    )
    return Used(limits, True, {n: _cap(one) for n, one in checks["prompts"].items()}, others)


def _cap(one: Mapping[str, Any]) -> str:
    added = one.get("max_added_words")
    more = f", of which at most {added} new" if added is not None else ""
    tokens = one.get("max_tokens")
    length = f"{one['max_words']} words" if tokens is None else f"{tokens} tokens"
    return f"at most {length}{more}"
