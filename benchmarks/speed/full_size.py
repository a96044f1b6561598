"""Every stage but the model's own work, at M-BEIR's full size, on generated data.

``python -m benchmarks.speed full_size --share=[0.01,0.1,1]`` writes a root of M-BEIR's sixteen rows
(sizes of UniIR's table 1: 5.56 million candidates, 193 thousand test queries) and runs the stages
one after another, each in a process of its own: the commands that a user types where there is one.
A scripted engine answers in place of a VLM; an open_clip model of the least size is trained, embeds
and is searched; vectors of the published dimension are random. Stages that are done are not run
again. The full share takes some hours and 40 GB of disk; ``--stages`` takes some of them, a
hundredth takes minutes. ``--share=[0.1,0.25,1] --stages=[world,table,vectors,search]`` tells how
search in the union pool grows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image

from augment.data import (
    DataRoot,
    InstructionRow,
    write_candidates,
    write_instructions,
    write_qrels,
    write_queries,
)
from augment.data.pools import open_candidates
from augment.records import TASKS, Item, Qrel, Query, one_picture
from augment.views import open_view
from benchmarks.mbeir import ROWS
from benchmarks.speed import metrics
from benchmarks.speed.harness import Page, Row
from retrievers.evaluation.compare import macro_bootstrap
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_table, write_run
from retrievers.vectors import open_index
from retrievers.vectors.store import EmbeddingStore, EmbeddingWriter

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
#: Picture files, shared by all items: hashing and decoding are done, a disk full of files is not.
PICTURES = 2_000


class MBeirRow(NamedTuple):
    """A row of M-BEIR at some share of its size.

    Attributes:
        dataset: number of the data set.
        name: of the data set.
        task: M-BEIR task code.
        train: training queries.
        test: test queries.
        pool: candidates of the local pool.
        first: number of the first candidate; then come its test and its training queries.
    """

    dataset: int
    name: str
    task: int
    train: int
    test: int
    pool: int
    first: int

    @property
    def stem(self) -> str:
        """How its files are named."""
        return f"mbeir_{self.name}_task{self.task}"


def rows(share: float) -> Iterator[MBeirRow]:
    """All sixteen."""
    numbers: dict[str, int] = {}
    following: dict[str, int] = {}
    for (name, task), (train, _, test, pool) in ROWS.items():
        number, first = numbers.setdefault(name, len(numbers)), following.get(name, 1)
        sizes = max(int(train * share * 1e3), 16), max(int(test * share * 1e3), 5)
        row = MBeirRow(number, name, task, *sizes, max(int(pool * share * 1e3), 60), first)
        following[name] = first + row.pool + row.test + row.train
        yield row


def candidates(share: float) -> int:
    """Of all pools."""
    return sum(row.pool for row in rows(share))


def queries(share: float, split: str = "test") -> int:
    """Of all rows."""
    return sum(row.test if split == "test" else row.train for row in rows(share))


def _words() -> list[str]:
    random = Random(0)
    return ["".join(random.choices("abcdefghij", k=random.randint(2, 9))) for _ in range(2_000)]


def _items(dataset: int, first: int, count: int, modality: str) -> Iterator[Item]:
    random, words = Random(f"{dataset}-{first}"), _words()
    for number in range(first, first + count):
        text = None
        if "text" in modality:
            text = f"{' '.join(random.choices(words, k=38))} {number}"
        picture = f"mbeir_images/big_images/{number % PICTURES}.jpg"
        image = picture if "image" in modality else None
        yield Item(f"{dataset}:{number}", text, one_picture(image), modality, None)  # type: ignore[arg-type]


def _asking(row: MBeirRow, first: int, count: int) -> Iterator[Query]:
    """Queries that each have one positive in the row's pool."""
    random = Random(f"{row.stem}-{first}")
    for item in _items(row.dataset, first, count, TASKS[row.task][0]):
        positive = random.randrange(row.first, row.first + row.pool)
        yield Query(item, row.task, (f"{row.dataset}:{positive}",))


def write_world(out: Path, share: float) -> int:
    """A root in M-BEIR's layout, with pools, test queries, judgements and pictures."""
    root = out / "root"
    parts = ("cand_pool/local", "cand_pool/global", "query/test", "qrels/test", "instructions")
    for folder in ("mbeir_images/big_images", *parts):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((64, 48))
        picture.save(root / "mbeir_images" / "big_images" / f"{number}.jpg")
    union = root / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"
    with union.open("wb") as file:
        for row in rows(share):
            pool = root / "cand_pool" / "local" / f"{row.stem}_cand_pool.jsonl"
            write_candidates(pool, _items(row.dataset, row.first, row.pool, TASKS[row.task][1]))
            with pool.open("rb") as part:
                shutil.copyfileobj(part, file)
            asked = list(_asking(row, row.first + row.pool, row.test))
            write_queries(root / "query" / "test" / f"{row.stem}_test.jsonl", asked)
            judged = (Qrel(query.item.id, query.positives[0], 1, row.task) for query in asked)
            write_qrels(root / "qrels" / "test" / f"{row.stem}_test_qrels.txt", judged)
    write_instructions(
        root / "instructions" / "query_instructions.tsv",
        [
            InstructionRow(
                *TASKS[row.task], row.name, str(row.dataset), ("Find what is asked for.",) * 4
            )
            for row in rows(share)
        ],
    )
    return candidates(share) + queries(share)


def write_training(out: Path, share: float) -> int:
    """Training queries of the same root."""
    folder = out / "root" / "query" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows(share):
        first = row.first + row.pool + row.test
        write_queries(folder / f"{row.stem}_train.jsonl", _asking(row, first, row.train))
    return queries(share, "train")


def write_vectors(folder: Path, pool: Path, dim: int) -> None:
    """Random unit vectors under the ids of a pool, in fp16 on the disk."""
    random = np.random.default_rng(0)
    ids = open_candidates(pool).ids
    with EmbeddingWriter(folder, "generated", shard_rows=65_536) as writer:
        for start in range(0, len(ids), 65_536):
            names = ids.slice(start, 65_536).to_pylist()
            vectors = random.standard_normal((len(names), dim), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            keys = np.array([b"%015dx" % (start + n) for n in range(len(names))], dtype="S16")
            writer.append(names, keys, torch.from_numpy(vectors))
        writer.finish()


# -- stages --------------------------------------------------------------------------------------


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
    write_vectors(out / "vectors", _union(out), DIM)
    return _open(out, 0)


def _search(out: Path, share: float) -> int:
    """Open the vectors, which compares checksums, search them, read the best records."""
    index = open_index(EmbeddingStore.open(out / "vectors", "generated"))
    asked = min(SEARCHED, queries(share))
    random = torch.Generator().manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(asked, DIM, generator=random), dim=1)
    run = index.run([str(n) for n in range(asked)], vectors, DEPTH, "generated")
    if len(run.rows) != asked * DEPTH:
        raise ValueError("a query is without hits")
    table = open_candidates(_union(out))
    best = [run.ids[row].as_py() for row in run.rows[run.starts[:-1]]]
    if None in table.find_all(best):
        raise ValueError("a hit is without a record")
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
    "--config=flagland", "--data.root={root}", "--model.encoder.model_name={out}/small-clip.json",
    "--data.loader.cache_mib=0", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)  # fmt: skip
_TRAINED = ("--ckpt_path={out}/fit/checkpoints/last.ckpt", "--embeddings={out}/embedded")
_ENRICH = ("--model=scripted:", "--batch-size=256")
STAGES = {
    "world": Stage("data generated (no part of the toolkit)", write_world),
    "validate": Stage(
        "`augment validate`", None, ("augment", "validate", "{root}", "--images", "none"), "all"
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
        ("retrievers", "embed", "--data.root={root}", "--data.loader.cache_mib=0",
         "--model={out}/fit/checkpoints/last.ckpt", "--embeddings={out}/embedded",
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


def _private(family: psutil.Process) -> int:
    """Private memory of a process and its workers, in bytes; what ended meanwhile has none."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (family, *family.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_info()
                total += memory.rss - memory.shared
    return total


def run_stage(name: str, out: Path, share: float) -> dict[str, Any]:
    """One stage in a process of its own: seconds, processor seconds, private memory, items.

    Raises:
        SystemExit: if it fails; what it said is in a log beside the data.
    """
    stage = STAGES[name]
    places = {"root": out / "root", "store": out / "store", "out": out}
    command = ["-m", *(part.format(**places) for part in stage.command)]
    if stage.work:
        command = ["-m", "benchmarks.speed.full_size", name, str(out), str(share)]
    log = out / f"{name}.log"
    start, used = time.perf_counter(), _children_seconds()
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(  # noqa: S603 - commands of this package
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT
        )
        family, peak = psutil.Process(child.pid), 0
        while (status := child.poll()) is None:
            peak = max(peak, _private(family))
            time.sleep(0.1)
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


def run_share(out: Path, share: float, names: Sequence[str], keep: bool) -> dict[str, Any]:
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


def table(stages: dict[str, Any]) -> list[Row]:
    """The stages that are done, in order."""
    return [
        {
            "stage": stage.title,
            "items": stages[name]["items"],
            "seconds": stages[name]["seconds"],
            "CPU s": stages[name]["cpu"],
            "items/s": stages[name]["items"] / stages[name]["seconds"],
            "private GiB": stages[name]["private"],
        }
        for name, stage in STAGES.items()
        if name in stages
    ]


def measure(
    share: tuple[float, ...] = (0.01, 0.1, 1.0),
    stages: tuple[str, ...] = tuple(STAGES),
    folder: Path = Path("runs/full_size"),
    keep: bool = False,
) -> Page:
    """Run the stages.

    Args:
        share: shares of M-BEIR's size.
        stages: some of them.
        folder: of data and timings.
        keep: whether the data stay there.
    """
    found = {one: run_share(folder, one, stages, keep) for one in share}
    return Page(
        "Every stage at M-BEIR's size, on generated data",
        "Sixteen rows of the sizes in UniIR's table 1, or a share of them. No VLM ran: a scripted "
        "engine answers; the encoder is an open_clip model of a layer in each tower and 32 numbers "
        f"a vector. {PICTURES:,} small picture files are shared by all items. Each stage is a "
        "process of its own; private is its memory at the peak, workers included, without pages of "
        "mapped files.",
        {
            f"## {candidates(one):,} candidates, {queries(one):,} test queries": table(done)
            for one, done in sorted(found.items())
        },
    )


if __name__ == "__main__":  # a stage in a process of its own
    work = STAGES[sys.argv[1]].work
    if work is not None:
        print(work(Path(sys.argv[2]), float(sys.argv[3])))
