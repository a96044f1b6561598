"""Approximate, mapped and distributed search against plain sorting."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from augment.errors import DataError, EngineError, MismatchError, StoreError
from retrievers.vectors.embeddings import EmbeddingStore, EmbeddingWriter, open_index
from retrievers.vectors.index import FaissIndex, Ids, MatrixIndex, make_index, measure_recall
from retrievers.vectors.index.distributed import RayIndex, deal
from tests.retrievers.vectors.test_embeddings import fill, keys_of, vectors_of
from tests.retrievers.vectors.test_index import brute_force


def clustered(count, dim=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, dim, generator=random)
    noise = torch.randn(count, dim, generator=random) * 0.3
    return torch.nn.functional.normalize(centres[torch.arange(count) % 20] + noise, dim=1)


def indexed(index, vectors):
    index.add([f"1:{n}" for n in range(len(vectors))], vectors, "m")
    return index


def test_groups_and_blocks_lose_nothing():
    vectors, queries = clustered(3000), clustered(40, seed=1)
    ids = [f"1:{n}" for n in range(3000)]
    expected = brute_force(ids, vectors, queries, 50)
    for settings in ((512, 8192), (7, 100), (64, 64), (1, 30, "faiss"), (1, None, "faiss")):
        index = indexed(MatrixIndex("m", "cpu", *settings), vectors)
        run = index.run([str(n) for n in range(40)], queries, 50, "m")
        assert [[hit.did for hit in hits] for hits in run.values()] == expected


def test_many_queries_over_half_precision_rank_as_by_sorting():
    # Enough queries for faiss's product; small whole numbers tie in hundreds.
    random = torch.Generator().manual_seed(0)
    vectors = torch.randint(-2, 3, (900, 8), generator=random) / 8
    queries = torch.randint(-2, 3, (300, 8), generator=random) / 8
    stored = vectors[:500].half().numpy()

    class Stored:
        dim = 8

        def __len__(self):
            return len(stored)

        def take(self, rows):
            return stored[rows]

    ids = [f"{n % 7}:{n}" for n in range(900)]
    expected = brute_force(ids, vectors, queries, 40)
    for product in ("auto", "torch"):
        index = MatrixIndex("m", "cpu", product=product)
        index.add_source(ids[:500], Stored(), "m")
        index.add(ids[500:], vectors[500:], "m")
        run = index.run([str(n) for n in range(300)], queries, 40, "m")
        assert [[hit.did for hit in hits] for hits in run.values()] == expected


def test_a_product_that_does_not_suit_is_refused():
    with pytest.raises(ValueError, match="'blas' is none of auto, faiss, torch"):
        MatrixIndex("m", product="blas")
    with pytest.raises(ValueError, match="faiss multiplies on the processor, not on cuda"):
        MatrixIndex("m", "cuda", product="faiss")


def test_rows_of_several_sources_keep_their_ids(tmp_path):
    fill(tmp_path, range(10))
    store = EmbeddingStore.open(tmp_path)
    index = MatrixIndex("m", candidate_block=3)
    rows = np.array([8, 1, 5])
    index.add_source(store.ids(rows), store, "m", rows)
    index.add(["1:70"], vectors_of([70]), "m")
    index.add_source(store.ids(rows - 1), store, "m", rows - 1)
    for number in (8, 1, 5, 70, 7, 0, 4):
        found = index.run(["q"], vectors_of([number]), 1, "m")["q"][0]
        assert found.did == f"1:{number}"
        assert found.score == pytest.approx(1, abs=1e-3)
    with pytest.raises(DataError, match="1:8: id stands twice"):
        index.add_source(store.ids(rows), store, "m", rows)
    with pytest.raises(DataError, match="2 ids for 3 vectors"):
        index.add_source(["a", "b"], store, "m", rows)


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [("IVF8,Flat", "nprobe=1"), ("IVF8,PQ4x4", "nprobe=8"), ("HNSW8", "efSearch=16"), ("SQ8", "")],
)
def test_what_an_approximate_index_loses_is_said_and_true(factory, parameters, capfd):
    vectors, queries = clustered(1500), clustered(30, seed=1)
    index = indexed(make_index(factory, "m", parameters=parameters), vectors)
    found = index.search(queries, 5)
    message = capfd.readouterr().err
    assert f"{factory} {parameters}".strip() + " is approximate: true recall@5" in message
    truth = (queries.double() @ vectors.double().T).argsort(dim=1, descending=True)[:, :5]
    shares = [
        len(set(f) & set(t)) / 5 for f, t in zip(found.rows.tolist(), truth.tolist(), strict=True)
    ]
    assert index.recall[5].mean == pytest.approx(np.mean(shares))
    assert index.recall[5].worst == min(shares)
    assert f"{np.mean(shares):.4f} (worst query {min(shares):.4f}), 30 queries, 1,500" in message
    # Scores are those of the vectors, not of their codes.
    own = (queries.double() @ vectors.double().T).numpy()
    kept = found.rows >= 0
    expected = np.take_along_axis(own, np.maximum(found.rows, 0), axis=1)
    np.testing.assert_allclose(found.scores[kept], expected[kept], atol=1e-6)
    index.search(queries, 5)
    assert "approximate" not in capfd.readouterr().err  # said once for each depth
    index.search(queries, 6)
    assert "true recall@6" in capfd.readouterr().err


def test_fewer_found_than_asked_are_left_out_of_a_run():
    index = indexed(FaissIndex("m", "IVF16,Flat", "nprobe=1"), clustered(700))
    run = index.run(["q"], clustered(1), 300, "m")
    assert 0 < len(run["q"]) < 300
    assert all(np.isfinite(hit.score) for hit in run["q"])


def test_factories_that_cannot_be(capfd):
    for factory, parameters in (
        ("PQ7", ""),
        ("Nonsense", ""),
        ("IVF64,Flat", ""),
        ("HNSW8", "x=1"),
    ):
        index = indexed(FaissIndex("m", factory, parameters), clustered(40))
        with pytest.raises(DataError, match=f"faiss cannot make '{factory}' '{parameters}' of 40"):
            index.search(clustered(1), 1)
    with pytest.raises(ValueError, match="sample must be at least 1"):
        FaissIndex("m", "SQ8", sample=0)
    with pytest.raises(ValueError, match="at least one query"):
        measure_recall(indexed(MatrixIndex("m"), clustered(9)), clustered(2), 1, sample=0)


def test_a_saved_index_belongs_to_its_vectors(tmp_path):
    vectors, queries = clustered(600), clustered(5, seed=2)
    first = indexed(FaissIndex("m", "IVF4,Flat"), vectors)
    first.save(tmp_path)
    again = indexed(FaissIndex("m", "IVF4,Flat"), vectors)
    again.load(tmp_path)
    assert (again.search(queries, 3).rows == first.search(queries, 3).rows).all()
    for other, said in (
        (indexed(FaissIndex("m", "IVF8,Flat"), vectors), "factory: saved 'IVF4,Flat', here 'IVF8"),
        (indexed(FaissIndex("m", "IVF4,Flat"), vectors[:500]), "size: saved 600, here 500"),
    ):
        with pytest.raises(MismatchError, match=said):
            other.load(tmp_path)
    foreign = FaissIndex("other", "IVF4,Flat")
    foreign.add([f"1:{n}" for n in range(600)], vectors, "other")
    with pytest.raises(MismatchError, match="made_by: saved 'm', here 'other'"):
        foreign.load(tmp_path)
    saved = tmp_path / "index.faiss"
    data = saved.read_bytes()
    saved.write_bytes(data[:-1] + b"\xff" * 2)
    with pytest.raises(StoreError, match=r"index.faiss: wrong checksum; delete it"):
        again.load(tmp_path)
    record = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**record, "version": 9}))
    with pytest.raises(StoreError, match="version 9, this package reads up to 1"):
        again.load(tmp_path)
    with pytest.raises(StoreError, match="no index that can be read"):
        again.load(tmp_path / "none")


@pytest.mark.parametrize("make", [MatrixIndex, FaissIndex])
def test_queries_and_vectors_of_the_wrong_kind(make):
    index = indexed(make("m"), clustered(5))
    with pytest.raises(DataError, match=r"query vector 1 is not finite \(1 such\)"):
        index.search(torch.tensor([[0.0] * 16, [torch.inf] * 16]), 1)
    with pytest.raises(MismatchError, match=r"must be floating point, got torch.int64"):
        index.search(torch.ones(1, 16, dtype=torch.int64), 1)
    with pytest.raises(MismatchError, match=r"shape \(16,\) in an index of 16 dimensions"):
        index.search(torch.ones(16), 1)
    with pytest.raises(DataError, match="ids must be strings"):
        index.add([7], torch.ones(1, 16), "m")
    assert index.search(torch.ones(0, 16), 2).rows.shape == (0, 2)


def test_ids_are_a_sequence():
    ids = Ids(["b", "é", "a"])
    ids.extend(["z", "10", "9"])
    assert list(ids) == ["b", "é", "a", "z", "10", "9"]
    assert (ids[1], ids[-1], ids[1:3], len(ids)) == ("é", "9", ["é", "a"], 6)
    assert ids.take([5, 0]) == ["9", "b"]
    order = sorted(ids, key=lambda did: did.encode(), reverse=True)
    assert [order.index(did) for did in ids] == ids.ranks().tolist()
    assert ids.repeated() is None
    assert ids.repeated(Ids(["a"])) == "a"


def test_an_empty_store_has_nothing_to_search(tmp_path):
    EmbeddingWriter(tmp_path, "m").finish()
    with pytest.raises(DataError, match="index is empty"):
        open_index(EmbeddingStore.open(tmp_path)).search(torch.ones(1, 3), 1)


# Several machines


def test_shards_are_dealt_evenly_and_all(tmp_path):
    fill(tmp_path, range(30))
    shards = EmbeddingStore.open(tmp_path).manifest.shards
    for workers in (1, 2, 3, 7, 8, 20):
        parts = deal(shards, workers)
        assert [shard for part in parts for shard in part] == list(shards)
        assert len(parts) == min(workers, len(shards))
        assert all(parts)
        sizes = [sum(shard.rows for shard in part) for part in parts]
        assert max(sizes) <= 30 / len(parts) + 4
    with pytest.raises(ValueError, match="at least one worker"):
        deal(shards, 0)


def test_without_ray_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'reasoning-augmented-retrieval\[ray\]'"):
        RayIndex(fill(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not there")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_nodes_answer_as_one(tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    # Ray makes its workers as nice as can be, which on a busy machine means that they stand still.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    random = torch.Generator().manual_seed(0)
    # Few values, so that many candidates tie, within a worker and between them.
    vectors = torch.randint(-1, 2, (400, 4), generator=random).float() / 2
    queries = torch.randint(-1, 2, (20, 4), generator=random).float() / 2
    names = [f"{n % 3}:{n}" for n in range(400)]
    with EmbeddingWriter(tmp_path, "m", shard_rows=64) as writer:
        for start in range(0, 400, 16):
            part = slice(start, start + 16)
            writer.append(names[part], keys_of(range(start, start + 16)), vectors[part])
        writer.finish()
    cluster = Cluster()
    try:
        for _ in range(2):
            try:
                cluster.add_node(num_cpus=1, include_dashboard=False)
            except Exception as error:  # Ray's word for 30 seconds without an answer
                if "timed out during startup" not in str(error):
                    raise
                pytest.skip("the machine is too busy to start Ray's nodes")
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        with RayIndex(tmp_path, workers=2) as index:
            assert len({node["NodeID"] for node in ray.nodes()}) == 2
            for k in (5, 300):
                run = index.run([str(n) for n in range(20)], queries, k, "m")
                found = [[hit.did for hit in hits] for hits in run.values()]
                assert found == brute_force(names, vectors, queries, k)
            with pytest.raises(MismatchError, match="made by 'other'"):
                index.search(queries, 1, "other")
            ray.kill(index._workers[0], no_restart=False)
            again = index.run([str(n) for n in range(20)], queries, 5, "m")
            assert [hits[0] for hits in again.values()] == [hits[0] for hits in run.values()]
    finally:
        ray.shutdown()
        cluster.shutdown()
