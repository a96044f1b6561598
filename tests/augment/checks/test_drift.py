"""What the texts of a run say together, on a model out of its depth that a script plays."""

from PIL import Image

from augment import queries
from augment.__main__ import main
from augment.checks import Limits
from augment.checks.drift import Drift
from augment.data import write_candidates, write_queries
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.pipeline import Options
from augment.records import Item, Query

FOODS = ("milk", "rye bread", "oat flakes", "smoked fish", "green tea", "red apples")


def requests(number: int) -> list[str]:
    return [f"Which shelf holds {FOODS[n % 6]} of brand {chr(97 + n) * 5}?" for n in range(number)]


def test_a_word_that_all_rewrites_say_and_no_request_does():
    drift = Drift()
    for number, asked in enumerate(requests(26)):
        said = "Which shelf holds milk?" if number < 2 else f"Which flag has {number} stars?"
        drift.add(said, asked)
    scores = drift.scores()
    assert (scores["word"], scores["word_texts"], scores["word_requests"]) == ("flag", 24, 0)
    assert scores["apart"] == round(24 / 26, 3)
    assert scores["warnings"][:2] == [
        "24 of 26 rewrites share no word with their request",
        "24 of 26 rewrites say 'flag', no request does",
    ]


def test_good_rewrites_and_few_texts_are_not_warned_about():
    good, few = Drift(), Drift()
    for asked in requests(26):
        good.add(f"{asked[:-1]}, near the entrance?", asked)
    for asked in requests(19):
        few.add("A flag.", asked)
    assert good.scores()["apart"] == 0
    assert not good.warnings
    assert few.scores() == {}


def test_texts_that_collapse_onto_few_words():
    same, varied = Drift(), Drift()
    for number in range(40):
        same.add(f"A plain red field with a white star {number % 3}.")
        varied.add(" ".join(f"thing{number * k % 37}" for k in range(1, 9)))
    assert same.scores()["collapsed"] == 1
    assert "10 words make up 100 % of 40 texts" in same.warnings[0]
    assert not varied.warnings


def test_a_run_a_status_and_a_report_say_so(tmp_path, capsys):
    root, store = tmp_path / "root", tmp_path / "store"
    items = [Item(f"1:{n}", text, (f"{n}.png",), "image,text")
             for n, text in enumerate(requests(24), start=1)]  # fmt: skip
    write_candidates(root / "cand_pool/local/mbeir_food_cand_pool.jsonl",
                     [Item("1:1", "a shelf", (), "text")])  # fmt: skip
    write_queries(root / "query/test/mbeir_food_task6_test.jsonl",
                  [Query(item, 6, ("1:1",)) for item in items])  # fmt: skip
    for item in items:
        Image.new("RGB", (9, 9), (int(item.id[2:]), 0, 0)).save(root / item.image)
    answers = {item.id: f"Which country flies the flag number {item.id[2:]}?" for item in items}
    engine = ScriptedEngine(answers, root=root)
    summary = queries.run(root, store, options=Options(limits=Limits(keep=False)), engine=engine)
    told = "24 of 24 rewrites say 'country', no request does"
    assert summary.rejected.total() == 0
    assert f"warning: {told}" in str(summary)
    main(["status", "--store", str(store)])
    assert f"    warning: {told}" in capsys.readouterr().out
    main(["report", str(store), "--root", str(root), "--out", str(tmp_path / "page")])
    page = (tmp_path / "page/report.html").read_text(encoding="utf-8")
    assert "24 of 24 rewrites say &#39;country&#39;, no request does: the model may be" in page
