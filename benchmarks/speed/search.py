"""How fast exact search is, against faiss flat that gets all queries at once, too.

Everything is generated. MatrixIndex's times include scoring anew in double precision, ranking by id
and looking for ties; faiss's do not have these. At full size (200,000 x 768, 2,000 queries) a
minute on two cores and 3 GB of memory.
"""

from __future__ import annotations

import faiss
import torch
from torch.nn import functional

from benchmarks.speed.harness import Page, rows_of, take_turns
from retrievers.vectors.exact import MatrixIndex


def measure(
    rows: int = 200_000, queries: int = 2_000, dim: int = 768, k: int = 10, rounds: int = 3
) -> Page:
    """Exact search of all queries.

    Args:
        rows: vectors searched.
        queries: that are asked.
        dim: numbers a vector.
        k: hits a query.
        rounds: of which the median is shown.
    """
    random = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(rows, dim, generator=random), dim=1)
    asked = functional.normalize(torch.randn(queries, dim, generator=random), dim=1)
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors.numpy())
    index = MatrixIndex("m", "cpu")
    index.add([f"1:{n}" for n in range(rows)], vectors, "m")
    index.search(asked[:1], 1)  # ids are sorted once per index
    turns = take_turns(
        {
            "MatrixIndex": lambda: index.search(asked, k).rows,
            "faiss flat": lambda: flat.search(asked.numpy(), k)[1],
        },
        rounds,
    )
    ours, theirs = (own.result for own in turns.values())
    return Page(
        "Exact search",
        f"{rows:,} x {dim}, {queries:,} queries at once, k = {k}, median of {rounds} rounds in "
        f"turns, {faiss.omp_get_max_threads()} threads of faiss. {(theirs == ours).mean():.1%} of "
        "the ranks are the same (faiss breaks ties as they come).",
        {"": rows_of(turns, queries, "queries")},
    )
