"""M-BEIR's union pool at full size: opened, indexed and searched on one small machine.

``python -m benchmarks.speed.union_scale`` generates 5.6 million vectors of 768 dimensions and a pool file
of as many records, and searches 10,000 queries; before that a quarter and a tenth of it, each in a
process of its own. Needs 14 GB of disk under ``--folder``, which is cleaned up; on two cores some
15 minutes for the searches and as long to write the data, and some 3 GiB of private memory.
``--rows 100000`` tries it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from augment.data.pools import open_candidates
from benchmarks.speed.data import write_pool
from benchmarks.speed.machine import machine
from retrievers.vectors import open_index
from retrievers.vectors.store import EmbeddingStore, EmbeddingWriter

RESULTS = Path(__file__).parent.parent / "results" / "union_scale.md"
GIB = 1 << 30
POOL = "mbeir_union_task2_cand_pool.jsonl"


class Peak(threading.Thread):
    """Samples this process's memory: private, and with the pages of mapped files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.private = 0
        self.resident = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Sample twenty times a second."""
        process = psutil.Process()
        while not self._done.wait(0.05):
            memory = process.memory_info()
            self.resident = max(self.resident, memory.rss)
            self.private = max(self.private, memory.rss - memory.shared)

    def stop(self) -> None:
        """End sampling."""
        self._done.set()
        self.join()


def write_store(folder: Path, pool: Path, dim: int) -> None:
    """Random unit vectors under the ids of a pool."""
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


def measure(folder: Path, queries: int, k: int, dim: int) -> dict[str, float]:
    """Open, index, search, read the records found."""
    peak = Peak()
    peak.start()
    times: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[name] = now - last
        last = now

    table = open_candidates(folder / POOL)
    lap("open pool")
    store = EmbeddingStore.open(folder / "store", "generated")
    lap("open store")
    index = open_index(store)
    lap("index")
    random = torch.Generator().manual_seed(1)
    asked = torch.nn.functional.normalize(torch.randn(queries, dim, generator=random), dim=1)
    run = index.run([str(n) for n in range(queries)], asked, k, "generated")
    lap("search")
    best_of_each = run.rows[run.starts[:-1]]
    rows = table.find_all([run.ids[row].as_py() for row in best_of_each])
    best = table.take([row for row in rows if row is not None])
    lap("look up")
    peak.stop()
    if len(best) != queries or any(run.starts[1:] - run.starts[:-1] != k):
        raise ValueError("a query is without hits, or a hit without a record")
    return {**times, "private": peak.private / GIB, "resident": peak.resident / GIB}


def table(sizes: list[int], found: list[dict[str, float]], queries: int, k: int, dim: int) -> str:
    """The outcome as Markdown."""
    names = list(found[0])
    lines = [
        "# The union pool on one machine",
        "",
        f"{queries:,} queries, k = {k}, {dim} dimensions, vectors in fp16 on disk; seconds, GiB.",
        "",
        f"| candidates | {' | '.join(names)} | search, s per million |",
        f"|--:|{'--:|' * len(names)}--:|",
    ]
    for size, row in zip(sizes, found, strict=True):
        cells = " | ".join(f"{row[name]:,.2f}" for name in names)
        lines.append(f"| {size:,} | {cells} | {row['search'] / size * 1e6:,.1f} |")
    if len(sizes) > 1:
        for name in ("search", "private"):
            slope, start = np.polyfit(sizes, [row[name] for row in found], 1)
            lines += ["", f"{name} = {start:.2f} + {slope * 1e6:.2f} per million candidates."]
    lines += [
        "",
        "Private: memory of this process alone, at its peak. Resident: with the pages of mapped "
        "files, which the system takes back when it needs them. `open store` reads every byte to "
        "compare checksums; the pool's table was built before.",
        "",
        machine("union_scale", 1, f"{torch.get_num_threads()} threads of torch"),
    ]
    return "\n".join(lines) + "\n"


def one_size(rows: int, queries: int, k: int, dim: int, below: str | None) -> dict[str, float]:
    """Generate, measure in a fresh process, clean up."""
    with tempfile.TemporaryDirectory(dir=below) as name:
        folder = Path(name)
        write_pool(folder / POOL, rows)
        write_store(folder / "store", folder / POOL, dim)
        command = [sys.executable, "-m", "benchmarks.speed.union_scale", "--measure", name]
        command += [f"--queries={queries}", f"--k={k}", f"--dim={dim}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - this program
        found: dict[str, float] = json.loads(done.stdout)
        return found


def main() -> None:
    """Measure all sizes, write, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.union_scale", description=__doc__
    )
    sizes = [560_000, 1_400_000, 5_600_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--folder", help="where the generated data goes; default: the system's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.queries, args.k, args.dim)))
        return
    found = []
    for rows in args.rows:
        found.append(one_size(rows, args.queries, args.k, args.dim, args.folder))
        sys.stderr.write(f"{rows:,} candidates: {json.dumps(found[-1])}\n")
    text = table(args.rows, found, args.queries, args.k, args.dim)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
