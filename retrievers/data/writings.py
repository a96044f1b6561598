"""What a model wrote before the vectors of queries (TRACE, RGE): kept, summed up, bounded.

Kept beside a run as ``written.jsonl``, a line a query, and as ``direct.safetensors`` the vectors
that the queries would have had if nothing had been written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from augment.errors import DataError
from augment.files import say, sha256, text_lines, write_json, write_text

#: Name of the file beside a run.
WRITTEN = "written.jsonl"


class Writing(NamedTuple):
    """What came before one vector.

    Attributes:
        text: what was written; empty for nothing.
        tokens: of it, the mark not counted.
        ending: ``direct`` wrote nothing; ``mark`` ended by itself, ``end`` with the end of its
            turn; ``length`` was cut off, and the mark put in its place.
        mark: probability of the mark as the first token.
    """

    text: str
    tokens: int
    ending: str
    mark: float


def told(found: Sequence[Writing]) -> tuple[str, int]:
    """What was written before one item's vector, and in how many tokens."""
    return "".join(one.text for one in found), sum(one.tokens for one in found)


def write_writings(path: Path, found: Iterable[tuple[str, Writing]]) -> None:
    """Write ``written.jsonl``."""
    write_text(path, _lines(found))


def append_writings(path: Path, found: Iterable[tuple[str, Writing]]) -> None:
    """Add to such a file; a line that a killed process left half is ended first."""
    with path.open("ab+") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        torn = size and file.read(1) != b"\n"
        file.write((("\n" if torn else "") + _lines(found)).encode())


def _lines(found: Iterable[tuple[str, Writing]]) -> str:
    told = ({"qid": qid, **one._asdict()} for qid, one in found)
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told)


def read_writings(path: Path, torn: bool = False) -> dict[str, Writing]:
    """What was written, by query id; of one that stands there twice, the latest.

    ``torn`` leaves out lines that are no records, as killed processes leave them.

    Raises:
        DataError: if a line is no such record.
    """
    found: dict[str, Writing] = {}
    for number, line in text_lines(path):
        one = _record(line)
        if one is not None:
            found[one[0]] = one[1]
        elif not torn:
            raise DataError("is no record of what was written", f"{path}:{number}")
    return found


def _record(line: str) -> tuple[str, Writing] | None:
    try:
        value = json.loads(line)
        return str(value.pop("qid")), Writing(**value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def spent(found: Collection[Writing]) -> dict[str, Any]:
    """How often and how much was written: what ``metrics.json`` has of each task.

    Returns:
        ``queries``; ``wrote``, the share that wrote anything; ``tokens``, written a query on
        average, with ``p50`` and ``p95``; ``forced``, the share whose writing was cut off.
    """
    tokens = np.array([one.tokens for one in found])
    p50, p95 = np.percentile(tokens, (50, 95))
    return {
        "queries": len(tokens),
        "wrote": float(np.mean([one.ending != "direct" for one in found])),
        "tokens": float(tokens.mean()),
        "p50": float(p50),
        "p95": float(p95),
        "forced": float(np.mean([one.ending == "length" for one in found])),
    }


def threshold(found: Collection[Writing], budget: float) -> float:
    """The threshold of ``reasoning.threshold`` under which a mean of ``budget`` tokens is written.

    Queries write in the order of how unlikely their mark is, as many as the budget allows.

    ``found`` are dev queries, all of which wrote (``reasoning.when=always``); ``budget`` is tokens
    a query on average.

    Raises:
        DataError: if there are none, or some wrote nothing, so that their cost is not known.
    """
    if not found or any(one.ending == "direct" for one in found):
        raise DataError(
            "tokens are counted on queries that all wrote: test with reasoning.when=always"
        )
    order = sorted(found, key=lambda one: one.mark)
    spending = np.cumsum([one.tokens for one in order]) / len(order)
    writes = int(np.searchsorted(spending, budget, side="right"))
    if writes == len(order):
        return 1.0
    # Queries of one probability write together or not at all.
    return float(order[writes].mark)


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
        f"--model.encoder.reasoning.when=adaptive --model.encoder.reasoning.threshold={at!r}\n"
        f"of {len(found):,} dev queries {100 * share:.1f} % write, {mean:.2f} tokens a query "
        f"(always: {always['tokens']:.2f})"
    )


def auc(hard: Sequence[Writing], easy: Sequence[Writing]) -> float:
    """Chance that a query that needs writing has a less likely mark than one that does not.

    NaN where either is empty. Ties count half.
    """
    if not hard or not easy:
        return math.nan
    first, second = (np.array([one.mark for one in some]) for some in (hard, easy))
    less, same = (np.mean(found) for found in (first[:, None] < second, first[:, None] == second))
    return float(less + same / 2)


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of :func:`spent` for people, with a head."""
    head = ["written before the vector", "wrote", "tokens a query", "p50", "p95", "cut off"]
    return [head] + [
        [name, f"{100 * one['wrote']:.1f} %", f"{one['tokens']:.1f}", f"{one['p50']:.0f}",
         f"{one['p95']:.0f}", f"{100 * one['forced']:.1f} %"]
        for name, one in rows.items()
    ]  # fmt: skip
