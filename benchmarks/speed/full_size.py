"""Every stage but the model's own work, at M-BEIR's full size, on generated data.

``python -m benchmarks.speed.full_size --out FOLDER --share 0.01 0.1 1`` writes a root of M-BEIR's sixteen
rows (sizes of UniIR's table 1: 5.56 million candidates, 193 thousand test queries) and runs the
stages one after another, each in a process of its own: the commands that a user types where there
is one. A scripted engine answers in place of a VLM; an open_clip model of the least size is
trained, embeds and is searched; vectors of the published dimension are random. Stages that are done
are not run again. The full share takes some hours and 40 GB of disk; ``--stages`` takes some of
them, a hundredth takes minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.views import open_view
from benchmarks.speed import metrics
from benchmarks.speed.full_world import (
    PICTURES,
    candidates,
    queries,
    rows,
    write_training,
    write_world,
)
from benchmarks.speed.machine import machine
from benchmarks.speed.union_scale import write_store
from retrievers.evaluation.metrics import Judgements, score_run
from retrievers.evaluation.run import RunTable, read_table, write_run
from retrievers.evaluation.stats import macro_bootstrap
from retrievers.vectors import open_index
from retrievers.vectors.store import EmbeddingStore

RESULTS = Path(__file__).parent.parent / "results" / "full_size.md"
GIB = 1 << 30
#: Queries searched among vectors of the published dimension; the time is in proportion to them.
SEARCHED, DIM, DEPTH = 10_000, 768, 50
#: An encoder of the right shape that costs next to nothing: what is measured is all around it.
SMALL_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1,
    },
}  # fmt: skip
#: Optimiser steps of the small encoder, pairs in each.
STEPS, PAIRS = 100, 256


def _union(out: Path) -> Path:
    return DataRoot(out / "root").union_pool("test")


def _open(out: Path, _: float) -> int:
    return len(open_candidates(_union(out)))


def _view(out: Path, _: float) -> int:
    """Read every candidate's text as an encoder does: published, then generated."""
    view = open_view("corpus", "append", out / "store")
    table = open_candidates(_union(out))
    shown = sum(1 for item in table if view.text(item))
    if shown != len(table):
        raise ValueError(f"{len(table) - shown} candidates show no text")
    return shown


def _training(out: Path, share: float) -> int:
    """Training queries, and the shape of the small encoder."""
    (out / "small-clip.json").write_text(json.dumps(SMALL_CLIP), encoding="utf-8")
    return write_training(out, share)


def _vectors(out: Path, _: float) -> int:
    shutil.rmtree(out / "vectors", ignore_errors=True)
    write_store(out / "vectors", _union(out), DIM)
    return _open(out, 0)


def _search(out: Path, share: float) -> int:
    index = open_index(EmbeddingStore.open(out / "vectors", "generated"))
    asked = min(SEARCHED, queries(share))
    random = torch.Generator().manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(asked, DIM, generator=random), dim=1)
    run = index.run([str(n) for n in range(asked)], vectors, DEPTH, "generated")
    if len(run.rows) != asked * DEPTH:
        raise ValueError("a query is without hits")
    return asked


def _judge(out: Path, share: float) -> int:
    """Two runs of all test queries: written, read, scored, compared task by task."""
    asked = queries(share)
    scores = []
    for seed in range(2):
        pool = max(candidates(share), 4 * DEPTH)
        world = metrics.make(asked, DEPTH, pool, seed)
        table = RunTable.from_search(world.qids, world.column, world.rows, world.scores)
        write_run(out / f"{seed}.trec", table, "generated")
        judged = Judgements(world.grades)
        scored = score_run(read_table(out / f"{seed}.trec"), judged, ["success@5", "recall@50"])
        by_query = scored.of("success@5")
        scores.append(np.array([by_query[qid] for qid in world.qids]))
    bounds = np.cumsum([row.test for row in rows(share)])[:-1]
    tasks = list(zip(np.split(scores[0], bounds), np.split(scores[1], bounds), strict=True))
    interval = macro_bootstrap(tasks)
    if not interval.low <= interval.mean <= interval.high:
        raise ValueError(f"no interval: {interval}")
    return asked


class Stage(NamedTuple):
    """A part of the work.

    Attributes:
        title: in the table.
        work: what is done in a process of its own, items handled in return; or
        command: what a user would type.
        counts: items of a command: corpus, queries, all of both, or pairs.
    """

    title: str
    work: Callable[[Path, float], int] | None = None
    command: tuple[str, ...] = ()
    counts: str = ""


_SMALL = (
    "--config=flagland", "--data.root={root}", "--model.model_name={out}/small-clip.json",
    "--data.loader.cache_mib=0", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)  # fmt: skip
_TRAINED = ("--ckpt_path={out}/fit/checkpoints/last.ckpt", "--embeddings={out}/embedded")
_ENRICH = ("--model=scripted:", "--batch-size=256")
STAGES = {
    "world": Stage("data generated (no part of the toolkit)", write_world),
    "validate": Stage(
        "`augment.data.validate`", None, ("augment.data.validate", "{root}", "--images", "none"), "all"
    ),
    "table": Stage("union pool opened the first time: its table built", _open),
    "open": Stage("the same again", _open),
    "corpus": Stage(
        "`augment.corpus`, a scripted engine", None,
        ("augment.corpus", "--root={root}", "--store={store}", *_ENRICH), "corpus",
    ),
    "again": Stage(
        "the same again: everything is in the store", None,
        ("augment.corpus", "--root={root}", "--store={store}", *_ENRICH), "corpus",
    ),
    "queries": Stage(
        "`augment.queries`, a scripted engine", None,
        ("augment.queries", "--root={root}", "--store={store}", "--split", "test", *_ENRICH),
        "queries",
    ),
    "view": Stage("every candidate's text read in the append view", _view),
    "training": Stage("training queries generated (no part of the toolkit)", _training),
    "fit": Stage(
        f"`retrievers fit`, a small encoder, {STEPS} steps of {PAIRS} pairs from all of them", None,
        ("retrievers", "fit", *_SMALL, "--out={out}/fit", f"--trainer.max_steps={STEPS}",
         f"--data.batch_size={PAIRS}", "--trainer.limit_val_batches=0"),
        "pairs",
    ),
    "embed": Stage(
        "`retrievers embed` with it: every candidate and test query", None,
        ("retrievers", "embed", *_SMALL, *_TRAINED, "--out={out}/embed",
         "--data.loader.eval_batch_size=512"),
        "all",
    ),
    "test": Stage(
        f"`retrievers test`: every query in its local pool and in the union, k = {DEPTH}", None,
        ("retrievers", "test", *_SMALL, *_TRAINED, "--out={out}/test",
         f"--data.test.depth={DEPTH}"),
        "queries",
    ),
    "vectors": Stage(f"embedding store written, {DIM} random numbers a candidate", _vectors),
    "search": Stage(f"union pool of these searched exactly, k = {DEPTH}", _search),
    "judge": Stage("two runs of all queries written, read, scored, compared", _judge),
}  # fmt: skip


def _count(stage: Stage, share: float) -> int:
    shown = candidates(share), queries(share)
    return {
        "corpus": shown[0], "queries": shown[1], "all": sum(shown), "pairs": STEPS * PAIRS
    }[stage.counts]  # fmt: skip


class Watch(threading.Thread):
    """Samples the private memory of a process and its workers."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self.start()

    def run(self) -> None:
        """Sample ten times a second."""
        while not self._done.wait(0.1):
            with suppress(psutil.NoSuchProcess):
                family = (self._root, *self._root.children(recursive=True))
                self.peak = max(self.peak, sum(map(_private, family)))

    def stop(self) -> int:
        """End sampling; the most that was seen, in bytes."""
        self._done.set()
        self.join()
        return self.peak


def _private(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        memory = process.memory_info()
        return int(memory.rss - memory.shared)
    return 0


def run_stage(name: str, out: Path, share: float) -> dict[str, Any]:
    """One stage in a process of its own: seconds, processor seconds, private memory, items.

    Raises:
        SystemExit: if it fails; what it said is in a log beside the data.
    """
    stage = STAGES[name]
    places = {"root": str(out / "root"), "store": str(out / "store"), "out": str(out)}
    command = [sys.executable, "-m", *(part.format(**places) for part in stage.command)]
    if stage.work:
        command += ["benchmarks.speed.full_size", "--stage", name, "--out", str(out), "--share"]
        command.append(str(share))
    log = out / f"{name}.log"
    start, used = time.perf_counter(), _children_seconds()
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603 - ours
        watch = Watch(child.pid)
        status = child.wait()
        peak = watch.stop()
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        raise SystemExit(f"{name} ended with status {status}; see {log}\n{tail}")
    items = int(log.read_text(encoding="utf-8").split()[-1]) if stage.work else _count(stage, share)
    return {
        "seconds": time.perf_counter() - start,
        "cpu": _children_seconds() - used,
        "private": peak / GIB,
        "items": items,
    }


def _children_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


def measure(out: Path, share: float, names: list[str], keep: bool) -> dict[str, Any]:
    """The stages of one share that are not done yet; all that are done."""
    folder = out / f"{share:g}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stages.json"
    done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in names:
        if name in done:
            continue
        done[name] = run_stage(name, folder, share)
        partial = file.with_suffix(".tmp")
        partial.write_text(json.dumps(done, indent=1), encoding="utf-8")
        partial.replace(file)
        sys.stderr.write(f"{share:g} {name}: {json.dumps(done[name])}\n")
    if not keep and set(done) == set(STAGES):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != file:
                path.unlink()
    return done


def table(found: dict[float, dict[str, Any]]) -> str:
    """The outcome as Markdown."""
    lines = [
        "# Every stage at M-BEIR's size, on generated data",
        "",
        "Sixteen rows of the sizes in UniIR's table 1, or a share of them. No VLM ran: a scripted "
        "engine answers; the encoder is an open_clip model of a layer in each tower and 32 numbers "
        f"a vector. {PICTURES:,} small picture files are shared by all items. Each stage is a "
        "process of its own; private is its memory at the peak, workers included, without pages of "
        "mapped files.",
    ]
    for share, stages in sorted(found.items()):
        lines += [
            "",
            f"## {candidates(share):,} candidates, {queries(share):,} test queries",
            "",
            "| stage | items | seconds | CPU s | items/s | private GiB |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        for name, stage in STAGES.items():
            if name in stages:
                one = stages[name]
                rate = one["items"] / one["seconds"]
                lines.append(
                    f"| {stage.title} | {one['items']:,} | {one['seconds']:,.1f} | "
                    f"{one['cpu']:,.1f} | {rate:,.0f} | {one['private']:.2f} |"
                )
    lines += ["", machine("full_size", 0)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.full_size", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("runs/full_size"), help="data, timings")
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--keep", action="store_true", help="leave the data there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        work = STAGES[args.stage].work
        if work is not None:
            print(work(args.out, args.share[0]))
        return
    found = {share: measure(args.out, share, args.stages, args.keep) for share in args.share}
    text = table(found)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
