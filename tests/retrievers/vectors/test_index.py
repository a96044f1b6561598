import numpy as np
import pytest
import torch

from augment.errors import DataError, MismatchError
from retrievers.vectors.index import FaissIndex, MatrixIndex

KINDS = [
    lambda: FaissIndex("m"),
    lambda: MatrixIndex("m"),
    lambda: MatrixIndex("m", query_block=3, candidate_block=7),
    lambda: MatrixIndex("m", candidate_block=7, product="faiss"),
]


def brute_force(ids, vectors, queries, k):
    scores = np.round((queries.double() @ vectors.double().T).numpy(), 6)
    ranking = []
    for row in scores:
        order = sorted(range(len(ids)), key=lambda n: ids[n], reverse=True)
        ranking.append([ids[n] for n in sorted(order, key=lambda n: -row[n])][:k])
    return ranking


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("levels", "k"), [(1, 3), (2, 5), (3, 40), (1000, 10)])
def test_equal_to_brute_force_with_ties(make, levels, k):
    random = torch.Generator().manual_seed(levels)
    vectors = torch.randint(-levels, levels + 1, (60, 3), generator=random) / 8
    queries = torch.randint(-levels, levels + 1, (10, 3), generator=random) / 8
    ids = [f"{n % 3}:{n}" for n in range(60)]
    index = make()
    index.add(ids[:25], vectors[:25], "m")
    index.add(ids[25:], vectors[25:], "m")
    qids = [str(n) for n in range(10)]
    run = index.run(qids, queries, k, "m")
    got = [[hit.did for hit in run[qid]] for qid in qids]
    assert got == brute_force(ids, vectors, queries, k)


@pytest.mark.parametrize("make", KINDS)
def test_many_equal_vectors_rank_by_id(make):
    index = make()
    index.add([f"9:{n:03}" for n in range(200)], torch.ones(200, 4), "m")
    run = index.run(["q"], torch.ones(1, 4), 3, "m")
    assert [hit.did for hit in run["q"]] == ["9:199", "9:198", "9:197"]


@pytest.mark.parametrize("make", KINDS)
def test_k_beyond_the_pool_is_an_error_and_a_run_is_as_deep_as_the_pool(make):
    index = make()
    index.add(["a", "b"], torch.eye(2), "m")
    with pytest.raises(DataError, match="k = 10 is larger than the index of 2 candidates"):
        index.search(torch.eye(2), 10)
    assert [len(hits) for hits in index.run(["p", "q"], torch.eye(2), 10, "m").values()] == [2, 2]


@pytest.mark.parametrize("make", KINDS)
def test_what_does_not_belong_is_refused(make):
    index = make()
    with pytest.raises(DataError, match="index is empty"):
        index.search(torch.ones(1, 2), 1)
    index.add(["a"], torch.ones(1, 2), "m")
    with pytest.raises(MismatchError, match="made by 'other'"):
        index.add(["b"], torch.ones(1, 2), "other")
    with pytest.raises(MismatchError, match="made by 'other'"):
        index.run(["q"], torch.ones(1, 2), 1, "other")
    with pytest.raises(MismatchError, match="index of 2 dim"):
        index.add(["b"], torch.ones(1, 3), "m")
    with pytest.raises(DataError, match="a: id stands twice"):
        index.add(["a"], torch.ones(1, 2), "m")
    with pytest.raises(DataError, match="c: vector is not finite"):
        index.add(["b", "c"], torch.tensor([[0.0, 0.0], [0.0, torch.nan]]), "m")
    with pytest.raises(DataError, match="1 ids for 2 vectors"):
        index.add(["b"], torch.ones(2, 2), "m")
    with pytest.raises(ValueError, match="k must be"):
        index.search(torch.ones(1, 2), 0)
    assert len(index) == 1
