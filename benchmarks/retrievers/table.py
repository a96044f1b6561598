"""The table of what is done: means over tasks, spread over seeds, intervals."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from augment.errors import DataError
from benchmarks.experiments.graph import record
from benchmarks.experiments.long_text import compared
from benchmarks.retrievers.rows import FIRST, Row
from benchmarks.retrievers.steps import Bench
from retrievers.evaluation.compare import Pair, holm

METRICS = ("success@1", "success@5")


class Measured(NamedTuple):
    """A row with what was measured of it.

    Attributes:
        row: which one.
        means: by metric, the mean over tasks, a share of 1, of each seed.
        pairs: by metric, the comparison with the first row over the same seeds.
        seconds: a training takes, the median over seeds; None where it is not known.
    """

    row: Row
    means: dict[str, list[float]]
    pairs: dict[str, Pair]
    seconds: float | None


@final
@dataclass(frozen=True)
class Results:
    """What is done of a bench.

    Args:
        bench: the data set.
        rows: of the table, the first one in front.
        seeds: of the trainings.
        out: folder of the steps.

    Raises:
        DataError: where not even the first row was tested.
    """

    bench: Bench
    rows: Sequence[Row]
    seeds: Sequence[int]
    out: Path

    def measured(self) -> list[Measured]:
        """Rows that were tested with a seed with which the first row was."""
        first = self._tests(FIRST)
        if not first:
            raise DataError(f"{FIRST.key} was not tested yet with any of these seeds and settings",
                            str(self.out))  # fmt: skip
        found = []
        for row in self.rows:
            tests = {seed: one for seed, one in self._tests(row).items() if seed in first}
            if not tests:
                continue
            base, own = [first[seed] for seed in tests], list(tests.values())
            each = list(dict.fromkeys(own))  # without training, the seeds share a test
            means = {metric: [_mean(folder, metric) for folder in each] for metric in METRICS}
            pairs = {metric: compared(base, own, metric) for metric in METRICS}
            found.append(Measured(row, means, pairs, self._seconds(row, list(tests))))
        return found

    def _tests(self, row: Row) -> dict[int, Path]:
        steps = {seed: self.bench.test(row, seed) for seed in self.seeds}
        return {seed: step.folder(self.out) for seed, step in steps.items() if step.done(self.out)}

    def _seconds(self, row: Row, seeds: Sequence[int]) -> float | None:
        # From the pairs per second that the fit logged: a run that went on after a kill counts like
        # a whole one, and its start and validation do not count.
        if not row.trained:
            return 0.0
        folders = [self.bench.train(row, seed).folder(self.out) for seed in seeds]
        rates = [rate for folder in folders if (rate := pairs_per_second(folder))]
        pairs = self.bench.steps * self.bench.batch
        return pairs / statistics.median(rates) if rates else None

    def mining_seconds(self) -> float | None:
        """Of one mining, the median over seeds; None where nothing was mined."""
        if not any(row.mined for row in self.rows):
            return None
        steps = [self.bench.mine(seed) for seed in self.seeds]
        done = [float(record(step, self.out)["seconds"]) for step in steps if step.done(self.out)]
        return statistics.median(done) if done else None

    def table(self) -> str:
        """The section of this data set as Markdown."""
        found = self.measured()
        tests = json.loads((next(iter(self._tests(FIRST).values())) / "metrics.json").read_text())
        queries = sum(row["queries"] for row in tests["rows"])
        told = [
            f"{queries} queries, {len(tests['rows'])} tasks (local pools), {self.bench.steps} "
            f"steps of {self.bench.batch} pairs, text: {self.bench.text}."
        ]
        mining = self.mining_seconds()
        if mining is not None:
            told.append(f"Mining takes {mining:.0f} s more, after a training of the first row.")
        head = ["retriever and loss", "seeds"]
        for metric in METRICS:
            head += [metric, "against the first, 95 % interval", "p (Holm)"]
        head.append("training, s")
        return "\n".join(
            [f"## {self.bench.title}", "", " ".join(told), "", f"| {' | '.join(head)} |",
             f"|---|{'--:|' * (len(head) - 1)}", *lines(found)]
        )  # fmt: skip


def lines(found: Sequence[Measured]) -> list[str]:
    """Lines of the table; p-values are corrected for all rows against the first."""
    others = [one for one in found if one.row != FIRST]
    corrected = {
        metric: dict(zip((one.row for one in others),
                         holm([one.pairs[metric].p for one in others]), strict=True))
        for metric in METRICS
    }  # fmt: skip
    return [_line(one, {metric: corrected[metric].get(one.row) for metric in METRICS})
            for one in found]  # fmt: skip


def _line(one: Measured, p: dict[str, float | None]) -> str:
    cells = [one.row.title, str(len(one.means[METRICS[0]])) if one.row.trained else ""]
    for metric in METRICS:
        means = one.means[metric]
        spread = f" ± {100 * statistics.stdev(means):.1f}" if len(means) > 1 else ""
        cells.append(f"{100 * statistics.fmean(means):.1f}{spread}")
        value = p[metric]
        if value is None:
            cells += ["", ""]
            continue
        mean, low, high = (100 * number for number in one.pairs[metric].difference)
        cells += [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
                  "< .001" if value < 0.001 else f"{value:.3f}"]  # fmt: skip
    cells.append("" if one.seconds is None else f"{one.seconds:.0f}")
    return f"| {' | '.join(cells)} |"


def pairs_per_second(folder: Path) -> float | None:
    """Median of what a training logged; None where it logged nothing."""
    found = []
    for path in folder.glob("logs/*/metrics.csv"):
        with path.open(encoding="utf-8", newline="") as stream:
            found += [float(row["speed/pairs_per_s"]) for row in csv.DictReader(stream)
                      if row.get("speed/pairs_per_s")]  # fmt: skip
    return statistics.median(found) if found else None


def _mean(folder: Path, metric: str) -> float:
    metrics: Any = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["mean"]["local"][metric])
