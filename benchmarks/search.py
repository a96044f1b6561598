"""How fast exact search and embedding are, against faiss and the machine's own arithmetic.

``python -m benchmarks.search`` writes ``benchmarks/results/search.md``; about five minutes on two
cores. Everything is generated; ratios are within this one run.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from augment.mbeir import write_candidates
from augment.records import Item
from retrievers.clip import ClipScoreFusion
from retrievers.data import MBeirData
from retrievers.index import MatrixIndex
from retrievers.settings import EmbeddingConfig, LoaderConfig
from retrievers.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "search.md"
#: Repetitions; the fastest counts, because everything that disturbs makes a run slower.
REPEATS = 3


def fastest(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def product_rate(dim: int) -> float:
    """Multiplications and additions per second of the best of several matrix products."""
    rates = []
    for rows, columns in ((512, 8192), (2048, 2048), (4096, 4096)):
        left, right = torch.randn(rows, dim), torch.randn(columns, dim)
        out = torch.empty(rows, columns)

        def work(
            left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out
        ) -> None:
            torch.matmul(left, right.T, out=out)

        work()
        rates.append(2 * rows * columns * dim / fastest(work, 5))
    return max(rates)


def search_table(size: int, queries: int, dim: int, k: int, batch: int) -> list[str]:
    """Exact search of all queries, faiss in small batches, the machine's rate."""
    random = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(size, dim, generator=random), dim=1)
    asked = functional.normalize(torch.randn(queries, dim, generator=random), dim=1)
    ids = [f"1:{n}" for n in range(size)]
    rate = product_rate(dim)
    work = 2 * size * dim
    lines = [
        "| | queries/s | GFLOP/s | of the product rate | against faiss |",
        "|---|--:|--:|--:|--:|",
    ]
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors.numpy())
    some = asked[: min(queries, 32 * batch)].numpy()

    def by_faiss() -> None:
        for start in range(0, len(some), batch):
            flat.search(some[start : start + batch], k)

    peer = len(some) / fastest(by_faiss, 1)
    whole = queries / fastest(lambda: flat.search(asked.numpy(), k), 1)
    index = MatrixIndex("m")
    index.add(ids, vectors, "m")
    index.ids.ranks()  # sorted once per index
    ours = queries / fastest(lambda: index.search(asked, k))
    found = index.search(asked[:64], k).rows
    same = float((flat.search(asked[:64].numpy(), k)[1] == found).mean())
    for name, speed in (
        (f"faiss flat, batches of {batch}", peer),
        ("faiss flat, all at once", whole),
        ("MatrixIndex, all at once", ours),
    ):
        flops = speed * work
        lines.append(
            f"| {name} | {speed:,.0f} | {flops / 1e9:,.0f} | {flops / rate:.2f} | "
            f"{speed / peer:.1f} |"
        )
    lines += [
        "",
        f"{size:,} x {dim}, {queries:,} queries, k = {k}. Product rate: {rate / 1e9:,.0f} GFLOP/s, "
        f"the best of three shapes. {100 * same:.1f} % of 64 queries' ranks agree with faiss "
        "(which breaks ties as they come).",
    ]
    return lines


def write_root(root: Path, items: int) -> None:
    """Noise pictures of 224 x 224 with a text each."""
    random = np.random.default_rng(0)
    folder = root / "mbeir_images" / "noise_images"
    folder.mkdir(parents=True)
    pool = []
    for number in range(items):
        path = f"mbeir_images/noise_images/{number}.jpg"
        small = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(small).resize((224, 224)).save(root / path, quality=90)
        pool.append(Item(f"1:{number}", f"noise number {number}", path, "image,text"))
    write_candidates(root / "cand_pool" / "local" / "mbeir_noise_task2_cand_pool.jsonl", pool)


def embed_seconds(root: Path, folder: Path, workers: int) -> float:
    """Seconds to embed the root, loader processes' start included."""
    data = MBeirData(
        str(root),
        instructions=False,
        loader=LoaderConfig(workers=workers, cache_mib=0),
        embeddings=EmbeddingConfig(str(folder)),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    retriever = ClipScoreFusion()
    return fastest(lambda: trainer.embed(retriever, data), 1)


def embedding_table(items: int) -> list[str]:
    """Embedding with no, one and two loader processes."""
    lines = ["| loader processes | items/s | against one |", "|---|--:|--:|"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        write_root(root, items)
        embed_seconds(root, Path(name) / "warm", 0)
        speeds = {n: items / embed_seconds(root, Path(name) / f"{n}", n) for n in (0, 1, 2)}
    lines += [f"| {n} | {speed:,.0f} | {speed / speeds[1]:.2f} |" for n, speed in speeds.items()]
    note = (
        f"{items:,} items, picture (224 x 224 JPEG) and text, flagland-clip, into a folder of fp16."
    )
    return [*lines, "", note]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="queries per call of the peer")
    parser.add_argument("--items", type=int, default=4_000, help="items to embed; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = ["# Exact search", ""]
    lines += search_table(args.rows, args.queries, args.dim, args.k, args.batch)
    if args.items:
        lines += ["", "# Embedding", "", *embedding_table(args.items)]
    lines += [
        "",
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"faiss {faiss.__version__}, "
        f"{torch.get_num_threads()} threads, {os.cpu_count()} cores.",
    ]
    text = "\n".join(lines) + "\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
