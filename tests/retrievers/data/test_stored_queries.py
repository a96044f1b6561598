"""Training queries that stay in their files: the same as a list of them."""

import pickle
from random import Random

import numpy as np

from augment.data import write_queries
from augment.data.columnar import open_queries
from augment.records import Item, Query
from retrievers.data.stored_queries import StoredQueries


def test_equal_to_a_list(tmp_path, monkeypatch):
    monkeypatch.setattr("retrievers.data.stored_queries._BLOCK", 7)
    random = Random(0)
    files = [
        [Query(Item(f"{f}:{n}", f"t{n}", None, "text"), 1, (f"2:{n}",)) for n in range(size)]
        for f, size in enumerate((13, 0, 1, 30))
    ]
    for number, queries in enumerate(files):
        write_queries(tmp_path / f"{number}.jsonl", queries)
    tables = [open_queries(tmp_path / f"{number}.jsonl") for number in range(4)]
    picked = [
        (f, n) for f, own in enumerate(files) for n in range(len(own)) if random.random() < 0.7
    ]
    source, rows = (np.array(part) for part in zip(*picked, strict=True))
    slow = [files[f][n] for f, n in picked]
    stored = StoredQueries(tables, source.astype(np.uint16), rows.astype(np.int32))
    assert list(stored) == slow
    assert [stored[n] for n in range(len(stored))] == slow
    assert list(stored[::3][:5]) == slow[::3][:5]
    assert list(stored[::-1]) == slow[::-1]
    assert list(pickle.loads(pickle.dumps(stored))) == slow  # noqa: S301 - our own
    assert not stored[:0]
    assert list(stored[:0]) == []
