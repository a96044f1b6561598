"""Embedding throughput with no, one and two loader processes.

``python -m benchmarks.speed.embedding`` writes ``benchmarks/results/embedding.md``: noise pictures with a
text each, embedded by the packaged flagland-clip into a folder of fp16, as ``embed`` does. Ratios
are within this one run; each number of workers takes its turn in every round, and the fastest round
counts, because everything that disturbs makes a run slower.

At full size (4,000 items, 3 rounds) some three minutes on two cores and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from augment.data import write_candidates
from augment.records import Item, one_picture
from benchmarks.speed.machine import machine
from retrievers.data.module import MBeirData
from retrievers.data.plan import plan_pools
from retrievers.data.settings import EmbeddingConfig, LoaderConfig
from retrievers.models.clip import ClipScoreFusion
from retrievers.vectors.embed import embed

RESULTS = Path("benchmarks/results/embedding.md")


def write_root(root: Path, items: int, seed: int) -> None:
    """Noise pictures of 224 x 224 with a text each."""
    random = np.random.default_rng(seed)
    folder = root / "mbeir_images" / "noise_images"
    folder.mkdir(parents=True)
    pool = []
    for number in range(items):
        path = f"mbeir_images/noise_images/{number}.jpg"
        small = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(small).resize((224, 224)).save(root / path, quality=90)
        pool.append(Item(f"1:{number}", f"noise number {number}", one_picture(path), "image,text"))
    write_candidates(root / "cand_pool" / "local" / "mbeir_noise_task2_cand_pool.jsonl", pool)


def embed_seconds(root: Path, folder: Path, workers: int, batch_size: int) -> float:
    """Seconds to embed the root, loader processes' start included."""
    data = MBeirData(
        str(root),
        instructions=False,
        loader=LoaderConfig(workers=workers, cache_mib=0, eval_batch_size=batch_size),
        embeddings=EmbeddingConfig(str(folder)),
    )
    retriever, plan = ClipScoreFusion(), plan_pools(data.root)
    start = time.perf_counter()
    embed(retriever, data, plan, device="cpu")
    return time.perf_counter() - start


def measure(
    items: int, workers: Sequence[int], rounds: int, batch_size: int, seed: int
) -> dict[int, float]:
    """Number of workers -> seconds of the fastest round."""
    best: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_root(folder / "root", items, seed)
        sys.stderr.write(f"wrote {items} items; warming up\n")
        embed_seconds(folder / "root", folder / "warm", 0, batch_size)
        for number in range(rounds):
            for count in workers:
                place = folder / f"{count}-{number}"
                seconds = embed_seconds(folder / "root", place, count, batch_size)
                best[count] = min(seconds, best.get(count, seconds))
                sys.stderr.write(f"round {number + 1}, {count} workers: {seconds:.1f} s\n")
    return best


def table(items: int, best: dict[int, float]) -> list[str]:
    """The outcome as Markdown."""
    first = best.get(1, next(iter(best.values())))
    return [
        "| loader processes | items/s | against one |",
        "|---|--:|--:|",
        *(
            f"| {n} | {items / seconds:,.0f} | {first / seconds:.2f} |"
            for n, seconds in best.items()
        ),
        "",
        f"{items:,} items, picture (224 x 224 JPEG) and text, flagland-clip, to a folder of fp16.",
    ]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.embedding", description=__doc__
    )
    parser.add_argument("--items", type=int, default=4_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    best = measure(args.items, args.workers, args.rounds, args.batch_size, args.seed)
    lines = ["# Embedding", "", *table(args.items, best), ""]
    lines.append(machine("embedding", args.seed, f"{torch.get_num_threads()} threads of torch"))
    text = "\n".join(lines) + "\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
