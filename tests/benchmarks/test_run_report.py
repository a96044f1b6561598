"""The page about two runs: its numbers, that nothing escapes, and how a browser shows it."""

import itertools
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image

from augment import corpus, queries
from augment.data import write_candidates, write_qrels, write_queries
from augment.engines.scripted import ScriptedEngine
from augment.files import write_json
from augment.records import Hit, Item, Qrel, Query, one_picture
from benchmarks.report.page import RankMoves, main, scatter, ticks_of
from benchmarks.report.runs import Moved, pick
from retrievers.data.texts import ViewConfig
from retrievers.data.writings import WRITTEN, Writing, append_writings
from retrievers.evaluation.compare import Interval
from retrievers.evaluation.run_files import read_table, write_run
from retrievers.search.rewriting import PairRewriting, Retrieved, rewrite_pairs
from retrievers.vectors.bm25 import bm25
from tests.browser import chromium, show, violations

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)> & "q" \'q\''
COLOURS = ("red", "green", "blue", "black", "white", "orange", "purple", "grey")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root of plain squares that only generated text tells apart, and two runs of BM25."""
    base = tmp_path_factory.mktemp("pair")
    root, store = base / "root", base / "store"
    (root / "mbeir_images").mkdir(parents=True)
    pool, asked, answers = [], [], {}
    for n in range(24):
        colour = COLOURS[n % len(COLOURS)]
        path = f"mbeir_images/{n}.png"
        Image.new("RGB", (90, 60), (9 * n, 80, 255 - 9 * n)).save(root / path)
        text = {3: HOSTILE, 7: "a grey square"}.get(n)
        pool.append(Item(f"5:{n}", text, one_picture(path), "image,text" if text else "image"))
        words = f"A {colour} square number{n}, {HOSTILE if n == 4 else 'plain'}."
        answers[f"5:{n}"] = words
        asked.append(Query(Item(f"5:{n}", f"a {colour} square number{n}", (), "text"), 0,
                           (f"5:{n}",)))  # fmt: skip
    pool.append(Item("5:99", f"a red square without picture {HOSTILE}", (), "text"))
    (root / "mbeir_images/7.png").write_bytes(b"no picture")
    write_candidates(root / "cand_pool/local/mbeir_squares_task0_cand_pool.jsonl", pool)
    write_queries(root / "query/test/mbeir_squares_task0_test.jsonl", asked)
    write_qrels(root / "qrels/test/mbeir_squares_task0_test_qrels.txt",
                [Qrel(f"5:{n}", f"5:{n}", 1, 0) for n in range(24)])  # fmt: skip
    corpus.run(root, store, engine=ScriptedEngine(answers, root=root))
    queries.run(root, store, split=["test"], engine=ScriptedEngine({}, root=root))
    bm25(root, base / "raw", union=False)
    bm25(root, base / "enriched", corpus=ViewConfig("append", str(store)), union=False)
    page = base / "page.html"
    given = [str(base / "raw"), str(base / "enriched"), "--out", str(page), "--metric", "success@1"]
    assert main(given) == 0
    return base, page


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_escapes_and_describes(made):
    _, path = made
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "iframe", "link", "form"} & set(page.tags)
    assert page.images
    assert {image["src"].partition(",")[0] for image in page.images} == {
        "data:image/jpeg;base64", "data:image/svg+xml;base64",
    }  # fmt: skip
    assert all("onerror" not in image for image in page.images)
    # Alt texts are what the pictures are said to show.
    assert any(image["alt"].startswith("A green square number") for image in page.images)
    words = " ".join(" ".join(page.words).split())
    assert "picture corrupt" in words
    assert "rar/corpus@" in words
    assert "24 queries, local pools, success@1" in words


def test_the_numbers_are_those_of_the_comparison(made):
    from retrievers.evaluation.compare import compare

    base, path = made
    row = compare(base / "raw", base / "enriched", metric="success@1").rows[0]
    words = " ".join(" ".join(Page(path.read_text(encoding="utf-8")).words).split())
    d = row.difference
    assert f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" in words
    assert row.first < 0.2
    assert row.second > 0.9  # number7 cannot be described


def test_errors_say_what_to_do(made, tmp_path, capsys):
    base, _ = made
    assert main([str(base / "raw"), str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    lone = tmp_path / "lone"
    lone.mkdir()
    write_run(lone / "x_task0.local.trec", {"1:1": [Hit("1:1", 1.0)]})
    write_qrels(lone / "x_task0.qrels", [Qrel("1:1", "1:1")], columns=4)
    assert main([str(lone), str(lone), "--out", str(tmp_path / "p.html")]) == 2
    assert "name it with --root" in capsys.readouterr().err


def test_texts_that_are_gone_are_said_to_be(made, tmp_path):
    base, _ = made
    there = shutil.copytree(base / "enriched", tmp_path / "enriched")
    record = there / "metrics.json"
    gone = str(tmp_path / "gone")
    record.write_text(record.read_text().replace(str(base / "store"), gone))
    page = tmp_path / "p.html"
    assert main([str(base / "raw"), str(there), "--out", str(page)]) == 0
    assert "the corpus texts cannot be read" in page.read_text(encoding="utf-8")


def test_ranks_are_counted_and_drawn_where_they_are():
    ranks = [(1, 1), (3, 1), (None, 2), (1, 4), (None, None), (50, 40)]
    assert RankMoves.of(ranks) == (3, 2, 1, 1, 1)
    axes = scatter(ranks, 100, ("a", "b")).axes[0]
    places = axes.transData.transform(axes.collections[0].get_offsets()).tolist()
    first, second, *_, none, _ = places
    assert second[0] > first[0]
    assert second[1] == first[1] == max(y for _, y in places), "the first rank on top"
    assert none == [max(x for x, _ in places), min(y for _, y in places)]


def test_tasks_take_turns():
    moved = [Moved("a", "a", f"a{n}", n + 2, 1) for n in range(3)]
    moved += [Moved("b", "b", "b0", None, 1), Moved("b", "b", "b1", 1, 2)]
    assert [one.qid for one in pick(moved, True, 3)] == ["a2", "b0", "a1"]
    assert [one.qid for one in pick(moved, False, 3)] == ["b1"]


def test_bars_and_whiskers_end_in_sight():
    def row(first, second, low, high):
        return SimpleNamespace(first=first, second=second, difference=Interval(0, low, high))

    assert list(ticks_of([row(0.0, 0.3, 0.1, 0.4)])) == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert list(ticks_of([row(0.9, 0.95, -0.1, 0.15)])) == [0, 20, 40, 60, 80, 100, 120]
    assert list(ticks_of([row(0.1, 0.0, -0.12, 0.0)])) == [-5, 0, 5, 10]


def test_what_was_written_and_what_a_cascade_did_are_shown(made, tmp_path):
    base, _ = made
    there = shutil.copytree(base / "enriched", tmp_path / "cascade")
    append_writings(there / WRITTEN, [("5:0", Writing(f"it is {HOSTILE}", 3, "mark", 0.5))])
    pair = Retrieved("squares_task0/5:0", f"asked {HOSTILE}", Item("5:0", "a square", (), "text"))
    told = PairRewriting(1, "scripted:")
    rewritten = rewrite_pairs([pair], told, base / "root", there / "rewritten")
    text = rewritten("squares_task0/5:0", "5:0", None)
    write_json(there / "cascade.json", {"rewrite": {"store": None, "recipe": rewritten.recipe}})
    out = tmp_path / "p.html"
    assert main([str(base / "raw"), str(there), "--out", str(out), "--examples", "24"]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    words = " ".join(" ".join(page.words).split())
    assert f"cascade wrote before the vector it is {HOSTILE}" in words
    assert text
    assert f"rewritten for the query {' '.join(text.split())}" in words
    hits = {n: read_table(f / "squares_task0.local.trec", empty=True).to_run().get("5:1", ())
            for n, f in (("raw", base / "raw"), ("cascade", there))}  # fmt: skip
    first = hits["cascade"][0]
    other = [hit.did for hit in hits["raw"]]
    rank = f"rank {other.index(first.did) + 1}" if first.did in other else "not among its hits"
    assert f"1. {first.did} relevant , score {first.score:.3f}, raw: {rank}" in words


@pytest.mark.slow
def test_a_browser_shows_it_at_every_width(made, tmp_path):
    with chromium(tmp_path) as browser:
        backs = set()
        for width, scheme in itertools.product((390, 1280), ("light", "dark")):
            show(browser, width, scheme)
            browser.get(made[1].as_uri())
            assert browser.execute_script("return document.documentElement.scrollHeight") < 3600
            back = "return getComputedStyle(document.body).backgroundColor"
            backs.add((scheme, browser.execute_script(back)))
            ends = browser.execute_script(
                "return [...document.querySelectorAll('.lane > *')].map(e => {"
                "  const [a, b] = [e, e.parentElement].map(o => o.getBoundingClientRect());"
                "  return [b.left - a.left, a.right - b.right, b.width]; });"
            )
            assert len(ends) == 6
            assert all(left < 1 and right < 1 < room for left, right, room in ends)
            assert not violations(browser)  # unfolds
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(backs) == 2
        # By keyboard: skip link, contents, then the table behind its summary.
        browser.get(made[1].as_uri())
        place = browser.find_element("tag name", "body")
        for _ in range(7):
            place.send_keys("\ue004")
            place = browser.switch_to.active_element
        assert place.tag_name == "summary"
        place.send_keys("\ue007")
        assert browser.find_element("tag name", "table").is_displayed()
        assert browser.title == "raw and enriched, compared"
        assert not browser.get_log("browser")
