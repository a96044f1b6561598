"""Several lengths from one answer: whatever the model wraps around them, and how views choose."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment import corpus
from augment.checks import judge
from augment.checks.lengths import ASKED, derive, parse_lengths
from augment.enrichment.pipeline import Options
from augment.errors import DataError
from augment.prompts import load_prompt
from augment.records import Item, Reply
from augment.store import Store
from augment.views import open_view
from tests.fakes import write_root

WANTED = {
    "short": "a red flag",
    "dense": "A red flag. It has two stars.",
    "sentences": "A red flag.\nIt has two stars.",
}
GOOD = json.dumps({**WANTED, "sentences": ["A red flag.", "It has two stars."]})
#: Of the prompts that the packaged model was trained on.
HASHES = {
    "rar/corpus": "a0582de92515",
    "rar/image_query": "bb0f28ed5ade",
    "rar/modification": "187e327ea37f",
    "rar/modification_shown": "9b7f2e515894",
    "rar/question": "309be847fd0e",
}
LISTED = '"sentences": ["A red flag.", "It has two stars."]'


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Sure, here is the JSON:\n```\n{GOOD}\n```\nLet me know if you need more!",
        f"<think>{{}}? no.</think>{GOOD}",
        f"{GOOD}\n\nI hope this helps.",
        GOOD[:-1] + ",}",
        GOOD.replace("]}", ",]}"),
        GOOD.replace('"', "'"),
        GOOD.replace('"short"', "short").replace('"dense"', "Dense"),
        GOOD[:-1],
        GOOD[:-3],
        GOOD.replace(", ", ",\n  "),
        f"[{GOOD}]",
        json.dumps({**WANTED, "extra": 1}),
        "<short>a red flag</short>\n<dense>A red flag. It has two stars.</dense>\n"
        "<sentences>\n- A red flag.\n- It has two stars.\n</sentences>",
        "<short>a red flag<dense>A red flag. It has two stars.<sentences>A red flag.\n"
        "It has two stars.",
        "Short: a red flag\nDense: A red flag. It has two stars.\n"
        "Sentences:\n1. A red flag.\n2. It has two stars.",
        "## **Short:** a red flag\n## **Dense:** A red flag. It has two stars.\n"
        "## **Sentences:**\n* A red flag.\n* It has two stars.",
    ],
)
def test_every_wrapping_is_read(answer):
    assert parse_lengths(answer) == (WANTED, ())


@pytest.mark.parametrize(
    ("answer", "derived"),
    [
        ('{"short": "a red flag", "dense": "A red flag. It has two stars."}', ("sentences",)),
        (f'{{"short": "a red flag", {LISTED}}}', ("dense",)),
        ('{"short": "a red flag", "dense": null, ' + LISTED + "}", ("dense",)),
        ('{"short": "a red flag", "dense": "A red flag. It has two st', ("sentences",)),
        ("A red flag. It has two stars.", ("short", "sentences")),
        ('{"dense": 7}', ASKED),
        ("", ASKED),
        ("{", ASKED),
    ],
)
def test_missing_parts_are_derived(answer, derived):
    lengths, missing = parse_lengths(answer)
    assert missing == derived
    assert set(lengths) == set(ASKED)
    if "stars." in answer:
        assert lengths["sentences"] == WANTED["sentences"]
        assert lengths["dense"] == WANTED["dense"]


@given(st.text(alphabet='{}[]",:\\ \nadenorsthc<>/', max_size=60))
def test_no_answer_breaks_the_reader(answer):
    lengths, _ = parse_lengths(answer)
    assert set(lengths) == set(ASKED)


def test_derived_lengths():
    text = "A flag. It has 2.5 stripes and St. George's cross! Two stars."
    assert derive(text, "short") == "A flag."
    assert derive(text, "sentences").count("\n") >= 2
    assert derive(derive(text, "sentences"), "dense") == text
    assert derive("no full stop", "short") == "no full stop"


def test_a_verdict_judges_the_dense_text_and_mends_the_others():
    prompt = load_prompt("rar/corpus_lengths")
    verdict = judge(Reply(GOOD), prompt)
    assert (verdict.text, verdict.rejected) == (WANTED["dense"], "")
    assert verdict.lengths == WANTED
    assert verdict.raw == GOOD
    bad = json.dumps({**WANTED, "short": "I'm sorry, I can't help."})
    mended = judge(Reply(bad), prompt)
    assert (mended.rejected, mended.lengths["short"]) == ("", "A red flag.")
    refused = judge(Reply(json.dumps({**WANTED, "dense": "I'm sorry, I can't help."})), prompt)
    assert refused.rejected == "refusal"


def test_views_choose_a_length(tmp_path):
    root = tmp_path / "root"
    (item,) = write_root(root, Item("1:1", "entry", ("i/1.png",), "image,text"))
    (tmp_path / "a.json").write_text(json.dumps([f"```json\n{GOOD}\n```"]))
    options = Options(model=f"scripted:{tmp_path / 'a.json'}")
    corpus.run(root, tmp_path / "s", prompt="rar/corpus_lengths", options=options)
    (stored,) = Store(tmp_path / "s")
    assert (stored.lengths, stored.checks["derived_lengths"]) == (WANTED, 0)
    views = {n: open_view("corpus", "replace", tmp_path / "s", length=n) for n in ASKED}
    assert {name: view.text(item) for name, view in views.items()} == WANTED
    prints = {view.fingerprint for view in views.values()}
    assert len(prints) == 3
    assert open_view("corpus", "replace", tmp_path / "s").fingerprint in prints
    with pytest.raises(DataError, match="short, dense, sentences"):
        open_view("corpus", "replace", tmp_path / "s", length="long")


def test_a_plain_text_has_every_length_too(tmp_path):
    root = tmp_path / "root"
    (item,) = write_root(root, Item("1:1", None, ("i/1.png",), "image"))
    (tmp_path / "a.json").write_text(json.dumps([WANTED["dense"]]))
    corpus.run(root, tmp_path / "s", options=Options(model=f"scripted:{tmp_path / 'a.json'}"))
    view = open_view("corpus", "append", tmp_path / "s", length="short")
    assert view.text(item) == "A red flag."


def test_prompts_that_the_packaged_model_was_trained_on_keep_their_hashes():
    assert {name: load_prompt(name).hash for name in HASHES} == HASHES
