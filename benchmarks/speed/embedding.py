"""Embedding throughput with no, one and two loader processes.

Noise pictures with a text each, embedded by the packaged flagland-clip into a folder of fp16, as
``python -m retrievers embed`` does; the start of the loader processes is included. At full size
(4,000 items, 3 rounds) some three minutes on two cores and 2 GB of memory.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from augment.data import write_candidates
from augment.records import Item, one_picture
from benchmarks.speed.harness import Page, rows_of, take_turns
from retrievers.data.module import EmbeddingConfig, LoaderConfig, MBeirData
from retrievers.data.plan import plan_pools
from retrievers.models.clip import ClipScoreFusion
from retrievers.vectors.embed import embed


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


def embed_root(root: Path, workers: int, batch_size: int) -> None:
    """Embed everything into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        data = MBeirData(
            str(root),
            instructions=False,
            loader=LoaderConfig(workers=workers, cache_mib=0, eval_batch_size=batch_size),
            embeddings=EmbeddingConfig(folder),
        )
        embed(ClipScoreFusion(), data, plan_pools(data.root), device="cpu")


def measure(
    items: int = 4_000,
    workers: tuple[int, ...] = (0, 1, 2),
    rounds: int = 3,
    batch_size: int = 128,
    seed: int = 0,
) -> Page:
    """Embed the same items with each number of loader processes.

    Args:
        items: pictures, each with a text.
        workers: loader processes; the first number is what the others are compared with.
        rounds: of which the median is shown.
        batch_size: items a batch.
        seed: of the pictures.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_root(root, items, seed)
        ways = {f"{count} loader processes": partial(embed_root, root, count, batch_size)
                for count in workers}  # fmt: skip
        turns = take_turns(ways, rounds)
    return Page(
        "Embedding",
        f"{items:,} items, picture (224 x 224 JPEG) and text, flagland-clip, to a folder of fp16; "
        f"median of {rounds} rounds in turns.",
        {"": rows_of(turns, items)},
        settings=[f"{torch.get_num_threads()} threads of torch"],
    )
