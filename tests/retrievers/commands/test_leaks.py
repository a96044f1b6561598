"""The audit of leaks, on squares whose texts are leaky by construction."""

import json

import pytest

from augment import queries
from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.engines.scripted import ScriptedEngine
from augment.errors import DataError
from augment.store import Store
from retrievers.cli import main
from retrievers.commands.leaks import audit_leaks
from retrievers.data.plan import plan_test
from retrievers.models.load import load
from retrievers.vectors.embed import embed_contents
from tests.retrievers.models.test_retriever import COLOURS


@pytest.fixture(scope="module")
def written(root, tmp_path_factory):
    """A store of two recipes: one says colour and number of the square, one the colour alone."""
    store = tmp_path_factory.mktemp("texts")
    ids = {f"7:{20 + n + 1}": n for n in range(20)}
    texts = {
        "seen": {qid: f"{COLOURS[n % 5]} number {n}" for qid, n in ids.items()},
        "alone": {qid: f"a {COLOURS[n % 5]} square, is it so" for qid, n in ids.items()},
    }
    recipes = {}
    for name, answers in texts.items():
        engine = ScriptedEngine(answers, root=root, model=name)
        queries.run(root, store, engine=engine)
        recipes[name] = next(r.id for r in Store(store).recipes("query") if r.model == name)
    return store, recipes


def test_texts_that_saw_the_target_are_told_from_those_that_did_not(root, written):
    store, recipes = written
    audit = audit_leaks(root, store, recipes["seen"], recipes["alone"], most=10.0)
    rows = {(row.recipe, row.split): row for row in audit.rows}
    leaky, honest = rows[recipes["seen"], "train"], rows[recipes["alone"], "train"]
    # 20 queries; a number finds its text and one colour of four texts finds the first of them.
    told, other = leaky.to_json(), honest.to_json()
    assert (told["queries"], other["queries"]) == (20, 20)
    assert (told["published"], told["generated"], told["gain"].mean) == (0, 1, 1)
    assert other["generated"] == pytest.approx(5 / 20)
    # "red number", and "number 12" where the number is two digits long and so a word.
    assert (leaky.shared, honest.shared) == (1, 0)
    assert leaky.by_chance < 0.1
    assert rows[recipes["seen"], "test"].to_json()["queries"] == 8
    assert audit.excess["train"].mean == pytest.approx(0.75)
    assert audit.gaps[recipes["seen"]].mean == 0
    assert audit.leaking == ["train", "test"]
    assert not audit_leaks(root, store, recipes["alone"], most=30.0).leaking


def test_an_encoder_of_texts_is_asked_the_same_by_vectors(root, written):
    """Against a loop over all texts of the pool; pictures have none and are not found."""
    store, recipes = written
    audit = audit_leaks(
        root, store, recipes["seen"], recipes["alone"], model="flagland-clip", most=10.0
    )
    encoder, data = load("flagland-clip"), DataRoot(root)
    seen = 0
    for row in audit.rows:
        texts = Store(store).texts("query", row.recipe)
        for task in plan_test(data, row.split, False, None, None).tasks:
            pool = [item for item in open_candidates(data.pool_for("squares", task.task, row.split))
                    if item.text]  # fmt: skip
            asked = [query for query in task.queries if query.item.id in texts]
            if not pool or not asked:
                continue
            told = [texts[query.item.id].text for query in asked]
            found = embed_contents(encoder, [(text, None) for text in told], "query")
            wanted = embed_contents(encoder, [(one.text, None) for one in pool], "corpus")
            for query, best in zip(asked, (found @ wanted.T).argmax(1).tolist(), strict=True):
                hit = row.vectors[1][task.name][query.item.id]
                assert hit == (pool[best].id in query.positives), query
                seen += 1
    assert seen == 56
    assert {"train", "train by vectors"} <= set(audit.excess)
    assert "by vectors, " in str(audit)


def test_the_command_is_a_gate(root, written, tmp_path, capsys):
    store, recipes = written
    said = ["leaks", f"--root={root}", f"--store={store}", f"--recipe={recipes['seen']}",
            f"--other_recipe={recipes['alone']}", f"--out={tmp_path / 'leaks.json'}"]  # fmt: skip
    assert main([*said, "--most=50"]) == 1
    assert "leak: above 50 in train" in capsys.readouterr().out
    assert json.loads((tmp_path / "leaks.json").read_text())["leaking"] == ["train", "test"]
    assert main(said) == 0


def test_a_recipe_without_texts_is_refused(root, written):
    store, recipes = written
    with pytest.raises(DataError, match="no query of train, test has a text"):
        audit_leaks(root, store, recipes["seen"], tasks=[0])
