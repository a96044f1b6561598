"""The main job on any root: enrich, retrain on raw and on enriched text, test, compare, report.

Every part is the real one. What is done already in the output folder is not done again, so a run
that was cut short goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from augment import corpus, queries
from augment.cli import Options
from augment.mbeir import DataRoot
from augment.records import View
from benchmarks.oracle import oracle_engine
from benchmarks.report import write_report
from retrievers.cli import main as retrievers
from retrievers.compare import Comparison, compare

#: Name of a training -> view of queries, view of candidates.
VIEWS: dict[str, tuple[View, View]] = {"raw": ("raw", "raw"), "enriched": ("replace", "append")}
#: The model that reads Flagland's scene graphs instead of the pictures.
ORACLE = "oracle"
#: (trained on, shown in the test). The middle one is the distribution shift that RAR warns of.
TESTS = (("raw", "raw"), ("raw", "enriched"), ("enriched", "enriched"))


@dataclass(frozen=True)
class Experiment:
    """One comparison.

    Attributes:
        root: M-BEIR root.
        out: folder of store, checkpoints, runs and report.
        model: the describing model; :data:`ORACLE` on a Flagland root.
        seed: of both trainings.
        steps: optimiser steps of each training.
        batch_size: training pairs per step.
        threads: CPU threads.
        metric: per-query score of the table.
        fit: further arguments of ``python -m retrievers``.
        tolerate: go on when single items could not be enriched (they keep their published text).
    """

    root: Path
    out: Path
    model: str = "flagland-vlm"
    seed: int = 0
    steps: int = 90
    batch_size: int = 128
    threads: int = 2
    metric: str = "success@5"
    fit: Sequence[str] = field(default_factory=tuple)
    tolerate: bool = False

    @property
    def store(self) -> Path:
        """Folder of the generated texts."""
        return self.out / "store"


class Clock:
    """Says what is being done and keeps how long each part took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Time one part."""
        print(f"== {name}", flush=True)
        start = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - start, 1)


def enrich(experiment: Experiment) -> None:
    """Describe the corpus and refine the queries.

    Raises:
        SystemExit: if items failed, unless that is tolerated; the summary names them.
    """
    options = Options(model=experiment.model, batch_size=64, threads=experiment.threads)
    for side, enrich_side in (("corpus", corpus.run), ("query", queries.run)):
        oracle = experiment.model == ORACLE
        engine = oracle_engine(experiment.root, side) if oracle else None
        summary = enrich_side(experiment.root, experiment.store, options=options, engine=engine)
        print(summary, flush=True)
        if summary.exit_code and not experiment.tolerate:
            raise SystemExit(summary.exit_code)


def _arguments(experiment: Experiment, views: tuple[View, View]) -> list[str]:
    arguments = [
        f"--data.root={experiment.root}",
        f"--data.batch_size={experiment.batch_size}",
        f"--seed_everything={experiment.seed}",
        f"--data.seed={experiment.seed}",
        "--trainer.enable_progress_bar=false",
        *experiment.fit,
    ]
    for side, view in zip(("query", "corpus"), views, strict=True):
        arguments.append(f"--data.{side}.view={view}")
        if view != "raw":
            arguments.append(f"--data.{side}.store={experiment.store}")
    return arguments


def _command(arguments: Sequence[str]) -> None:
    status = retrievers(list(arguments))
    if status:
        raise SystemExit(status)


def train(experiment: Experiment, name: str) -> None:
    """Fit on one of :data:`VIEWS`, unless that is done."""
    out = experiment.out / name
    if (out / "checkpoints" / "last.ckpt").exists():
        return
    steps = experiment.steps
    _command(
        ["fit", "--config", "flagland", f"--out={out}", f"--trainer.max_steps={steps}",
         f"--trainer.val_check_interval={steps}", *_arguments(experiment, VIEWS[name])]
    )  # fmt: skip


def test(experiment: Experiment, trained: str, shown: str) -> Path:
    """Test one training on one text, unless that is done; the folder of runs and metrics."""
    out = experiment.out / (trained if trained == shown else f"{trained}-tested-{shown}")
    if not (out / "metrics.json").exists():
        extra = [] if trained == shown else ["--model.allow_mismatch=true"]
        checkpoint = experiment.out / trained / "checkpoints" / "last.ckpt"
        _command(
            ["test", "--config", "flagland", f"--out={out}", f"--ckpt_path={checkpoint}", *extra,
             *_arguments(experiment, VIEWS[shown])]
        )  # fmt: skip
    return out


def shift_note(experiment: Experiment) -> str:
    """What enrichment without retraining scores, in a sentence."""
    folder = experiment.out / "raw-tested-enriched"
    means = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["mean"]["local"]
    return (
        "Trained on raw text and shown enriched text, the same retriever scores "
        f"{100 * means[experiment.metric]:.1f} on average (local pools, {experiment.metric})."
    )


def run(experiment: Experiment, clock: Clock) -> Comparison:
    """Everything; returns the comparison that the table shows.

    Raises:
        SystemExit: if a part failed; its message has been printed.
    """
    clock.run(f"enrich with {experiment.model}", lambda: enrich(experiment))
    for name in VIEWS:
        clock.run(f"train on {name} text", lambda name=name: train(experiment, name))  # type: ignore[misc]
    for trained, shown in TESTS:
        title = f"test: trained on {trained}, shown {shown} text"
        clock.run(title, lambda a=trained, b=shown: test(experiment, a, b))  # type: ignore[misc]
    files = DataRoot(experiment.root).query_files("test")
    names = [f"{file.dataset}_task{file.task}" for file in files]
    folders = (experiment.out / "raw", experiment.out / "enriched")
    both = {
        pool: compare(*folders, names, metric=experiment.metric, pool=pool, seed=experiment.seed)
        for pool in ("local", "union")
    }
    union = both["union"].rows[-1]
    notes = [
        f"In the union of all pools the means are {100 * union.first:.1f} (raw) and "
        f"{100 * union.second:.1f} (enriched).",
        shift_note(experiment),
    ]
    write_report(
        experiment.out, both["local"], experiment.root, experiment.store, notes, clock.seconds
    )
    print(both["local"].table(), *notes, sep="\n")
    total = sum(clock.seconds.values())
    print(f"{total:.0f} s in all; report: {experiment.out / 'report.html'}")
    return both["local"]
