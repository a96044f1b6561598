"""The store: content-addressed, append-only, and whole after any crash."""

import json
import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.errors import StoreError
from augment.keys import Recipe, text_key
from augment.records import Enrichment, Request, Sampling
from augment.store import Failure, Store

RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})


def text(key, body="a text", **fields):
    return Enrichment(key, "1:1", body, "p@1", "m", "r", **fields)


def wal(folder):
    return sorted((folder / "wal").glob("*.jsonl"))


def test_what_was_written_is_read_back(tmp_path):
    written = text("k", 'quotes " and \n lines, ü, 旗, \ud800', sampling=Sampling(7, 0.5, 0.9, 3))
    written = replace(written, finish="length", rejected="truncated", prompt_tokens=4)
    with Store(tmp_path / "s") as store:
        store.save_recipe(RECIPE)
        store.append(written)
        store.link(RECIPE.id, "1:1", "k")
        store.link(RECIPE.id, "1:2", "k")
    again = Store(tmp_path / "s")
    assert again.get("k") == written
    assert dict(again.texts("corpus")) == {"1:1": written, "1:2": written}
    assert again.recipe("corpus") == RECIPE
    assert len(again) == 1
    assert again.damaged == []


def test_an_empty_store_makes_no_folder(tmp_path):
    with Store(tmp_path / "s") as store:
        assert len(store) == 0
        assert store.get("k") is None
    assert not (tmp_path / "s").exists()


def test_knowing_writes_nothing(tmp_path):
    for _ in range(3):
        with Store(tmp_path) as store:
            store.append(text("k"))
            store.append(text("k", "another"))
            store.link(RECIPE.id, "1:1", "k")
    assert len(wal(tmp_path)) == 1
    assert wal(tmp_path)[0].read_text().count("\n") == 2
    assert Store(tmp_path).get("k").text == "a text"


def test_cut_anywhere_every_whole_record_survives(tmp_path):
    with Store(tmp_path / "whole") as store:
        for n in range(4):
            store.append(text(f"k{n}", f"text {n} ü"))
    data = wal(tmp_path / "whole")[0].read_bytes()
    cut = tmp_path / "cut"
    (cut / "wal").mkdir(parents=True)
    torn = cut / "wal" / "a.jsonl"
    for length in range(len(data) + 1):
        torn.write_bytes(data[:length])
        store = Store(cut)
        # A record without its newline may be whole; anything else that is cut is not there.
        whole = data[:length].count(b"\n")
        whole += length < len(data) and data[length : length + 1] == b"\n"
        assert {t.key for t in store} == {f"k{n}" for n in range(whole)}
        assert store.damaged == []


def test_what_follows_a_torn_line_is_not_glued_to_it(tmp_path):
    with Store(tmp_path) as store:
        store.append(text("k0"))
        store.append(text("k1"))
    path = wal(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-20])
    with Store(tmp_path) as store:
        assert store.get("k1") is None
        store.append(text("k1"))
    assert {t.key for t in Store(tmp_path)} == {"k0", "k1"}


def test_a_rotten_line_is_named_and_only_its_text_is_lost(tmp_path, caplog):
    with Store(tmp_path) as store:
        for n in range(3):
            store.append(text(f"k{n}"))
    path = wal(tmp_path)[0]
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\x00" * len(lines[1])
    path.write_bytes(b"\n".join(lines))
    store = Store(tmp_path)
    assert {t.key for t in store} == {"k0", "k2"}
    assert store.damaged == [f"{path}:2"]
    assert f"{path}:2" in caplog.text


def test_two_writers_and_every_reader_agrees(tmp_path):
    with Store(tmp_path) as one, Store(tmp_path) as two:
        one.append(text("k", "earlier"))
        two.append(text("k", "later"))
        one.link(RECIPE.id, "1:1", "old")
        two.link(RECIPE.id, "1:1", "k")
        one.append(text("only one"))
        two.append(text("only two"))
    assert len(wal(tmp_path)) == 2
    for names in (("a", "b"), ("d", "c")):
        for path, name in zip(wal(tmp_path), names, strict=True):
            path.rename(path.with_name(f"x{name}.jsonl"))
        store = Store(tmp_path)
        assert store.get("k").text == "earlier"
        assert store.key_of(RECIPE.id, "1:1") == "k"
        assert len(store) == 3


def test_recipes_live_side_by_side_and_the_last_one_counts(tmp_path):
    other = replace(RECIPE, prompts={"p": "p@2"})
    assert other.id != RECIPE.id
    with Store(tmp_path) as store:
        for recipe, key in ((RECIPE, "k1"), (other, "k2")):
            store.save_recipe(recipe)
            store.append(text(key, key))
            store.link(recipe.id, "1:1", key)
        assert store.texts("corpus")["1:1"].text == "k2"
        assert store.texts("corpus", RECIPE.id)["1:1"].text == "k1"
        store.save_recipe(RECIPE)
        assert store.texts("corpus")["1:1"].text == "k1"
        with pytest.raises(StoreError, match=r"augment\.queries"):
            store.texts("query")
        with pytest.raises(StoreError, match=RECIPE.id):
            store.texts("corpus", "0" * 12)


def test_an_edited_recipe_is_refused(tmp_path):
    store = Store(tmp_path)
    store.save_recipe(RECIPE)
    path = tmp_path / "recipe-corpus.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "other"}))
    with pytest.raises(StoreError, match="does not fit"):
        store.recipe("corpus")


def test_failures_are_kept_until_mended(tmp_path):
    with Store(tmp_path) as store:
        store.save_recipe(RECIPE)
        store.fail(RECIPE.id, Failure("1:1", "a.jpg", "corrupt: a.jpg"))
        store.fail(RECIPE.id, Failure("1:2", None, "engine: gone"))
        store.append(text("k"))
        store.link(RECIPE.id, "1:1", "k")
    assert set(Store(tmp_path).failures("corpus")) == {"1:2"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "s").append(text("k"))


def test_a_full_disk_says_so_and_the_next_write_starts_a_new_file(tmp_path, monkeypatch):
    store = Store(tmp_path, sync_seconds=0)
    store.append(text("k0"))
    with monkeypatch.context() as patch:
        patch.setattr("augment.store.os.fsync", _full)
        with pytest.raises(StoreError, match="No space left"):
            store.append(text("k1"))
    store.append(text("k2"))
    store.close()
    assert len(wal(tmp_path)) == 2
    assert {"k0", "k2"} <= {t.key for t in Store(tmp_path)}


def _full(_):
    raise OSError(28, "No space left on device")


WORDS = st.text(max_size=8)


@given(WORDS, WORDS, WORDS, WORDS)
def test_item_and_path_do_not_count(system, body, one, two):
    def key(item, image):
        return text_key(Request(item, system, body, image), "hash", "m", "r", Sampling(), {})

    assert key(one, f"{one}.jpg") == key(two, f"{two}.jpg")


def test_everything_that_changes_the_answer_counts():
    base = (Request("1:1", "s", "t", "a"), "hash", "m", "r", Sampling(), {})
    changed = [
        (0, Request("1:1", "s2", "t", "a")),
        (0, Request("1:1", "s", "t2", "a")),
        (1, "other"),
        (1, None),
        (2, "m2"),
        (3, "r2"),
        (4, Sampling(max_new_tokens=2)),
        (4, Sampling(temperature=0.1)),
        (4, Sampling(top_p=0.1)),
        (4, Sampling(seed=1)),
        (5, {"max_pixels": 9}),
    ]
    keys = [text_key(*base[:at], value, *base[at + 1 :]) for at, value in changed]
    assert len({text_key(*base), *keys}) == len(changed) + 1
