"""How fast exact search is, against faiss flat and the machine's own arithmetic.

``python -m benchmarks.speed.search`` writes ``benchmarks/results/search.md``. Everything is generated;
ratios are within this one run. The product rate is taken before and after; the higher one counts.

MatrixIndex is measured in both of its forms: with faiss's product, which it takes for many queries
on a processor, and with torch's, which it takes for a few and on a graphics card. Its times include
scoring anew in double precision, ranking by id and looking for ties; faiss's do not have these. One
untimed run of each comes first.

At full size (200,000 x 768, 2,000 queries) some two minutes on two cores and 3 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from torch.nn import functional

from benchmarks.speed.machine import machine
from retrievers.vectors.exact import MatrixIndex

RESULTS = Path(__file__).parent.parent / "results" / "search.md"
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


def told(line: str) -> None:
    """Progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def product_rate(dim: int) -> float:
    """Multiplications and additions per second of the best of several products by torch or numpy.

    The two bring their own arithmetic, and which is faster depends on the machine.
    """
    rates = []
    for rows, columns in ((512, 8192), (2048, 2048), (4096, 4096)):
        left, right = torch.randn(rows, dim), torch.randn(columns, dim)
        out = torch.empty(rows, columns)

        def by_torch(
            left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out
        ) -> None:
            torch.matmul(left, right.T, out=out)

        def by_numpy(
            left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = out
        ) -> None:
            np.matmul(left.numpy(), right.numpy().T, out=out.numpy())

        for work in (by_torch, by_numpy):
            work()
            rates.append(2 * rows * columns * dim / fastest(work, 5))
    return max(rates)


def in_turns(queries: int, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Queries per second of the fastest of some runs; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for work in ways.values():
        work()
    for _ in range(REPEATS):
        for name, work in ways.items():
            best[name] = min(best[name], fastest(work, 1))
    for name, seconds in best.items():
        told(f"{name}: {queries / seconds:,.0f} queries/s")
    return {name: queries / seconds for name, seconds in best.items()}


def search_table(size: int, queries: int, dim: int, k: int, batch: int, seed: int) -> list[str]:
    """Exact search of all queries, faiss in small batches, the machine's rate."""
    random = torch.Generator().manual_seed(seed)
    vectors = functional.normalize(torch.randn(size, dim, generator=random), dim=1)
    asked = functional.normalize(torch.randn(queries, dim, generator=random), dim=1)
    ids = [f"1:{n}" for n in range(size)]
    rate = product_rate(dim)
    told(f"the machine does {rate / 1e9:,.0f} GFLOP/s")
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
    told(f"faiss, batches of {batch}: {peer:,.0f} queries/s")
    index = MatrixIndex("m", "cpu", product="faiss")
    index.add(ids, vectors, "m")
    index.search(asked[:1], 1)  # ids are sorted once per index
    other = MatrixIndex("m", "cpu", product="torch")
    other.share(index)
    speeds = {f"faiss flat, batches of {batch}": peer} | in_turns(
        queries,
        {
            "faiss flat, all at once": lambda: flat.search(asked.numpy(), k),
            "MatrixIndex, all at once": lambda: index.search(asked, k),
            "MatrixIndex, torch's product": lambda: other.search(asked, k),
        },
    )
    rate = max(rate, product_rate(dim))
    found = index.search(asked, k).rows
    if not (found == other.search(asked, k).rows).all():
        raise ValueError("the two products rank differently")
    same = float((flat.search(asked.numpy(), k)[1] == found).mean())
    for name, speed in speeds.items():
        flops = speed * work
        lines.append(
            f"| {name} | {speed:,.0f} | {flops / 1e9:,.0f} | {flops / rate:.2f} | "
            f"{speed / peer:.1f} |"
        )
    lines += [
        "",
        f"{size:,} x {dim}, {queries:,} queries, k = {k}. Product rate: {rate / 1e9:,.0f} GFLOP/s, "
        "the best of three shapes by torch and numpy. MatrixIndex's two products rank alike; "
        f"{100 * same:.1f} % of its ranks are faiss's (which breaks ties as they come).",
    ]
    return lines


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.search", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="queries per call of the peer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = ["# Exact search", ""]
    lines += search_table(args.rows, args.queries, args.dim, args.k, args.batch, args.seed)
    threads = f"{torch.get_num_threads()} threads of torch, {faiss.omp_get_max_threads()} of faiss"
    lines += ["", machine("search", args.seed, threads)]
    text = "\n".join(lines) + "\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
