"""Candidates of several pools as columns, against a dict of records."""

import random
from dataclasses import replace

import numpy as np
import pytest

from augment.data import write_candidates
from augment.errors import DataError
from augment.records import Item
from retrievers.data.catalog import Catalog
from retrievers.data.datasets import CandidateBook


class Slow:
    """Records by id, in order of first appearance."""

    def __init__(self):
        self.items = {}

    def add(self, items, keep=None, check=True):
        names = []
        for item in items:
            if keep is None or item.id in keep:
                if check and self.items.setdefault(item.id, item) != item:
                    raise DataError("another", item.id)
                self.items.setdefault(item.id, item)
                names.append(item.id)
        order = list(self.items)
        return [order.index(name) for name in names]


def item(number, rng):
    text = rng.choice([None, "", f"text {number}", "á"])
    image = f"mbeir_images/{number}.jpg" if text is None else None
    return Item(f"{number % 3}:{number}", text, image, "text" if text is not None else "image")


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_a_dict_of_records(tmp_path, seed):
    rng = random.Random(seed)
    everything = [item(number, rng) for number in range(60)]
    catalog, slow = Catalog(), Slow()
    for number in range(5):
        pool = rng.sample(everything, rng.randint(0, 40))
        pool = everything if number == 4 else pool
        if seed == 5:  # pools of one data set each, as M-BEIR's
            pool = [one for one in pool if number == 4 or one.id[0] == str(number % 3)]
        keep = (
            {one.id for one in rng.sample(everything, 30)}
            if number < 4 and rng.random() < 0.3
            else None
        )
        path = tmp_path / f"{number}.jsonl"
        write_candidates(path, pool)
        assert catalog.add(path, keep).tolist() == slow.add(pool, keep)
        assert catalog.add(path, keep).tolist() == slow.add(pool, keep), "the same file again"
    known = list(slow.items.values())
    assert len(catalog) == len(known) == 60
    assert list(catalog.items()) == known
    assert [catalog.item(row) for row in range(60)] == known
    rows = np.array(rng.sample(range(60), 30))
    assert list(catalog.items(rows)) == [known[row] for row in rows]
    assert catalog.names(rows).to_pylist() == [known[row].id for row in rows]
    assert catalog.names(np.arange(60)).to_pylist() == list(slow.items)
    asked = [*rng.sample(list(slow.items), 20), "0:999", "", "zz:1"]
    order = list(slow.items)
    want = [order.index(did) if did in slow.items else -1 for did in asked]
    assert catalog.find_all(asked).tolist() == want
    assert catalog.find("9:9") is None
    assert catalog.find(known[7].id) == known[7]
    assert catalog.find_all([]).tolist() == []
    book = CandidateBook([tmp_path / f"{number}.jsonl" for number in range(4)])
    asked += list(slow.items)
    assert book.known(asked).tolist() == [book.find(did) is not None for did in asked]
    assert book.known([]).tolist() == []


@pytest.mark.parametrize("field", ["text", "image", "source"])
def test_an_id_that_stands_for_another_candidate_is_named(tmp_path, field):
    pool = [Item(f"1:{n}", "a", "x.jpg", "image,text", None) for n in range(5)]
    write_candidates(tmp_path / "a.jsonl", pool)
    other = replace(pool[3], **{field: "b.jpg"})
    write_candidates(tmp_path / "b.jsonl", [pool[4], other])
    catalog = Catalog()
    catalog.add(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="another candidate") as error:
        catalog.add(tmp_path / "b.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'b.jsonl'}: 1:3: ")
    assert catalog.add(tmp_path / "b.jsonl", check=False).tolist() == [4, 3]


def test_a_candidate_takes_six_bytes_and_eight_in_each_pool(tmp_path):
    size = 3000
    pools = [[Item(f"{d}:{n}", "a", None, "text") for n in range(size)] for d in range(2)]
    for number, pool in enumerate([*pools, [*pools[0], *pools[1]]]):
        write_candidates(tmp_path / f"{number}.jsonl", pool)
    catalog = Catalog()
    for number in range(3):
        catalog.add(tmp_path / f"{number}.jsonl", check=number < 2)
    assert len(catalog) == 2 * size
    assert catalog.nbytes == 2 * size * (6 + 8 + 8)
