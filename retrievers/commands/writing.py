"""``python -m retrievers calibrate --run=RUN --tokens=8``: a threshold for a budget of tokens."""

from __future__ import annotations

from pathlib import Path

from augment.files import say, sha256, write_json
from retrievers.data.writings import WRITTEN, read_writings, spent, threshold


def calibrate(run: Path, tokens: float) -> None:
    """Choose the probability of the mark from which a query is embedded directly.

    RUN is a test of dev queries that all wrote: ``test --data.test.split=val
    --model.encoder.reasoning.when=always``. The threshold goes to ``RUN/calibration.json`` with the
    digest of what it was chosen on, and is used as ``--model.encoder.reasoning.threshold``.

    Args:
        run: folder of the test.
        tokens: to be written a query, on average over the dev queries, at most.

    Raises:
        DataError: if the run wrote nothing, or some of its queries did not.
    """
    found = read_writings(run / WRITTEN)
    at = threshold(found.values(), tokens)
    writing = [one for one in found.values() if one.mark < at]
    share, mean = len(writing) / len(found), sum(one.tokens for one in writing) / len(found)
    always = spent(found.values())
    chosen = {
        "threshold": at,
        "budget": tokens,
        "tokens": mean,
        "wrote": share,
        "always": always,
        "digest": sha256(run / WRITTEN),
    }
    write_json(run / "calibration.json", chosen)
    say(
        f"--model.encoder.reasoning.when=adaptive --model.encoder.reasoning.threshold={at:.6g}\n"
        f"of {len(found):,} dev queries {100 * share:.1f} % write, {mean:.2f} tokens a query "
        f"(always: {always['tokens']:.2f})"
    )
