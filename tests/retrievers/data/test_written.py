"""What a model is taught to write: from a store to the examples of training, and no further."""

import pytest

from augment.data.pools import open_candidates
from augment.enrichment import pipeline
from augment.enrichment.pipeline import Options
from augment.errors import DataError, MismatchError
from augment.prompts import load_prompt
from augment.store import Store
from augment.store.keys import Recipe
from retrievers.data.module import MBeirData
from retrievers.data.texts import WrittenConfig, check_recipe
from tests.worlds import World

SEEING = """---
name: test/seeing
version: 1
kind: caption
side: query
shows_image: {shows}
target_seen: {seen}
max_words: 50
max_new_tokens: 64
---
You write.
---
Asked: {{{{ text }}}} Wanted: {{{{ target }}}}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("written"))


def examples(world, **written):
    data = MBeirData(str(world.root), written=WrittenConfig(**written), seed=3)
    pairs, _ = data.training(world.retriever.collator())
    return data, [pairs[key].query for key in range(len(pairs))]


def test_training_writes_what_the_store_has_and_nothing_where_it_has_none(world, tmp_path):
    texts = {
        name: text.text
        for name, text in Store(world.store).texts("query").items()
        if not text.rejected
    }
    data, taught = examples(world, store=str(world.store))
    assert [one.written for one in taught] == [texts.get(one.id, "") for one in taught]
    assert {bool(one.written) for one in taught} == {True, False}
    told = next(one.id for one in taught if one.written)
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{told}\tby hand\n9:9\n")
    some, fewer = examples(world, store=str(world.store), only=str(ids))
    assert [one.id for one in fewer if one.written] == [told]
    plain, silent = examples(world)
    assert {one.written for one in silent} == {None}
    # A test asks the query alone.
    query, target = plain.test_plan().queries[0]
    reader = data.reader(world.retriever.collator())
    assert reader.query(query, target).written is None
    # Weights may be tested anywhere, and their training goes on with the same texts alone.
    trained = [one.recipe.trained for one in (data, some, plain)]
    assert len({str(one) for one in trained}) == 3
    assert data.describe()["written_recipe"]["id"] == Store(world.store).recipe("query").id
    check_recipe(trained[0], plain.recipe.fingerprint, allow=False)
    for one in trained[1:]:
        with pytest.raises(MismatchError, match="written: trained on"):
            check_recipe(trained[0], one, allow=False, exact=True)
        with pytest.raises(MismatchError, match="written"):
            check_recipe(one, trained[0], allow=False, exact=True)
    with pytest.raises(DataError, match=r"name data\.written\.store"):
        WrittenConfig(only=str(ids)).open()
    ids.write_text("\n")
    with pytest.raises(DataError, match="holds no id"):
        WrittenConfig(str(world.store), only=str(ids)).open()


def test_a_prompt_that_sees_the_target_says_so_in_its_recipe(world, tmp_path):
    prompt = tmp_path / "seeing.md"
    prompt.write_text(SEEING.format(shows="true", seen="true"))
    from augment import queries

    store = tmp_path / "store"
    named = {"image_prompt": str(prompt), "question_prompt": None, "modification_prompt": None}
    plan = queries.plan(world.root, split=("train",), text_prompt=None, **named)
    jobs = [job for job in plan.jobs if job.prompt]
    known = {
        one.id: one.text
        for path in (world.root / "cand_pool").rglob("*.jsonl")
        for one in open_candidates(path)
    }
    assert jobs
    for job in jobs:
        assert job.target.text == known[job.target.id]
        request = job.prompt.render(job.item, job.target)
        assert request.images == job.item.images
    options = Options(model="scripted:")
    pipeline.carry_out(
        queries.plan(world.root, split=("train",), text_prompt=None, **named),
        world.root, store, options,
    )  # fmt: skip
    recipe = Store(store).recipe("query")
    assert recipe.target_seen
    assert Recipe.from_json(recipe.to_json()) == recipe
    # Older recipes keep their ids: that none was seen goes without saying.
    assert "target_seen" not in Store(world.store).recipe("query").to_json()
    prompt.write_text(SEEING.format(shows="target", seen="true"))
    shown = load_prompt(str(prompt)).render(jobs[0].item, jobs[0].target)
    assert shown.images == jobs[0].target.images
    prompt.write_text(SEEING.format(shows="target", seen="false"))
    with pytest.raises(DataError, match="needs target_seen"):
        load_prompt(str(prompt))
