"""Two tested retrievers side by side: a row a task, paired intervals, a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stats import Interval, paired, paired_bootstrap, randomisation_test, scores_from_run

#: M-BEIR task code -> what goes in and what is wanted.
TASK_NAMES = {
    0: "text → image", 1: "text → text", 2: "text → image+text", 3: "image → text",
    4: "image → image", 6: "image+text → text", 7: "image+text → image",
    8: "image+text → image+text",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Means of two systems on the same queries, and the interval of the difference.

    Attributes:
        name: of the row.
        queries: how many.
        first: mean score of the first system, a share of 1.
        second: the same of the second.
        difference: second less first, 95 % paired bootstrap interval over queries.
        p: paired randomisation test, two-sided, uncorrected.
    """

    name: str
    queries: int
    first: float
    second: float
    difference: Interval
    p: float


@dataclass(frozen=True)
class Comparison:
    """Rows of :class:`Pair`; the last one is over all queries, each task weighing the same."""

    metric: str
    pool: str
    names: tuple[str, str]
    rows: Sequence[Pair]

    def table(self) -> str:
        """Markdown, scores in per cent."""
        first, second = self.names
        lines = [
            f"| task ({self.pool} pool, {self.metric}) | queries | {first} | {second} "
            "| difference, 95 % interval | p |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for row in self.rows:
            d = row.difference
            lines.append(
                f"| {row.name} | {row.queries} | {100 * row.first:.1f} | {100 * row.second:.1f} "
                f"| {100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] "
                f"| {_p(row.p)} |"
            )
        return "\n".join(lines)


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}"


def _scores(folder: Path, name: str, pool: str, metric: str) -> dict[str, float]:
    return scores_from_run(folder / f"{name}.{pool}.trec", folder / f"{name}.qrels", metric)


def _title(name: str, several: bool) -> str:
    dataset, marker, code = name.rpartition("_task")
    if not marker or not code.isdigit():
        return name
    task = f"{code}: {TASK_NAMES.get(int(code), name)}"
    return f"{dataset} {task}" if several else task


def compare(
    first: Path,
    second: Path,
    tasks: Sequence[str],
    *,
    metric: str = "success@5",
    pool: str = "local",
    names: tuple[str, str] = ("raw", "enriched"),
    seed: int = 0,
) -> Comparison:
    """Compare two test folders.

    Args:
        first: folder with run files and qrels of the first system.
        second: the same of the second.
        tasks: names of the rows, as the files are called.
        metric: per-query score, see :func:`benchmarks.stats.scores_from_run`.
        pool: ``local`` or ``union``.
        names: of the two systems.
        seed: of the resampling.

    Raises:
        ValueError: if the two folders do not judge the same queries.
        DataError: if a file is missing or malformed.
    """
    several = len({task.rpartition("_task")[0] for task in tasks}) > 1
    rows: list[Pair] = []
    means: list[tuple[list[float], list[float]]] = []
    for task in tasks:
        a, b = paired(_scores(first, task, pool, metric), _scores(second, task, pool, metric))
        rows.append(_pair(_title(task, several), list(a), list(b), seed))
        means.append((list(a), list(b)))
    # Each task weighs the same, as in M-BEIR's mean: a query counts 1 / (tasks * its task's size).
    total = sum(len(a) for a, _ in means)
    weighted_a = [x * total / (len(means) * len(a)) for a, _ in means for x in a]
    weighted_b = [x * total / (len(means) * len(b)) for _, b in means for x in b]
    rows.append(_pair("mean", weighted_a, weighted_b, seed))
    return Comparison(metric, pool, names, rows)


def _pair(name: str, a: list[float], b: list[float], seed: int) -> Pair:
    return Pair(
        name,
        len(a),
        sum(a) / len(a),
        sum(b) / len(b),
        paired_bootstrap(a, b, seed=seed),
        randomisation_test(a, b, seed=seed),
    )
