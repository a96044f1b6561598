"""Text beyond the context: what each remedy gains over cutting it, on Flagland and on real text.

``python -m benchmarks.experiments.long_text --out FOLDER --root ROOT``. The packaged CLIP reads few of its
positions (``--context``), so that entries and wordy captions are cut as CLIP's 77 tokens cut real
ones. Every row starts from the same weights; remedies of training are trained, windows read the
same checkpoint. A run that was cut short goes on.

Flagland: entries with captions behind them, and pictures with captions alone. A caption says first
that it is a flag, then what is on it; within a budget it says what is on it. Real: an M-BEIR root,
published text; a budget is for generated text only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from augment import corpus
from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.pipeline import Options
from benchmarks.flagland import language
from benchmarks.flagland.oracle import flags_of
from benchmarks.flagland.world import WorldConfig, write_world
from retrievers.cli import main as retrievers
from retrievers.evaluation.compare import Pair, compare_scores, tasks_of
from retrievers.evaluation.stats import scores_from_run

RESULTS = Path(__file__).parent.parent / "results" / "long_text.md"
METRICS = ("success@1", "success@5")
#: In front of the facts, as in captions that begin with a summary.
SUMMARY = "A flag in full, seen from the front. Its cloth is flat and clean."
BUDGET = "35 words"
FACTOR = 4


class Remedy(NamedTuple):
    """One row of the table.

    Attributes:
        name: of the row.
        trained: the training whose checkpoint is tested.
        windows: in how many windows the test reads a text.
    """

    name: str
    trained: str
    windows: int = 1


REMEDIES = (
    Remedy("cut", "cut"),
    Remedy("stretch", "stretch"),
    Remedy("sample", "sample"),
    Remedy("windows", "cut", FACTOR),
    Remedy("sample and windows", "sample", FACTOR),
    Remedy("budget", "budget"),
    Remedy("all positions", "all"),
)


@dataclass(frozen=True)
class Bench:
    """One data set.

    Attributes:
        title: for people.
        root: M-BEIR root.
        out: folder of trainings and tests.
        context: positions that are read, of the model's own.
        tasks: task codes.
        stores: caption style -> store; empty where published text is shown.
        steps: optimiser steps of each training.
        batch: pairs per step.
    """

    title: str
    root: Path
    out: Path
    context: int
    tasks: Sequence[int]
    stores: Mapping[str, Path]
    steps: int
    batch: int

    @property
    def keep(self) -> int:
        """First positions that a stretch keeps; the share that Long-CLIP keeps of 77."""
        return self.context * 20 // 77

    def remedies(self) -> list[Remedy]:
        """Rows that can be measured here."""
        known = {"cut", "stretch", "sample", *(("budget", "all") if self.stores else ())}
        return [remedy for remedy in REMEDIES if remedy.trained in known]

    def text(self, trained: str) -> list[str]:
        """Arguments that make the text of a training and its tests."""
        store = self.stores.get("budget" if trained == "budget" else "long")
        given = [] if trained == "all" else [f"--model.text.context={self.context}"]
        if store is not None:
            given += ["--data.corpus.view=append", f"--data.corpus.store={store}"]
        if trained == "stretch":
            given += [f"--model.text.stretch={FACTOR}", f"--model.text.keep={self.keep}"]
        return given

    def shared(self, seed: int) -> list[str]:
        """Arguments of every training and test."""
        return [
            "--config=flagland", f"--data.root={self.root}", f"--data.seed={seed}",
            f"--seed_everything={seed}", f"--data.tasks={list(self.tasks)}",
            f"--data.batch_size={self.batch}", "--data.instructions=false",
            "--data.on_bad_image=skip", "--data.test.union=false", "--data.test.depth=10",
            "--data.validation.queries=0", "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
        ]  # fmt: skip

    def fit(self, trained: str, seed: int) -> Path:
        """Train unless that is done; the checkpoint."""
        out = self.out / f"{trained}-{seed}"
        checkpoint = out / "checkpoints" / "last.ckpt"
        if not (out / "done").exists():
            sampled = ["--data.corpus.sentences.share=0.5"] if trained == "sample" else []
            _command(
                ["fit", *self.shared(seed), *self.text(trained), *sampled, f"--out={out}",
                 f"--trainer.max_steps={self.steps}", f"--trainer.val_check_interval={self.steps}",
                 "--trainer.limit_val_batches=0",
                 f"--trainer.callbacks.every_n_train_steps={self.steps}"]
            )  # fmt: skip
            (out / "done").touch()
        return checkpoint

    def test(self, remedy: Remedy, seed: int) -> Path:
        """Test unless that is done; the folder of runs."""
        out = self.out / f"{remedy.name.replace(' ', '-')}-{seed}.test"
        if not (out / "metrics.json").exists():
            checkpoint = self.fit(remedy.trained, seed)
            _command(
                ["test", *self.shared(seed), *self.text(remedy.trained), f"--out={out}",
                 f"--model.text.windows={remedy.windows}", f"--ckpt_path={checkpoint}"]
            )  # fmt: skip
        return out


def _command(arguments: Sequence[str]) -> None:
    if retrievers(arguments):
        raise SystemExit(1)


def write_captions(root: Path, stores: Mapping[str, Path]) -> None:
    """Wordy captions of every picture, and captions within the budget."""
    flags = flags_of(root)
    items = [item for file in DataRoot(root).pools() for item in open_candidates(file.path)]
    facts = {item.id: language.caption(flags[item.image]) for item in items if item.image}
    for style, store in stores.items():
        wordy = style == "long"
        answers = {name: f"{SUMMARY} {text}" if wordy else text for name, text in facts.items()}
        engine = ScriptedEngine(answers, root=root, model=f"captions-{style}", batch_size=256)
        budget = "" if wordy else BUDGET
        summary = corpus.run(root, store, budget=budget, engine=engine, options=Options())
        if summary.exit_code:
            raise SystemExit(str(summary))


def _scores(folders: Sequence[Path], task: str, metric: str) -> dict[str, float]:
    """Mean over the seeds, query by query."""
    every = [
        scores_from_run(folder / f"{task}.local.trec", folder / f"{task}.qrels", metric)
        for folder in folders
    ]
    return {qid: statistics.mean(scores[qid] for scores in every) for qid in every[0]}


def compared(first: Sequence[Path], second: Sequence[Path], metric: str) -> Pair:
    """Two rows over all tasks, each task weighing the same, scores averaged over the seeds."""
    tasks = tasks_of(first[0], "local")
    scores = {task: (_scores(first, task, metric), _scores(second, task, metric)) for task in tasks}
    return compare_scores(scores, metric=metric).rows[-1]


def _metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def _lost(found: Any) -> float:
    rows = [r for r in found["settings"]["data"]["cut_text"]["rows"] if r["side"] == "corpus"]
    return float(sum(r["lost"] for r in rows) / max(1, sum(r["tokens"] for r in rows)))


def _row(name: str, cut: Sequence[Path], folders: Sequence[Path]) -> str:
    cells = [name]
    found = [_metrics(folder) for folder in folders]
    cells.append(f"{100 * _lost(found[0]):.0f}")
    for metric in METRICS:
        pair = compared(cut, folders, metric)
        means = [100 * each["mean"]["local"][metric] for each in found]
        spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
        cells.append(f"{100 * pair.second:.1f}{spread}")
        low, mean, high = (100 * n for n in (pair.difference.low, pair.difference.mean,
                                             pair.difference.high))  # fmt: skip
        cells.append("" if name == "cut" else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    seconds = [statistics.median(_metrics(f)["cost"]["embedding_seconds"] for f in side)
               for side in (folders, cut)]  # fmt: skip
    cells.append(f"{seconds[0] / max(seconds[1], 1e-9):.1f}")
    return f"| {' | '.join(cells)} |"


def table(bench: Bench, tests: Mapping[str, Sequence[Path]]) -> str:
    """The rows of a data set as Markdown."""
    cut = tests["cut"]
    found = _metrics(cut[0])["rows"]
    queries, pool = sum(r["queries"] for r in found), sum(r["candidates"] for r in found)
    head = [
        "remedy", "candidates' tokens not read, %", "success@1", "against cut", "success@5",
        "against cut", "embedding, time against cut",
    ]  # fmt: skip
    return "\n".join(
        [
            f"## {bench.title}", "",
            f"{queries} queries, {pool} candidates, tasks {', '.join(map(str, bench.tasks))}; "
            f"{bench.context} positions, stretched to "
            f"{bench.keep + FACTOR * (bench.context - bench.keep)} (the first {bench.keep} kept), "
            f"at most {FACTOR} windows; {bench.steps} steps of {bench.batch} pairs, "
            f"{len(cut)} seeds.", "",
            f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}",
            *(_row(name, cut, folders) for name, folders in tests.items()),
        ]
    )  # fmt: skip


def measure(bench: Bench, seeds: Sequence[int], begun: float) -> str:
    """Train, test and compare; says what is done."""
    tests: dict[str, list[Path]] = {}
    for remedy in bench.remedies():
        for seed in seeds:
            print(
                f"== {time.monotonic() - begun:.0f} s: {bench.title}, {remedy.name}, seed {seed}",
                flush=True,
            )
            tests.setdefault(remedy.name, []).append(bench.test(remedy, seed))
    return table(bench, tests)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.long_text", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("runs/long_text"))
    parser.add_argument("--root", type=Path, default=None, help="real text; none leaves it out")
    parser.add_argument("--real-tasks", type=int, nargs="+", default=[1])
    parser.add_argument("--countries", type=int, default=300)
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--real-context", type=int, default=48)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--real-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, default=None, help=f"such as {RESULTS.name}")
    args = parser.parse_args()
    if args.root is not None and not args.root.is_dir():
        raise SystemExit(f"{args.root}: no such folder; name an M-BEIR root with --root")
    torch.set_num_threads(args.threads)
    begun, world = time.monotonic(), args.out / "world"
    if not world.exists():
        half_made = args.out / f"world.{os.getpid()}"
        write_world(half_made, WorldConfig(args.countries, seed=1), workers=args.threads)
        half_made.rename(world)
    stores = {style: args.out / f"store-{style}" for style in ("long", "budget")}
    write_captions(world, stores)
    benches = [
        Bench("Flagland, entries and wordy captions", world, args.out / "flagland", args.context,
              (0, 1, 2), stores, args.steps, args.batch)
    ]  # fmt: skip
    if args.root is not None:
        benches.append(
            Bench("Published text of a real root", args.root, args.out / "real",
                  args.real_context, args.real_tasks, {}, args.real_steps, args.batch)
        )  # fmt: skip
    parts = [measure(bench, range(args.seeds), begun) for bench in benches]
    text = "\n\n".join(
        [
            "# Text beyond the context",
            "Start: flagland-clip. Means over tasks and seeds, ± standard deviation of the seeds; "
            "intervals: 95 %, paired bootstrap over queries of scores averaged over the seeds. "
            "`all positions` uses the model's 160 and is no remedy. A miniature world and a small "
            "root: they compare remedies, and predict no other model's numbers.",
            *parts,
            f"{time.monotonic() - begun:.0f} s in this run, torch {torch.__version__}, "
            f"{args.threads} threads.",
        ]
    )
    print(text)
    if args.results is not None:
        args.results.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
