"""The account of a run: every item ends up counted exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import final

from augment.store import Failure

#: Failures that a summary names; the store has them all.
NAMED_FAILURES = 1000


@final
@dataclass
class Summary:
    """What became of every item: ``total`` is the sum of the outcomes.

    Attributes:
        total: items read.
        generated: items that a model answered for in this run.
        cached: items whose text was known, among them ``duplicates``.
        duplicates: items that share the text of another item of this run.
        skipped: reason -> items left alone.
        failed: reason -> items without a text.
        pending: items read but not settled, because the run was cut short.
        rejected: reason -> new texts that a check refused (they are among ``generated``).
        judged: reason, or ``accepted`` -> items whose stored text was judged anew, because it had
            not been judged for this item under these limits (they are among ``cached``).
        routed: how the prompt was chosen -> items with a text, refused ones included.
        failures: the first :data:`NAMED_FAILURES` failures.
        incomplete: why the run was cut short; empty if it was not.
        died: whether it was cut short by the death of a model that had worked.
        prompt_tokens: read by the model in this run.
        output_tokens: written by the model in this run.
    """

    total: int = 0
    generated: int = 0
    cached: int = 0
    duplicates: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    routed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    incomplete: str = ""
    died: bool = False
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def exit_code(self) -> int:
        """0 complete, 3 items failed, 4 cut short."""
        if self.incomplete:
            return 4
        return 3 if self.failed else 0

    def verify(self) -> None:
        """Check that every item was counted once.

        Raises:
            RuntimeError: if the sum does not fit, which is a defect of this program.
        """
        settled = self.generated + self.cached + self.skipped.total() + self.failed.total()
        if settled + self.pending != self.total:
            raise RuntimeError(f"items do not add up, please report this: {self}")

    def counts(self) -> dict[str, object]:
        """All fields but the named failures, JSON-serialisable."""
        fields = {name: value for name, value in vars(self).items() if name != "failures"}
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in fields.items()}

    def __str__(self) -> str:
        rows = [
            f"{self.total:>9,} items",
            f"{self.generated:>9,} generated{_reasons(self.rejected, ', refused by checks: ')}",
            f"{self.cached:>9,} cached ({self.duplicates:,} share the text of another item)",
            *self._judged_lines(),
            f"{self.skipped.total():>9,} left alone{_reasons(self.skipped, ': ')}",
            f"{self.failed.total():>9,} failed{_reasons(self.failed, ': ')}",
        ]
        if len(self.routed) > 1:
            rows += [f"{number:>9,} with a text: {route}" for route, number in self.routed.items()]
        if self.incomplete:
            rows += [f"{self.pending:>9,} read, not settled", f"incomplete: {self.incomplete}"]
        return "\n".join(rows)

    def _judged_lines(self) -> list[str]:
        if not self.judged:
            return []
        found = _reasons(self.judged, ": ")
        return [f"{self.judged.total():>9,} of them judged by limits new to them{found}"]


def _reasons(counts: Counter[str], before: str) -> str:
    listing = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
    return before + listing if listing else ""


def reason_class(reason: str) -> str:
    """The short class that a reason starts with."""
    return reason.partition(":")[0]
