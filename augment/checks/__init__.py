"""Checks of generated text: scores with limits, and a reason where one is exceeded.

Nothing is deleted: a refused text stays in the store with its scores and its reason, what cleaning
took away can be read in ``Enrichment.raw``, and every view falls back to the published text.
``benchmarks/results/checks.md`` has the precision and recall of every check.
"""

from augment.checks.clean import clean as clean
from augment.checks.judge import DEFAULT_LIMITS as DEFAULT_LIMITS
from augment.checks.judge import UNSAID as UNSAID
from augment.checks.judge import Limits as Limits
from augment.checks.judge import Verdict as Verdict
from augment.checks.judge import check as check
from augment.checks.judge import checks_of as checks_of
from augment.checks.judge import judge as judge
from augment.checks.judge import mark as mark
from augment.checks.judge import said as said
from augment.checks.rewrite import Forbidden as Forbidden
