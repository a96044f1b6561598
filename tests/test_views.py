"""Views: what an encoder sees, and the fingerprint that goes with it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.errors import DataError, StoreError
from augment.keys import Recipe
from augment.records import Enrichment, Item, Sampling
from augment.store import Store
from augment.views import open_view, render

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
    return Item(f"1:{n}", text, "a.jpg", "image,text" if text else "image")


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
    Store(folder).choose("corpus", other.id)
    latest = open_view("corpus", "append", folder)
    old = open_view("corpus", "append", folder, RECIPE.id)
    assert latest.fingerprint not in first
    assert old.fingerprint in first
    assert latest.recipe["prompts"] == {"p": "p@2"}
    assert len(first) == 3


def test_errors_say_what_to_do(folder, tmp_path):
    with pytest.raises(DataError, match="name the store"):
        open_view("corpus", "append")
    with pytest.raises(DataError, match="raw, append, replace"):
        open_view("corpus", "sideways", folder)
    with pytest.raises(StoreError, match=r"python -m augment\.corpus"):
        open_view("corpus", "append", tmp_path / "absent")
    with pytest.raises(ValueError, match="unknown view"):
        render("a", "b", "sideways")
