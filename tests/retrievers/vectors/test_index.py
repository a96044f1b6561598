"""Every index against plain sorting; what approximate ones lose is said, and true."""

import sys

import numpy as np
import pytest
import torch

from augment.data import DataRoot, write_candidates, write_queries
from augment.errors import DataError, EngineError, MismatchError
from augment.records import Item, Query
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.data.plan import plan_test
from retrievers.models.clip import ClipScoreFusion
from retrievers.vectors import make_index, milvus, open_index
from retrievers.vectors.bm25 import bm25
from retrievers.vectors.exact import MatrixIndex
from retrievers.vectors.faiss import faiss_index
from retrievers.vectors.milvus import milvus_index
from retrievers.vectors.search import test as evaluate
from retrievers.vectors.store import EmbeddingStore, EmbeddingWriter
from tests.retrievers.vectors.test_embeddings import fill, vectors_of
from tests.worlds import World

KINDS = [lambda: MatrixIndex("m"), lambda: MatrixIndex("m", query_block=3, candidate_block=7)]


def brute_force(ids, vectors, queries, k):
    scores = np.round((queries.double() @ vectors.double().T).numpy(), 6)
    ranking = []
    for row in scores:
        order = sorted(range(len(ids)), key=lambda n: ids[n], reverse=True)
        ranking.append([ids[n] for n in sorted(order, key=lambda n: -row[n])][:k])
    return ranking


def ranking(index, queries, k):
    """Ids of the best k of each query."""
    run = index.run([str(n) for n in range(len(queries))], queries, k, "m").to_run()
    return [[hit.did for hit in hits] for hits in run.values()]


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
    assert ranking(index, queries, k) == brute_force(ids, vectors, queries, k)


@pytest.mark.parametrize("make", KINDS)
def test_a_run_is_as_deep_as_the_pool(make):
    index = make()
    index.add(["a", "b"], torch.eye(2), "m")
    assert list(map(len, ranking(index, torch.eye(2), 10))) == [2, 2]


@pytest.mark.parametrize("make", KINDS)
def test_what_does_not_belong_is_refused(make):
    index = make()
    index.add(["a"], torch.ones(1, 2), "m")
    with pytest.raises(MismatchError, match="made by 'other'"):
        index.add(["b"], torch.ones(1, 2), "other")
    with pytest.raises(MismatchError, match="made by 'other'"):
        index.run(["q"], torch.ones(1, 2), 1, "other")
    with pytest.raises(MismatchError, match="index of 2 dim"):
        index.add(["b"], torch.ones(1, 3), "m")
    with pytest.raises(DataError, match="c: vector is not finite"):
        index.add(["b", "c"], torch.tensor([[0.0, 0.0], [0.0, torch.nan]]), "m")
    with pytest.raises(ValueError, match="k must be"):
        index.search(torch.ones(1, 2), 0)
    assert len(index) == 1


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
    for settings in ((512, 8192), (7, 100), (64, 64)):
        index = indexed(MatrixIndex("m", "cpu", *settings), vectors)
        assert ranking(index, queries, 50) == expected


def test_many_queries_over_half_precision_rank_as_by_sorting():
    # Small whole numbers tie in hundreds.
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
    index = MatrixIndex("m")
    index.add(ids[:500], Stored(), "m")
    index.add(ids[500:], vectors[500:], "m")
    assert ranking(index, queries, 40) == expected


def test_candidates_nearer_than_single_precision_tells_rank_by_id(monkeypatch):
    """Many candidates whose scores are equal in six decimals and differ in single precision."""
    random = torch.Generator().manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(1, 64, generator=random), dim=1)
    vectors = base + 1e-8 * torch.randn(400, 64, generator=random)
    queries = base.repeat(4, 1)
    ids = [f"{n * 7919 % 400:03}" for n in range(400)]
    expected = brute_force(ids, vectors, queries, 5)
    for make in KINDS:
        index = make()
        index.add(ids, vectors, "m")
        assert ranking(index, queries, 5) == expected


def test_rows_of_several_sources_keep_their_ids(tmp_path):
    fill(tmp_path, range(10))
    store = EmbeddingStore.open(tmp_path)
    index = MatrixIndex("m", candidate_block=3)
    rows = np.array([8, 1, 5])
    index.add(store.ids(rows), store, "m", rows)
    index.add(["1:70"], vectors_of([70]), "m")
    index.add(store.ids(rows - 1), store, "m", rows - 1)
    for number in (8, 1, 5, 70, 7, 0, 4):
        (found,) = index.run(["q"], vectors_of([number]), 1, "m").to_run()["q"]
        assert found.did == f"1:{number}"
        assert found.score == pytest.approx(1, abs=1e-3)
    with pytest.raises(DataError, match="1:8: id stands twice"):
        index.add(store.ids(rows), store, "m", rows)
    with pytest.raises(DataError, match="2 ids for 3 vectors"):
        index.add(["a", "b"], store, "m", rows)


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
    index = indexed(faiss_index("m", "IVF16,Flat", "nprobe=1"), clustered(700))
    run = index.run(["q"], clustered(1), 300, "m")
    assert 0 < len(run.rows) < 300
    assert np.isfinite(run.scores).all()


def test_factories_that_cannot_be(capfd):
    for factory, parameters in (("PQ7", ""), ("Nonsense", "")):
        index = indexed(faiss_index("m", factory, parameters), clustered(40))
        with pytest.raises(DataError, match=f"faiss cannot make '{factory}' '{parameters}' of 40"):
            index.search(clustered(1), 1)


@pytest.mark.parametrize("kind", ["exact", "IVF4,Flat", "milvus"])
def test_a_part_of_an_index_and_hits_left_out(tmp_path, kind):
    vectors, queries = clustered(200), clustered(3, seed=2)
    ids = [f"1:{n}" for n in range(200)]
    kind = f"milvus:{tmp_path / 'vectors.db'}" if kind == "milvus" else kind
    index = indexed(make_index(kind, "m", parameters="nprobe=4" if "IVF" in kind else ""), vectors)
    rows = np.array([9, 3, 150, 77, 31])
    want = brute_force([ids[row] for row in rows], vectors[rows], queries, 5)
    whole = brute_force(ids, vectors, queries, 200)
    assert ranking(index, queries, 7) == [hits[:7] for hits in whole]
    assert ranking(index.only(rows), queries, 5) == want
    # In the place of those left out come the next ones, as many as there are.
    without = {"0": whole[0][:3], "2": [whole[2][1], "9:9"]}
    run = index.run(["0", "1", "2"], queries, 7, "m", without).to_run()
    for qid, found in run.items():
        left = [did for did in whole[int(qid)] if did not in without.get(qid, ())]
        assert [hit.did for hit in found] == left[:7]
    if kind == "exact":
        assert ranking(index.only(rows).only(np.array([2])), queries, 5) == [["1:150"]] * 3
        deep = index.run(["0", "1", "2"], queries, 199, "m", without)
        assert [len(hits) for hits in deep.to_run().values()] == [197, 199, 199]


def test_a_query_that_cannot_be_searched_with():
    index = indexed(MatrixIndex("m"), clustered(5))
    with pytest.raises(DataError, match=r"query vector 1 is not finite \(1 such\)"):
        index.search(torch.tensor([[0.0] * 16, [torch.inf] * 16]), 1)
    with pytest.raises(MismatchError, match=r"shape \(16,\) in an index of 16 dimensions"):
        index.search(torch.ones(16), 1)
    assert index.search(torch.ones(0, 16), 2).rows.shape == (0, 2)


def test_an_empty_store_has_nothing_to_search(tmp_path):
    EmbeddingWriter(tmp_path, "m").finish()
    with pytest.raises(DataError, match="index is empty"):
        open_index(EmbeddingStore.open(tmp_path)).search(torch.ones(1, 3), 1)


# Milvus


def test_milvus_finds_what_exact_search_finds_and_keeps_its_vectors(tmp_path, capfd, monkeypatch):
    vectors, queries = clustered(400), clustered(9, seed=1)
    ids = [f"1:{n}" for n in range(400)]
    kind = f"milvus:{tmp_path / 'vectors.db'}"
    index = indexed(make_index(kind, "m"), vectors)
    assert ranking(index, queries, 5) == brute_force(ids, vectors, queries, 5)
    said = capfd.readouterr().err
    assert "is approximate: true recall@5 against exact search 1.0000" in said
    assert (index.recall[5].mean, index.recall[5].candidates) == (1, 400)
    again = indexed(make_index(kind, "m"), vectors)
    monkeypatch.setattr(milvus, "fill", None)  # what an earlier run has put in is found
    assert ranking(again, queries, 5) == ranking(index, queries, 5)
    monkeypatch.undo()
    other = indexed(make_index(kind, "m"), vectors[:300])
    assert ranking(other, queries, 5) == brute_force(ids[:300], vectors[:300], queries, 5)


def test_milvus_that_is_not_there_is_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"neither a file that ends in .db nor an address"):
        milvus_index("vectors")
    with pytest.raises(DataError, match="'nprobe=many' is no parameter of Milvus's search"):
        milvus_index("vectors.db", parameters="nprobe=many")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(EngineError, match=r"pip install 'reasoning-augmented-retrieval\[milvus\]'"):
        indexed(milvus_index(str(tmp_path / "vectors.db"), "m"), clustered(3)).build()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("narrowed"))


@pytest.fixture(scope="module")
def encoder(world):
    torch.manual_seed(0)
    return ClipScoreFusion(world.config)


def runs_of(world, encoder, **settings):
    data = MBeirData(str(world.root), on_bad_image="skip", test=SearchConfig(**settings))
    return evaluate(encoder, data, device="cpu")


def narrowed(world, results, depth, name, asked, own):
    """What is left of the whole ranking, by a plain loop."""
    plan = plan_test(DataRoot(world.root), "test", True, None, None)
    images = {query.item.id: query.item.image for task in plan.tasks for query in task.queries}
    kept = {}
    for qid, hits in results.runs[name].to_run().items():
        items = [(hit, plan.find(hit.did)) for hit in hits]
        kept[qid] = [
            hit
            for hit, item in items
            if item.modality in asked and (own or not item.image or item.image != images[qid])
        ][:depth]
    return kept


@pytest.mark.parametrize("index", ["exact", "HNSW8", "milvus"])
@pytest.mark.parametrize(
    ("task", "pool", "asked", "found"),
    [(0, "union", "image", 5), (3, "union", "text", 5), (3, "local", "text", 5)],
)
def test_as_many_results_as_there_are_of_the_asked_modality(
    world, encoder, tmp_path, index, task, pool, asked, found
):
    kind = f"milvus:{tmp_path / 'vectors.db'}" if index == "milvus" else index
    whole = runs_of(world, encoder, depth=100)
    name = (f"squares_task{task}", pool)
    few = runs_of(world, encoder, depth=5, index=kind, modality="asked")
    assert few.runs[name].to_run() == narrowed(world, whole, 5, name, {asked}, own=True)
    assert {len(hits) for hits in few.runs[name].to_run().values()} == {found}
    # The table says how many candidates were searched.
    sizes = {(row.task, row.pool): row.candidates for row in few.rows}
    assert sizes == {(0, "local"): 20, (0, "union"): 20, (3, "local"): 20, (3, "union"): 20}


@pytest.mark.parametrize("index", ["exact", "HNSW8"])
def test_the_next_one_comes_in_place_of_the_own_picture(world, encoder, index):
    whole = runs_of(world, encoder, depth=100)
    asked = {"text", "image", "image,text"}
    depth = 41 if index == "exact" else 10
    few = runs_of(world, encoder, depth=depth, index=index, own_picture="content")
    for name in whole.runs:
        found = few.runs[name].to_run()
        assert found == narrowed(world, whole, depth, name, asked, own=False)
    deep = {len(hits) for hits in few.runs["squares_task3", "union"].to_run().values()}
    assert deep == {min(depth, 40)}


def test_bm25_is_narrowed_the_same_way(tmp_path):
    pools = {
        1: [Item(f"7:{n}", f"star number {n}", (), "text") for n in range(1, 6)],
        2: [Item(f"7:{n}", f"star number {n}", (f"{n}.png",), "image,text") for n in range(6, 9)],
    }
    for task, items in pools.items():
        stem = f"mbeir_stars_task{task}"
        write_candidates(tmp_path / f"cand_pool/local/{stem}_cand_pool.jsonl", items)
        query = Query(Item(f"7:{task}", "which star", (), "text"), task, (items[0].id,))
        write_queries(tmp_path / f"query/test/{stem}_test.jsonl", [query])
    both, asked = (bm25(tmp_path, tmp_path / kind, modality=kind) for kind in ("any", "asked"))
    for task, items in pools.items():
        name, ids = (f"stars_task{task}", "union"), {item.id for item in items}
        hits = both.runs[name].to_run()[f"7:{task}"]
        assert {hit.did for hit in hits} == {f"7:{n}" for n in range(1, 9)}
        assert {hit.did for hit in asked.runs[name].to_run()[f"7:{task}"]} == ids
    assert asked.settings["modality"] == "asked"
