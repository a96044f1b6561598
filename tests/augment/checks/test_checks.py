"""Checks of generated text: what each refuses, what it lets pass, and what it keeps."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from augment import queries
from augment.checks import Forbidden, Limits, check, clean, judge
from augment.checks.clean import clean_steps
from augment.checks.judge import RULES
from augment.checks.lengths import parse_lengths
from augment.checks.rewrite import (
    added,
    answered,
    forbidden,
    leaks,
    lost_negations,
    lost_numbers,
)
from augment.checks.text import compression, filler, foreign, repetition
from augment.data import read_queries, write_candidates, write_queries
from augment.data.items import RootItems
from augment.enrichment.pipeline import Options
from augment.files import read_json
from augment.prompts import load_prompt
from augment.records import Item, Query, Reply
from augment.store import Store
from augment.views import open_view
from benchmarks.speed.checks import count_texts
from benchmarks.speed.harness import RESULTS

CAPTION, QUESTION = load_prompt("rar/corpus"), load_prompt("rar/question")
PROSE = "A red brick church with two towers stands by the river, a stone bridge leads to its door."


@pytest.mark.parametrize(
    ("raw", "cleaned", "steps"),
    [
        ("A red flag.", "A red flag.", ()),
        ("  A red  flag. ", "A red flag.", ("blanks",)),
        ("```json\nA flag\n```", "A flag", ("fence",)),
        ("**A red** flag with __two__ stars", "A red flag with two stars", ("markdown",)),
        ("# Title\n\n- one\n- two\n1. three", "Title\none\ntwo\nthree", ("markdown", "blanks")),
        ('"A red flag"', "A red flag", ("quotes",)),
        ('"A" and "B"', '"A" and "B"', ()),
        ("2 * 3 = 6 and snake_case_name", "2 * 3 = 6 and snake_case_name", ()),
        ("A ratio of 3-5 -2 degrees", "A ratio of 3-5 -2 degrees", ()),
        ("Sure, here is the rewritten query:\na red coat", "A red coat", ("filler",)),
        ("Sure! Here's a description: **A coat**", "A coat", ("markdown", "filler")),
        ("In this image, there is a man on a horse.", "A man on a horse.", ("filler",)),
        ("The picture shows a man on a horse.", "A man on a horse.", ("filler",)),
        ("A coat.\nLet me know if you need more!", "A coat.", ("filler",)),
        ("<think>red or blue? red.</think>\nA red coat", "A red coat", ("thought",)),
        ("A red coat<|im_end|>", "A red coat", ("control",)),
        # A fence anywhere, closed or not; a comment in it is no heading.
        ("A list:\n```text\n- red\n```\nand blue", "A list:\nred\nand blue", ("fence", "markdown")),
        ("Here is the caption:\n```\nA flag```", "A flag", ("fence", "filler")),
        ("```sh\n# T\n  # b\n```\n# C", "# T\n# b\nC", ("fence", "markdown", "blanks")),
        ("```markdown\n# Title\n```", "Title", ("fence", "markdown")),
        ("```\nA red flag", "A red flag", ("fence",)),
        ("A\x00 coat\r\nin red", "A coat\nin red", ("control",)),
        ('```\n"Caption: A coat"\n```', "A coat", ("fence", "quotes", "filler")),
        ("Sure deodorant, blue label", "Sure deodorant, blue label", ()),
        ("Here is where the river bends", "Here is where the river bends", ()),
    ],
)
def test_cleaning_and_its_steps(raw, cleaned, steps):
    assert clean_steps(raw) == (cleaned, steps)
    assert clean(cleaned) == cleaned or "```sh" in raw


@given(st.text(alphabet='ab `*_"#-:.<>|\n1', max_size=40))
def test_cleaning_twice_changes_nothing_but_comments(text):
    assert clean(clean(text)) == clean(clean(clean(text)))
    if "```" not in text:
        assert clean(clean(text)) == clean(text)


NAMES = ["think", "thinking", "thought", "reasoning", "reflection", "seed:think", "longcat_think"]
THOUGHTS = [
    *((f"<{name}>", f"</{name}>") for name in NAMES),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),  # the same without control tokens
    ("Here is my thought process:", "Here is my response:"),
    ("<unused94>thought\n", "<unused95>"),
]


@pytest.mark.parametrize(("opens", "closes"), THOUGHTS)
def test_reasoning_never_reaches_a_text(opens, closes):
    """Every form that models are known to write, whole, opened by the template, or cut."""
    idea, answer = 'A flag? {"dense": "A draft."} It is blue, or red.', "A red coat."
    lone = f"{idea}{closes}{answer}"
    whole = f"{opens}{lone}"
    for reply in (whole, lone, f"{opens}first{closes}{whole}", f"{opens} {lone}{closes}{answer}"):
        verdict = judge(Reply(reply), CAPTION)
        assert (verdict.text, verdict.rejected) == (answer, "")
        assert verdict.raw == reply
        assert "thought" in verdict.steps
        assert parse_lengths(reply).lengths["dense"] == answer
    verdict = judge(Reply(f"{whole} <answer>{answer}</answer>"), CAPTION)
    assert verdict.text == f"{answer} <answer>{answer}</answer>"
    assert judge(Reply(f"{opens}{idea}{closes}<answer>{answer}</answer>"), CAPTION).text == answer
    for cut in (f"{opens}{idea}", f"{answer} {opens}{idea}"):
        if opens != "analysis":
            assert judge(Reply(cut), CAPTION).rejected == "reasoning"
    assert judge(Reply(f"{whole}{closes}"), CAPTION).rejected == "empty"


def test_marks_of_reasoning_cost_time_in_proportion():
    """A hostile reply of a megabyte; the pattern of a pair would take hours."""
    for part in ("<think>", "</think>", "```a\n", "<answer>", "here is my thought process"):
        assert len(clean(part * (1_000_000 // len(part)))) < 1_000_001


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("", "stop", "empty"),
        (" .\n", "stop", "empty"),
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("I cannot identify the person in this picture.", "stop", "refusal"),
        ("As an AI language model, I see nothing.", "stop", "refusal"),
        ("Please provide the image you would like described.", "stop", "refusal"),
        ("No image was provided, so none is described.", "stop", "refusal"),
        ("No flag is visible in the image.", "stop", "refusal"),
        ("Well, the species is unknown.", "stop", "refusal"),
        # Thought without a mark.
        ("Okay, let's see. The picture has a red flag on a pole.", "stop", "reasoning"),
        ("The user wants a caption of the flag with two stars.", "stop", "reasoning"),
        ("First, I need to describe the flag. It is red.", "stop", "reasoning"),
        ("A red flag with two stars. Wait, three stars.", "stop", "reasoning"),
        ("A flag with a", "length", "truncated: reached"),
        ("A flag with two stars and", "stop", "truncated: ends in the middle"),
        ("A flag, red,", "stop", "truncated"),
        ("red white and blue " * 8, "stop", "repetition"),
        (f"{PROSE} {PROSE} {PROSE[:40]}.", "stop", "repetition"),
        ("Eine Fahne mit zwei Sternen und einem Kreuz auf der linken Seite.", "stop", "language"),
        ("Un drapeau avec des étoiles sur une bande rouge et les bords.", "stop", "language"),
        ("Una bandera con dos estrellas y una franja sobre el fondo.", "stop", "language"),
        ("\u4e00\u9762\u7ea2\u65d7", "stop", "language"),
        ("Красный флаг", "stop", "language"),
        ("Overall, it appears to be a scene creating a calm atmosphere.", "stop", "filler"),
        (" ".join(str(n) for n in range(51)), "stop", "too long: 51 words, 50"),
    ],
)
def test_refused(text, finish, reason):
    assert check(text, finish, max_words=50).startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "A flag of three bands: red on top, white in the middle, blue at the bottom.",
        "Sorry!, a board game box in red.",
        "A sign that reads: I can't breathe.",
        "No people are visible. A long beach under a grey sky.",
        "A beach at dawn, and no people are visible in the picture.",
        "The species is unknown, but the bird is red.",
        "Three stars at the left, three stars at the right, three discs in the middle.",
        "Red wool coat, gold buttons, belt",
        "Tour de France poster, yellow jersey",
        "The Café de la Paix in Paris, seen from the street",
        "What is this made of",
        "the same, but in red",
        " ".join(str(n) for n in range(50)),
    ],
)
def test_accepted(text):
    assert check(text, "stop", max_words=50) == ""


def test_texts_written_by_hand():
    """The counts that are published, of the rules as they are."""
    path = RESULTS / "check_texts.json"
    assert read_json(path)[f"rules {RULES}"] == count_texts()


def test_limits_are_settings():
    chinese = "\u4e00\u9762\u7ea2\u65d7"
    assert check(chinese, limits=Limits(language="")) == ""
    assert check(chinese, limits=Limits(language="zh")) == ""
    assert check("A red flag", limits=Limits(language="zh")).startswith("language")
    assert check("Eine Fahne mit zwei Sternen und Kreuz", limits=Limits(language="de")) == ""
    assert check("one two three four", max_words=3) != ""
    assert check("one two three four", max_words=3, limits=Limits(slack=1.5)) == ""
    assert check("A flag with the", limits=Limits(truncation=0.9)) == ""


def test_scores_grow_with_the_defect():
    loops = [f"{PROSE} " * n for n in (1, 2, 3, 6)]
    for score in (repetition, compression):
        values = [score(text) for text in loops]
        assert values == sorted(values)
        assert values[-1] > 0.7
    assert compression(loops[1]) < 0.7
    assert filler(PROSE) == filler("We can see a flag") == 0 < filler("We can see a nice scene")
    assert foreign("ein Haus und der Fluss", "en") > 0.5 > foreign(PROSE, "en")


@pytest.mark.parametrize(
    ("text", "original", "lost"),
    [
        ("3 stars", "with three stars", []),
        ("a pair of shoes", "two shoes", []),
        ("stars", "three stars and 2 bars", ["3", "2"]),
        ("1,000 people", "1000 people", []),
        ("a blue shirt", "this one in blue", []),
        ("a large shirt", "a shirt of size 42", ["42"]),
    ],
)
def test_numbers(text, original, lost):
    assert sorted(lost_numbers(text, original)) == sorted(lost)


@pytest.mark.parametrize(
    ("text", "original", "lost"),
    [
        ("dress without sleeves", "the dress but with no sleeves", 0),
        ("dress with sleeves", "the dress but with no sleeves", 1),
        ("dress", "the dress but with no sleeves", 1),
        ("no red star", "I want this flag with the red star gone", 0),
        ("red star", "please take away the red star", 1),
        ("not red, no stars", "it isn't red and has no stars", 0),
        ("not red, stars", "it isn't red and has no stars", 1),
        ("neither blue nor green", "not blue or green", 0),
        ("a plain flag", "a plain flag", 0),
    ],
)
def test_negations(text, original, lost):
    assert len(lost_negations(text, original)) == lost


def test_a_question_stays_one_and_is_not_answered():
    asked = "What is the capital of the country with this flag?"
    assert answered("What is the capital of the country with a red flag?", asked) == 0
    assert answered("capital of which country with a red flag", asked) == 0
    assert answered("What is the capital? Paris.", asked) == 1
    assert answered("Paris is the capital of the country with a red flag.", asked) == 0.9
    assert answered("longer sleeves", "longer sleeves") == 0
    assert answered("longer sleeves", "Can you find it with longer sleeves?") == 0
    assert added("Who designed the Eiffel Tower?", "Who designed this tower?") == 1


PASSAGE = (
    "Eiffel Tower. The Eiffel Tower is a lattice tower in Paris, built by Gustave Eiffel's company"
    " from 1887 to 1889 out of wrought iron."
)


@pytest.mark.parametrize(
    ("text", "names", "strict"),
    [
        ("Who designed the Eiffel Tower?", [], []),
        ("Who designed the iron tower?", [], ["iron"]),
        ("Who is Gustave, who designed the Eiffel Tower?", ["Gustave"], ["Gustave"]),
        ("Who designed the tower of 1889?", ["1889"], ["1889"]),
        ("Who designed the lattice tower in Paris, built by whom?", ["Paris"], None),
        ("Who designed this tower, out of wrought iron?", [], ["wrought", "iron"]),
    ],
)
def test_leaks_of_a_passage(text, names, strict):
    asked, forbidden = "Who designed this tower?", Forbidden((PASSAGE,))
    assert [p for p in leaks(text, asked, forbidden, "names") if " " not in p] == names
    if strict is not None:
        assert leaks(text, asked, forbidden, "words") == strict
    assert leaks(text, asked, forbidden, "off") == []


def test_leaks_of_known_answers_and_copied_runs():
    asked = "What is it made of?"
    assert leaks("Is it made of wrought iron?", asked, Forbidden((), ("Wrought iron",)))
    assert not leaks("What is it made of? yes", asked, Forbidden((), ("yes",)))
    assert not leaks("What is it made of?", asked, Forbidden((), ("made",)))
    passage = "Here the old mill grinds yellow maize by water power all year."
    run = "the old mill grinds yellow maize by water"
    assert leaks(f"Made by {run}", asked, Forbidden((passage,))) == [run]
    assert not leaks("Made by the old mill", asked, Forbidden((passage,)))


def test_a_verdict_keeps_the_original_and_every_score():
    raw = "**A red** flag"
    verdict = judge(Reply(raw), CAPTION, "an entry with no stars")
    assert (verdict.text, verdict.raw, verdict.rejected) == ("A red flag", raw, "")
    assert verdict.steps == ("markdown",)
    assert verdict.scores["length"] == 0.03
    assert "leak" not in verdict.scores
    assert "lost_negations" not in verdict.scores, "a caption need not keep what an entry says"
    verdict = judge(Reply("Paris?"), QUESTION, "What city is it?", Forbidden(("A. In Paris.",)))
    assert verdict.rejected == "leak: Paris"
    assert verdict.scores["leak"] == 1
    assert judge(Reply("What city?"), QUESTION, "What city is it?").raw == ""


def test_a_prompt_may_cap_what_is_added():
    short = replace(QUESTION, max_added_words=3)
    asked = "How tall is this tower?"
    ok = judge(Reply("How tall is the red brick tower?"), short, asked)
    assert (ok.rejected, ok.scores["added"]) == ("", 2)
    long = judge(Reply("How tall is the red brick tower by the river?"), short, asked)
    assert long.rejected == "too long: adds 4 words, 3 allowed"


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "root"
    (base / "i").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(base / "i/1.png")
    Image.new("RGB", (8, 8), "blue").save(base / "i/2.png")
    write_candidates(
        base / "cand_pool/local/mbeir_x_task6_cand_pool.jsonl",
        [Item("3:1", PASSAGE, (), "text"), Item("3:2", None, ("i/2.png",), "image")],
    )
    source = '{"answer": ["wrought iron"]}'
    asked = [
        Query(Item("3:1", "Who built it?", ("i/1.png",), "image,text"), 6, ("3:1", "3:9")),
        Query(Item("3:2", "What is it made of?", ("i/1.png",), "image,text", source), 6, ("3:2",)),
        Query(Item("3:3", "Where are its two towers?", ("i/2.png",), "image,text"), 6, ("3:1",)),
    ]
    write_queries(base / "query/test/mbeir_x_task6_test.jsonl", asked)
    return base


def test_positives_are_looked_up(root):
    items = RootItems(root, "corpus")
    asked = read_queries(root / "query/test/mbeir_x_task6_test.jsonl")
    found = [forbidden(items, query) for query in asked]
    assert found == [((PASSAGE,), ()), ((), ("wrought iron",)), ((PASSAGE,), ())]


def test_refused_rewrites_fall_back_with_reason_and_scores(root, tmp_path):
    answers = {
        "3:1": "Who built it, Gustave?",
        "3:2": "Is it made of wrought iron?",
        "3:3": "Sure, here is the query: Where are the two towers of the blue church?",
    }
    script = tmp_path / "answers.json"
    script.write_text(__import__("json").dumps(answers))
    summary = queries.run(
        root, tmp_path / "store", split=["test"], options=Options(model=f"scripted:{script}")
    )
    assert summary.rejected == {"leak": 2}
    stored = Store(tmp_path / "store").texts("query")
    assert stored["3:1"].rejected == "leak: Gustave"
    assert stored["3:2"].rejected == "leak: wrought iron"
    assert stored["3:3"].raw == answers["3:3"]
    assert stored["3:3"].checks["lost_numbers"] == 0
    view = open_view("query", "replace", tmp_path / "store")
    assert view.text(Item("3:1", "Who built it?", (), "text")) == "Who built it?"
    shown = view.text(Item("3:3", "Where are its two towers?", (), "text"))
    assert shown == "Where are the two towers of the blue church?"


def test_the_rule_is_a_setting_of_the_command(root, tmp_path):
    script = tmp_path / "answers.json"
    script.write_text('["Who built it, Gustave?"]')
    arguments = ["--root", str(root), "--store", str(tmp_path / "s"), "--split", "test"]
    arguments += ["--model", f"scripted:{script}", "--limits.leak", "off", "--limits.keep", "false"]
    assert queries.command(arguments) == 0
    assert not any(text.rejected for text in Store(tmp_path / "s"))
