"""What encoding in chunks costs in time and saves in memory.

``python -m benchmarks.speed.gradcache`` trains ``flagland-clip`` on random text-picture pairs. The step
with chunks is timed against the plain step in alternation; peak memory is taken in fresh processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from retrievers.data.examples import Example, Groups, Labels, Pairs
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.inputs import Inputs
from retrievers.training.module import Contrastive
from retrievers.training.objective import Objective
from retrievers.training.optim import AdamWCosine

RESULTS = Path(__file__).parent.parent / "results" / "gradcache.md"
TEXT = "a flag with three horizontal bands of red, white and green"


def make_pairs(retriever: Any, size: int) -> Pairs:
    """Texts that ask for pictures of noise."""
    height, width = retriever.clip.visual.image_size
    random = torch.Generator().manual_seed(size)
    texts = [Example(n, f"{TEXT} {n}", None) for n in range(size)]
    rows = torch.arange(size)
    images = torch.randn(size, 3, height, width, generator=random)
    candidates = Inputs(size, torch.zeros(0, 1, dtype=torch.int64), rows[:0], images, rows)
    labels = Labels(rows, rows, rows[:, None])
    groups = Groups(rows[:, None], torch.full((size, 1), float("nan")))
    names = tuple((f"0:{n}", f"0:{n}") for n in range(size))
    return Pairs(retriever.collator()(texts), candidates, labels, groups, names, 0)


def make_step(chunk: int | None, keep: int = 0) -> Contrastive:
    """The packaged model with a chunk size."""
    encoder = ClipScoreFusion(normalize_towers=True)
    return Contrastive(encoder, Objective(symmetric=True), chunk, keep)


def seconds(retriever: Contrastive, batch: Pairs) -> float:
    """One step, optimiser included."""
    optimizer, _ = AdamWCosine().build(retriever.named_parameters(), 10)
    start = time.perf_counter()
    loss: torch.Tensor = retriever.loss(batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    retriever.zero_grad()
    return time.perf_counter() - start


def overhead(size: int, chunk: int, repeats: int) -> list[tuple[str, float, float]]:
    """Label, median seconds, median ratio to the plain step of the same round."""
    settings = {"plain": (None, 0), "chunks": (chunk, 0), "chunks, half kept": (chunk, -1)}
    steps = {
        name: make_step(size_, size // chunk // 2 if keep else 0)
        for name, (size_, keep) in settings.items()
    }
    batch = make_pairs(steps["plain"].encoder, size)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, retriever in steps.items():
            spent = seconds(retriever, batch)
            if turn:  # the first round warms up
                taken[name].append(spent)
    return [
        (
            name,
            statistics.median(found),
            statistics.median(a / b for a, b in zip(found, taken["plain"], strict=True)),
        )
        for name, found in taken.items()
    ]


def _peak(size: int, chunk: int | None, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    retriever = make_step(chunk)
    batch = make_pairs(retriever.encoder, size)
    before = _most_memory()
    spent = seconds(retriever, batch)
    return (_most_memory() - before) / 1024, spent


def _most_memory() -> int:
    """KiB that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the parent's
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(size: int, chunk: int | None, threads: int) -> tuple[float, float]:
    """MiB that a step adds to the peak of a fresh process, and its seconds."""
    with multiprocessing.get_context("spawn").Pool(1) as worker:
        return worker.apply(_peak, (size, chunk, threads))


def report(args: argparse.Namespace) -> str:
    """The outcome as Markdown."""
    rows = overhead(args.batch, args.chunk, args.repeats)
    lines = [
        "# Encoding in chunks (GradCache)", "",
        f"flagland-clip, {args.batch} text-picture pairs, chunks of {args.chunk}; median of "
        f"{args.repeats} rounds in alternation.", "",
        "| step | s | against plain |", "|---|--:|--:|",
        *(f"| {name} | {spent:.2f} | {ratio:.2f} |" for name, spent, ratio in rows), "",
        "Memory that one step adds to a fresh process (pictures and model not counted):", "",
        "| pairs | chunk | MiB | s |", "|--:|--:|--:|--:|",
    ]  # fmt: skip
    cases = [(args.batch, None), (args.batch, args.chunk), (args.large, args.chunk)]
    for size, chunk in cases:
        mib, spent = peak(size, chunk, args.threads)
        lines.append(f"| {size} | {chunk or 'none'} | {mib:,.0f} | {spent:.1f} |")
    lines += ["", f"torch {torch.__version__}, {args.threads} threads, {os.cpu_count()} cores."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.gradcache", description=__doc__
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--large", type=int, default=2048, help="8192 takes four times as long")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = report(args)
    print(text)
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
