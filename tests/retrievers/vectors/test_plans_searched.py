"""The test of a root, narrowed: by the asked modality and without the query's own picture."""

import pytest
import torch

from augment.data import DataRoot, write_candidates, write_queries
from augment.records import Item, Query
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.data.plan import plan_test
from retrievers.models.clip import ClipScoreFusion
from retrievers.vectors.bm25 import bm25
from retrievers.vectors.search import test as evaluate
from tests.worlds import World


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
