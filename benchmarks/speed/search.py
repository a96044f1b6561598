"""How fast exact search is, against faiss flat and the machine's own arithmetic.

Everything is generated; ratios are within this one run. MatrixIndex is measured in both of its
forms: with faiss's product, which it takes for many queries on a processor, and with torch's, which
it takes for a few and on a graphics card. Its times include scoring anew in double precision,
ranking by id and looking for ties; faiss's do not have these. At full size (200,000 x 768, 2,000
queries) some two minutes on two cores and 3 GB of memory.
"""

from __future__ import annotations

from functools import partial

import faiss
import numpy as np
import torch
from torch.nn import functional

from benchmarks.speed.harness import Page, take_turns
from retrievers.vectors.exact import MatrixIndex


def product_rate(dim: int) -> float:
    """Multiplications and additions per second of the best of several products by torch or numpy.

    The two bring their own arithmetic, and which is faster depends on the machine.
    """
    rates = []
    for rows, columns in ((512, 8192), (2048, 2048), (4096, 4096)):
        left, right = torch.randn(rows, dim), torch.randn(dim, columns)
        ways = {
            "torch": partial(torch.matmul, left, right),
            "numpy": partial(np.matmul, left.numpy(), right.numpy()),
        }
        rates += [2 * rows * columns * dim / own.least for own in take_turns(ways, 5).values()]
    return max(rates)


def measure(
    rows: int = 200_000,
    queries: int = 2_000,
    dim: int = 768,
    k: int = 10,
    batch: int = 8,
    rounds: int = 3,
    seed: int = 0,
) -> Page:
    """Exact search of all queries.

    Args:
        rows: vectors searched.
        queries: that are asked.
        dim: numbers a vector.
        k: hits a query.
        batch: queries per call of faiss where it does not get all at once.
        rounds: of which the median is shown.
        seed: of the vectors.
    """
    random = torch.Generator().manual_seed(seed)
    vectors = functional.normalize(torch.randn(rows, dim, generator=random), dim=1)
    asked = functional.normalize(torch.randn(queries, dim, generator=random), dim=1)
    rate = product_rate(dim)
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors.numpy())
    index, other = (MatrixIndex("m", "cpu", product=product) for product in ("faiss", "torch"))
    index.add([f"1:{n}" for n in range(rows)], vectors, "m")
    index.search(asked[:1], 1)  # ids are sorted once per index
    other.add(index.ids, index.held, index.made_by or "")
    some = asked[: min(queries, 32 * batch)].numpy()
    batches = np.split(some, range(batch, len(some), batch))
    turns = take_turns(
        {
            "faiss flat, all at once": lambda: flat.search(asked.numpy(), k)[1],
            "MatrixIndex, all at once": lambda: index.search(asked, k).rows,
            "MatrixIndex, torch's product": lambda: other.search(asked, k).rows,
            f"faiss flat, batches of {batch}": lambda: [flat.search(part, k) for part in batches],
        },
        rounds,
    )
    rate = max(rate, product_rate(dim))  # taken before and after; the higher one counts
    theirs, ours, torchs, _ = (own.result for own in turns.values())
    if not (ours == torchs).all():
        raise ValueError("the two products rank differently")
    speeds = {
        name: (len(some) if "batches" in name else queries) / own.seconds
        for name, own in turns.items()
    }
    first = next(iter(speeds.values()))
    table = [
        {
            "": name,
            "queries/s": speed,
            "GFLOP/s": speed * 2 * rows * dim / 1e9,
            "of the product rate": speed * 2 * rows * dim / rate,
            "against faiss": speed / first,
        }
        for name, speed in speeds.items()
    ]
    return Page(
        "Exact search",
        f"{rows:,} x {dim}, {queries:,} queries, k = {k}, median of {rounds} rounds in turns. "
        f"Product rate: {rate / 1e9:,.0f} GFLOP/s, the best of three shapes by torch and numpy. "
        f"MatrixIndex's two products rank alike; {(theirs == ours).mean():.1%} of its ranks are "
        "faiss's (which breaks ties as they come).",
        {"": table},
        settings=[
            f"{torch.get_num_threads()} threads of torch, {faiss.omp_get_max_threads()} of faiss"
        ],
    )
