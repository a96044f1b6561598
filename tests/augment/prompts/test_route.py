"""Routing: which prompt an item gets."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from augment.prompts.route import QUERY_PROMPTS, classify
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


def test_reason_says_what_decided_and_how_sure_that_is():
    assert str(classify(query("longer", task=7))) == "modification (task 7)"
    told = "question (ends in a question mark, 95% sure)"
    assert str(classify(query("longer?"))) == told
    assert str(classify(query("longer?", image=None))) == "text (no picture)"


def labelled():
    """Queries in the words of seven data sets, made up for this: (task, right form, query)."""
    with (Path(__file__).parent / "kinds.tsv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            image = "a.jpg" if row["task"] in "678" else None
            yield int(row["task"]), row["kind"], query(row["text"], image)


def test_the_kind_of_labelled_queries():
    right = {sure: [] for sure in (True, False)}
    for task, form, asked in labelled():
        assert classify(replace(asked, task=task)).form == form or asked.item.image is None
        by_words = classify(asked)
        right[by_words.confidence > 0.9].append(by_words.form == form)
    assert sum(map(len, right.values())) >= 80
    # As sure as it says: measured, all that are sure and two thirds of the others.
    assert sum(right[True]) >= 0.95 * len(right[True])
    assert sum(right[False]) >= 0.6 * len(right[False])


def test_composed_requests_of_fashion_are_no_questions():
    forms = [classify(asked).form for task, _, asked in labelled() if task == 7]
    assert forms.count("modification") >= len(forms) - 2
