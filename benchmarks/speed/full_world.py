"""A root in M-BEIR's layout and of its sizes, with generated texts and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from augment.data import (
    InstructionRow,
    write_candidates,
    write_instructions,
    write_qrels,
    write_queries,
)
from augment.records import TASKS, Item, Qrel, Query, one_picture
from benchmarks.mbeir import ROWS

#: Picture files, shared by all items: hashing and decoding are done, a disk full of files is not.
PICTURES = 2_000


class Row(NamedTuple):
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


def rows(share: float) -> Iterator[Row]:
    """All sixteen."""
    numbers: dict[str, int] = {}
    following: dict[str, int] = {}
    for (name, task), (train, _, test, pool) in ROWS.items():
        number, first = numbers.setdefault(name, len(numbers)), following.get(name, 1)
        sizes = max(int(train * share * 1e3), 16), max(int(test * share * 1e3), 5)
        row = Row(number, name, task, *sizes, max(int(pool * share * 1e3), 60), first)
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


def _asking(row: Row, first: int, count: int) -> Iterator[Query]:
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
