"""Every stage but the model's own work, at M-BEIR's full size, on generated data.

``python -m benchmarks.speed full_size --share=[0.01,0.1,1]`` writes a root of M-BEIR's sixteen rows
(sizes of UniIR's table 1: 5.56 million candidates, 193 thousand test queries) and runs the stages
one after another, each in a process of its own: the commands that a user types where there is one.
A scripted engine answers in place of a VLM; an open_clip model of the least size is trained, embeds
and is searched; vectors of the published dimension are random. Stages that are done are not run
again. The full share takes some hours and 40 GB of disk in ``--folder``, where its data stay; a
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
from typing import NamedTuple

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
from augment.files import read_json, write_json
from augment.records import TASKS, Item, Qrel, Query, one_picture
from benchmarks.mbeir import ROWS
from benchmarks.speed.harness import Page, Row
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
        number: in front of the colon of its ids, first the pool's, then those of its test and its
            training queries.
        name: of the data set.
        task: M-BEIR task code.
        train: training queries.
        test: test queries.
        pool: candidates of the local pool.
    """

    number: int
    name: str
    task: int
    train: int
    test: int
    pool: int

    @property
    def stem(self) -> str:
        """How its files are named."""
        return f"mbeir_{self.name}_task{self.task}"


def rows(share: float) -> Iterator[MBeirRow]:
    """All sixteen."""
    for number, ((name, task), (train, _, test, pool)) in enumerate(ROWS.items()):
        least = zip((train, test, pool), (16, 5, 60), strict=True)
        sizes = (max(int(size * share * 1e3), few) for size, few in least)
        yield MBeirRow(number, name, task, *sizes)


def candidates(share: float) -> int:
    """Of all pools."""
    return sum(row.pool for row in rows(share))


def queries(share: float) -> int:
    """Of all rows, in the test."""
    return sum(row.test for row in rows(share))


def _items(row: MBeirRow, first: int, count: int, modality: str) -> Iterator[Item]:
    random, common = Random(f"{row.number}-{first}"), Random(0)
    words = ["".join(common.choices("abcdefghij", k=common.randint(2, 9))) for _ in range(2_000)]
    for number in range(first, first + count):
        text = None
        if "text" in modality:
            text = f"{' '.join(random.choices(words, k=38))} {number}"
        picture = f"mbeir_images/big_images/{number % PICTURES}.jpg"
        image = picture if "image" in modality else None
        yield Item(f"{row.number}:{number}", text, one_picture(image), modality, None)  # type: ignore[arg-type]


def _asking(row: MBeirRow, first: int, count: int) -> Iterator[Query]:
    """Queries that each have one positive in the row's pool."""
    random = Random(f"{row.stem}-{first}")
    for item in _items(row, first, count, TASKS[row.task][0]):
        yield Query(item, row.task, (f"{row.number}:{random.randint(1, row.pool)}",))


def write_world(out: Path, share: float) -> None:
    """A root in M-BEIR's layout, with pools, queries, judgements and pictures; a small encoder."""
    root = out / "root"
    parts = ("cand_pool/local", "cand_pool/global", "query/test", "query/train", "qrels/test")
    for folder in ("mbeir_images/big_images", "instructions", *parts):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_json(out / "small-clip.json", SMALL_CLIP)
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((64, 48))
        picture.save(root / "mbeir_images" / "big_images" / f"{number}.jpg")
    union = root / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"
    with union.open("wb") as file:
        for row in rows(share):
            pool = root / "cand_pool" / "local" / f"{row.stem}_cand_pool.jsonl"
            write_candidates(pool, _items(row, 1, row.pool, TASKS[row.task][1]))
            with pool.open("rb") as part:
                shutil.copyfileobj(part, file)
            asked = list(_asking(row, 1 + row.pool, row.test))
            write_queries(root / "query" / "test" / f"{row.stem}_test.jsonl", asked)
            judged = (Qrel(query.item.id, query.positives[0], 1, row.task) for query in asked)
            write_qrels(root / "qrels" / "test" / f"{row.stem}_test_qrels.txt", judged)
            training = _asking(row, 1 + row.pool + row.test, row.train)
            write_queries(root / "query" / "train" / f"{row.stem}_train.jsonl", training)
    told = ("Find what is asked for.",) * 4
    write_instructions(
        root / "instructions" / "query_instructions.tsv",
        [InstructionRow(*TASKS[row.task], row.name, str(row.number), told) for row in rows(share)],
    )


def _union(out: Path) -> Path:
    return DataRoot(out / "root").union_pool("test")


def _open(out: Path, _: float) -> None:
    open_candidates(_union(out))


def write_vectors(out: Path, _: float) -> None:
    """Random unit vectors under the ids of the union pool, in fp16 on the disk."""
    random = np.random.default_rng(0)
    ids = open_candidates(_union(out)).ids
    shutil.rmtree(out / "vectors", ignore_errors=True)
    writer = EmbeddingWriter(out / "vectors", "generated", shard_rows=65_536)
    for start in range(0, len(ids), 65_536):
        names = ids.slice(start, 65_536).to_pylist()
        vectors = random.standard_normal((len(names), DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        keys = np.array([b"%015dx" % (start + n) for n in range(len(names))], dtype="S16")
        writer.append(names, keys, torch.from_numpy(vectors))
    writer.finish()


def _search(out: Path, share: float) -> None:
    """Open the vectors, which compares checksums, search them, read the best records."""
    index = open_index(EmbeddingStore.open(out / "vectors", "generated"))
    asked = min(SEARCHED, queries(share))
    random = torch.Generator().manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(asked, DIM, generator=random), dim=1)
    run = index.run([str(n) for n in range(asked)], vectors, DEPTH, "generated")
    if len(run.rows) != asked * DEPTH:
        raise ValueError("a query is without hits")
    best = [run.ids[row].as_py() for row in run.rows[run.starts[:-1]]]
    if -1 in open_candidates(_union(out)).rows_of(best):
        raise ValueError("a hit is without a record")


class Stage(NamedTuple):
    """A part of the work.

    Attributes:
        title: in the table.
        items: how many it handles at a share.
        does: words of the command that a user would type, or what is done in a process of its own.
    """

    title: str
    items: Callable[[float], int]
    does: tuple[str, ...] | Callable[[Path, float], None]


def _all(share: float) -> int:
    return candidates(share) + queries(share)


_ENRICH = ("--root={root}", "--store={out}/store", "--model=scripted:", "--batch-size=256")
_SMALL = (
    "--config=flagland", "--data.root={root}", "--model.encoder.model_name={out}/small-clip.json",
    "--data.loader.cache_mib=0", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)  # fmt: skip
STAGES = {
    "world": Stage("data generated (no part of the toolkit)", _all, write_world),
    "validate": Stage(
        "`augment validate`", _all, ("augment", "validate", "{root}", "--images", "none")
    ),
    "table": Stage("union pool opened the first time: its table built", candidates, _open),
    "open": Stage("the same again", candidates, _open),
    "corpus": Stage(
        "`augment.corpus`, a scripted engine", candidates, ("augment.corpus", *_ENRICH)
    ),
    "again": Stage(
        "the same again: everything is in the store", candidates, ("augment.corpus", *_ENRICH)
    ),
    "queries": Stage(
        "`augment.queries`, a scripted engine", queries,
        ("augment.queries", "--split", "test", *_ENRICH),
    ),
    "fit": Stage(
        f"`retrievers fit`, a small encoder, {STEPS} steps of {PAIRS} pairs from all of them",
        lambda share: STEPS * PAIRS,
        ("retrievers", "fit", *_SMALL, "--out={out}/fit", f"--trainer.max_steps={STEPS}",
         f"--data.batch_size={PAIRS}", "--trainer.limit_val_batches=0"),
    ),
    "embed": Stage(
        "`retrievers embed` with it: every candidate and test query", _all,
        ("retrievers", "embed", "--data.root={root}", "--data.loader.cache_mib=0",
         "--model={out}/fit/checkpoints/last.ckpt", "--embeddings={out}/embedded",
         "--data.loader.eval_batch_size=512"),
    ),
    "test": Stage(
        f"`retrievers test`: every query in its local pool and in the union, k = {DEPTH}", queries,
        ("retrievers", "test", *_SMALL, "--ckpt_path={out}/fit/checkpoints/last.ckpt",
         "--embeddings={out}/embedded", "--out={out}/test", f"--data.test.depth={DEPTH}"),
    ),
    "vectors": Stage(
        f"embedding store written, {DIM} random numbers a candidate", candidates, write_vectors
    ),
    "search": Stage(
        f"union pool of these searched exactly, k = {DEPTH}",
        lambda share: min(SEARCHED, queries(share)), _search,
    ),
}  # fmt: skip


def _private(family: psutil.Process) -> int:
    """Private memory of a process and its workers, in bytes; what ended meanwhile has none."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in (family, *family.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_info()
                total += memory.rss - memory.shared
    return total


def run_stage(name: str, out: Path, share: float) -> Row:
    """One stage in a process of its own: what it took.

    Raises:
        SystemExit: if it fails; what it said is in a log beside the data.
    """
    does = STAGES[name].does
    words = ["benchmarks.speed.full_size", name, str(out), str(share)]
    if not callable(does):
        words = [part.format(root=out / "root", out=out) for part in does]
    log = out / f"{name}.log"
    start, used = time.perf_counter(), _children_seconds()
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(  # noqa: S603 - commands of this package
            [sys.executable, "-m", *words], stdout=file, stderr=subprocess.STDOUT
        )
        family, peak = psutil.Process(child.pid), 0
        while (status := child.poll()) is None:
            peak = max(peak, _private(family))
            time.sleep(0.1)
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        raise SystemExit(f"{name} ended with status {status}; see {log}\n{tail}")
    seconds, items = time.perf_counter() - start, STAGES[name].items(share)
    return {
        "stage": STAGES[name].title,
        "items": items,
        "seconds": seconds,
        "CPU s": _children_seconds() - used,
        "items/s": items / seconds,
        "private GiB": peak / GIB,
    }


def _children_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


def run_share(out: Path, share: float, names: Sequence[str]) -> dict[str, Row]:
    """The stages of one share that are not done yet; all that are done."""
    folder = out / f"{share:g}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stages.json"
    done: dict[str, Row] = dict(read_json(file)) if file.exists() else {}
    for name in names:
        if name not in done:
            done[name] = run_stage(name, folder, share)
            write_json(file, done)
            sys.stderr.write(f"{share:g} {name}: {json.dumps(done[name])}\n")
    return done


def measure(
    share: tuple[float, ...] = (0.01, 0.1, 1.0),
    stages: tuple[str, ...] = tuple(STAGES),
    folder: Path = Path("runs/full_size"),
) -> Page:
    """Run the stages.

    Args:
        share: shares of M-BEIR's size.
        stages: some of them.
        folder: of data and timings.
    """
    found = {one: run_share(folder, one, stages) for one in share}
    return Page(
        "Every stage at M-BEIR's size, on generated data",
        "Sixteen rows of the sizes in UniIR's table 1, or a share of them. No VLM ran: a scripted "
        "engine answers; the encoder is an open_clip model of a layer in each tower and 32 numbers "
        f"a vector. {PICTURES:,} small picture files are shared by all items. Each stage is a "
        "process of its own; private is its memory at the peak, workers included, without pages of "
        "mapped files.",
        {
            f"## {candidates(one):,} candidates, {queries(one):,} test queries": [
                done[name] for name in STAGES if name in done
            ]
            for one, done in sorted(found.items())
        },
    )


if __name__ == "__main__":  # a stage in a process of its own
    work = STAGES[sys.argv[1]].does
    if callable(work):
        work(Path(sys.argv[2]), float(sys.argv[3]))
