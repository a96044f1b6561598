"""Views: what an encoder sees, and the fingerprint that goes with it."""

import json
import pickle
from dataclasses import replace
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment import corpus
from augment.checks import UNSAID, Limits, checks_of
from augment.enrichment.pipeline import Options
from augment.errors import DataError, StoreError
from augment.files import digest
from augment.records import Enrichment, Item, Sampling
from augment.store import Scope, Store, runs
from augment.store.keys import Recipe
from augment.views import MARKS, open_view, render
from tests.fakes import write_root

RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})


@pytest.fixture
def folder(tmp_path):
    with Store(tmp_path) as store:
        store.save_recipe(RECIPE)
        for n, rejected in ((1, ""), (2, "refusal")):
            store.append(
                Enrichment(f"k{n}", f"1:{n}", f"new {n}", "p@1", "m", "r", rejected=rejected)
            )
            store.link(RECIPE.id, f"1:{n}", f"k{n}")
    return tmp_path


def item(n, text="old"):
    return Item(f"1:{n}", text, ("a.jpg",), "image,text" if text else "image")


def test_each_view(folder):
    append, replaced = (open_view("corpus", view, folder) for view in ("append", "replace"))
    assert append.text(item(1)) == "old\nnew 1"
    assert append.text(item(1, None)) == "new 1"
    assert replaced.text(item(1)) == "new 1"
    assert replaced.text(item(1, None)) == "new 1"
    for view in (append, replaced):
        assert view.text(item(2)) == "old", "a rejected text falls back"
        assert view.text(item(3)) == "old", "an absent text falls back"
        assert view.text(item(3, None)) is None
    assert append.enrichment("1:2").rejected == "refusal"


def test_a_mark_says_what_an_item_is_and_moves_the_fingerprint(folder):
    seen = {"[image,text] old\nnew 1"}
    for view in ("raw", "append", "replace"):
        plain, *marked = (open_view("corpus", view, folder, mark=mark) for mark in MARKS)
        assert plain.fingerprint == open_view("corpus", view, folder).fingerprint
        assert len({plain.fingerprint, *(one.fingerprint for one in marked)}) == len(MARKS)
        for mark, one in zip(list(MARKS)[1:], marked, strict=True):
            for some in (item(1), item(1, None), item(2), item(3), Item("1:1", "x", (), "text")):
                want = plain.text(some)
                assert one.text(some) == (want and f"{MARKS[mark][some.modality]} {want}")
                seen.discard(one.text(some))
            assert one.other("raw").text(item(1)) == f"{MARKS[mark]['image,text']} old"
            assert one.text(item(3, None)) is None
    assert not seen
    with pytest.raises(DataError, match="unknown mark 'long'; choose one of none, short, words"):
        open_view("corpus", mark="long")


@given(st.none() | st.text(), st.none() | st.text())
def test_laws_of_render(text, generated):
    assert render(text, generated, "raw") == text
    assert render(text, None, "append") == render(text, None, "replace") == text
    if generated:
        assert render(text, generated, "replace") == generated
        assert render(text, generated, "append").endswith(generated)
        assert render(text, generated, "append").startswith(((text or "").rstrip() and text) or "")


def test_raw_needs_and_depends_on_no_store(folder, tmp_path):
    fingerprint = open_view("corpus").fingerprint
    assert open_view("corpus", "raw", folder).fingerprint == fingerprint
    assert open_view("query", "raw", tmp_path / "absent").fingerprint == fingerprint
    assert open_view("corpus").text(item(1)) == "old"
    assert len(fingerprint) == 12


def test_fingerprint_follows_view_and_recipe(folder):
    first = {open_view("corpus", view, folder).fingerprint for view in ("raw", "append", "replace")}
    other = replace(RECIPE, prompts={"p": "p@2"})
    with Store(folder) as store:
        store.save_recipe(other)
    with pytest.raises(StoreError, match="not clear which"):
        open_view("corpus", "append", folder)
    runs.choose(folder, other.id)
    latest = open_view("corpus", "append", folder)
    old = open_view("corpus", "append", folder, RECIPE.id)
    assert latest.fingerprint not in first
    assert old.fingerprint in first
    assert latest.recipe["prompts"] == {"p": "p@2"}
    assert len(first) == 3


def test_texts_of_two_recipes_are_shown_together(folder, first_rules):
    """Captions and transcripts: in the order named, each under its own checks."""
    read = replace(RECIPE, prompts={"p": "ocr/text@1"})
    alone = prints(folder)
    with Store(folder) as store:
        store.save_recipe(read)
        for n, text, rejected in ((1, "Read 1. More.", ""), (2, "read 2", ""), (4, "read 4", ""),
                                  (5, "", ""), (6, "no", "too long")):  # fmt: skip
            store.append(
                Enrichment(f"r{n}", f"1:{n}", text, "ocr/text@1", "m", "r", rejected=rejected)
            )
            store.link(read.id, f"1:{n}", f"r{n}")
    name = f"{RECIPE.id}+{read.id}"
    both, turned = (
        open_view("corpus", "append", folder, one) for one in (name, f"{read.id}+{RECIPE.id}")
    )
    seen = [both.text(item(n)) for n in (1, 2, 3, 4, 5, 6)]
    shown = ["new 1\nRead 1. More.", "read 2", "", "read 4", "", ""]
    assert seen == [f"old\n{text}" if text else "old" for text in shown]
    assert turned.text(item(1)) == "old\nRead 1. More.\nnew 1"
    short = open_view("corpus", "replace", folder, name, "short")
    assert short.text(item(1)) == "new 1\nRead 1."
    assert pickle.loads(pickle.dumps(both)).text(item(4)) == "old\nread 4"  # noqa: S301 - our own
    assert [one["id"] for one in both.recipes] == [RECIPE.id, read.id]
    assert both.enrichment("1:6").rejected == "too long"
    one = open_view("corpus", "append", folder, RECIPE.id)
    assert one.fingerprint == alone, "what checkpoints remember"
    before = both.fingerprint
    assert len({before, turned.fingerprint, short.fingerprint, alone}) == 4
    run(folder, STRICT, recipe=read)
    assert open_view("corpus", "append", folder, name).fingerprint != before
    assert open_view("corpus", "append", folder, RECIPE.id).fingerprint == alone
    run(folder, STRICT)
    assert open_view("corpus", "append", folder, name).other("raw").text(item(1)) == "old"
    with pytest.raises(DataError, match="twice"):
        open_view("corpus", "append", folder, f"{read.id}+{read.id}")
    with pytest.raises(StoreError, match="no corpus recipe x"):
        open_view("corpus", "append", folder, f"{read.id}+x")


def run(folder, limits, ends=True, shard="", recipe=RECIPE):
    """A run under some limits, as the commands note it."""
    with Store(folder) as store:
        checks = checks_of(limits, []) if limits else {}
        record = store.begin(recipe, Scope(shard=shard, checks=checks))
        if ends:
            store.finish(record, {})


STRICT, LOOSE = Limits(slack=0.5), Limits(keep=False)


def prints(folder):
    return open_view("corpus", "append", folder).fingerprint


@pytest.fixture
def first_rules(monkeypatch):
    """Texts judged by other rules than the first are other texts."""
    monkeypatch.setattr(import_module("augment.checks.judge"), "RULES", UNSAID["rules"])


def test_fingerprint_follows_the_limits_of_the_checks(folder, first_rules):
    before = prints(folder)
    run(folder, None)  # by a version that did not note them
    run(folder, Limits())
    assert prints(folder) == before, "what goes without saying changes no checkpoint"
    run(folder, STRICT)
    strict = prints(folder)
    run(folder, LOOSE, ends=False)
    mixed = prints(folder)
    run(folder, LOOSE)
    loose = prints(folder)
    assert len({before, strict, mixed, loose}) == 4
    view = open_view("corpus", "append", folder)
    assert view.checks == [{"keep": False}]
    assert view.other("append").fingerprint == loose
    assert pickle.loads(pickle.dumps(view)).fingerprint == loose  # noqa: S301 - our own
    run(folder, STRICT, shard="0/2")
    assert prints(folder) == mixed, "the same two, whichever came first"
    run(folder, STRICT, shard="1/2")
    assert prints(folder) == strict
    run(folder, Limits())
    assert prints(folder) == before
    run(folder, LOOSE, recipe=replace(RECIPE, prompts={"p": "p@2"}))
    assert open_view("corpus", "append", folder, RECIPE.id).fingerprint == before
    assert open_view("corpus", "raw", folder).fingerprint == open_view("corpus").fingerprint


def test_fingerprints_of_checkpoints_stay_what_they_are(folder, first_rules):
    """Written down here, because checkpoints remember them."""
    run(folder, Limits(**{name: value for name, value in UNSAID.items() if name != "rules"}))
    assert prints(folder) == digest({"view": "append", "recipe": RECIPE.id})[:12]
    assert open_view("corpus").fingerprint == digest({"view": "raw", "recipe": ""})[:12]


def test_two_views_that_show_different_text_have_different_fingerprints(tmp_path):
    """From the command to the view: the same store, judged under other limits."""
    root = tmp_path / "root"
    (one,) = write_root(root, Item("1:1", "entry", ("i/1.png",), "image,text"))
    (tmp_path / "a.json").write_text(json.dumps(["A flag of two red bands over one green band."]))
    seen = {}
    for limits in (Limits(), Limits(slack=0.05), Limits()):
        options = Options(model=f"scripted:{tmp_path / 'a.json'}", limits=limits)
        corpus.run(root, tmp_path / "s", options=options)
        view = open_view("corpus", "append", tmp_path / "s")
        text = view.text(one)
        assert seen.setdefault(view.fingerprint, text) == text
    assert len(seen) == len(set(seen.values())) == 2


def test_errors_say_what_to_do(folder, tmp_path):
    with pytest.raises(DataError, match="name the store"):
        open_view("corpus", "append")
    with pytest.raises(DataError, match="raw, append, replace"):
        open_view("corpus", "sideways", folder)
    with pytest.raises(StoreError, match=r"python -m augment\.corpus"):
        open_view("corpus", "append", tmp_path / "absent")
    with pytest.raises(ValueError, match="unknown view"):
        render("a", "b", "sideways")
