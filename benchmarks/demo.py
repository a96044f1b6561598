"""The main job end to end on a small Flagland: enrich, retrain on raw and on enriched, compare.

``python -m benchmarks.demo --out demo`` (or ``make demo``). Every part is the real one; what is
done already in the folder is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from augment import corpus, queries
from augment.cli import Options
from augment.flagland.world import WORLD_TASKS, WorldConfig, write_world
from augment.records import View
from benchmarks.compare import Comparison, compare
from benchmarks.report import write_report
from retrievers.cli import main as retrievers

#: Name of a training -> view of queries, view of candidates.
VIEWS: dict[str, tuple[View, View]] = {"raw": ("raw", "raw"), "enriched": ("replace", "append")}


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demo; the defaults take at most ten minutes on two CPU cores.

    Attributes:
        out: folder of everything.
        countries: of the world.
        seed: of the world and of both trainings.
        steps: optimiser steps of each training.
        batch_size: training pairs per step.
        threads: CPU threads.
        model: the describing model.
    """

    out: Path
    countries: int = 600
    seed: int = 1
    steps: int = 90
    batch_size: int = 128
    threads: int = 2
    model: str = "flagland-vlm"


class Clock:
    """Says what is done and how long each part took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Time one part."""
        print(f"== {name}", flush=True)
        start = time.monotonic()
        work()
        self.seconds[name] = round(time.monotonic() - start, 1)


def _command(arguments: Sequence[str]) -> None:
    status = retrievers(list(arguments))
    if status:
        raise SystemExit(status)


def _data(config: DemoConfig, root: Path, store: Path, views: tuple[View, View]) -> list[str]:
    arguments = [
        f"--data.root={root}", f"--data.batch_size={config.batch_size}",
        f"--data.query.view={views[0]}", f"--data.corpus.view={views[1]}",
        f"--seed_everything={config.seed}", f"--data.seed={config.seed}",
    ]  # fmt: skip
    for side, view in zip(("query", "corpus"), views, strict=True):
        if view != "raw":
            arguments.append(f"--data.{side}.store={store}")
    return arguments


def _train(config: DemoConfig, name: str, root: Path, store: Path) -> None:
    out = config.out / name
    if (out / "checkpoints" / "last.ckpt").exists():
        return
    _command(
        ["fit", "--config", "flagland", f"--out={out}", f"--trainer.max_steps={config.steps}",
         f"--trainer.val_check_interval={config.steps}", "--trainer.enable_progress_bar=false",
         *_data(config, root, store, VIEWS[name])]
    )  # fmt: skip


def _test(config: DemoConfig, trained: str, shown: str, root: Path, store: Path) -> Path:
    out = config.out / (trained if trained == shown else f"{trained}-tested-{shown}")
    if not (out / "metrics.json").exists():
        extra = [] if trained == shown else ["--model.allow_mismatch=true"]
        checkpoint = config.out / trained / "checkpoints" / "last.ckpt"
        _command(
            ["test", "--config", "flagland", f"--out={out}", f"--ckpt_path={checkpoint}",
             "--trainer.enable_progress_bar=false", *extra,
             *_data(config, root, store, VIEWS[shown])]
        )  # fmt: skip
    return out


def run(config: DemoConfig) -> Comparison:
    """Everything; returns the comparison that the table shows.

    Raises:
        SystemExit: if a part failed; its message has been printed.
    """
    root, store, clock = config.out / "world", config.out / "store", Clock()
    options = Options(model=config.model, batch_size=64, threads=config.threads)

    def world() -> None:
        if not root.exists():
            write_world(root, WorldConfig(config.countries, config.seed), workers=config.threads)

    def enrich() -> None:
        for summary in (
            corpus.run(root, store, options=options),
            queries.run(root, store, options=options),
        ):
            print(summary)
            if summary.exit_code:
                raise SystemExit(summary.exit_code)

    clock.run(f"world: {config.countries} countries, seed {config.seed}", world)
    clock.run(f"enrich with {config.model}", enrich)
    for name in VIEWS:
        clock.run(f"train on {name} text", lambda name=name: _train(config, name, root, store))
    for trained, shown in (("raw", "raw"), ("raw", "enriched"), ("enriched", "enriched")):
        title = f"test: trained on {trained}, {shown} text"
        clock.run(title, lambda a=trained, b=shown: _test(config, a, b, root, store))
    names = [f"flagland_task{task}" for task in WORLD_TASKS]
    comparison = compare(config.out / "raw", config.out / "enriched", names, seed=config.seed)
    shifted = json.loads((config.out / "raw-tested-enriched" / "metrics.json").read_text())
    note = (
        f"Trained on raw text and shown enriched text, the same retriever scores "
        f"{100 * shifted['mean']['local']['success@5']:.1f} on average (local pools, success@5)."
    )
    write_report(config.out, comparison, root, store, [note], clock.seconds)
    print(comparison.table())
    print(note)
    print(f"{sum(clock.seconds.values()):.0f} s in all; report: {config.out / 'report.html'}")
    return comparison


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    default = DemoConfig(Path("demo"))
    parser.add_argument("--out", type=Path, default=default.out)
    parser.add_argument("--countries", type=int, default=default.countries)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--model", default=default.model)
    args = parser.parse_args()
    run(DemoConfig(**vars(args)))


if __name__ == "__main__":
    main()
