"""A budget for captions: told to the model, checked, part of the recipe."""

from dataclasses import replace

import pytest

from augment import corpus
from augment.checks import judge
from augment.data.tokens import clip_token_counter
from augment.enrichment.pipeline import Options
from augment.errors import DataError
from augment.prompts import load_prompt, within
from augment.records import Item, Reply
from augment.store import Store
from tests.retrievers.models.test_retriever import make_root


def test_budgets_are_read():
    long = replace(load_prompt("rar/corpus"), max_words=900)
    read = {" 45 words ": (45, None), "1 Word": (1, None), "77 tokens": (62, 77), "": (900, None)}
    for text, limits in read.items():
        made = within(long, text)
        assert (made.max_words, made.max_tokens) == limits
    assert within(within(long, "77 tokens"), "99 tokens").max_tokens == 77
    for text in ("45", "many words", "-3 words", "3 tokens", "0 words"):
        with pytest.raises(DataError, match="budget"):
            within(long, text)


def test_prompt_tells_the_words_and_the_check_counts_the_tokens():
    plain = load_prompt("rar/corpus")
    words, tokens = within(plain, "10 words"), within(plain, "14 tokens")
    assert within(plain, "") is plain
    assert len({plain.id, words.id, tokens.id}) == 3
    assert "in at most 10 words" in words.render(Item("1:1", None, ("a.jpg",), "image")).text
    assert tokens.max_words == 10
    # A budget never loosens, and rewrites are held to their question, not to a length.
    assert within(plain, "500 words").max_words == plain.max_words
    assert within(load_prompt("rar/question"), "10 words") == load_prompt("rar/question")
    text = "A flag with extraordinarily picturesque vermilion ornamentation everywhere."
    assert clip_token_counter()(text) > 14
    assert judge(Reply(text), words).rejected == ""
    found = judge(Reply(text), tokens)
    assert found.rejected == f"too long: {clip_token_counter()(text)} tokens, 14 allowed"
    assert found.scores["tokens"] == clip_token_counter()(text)
    assert judge(Reply("A red flag with a star."), tokens).rejected == ""
    assert "tokens" not in judge(Reply(text), plain).scores


def test_budget_from_the_command_line(tmp_path):
    root, store = make_root(tmp_path / "root"), tmp_path / "store"
    given = ["--root", str(root), "--store", str(store), "--model", "scripted:"]
    assert corpus.command(given) == 0
    assert corpus.command([*given, "--budget", "20 words"]) == 0
    corpus.run(root, store, budget="20 words", options=Options(model="scripted:"))
    recipes = Store(store).recipes("corpus")
    assert {recipe.prompts["rar/corpus"] for recipe in recipes} == {
        load_prompt("rar/corpus").id,
        within(load_prompt("rar/corpus"), "20 words").id,
    }
