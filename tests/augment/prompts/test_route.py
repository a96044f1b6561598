"""Routing: which prompt an item gets."""

import pytest

from augment.prompts import load_prompt
from augment.prompts.route import CORPUS_PROMPT, QUERY_PROMPTS, classify
from augment.records import Item, Query, one_picture


def query(text, image="a.jpg", task=None):
    modality = ",".join(["image"] * bool(image) + ["text"] * bool(text))
    return Query(Item("1:1", text, one_picture(image), modality), task)


@pytest.mark.parametrize(
    ("text", "image", "task", "prompt"),
    [
        (None, "a.jpg", 3, "rar/image_query"),
        ("  ", "a.jpg", None, "rar/image_query"),
        ("a red flag", None, 0, None),
        ("What is this?", None, 1, None),
        # The task decides, whatever the wording.
        ("the capital of this country", "a.jpg", 6, "rar/question"),
        ("the capital of this country", "a.jpg", 8, "rar/question"),
        ("is this one in blue?", "a.jpg", 7, "rar/modification_shown"),
        # Without a task, the wording does.
        ("Which river is this", "a.jpg", None, "rar/question"),
        ("the name of this bridge?", "a.jpg", None, "rar/question"),
        ("In what year was it built", "a.jpg", None, "rar/question"),
        ("Is the tower open", "a.jpg", None, "rar/question"),
        ("who painted this", "a.jpg", None, "rar/question"),
        # Begin like questions and are none (the published rules match "what" in "Whatever").
        ("is blue and has longer sleeves", "a.jpg", None, "rar/modification_shown"),
        ("Whatever the colour, longer sleeves", "a.jpg", None, "rar/modification_shown"),
        ("has a floral print", "a.jpg", None, "rar/modification_shown"),
        ("make it blue", "a.jpg", None, "rar/modification_shown"),
    ],
)
def test_route(text, image, task, prompt):
    assert QUERY_PROMPTS[classify(query(text, image, task)).kind] == prompt


def test_reason_says_what_decided():
    assert classify(query("longer", task=7)).reason == "task 7"
    assert "question mark" in classify(query("longer?")).reason


def test_every_default_prompt_exists():
    for name in {*QUERY_PROMPTS.values(), CORPUS_PROMPT, "rar/modification"} - {None}:
        assert load_prompt(name).name == name
