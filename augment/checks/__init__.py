"""Checks of generated text: scores with limits, and a reason where one is exceeded.

Nothing is deleted: a refused text stays in the store with its scores and its reason, what cleaning
took away can be read in ``Enrichment.raw``, and every view falls back to the published text.
``benchmarks/results/checks.md`` has the precision and recall of every check.
"""

from augment.checks.clean import clean, clean_steps
from augment.checks.judge import (
    DEFAULT_LIMITS,
    RULES,
    UNSAID,
    Limits,
    Verdict,
    check,
    checks_of,
    judge,
    mark,
    said,
)
from augment.checks.rewrite import Forbidden, LeakRule

__all__ = [
    "DEFAULT_LIMITS",
    "RULES",
    "UNSAID",
    "Forbidden",
    "LeakRule",
    "Limits",
    "Verdict",
    "check",
    "checks_of",
    "clean",
    "clean_steps",
    "judge",
    "mark",
    "said",
]
