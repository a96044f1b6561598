"""status, verify, merge and diff."""

import json

import pytest

from augment.__main__ import main
from augment.errors import StoreError
from augment.records import Enrichment, Sampling
from augment.store import Failure, Scope, Store
from augment.store.keys import Recipe
from augment.store.runs import load_runs
from augment.store.upkeep import merge, verify

ONE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})
TWO = Recipe("corpus", {"p": "p@2"}, "m", "r", {"p": Sampling()}, {"image": "p"})


def fill(folder, numbers, recipe=ONE, word="text", seal_rows=10):
    with Store(folder, seal_rows=seal_rows) as store:
        run = store.begin(recipe, Scope())
        for n in numbers:
            key = f"{recipe.id}{n}"
            store.append(
                Enrichment(key, f"1:{n}", f"{word} {n}", "p@1", "m", "r",
                           rejected="repetition" if n == 3 else "")
            )  # fmt: skip
            store.link(recipe.id, f"1:{n}", key)
        store.fail(recipe.id, Failure("1:99", "a.jpg", "corrupt: a.jpg: broken"))
        store.finish(run, {"generated": len(numbers)})
    return folder


def texts(folder, recipe=ONE):
    return {item: t.text for item, t in Store(folder).texts("corpus", recipe.id).items()}


def run(*arguments):
    return main([str(part) for part in arguments])


def test_verify_names_a_damaged_segment(tmp_path, capsys):
    """That every flipped bit is found: test_damage."""
    fill(tmp_path, range(40))
    assert run("verify", "--store", tmp_path) == 0
    assert "all is well" in capsys.readouterr().out
    path = sorted((tmp_path / "texts").glob("*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-9])
    assert run("verify", "--store", tmp_path) == 3
    told = capsys.readouterr().out
    assert "damaged segment" in told
    assert str(path) in told
    assert run("verify", "--store", tmp_path / "absent") == 2


def test_verify_finds_links_without_a_text_and_edited_recipes(tmp_path):
    fill(tmp_path, range(40))
    with Store(tmp_path) as store:
        store.link(ONE.id, "1:77", "no such key")
    assert verify(tmp_path).problems == {"link without a text": [f"1:77 under {ONE.id}"]}
    path = tmp_path / "recipes" / f"corpus-{ONE.id}.json"
    path.write_text(path.read_text().replace('"m"', '"n"'))
    assert "recipe" in verify(tmp_path).problems


def test_merge_joins_and_merging_again_adds_nothing(tmp_path, capsys):
    a, b, c = fill(tmp_path / "a", range(20)), fill(tmp_path / "b", range(10, 30)), tmp_path / "c"
    fill(b, range(5), TWO, "other")
    assert run("merge", "--into", c, a, b) == 0
    assert "added 35 texts" in capsys.readouterr().out
    assert texts(c) == {f"1:{n}": f"text {n}" for n in range(30)}
    assert texts(c, TWO) == texts(b, TWO)
    assert Store(c).get(f"{ONE.id}7") == Store(a).get(f"{ONE.id}7")
    assert set(Store(c).failures("corpus", ONE.id)) == {"1:99"}
    assert len(load_runs(c)) == 3
    assert run("merge", "--into", c, b, a) == 0
    assert "added 0 texts, 0 links, 0 failures" in capsys.readouterr().out
    assert run("verify", "--store", c) == 0
    segment = sorted((a / "texts").glob("*.parquet"))[0]
    segment.write_bytes(segment.read_bytes()[:50])
    with pytest.raises(StoreError, match="damaged"):
        merge(tmp_path / "d", [b, a])
    assert not (tmp_path / "d").exists()


def test_diff_of_recipes_and_of_stores(tmp_path, capsys):
    a, b = fill(tmp_path / "a", range(5)), fill(tmp_path / "b", range(1, 6), ONE)
    fill(a, range(5), TWO, "other")
    assert run("diff", "--store", a, "--recipe", ONE.id, "--other-recipe", ONE.id) == 0
    assert run("diff", "--store", a, "--recipe", ONE.id, "--other-recipe", TWO.id) == 1
    out = capsys.readouterr().out
    assert "@ 1:0\n- text 0\n+ other 0\n" in out
    assert run("diff", "--store", a, "--other-store", b, "--recipe", ONE.id, "--json") == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(f["item"], f["before"] is None, f["after"] is None) for f in found] == [
        ("1:0", False, True),
        ("1:5", True, False),
    ]
    assert "2 of 5 and 5 items differ" in err


def test_status_counts_names_and_chooses(tmp_path, capsys):
    fill(tmp_path, range(12))
    fill(tmp_path, range(4), TWO)
    assert run("status", "--store", tmp_path, "--failures") == 0
    out = capsys.readouterr().out
    assert f"corpus recipe {ONE.id}: complete" in out
    assert "12 items with a text (refused: 1 repetition)" in out
    assert "1 failed (1 corrupt)" in out
    assert "1:99 (a.jpg): corrupt: a.jpg: broken" in out
    with pytest.raises(StoreError, match="not clear which"):
        Store(tmp_path).recipe("corpus")
    assert run("status", "--store", tmp_path, "--choose", TWO.id, "--json") == 0
    assert Store(tmp_path).recipe("corpus") == TWO
    assert {one["recipe"] for one in json.loads(capsys.readouterr().out)} == {ONE.id, TWO.id}
    assert run("status", "--store", tmp_path, "--choose", "nonsense") == 2
    assert run("status", "--store", tmp_path / "absent") == 2
