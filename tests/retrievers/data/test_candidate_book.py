"""Candidates of several pools by id, against a dict."""

import random

from augment.data import write_candidates
from augment.records import Item
from retrievers.data.datasets import CandidateBook


def test_what_pools_know(tmp_path):
    rng = random.Random(0)
    items = {f"{n % 3}:{n}": Item(f"{n % 3}:{n}", f"text {n}", (), "text") for n in range(60)}
    known = {}
    for number in range(4):
        pool = rng.sample(list(items), 15)
        known |= {did: items[did] for did in pool}
        write_candidates(tmp_path / f"{number}.jsonl", [items[did] for did in pool])
    book = CandidateBook([tmp_path / f"{number}.jsonl" for number in range(4)])
    asked = [*items, "0:999", "", "zz:1"]
    assert [book.find(did) for did in asked] == [known.get(did) for did in asked]
    assert book.known(asked).tolist() == [did in known for did in asked]
    assert book.known([]).tolist() == []
