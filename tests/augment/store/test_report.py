"""The page about a store: what it counts, that nothing escapes, and how a browser shows it."""

import itertools
import re
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from augment import corpus, queries
from augment.__main__ import main
from augment.checks import Limits
from augment.data import write_candidates, write_queries
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.pipeline import Options
from augment.prompts import load_prompt
from augment.records import Item, Query, one_picture
from augment.store import Store
from augment.store.charts import histogram, quantile
from augment.store.page import compare, environment, percent, visible
from augment.store.report import collect, report
from tests.browser import BROWSER, FLAGS, show, violations
from tests.browser import chromium as started

HOSTILE = (
    "<script>document.title='owned'</script> \"q\" 'q' </style><style>*{display:none}</style> &"
)
NAME = "mbeir_images/'\"><img src=x onerror=document.title='owned'>.png"
ITEMS = 40
HEIGHT = "return document.documentElement.scrollHeight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root with hostile names and texts, its store with every outcome, and the page."""
    base = tmp_path_factory.mktemp("report")
    root, store = base / "root", base / "store <b>"
    (root / "mbeir_images").mkdir(parents=True)
    pool = []
    for n in range(ITEMS):
        path = NAME if n == 7 else f"mbeir_images/{n}.png"
        if n != 3:
            Image.new("RGB", (90, 60), (5 * n, 80, 120)).save(root / path)
        pool.append(Item(f"3:{n}", HOSTILE if n % 2 else None, one_picture(path), "image,text"))
    (root / "mbeir_images/4.png").write_bytes(b"not a picture")
    write_candidates(root / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl", pool)
    asked = [
        Query(
            Item("3:1", "what is the capital here?", ("mbeir_images/1.png",), "image,text"), 8, ()
        ),
        Query(Item("3:2", "a square that is green", (), "text"), 0, ("3:6", "3:8")),
    ]
    write_queries(root / "query/test/mbeir_x_task0_test.jsonl", asked)
    answers = {f"3:{n}": f"A plain square of shade {n}, {HOSTILE}" for n in range(ITEMS)}
    answers |= {"3:10": "I'm sorry, I cannot describe this.", "3:11": "", "3:12": "Square."}
    answers |= {f"3:{n}": "A blue square on a table of wood." for n in (20, 21, 22)}
    corpus.run(root, store, engine=ScriptedEngine(answers, root=root))
    rewritten = {"3:1": "what is the capital of the country with a plain blue flag?"}
    queries.run(root, store, split=["test"], engine=ScriptedEngine(rewritten, root=root))
    page = report(store, root, base / "out")
    return root, store, page


class Page(HTMLParser):
    """Tags, attributes and text as a browser would take them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.ids, self.targets = Counter(), [], [], []
        self.attributes, self.words = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        given = dict(attrs)
        self.attributes |= set(given)
        if tag == "img":
            self.images.append(given)
        self.ids += [given["id"]] if "id" in given else []
        if tag == "a":
            self.targets.append(given["href"])

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_counts_what_the_store_holds(made):
    root, store, _ = made
    found = collect(Store(store), root, "corpus")
    assert {name: items for name, items, _ in found["failed"]} == {"missing": 1, "corrupt": 1}
    assert {name: items for name, items, _ in found["refused"]} == {"refusal": 1, "empty": 1}
    numbers = [found[name] for name in ("texts", "accepted", "with_picture")]
    assert numbers == [ITEMS - 2, ITEMS - 4, ITEMS]
    texts = {text.key: text for text in Store(store).texts("corpus").values()}
    assert found["generations"] == len(texts)
    assert (found["read"], found["written"]) == (
        sum(text.prompt_tokens for text in texts.values()),
        sum(text.output_tokens for text in texts.values()),
    )
    assert sum(number for *_, number in bars(found["plots"][0])[0]) == ITEMS - 2
    whys = {card["item_id"]: card["why"] for card in found["worst"]}
    assert "very same words for 3 different pictures" in whys["3:20"]
    assert {"3:21", "3:22"}.isdisjoint(whys)
    assert whys["3:12"] == "short: 1 words"
    assert len({card["item_id"] for card in found["random"]}) == len(found["random"]) == 24
    by_id = {card["item_id"]: card for card in [*found["random"], *found["worst"]]}
    assert {card["asked"] for i, card in by_id.items() if i in ("3:6", "3:8")} <= {
        "a square that is green"
    }
    assert found["tone"] == "warn"
    assert verdict(found).startswith("90.0 % of 40 items have an accepted text; 2 failed")


def verdict(found):
    said = environment().get_template("parts.html").module.verdict(found)
    return " ".join(str(said).split())


def test_one_picture_in_two_requests_is_no_repetition_and_other_limits_are_told(tmp_path):
    """Three pictures, the first under two ids with other texts; two pictures share words."""
    root, store, pool = tmp_path / "root", tmp_path / "store", []
    root.mkdir()
    for n, picture in enumerate((0, 0, 1, 2)):
        Image.new("RGB", (50, 40), (90 * picture, 1, 1)).save(root / f"{picture}.png")
        pool.append(Item(f"3:{n}", f"text {n}", (f"{picture}.png",), "image,text"))
    write_candidates(root / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl", pool)
    words = ["A red square on white.", "A red square on white.", "A flag.", "A flag."]
    answers = {f"3:{n}": text for n, text in enumerate(words)}
    corpus.run(root, store, engine=ScriptedEngine(answers, root=root))
    found = collect(Store(store), root, "corpus")
    assert found["generations"] == 4
    assert (found["repeats"]["texts"], found["repeats"]["contents"], found["repeats"]["most"]) == (
        1,
        2,
        2,
    )
    assert "2 different pictures share 1 texts" in verdict(found)
    assert (found["used"]["known"], found["used"]["others"]) == (True, 0)
    # Some are judged under other limits than the rest.
    strict = Options(limits=Limits(filler=0.1), limit=1)
    corpus.run(root, store, engine=ScriptedEngine(answers, root=root), options=strict)
    found = collect(Store(store), root, "corpus")
    assert (found["used"]["limits"].filler, found["used"]["others"]) == (0.1, 3)
    assert "3 verdicts are not from the limits of the latest run" in verdict(found)
    page = report(store, root, tmp_path / "out").read_text(encoding="utf-8")
    assert "filler 0.1" in page


def test_nothing_shown_becomes_markup_and_nothing_is_fetched(made):
    _, _, path = made
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["script"] == 0
    assert page.tags["style"] == 1
    assert {image["src"].partition(",")[0] for image in page.images} == {"data:image/jpeg;base64"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert any(HOSTILE in word for word in page.words), "the text is shown in full"
    assert "http" not in text.replace("http-equiv", "")
    assert all(target.startswith("#") and target[1:] in page.ids for target in page.targets)
    assert len(page.ids) == len(set(page.ids))
    assert all(image["alt"].startswith("Picture of 3:") for image in page.images)
    assert page.tags["h1"] == page.tags["main"] == 1
    assert path.stat().st_size < 500_000


def test_a_rewrite_is_marked_word_by_word_and_a_description_is_not():
    before, after = compare("the same in red, please", "The same in dark navy, please")
    assert [piece.text for piece in before if piece.changed] == ["red"]
    assert [piece.text for piece in after if piece.changed] == ["dark navy"]
    assert "".join(piece.text for piece in after) == "The same in dark navy, please"
    assert not any(p.changed for p in compare("a red scarf", "Two men play cards at night")[1])
    assert compare(None, "text")[0][0].text == ""


def bars(plot):
    """Left edge, height and count of every bar, and where the limit stands, as drawn."""
    drawn = (
        r"<title>([^<]*)</title>\s*<path d=\"M ([\d.]+) ([\d.]+)\s+"
        r"L ([\d.]+) ([\d.]+)\s+(?:L \S+ ([\d.]+))?"
    )
    found = re.findall(drawn, plot.svg)
    limits = [float(left) for said, left, *_ in found if said.startswith("limit")]
    return [
        (float(left), float(bottom) - float(top), int(said.rpartition(": ")[2].replace(",", "")))
        for said, left, bottom, _, _, top in found
        if not said.startswith("limit")
    ], limits


def test_histogram_and_quantile_agree_with_numpy():
    dice = np.random.default_rng(0)
    for values in (dice.integers(0, 90, 500), dice.integers(5, 7, 40), np.array([3])):
        plot = histogram("words", values)
        drawn, limits = bars(plot)
        assert sum(number for *_, number in drawn) == len(values)
        highest = max(number for *_, number in drawn)
        assert f">{highest}</text>" in plot.svg
        for _, height, number in drawn:
            assert height == pytest.approx(0.786 * 150 * number / highest, abs=0.01)
        assert limits == []
        for share in (0.05, 0.5, 0.95):
            assert quantile(values, share) == np.quantile(values, share, method="inverted_cdf")
    scores = np.round(0.98 * dice.random(300), 2)
    drawn, (limit,) = bars(histogram("score", scores, whole=False, limit=0.5))
    left, right = drawn[0][0], 320 * (0.106 + 0.869)
    assert limit == pytest.approx(left + (right - left) / 2, abs=2)
    assert bars(histogram("score", scores, whole=False, limit=9.0))[1] == []
    tail = np.append(np.arange(995), [5000, 5000, 6000, 7000, 9000])
    cut = histogram("words", tail)
    assert cut.summary.endswith("; cut at 99%: 10 above 989, to 9,000")
    assert sum(number for *_, number in bars(cut)[0]) == 990
    assert "<img" not in histogram("<img src=x>", values, unit="<b>").svg


def test_shares_and_long_texts_are_honest():
    assert (percent(0, 9), percent(9, 9), percent(1, 0)) == ("0 %", "100 %", "-")
    assert (percent(1, 10_000), percent(9_999, 10_000)) == ("< 0.1 %", "> 99.9 %")
    assert visible("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert visible("x" * 10_000_000).endswith("… and 9,992,000 more characters")


def test_the_command_names_the_page_and_prices_tokens(made, tmp_path, capsys):
    root, store, _ = made
    arguments = [str(store), "--root", str(root), "--out", str(tmp_path), "--samples", "2"]
    assert main(["report", *arguments, "--price-written", "1000000"]) == 0
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{collect(Store(store), root, 'query')['written']:.2f}" in text
    for arguments, message in (
        (["/nowhere", "--root", str(root), "--out", str(tmp_path)], "no such store"),
        ([str(store), "--root", "/nowhere", "--out", str(tmp_path)], "no such folder"),
        ([str(tmp_path), "--root", str(root), "--out", str(tmp_path)], "no corpus recipe"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not BROWSER, reason="no Chromium here to show pages with")
def test_a_browser_shows_it_and_runs_nothing(made, tmp_path):
    page = f"file://{made[2]}".replace(" ", "%20")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    dom = shown.stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title[1] == "Generated texts in store &lt;b&gt;"
    assert Page(dom).tags["script"] == 0
    assert "A plain square of shade" in dom


@pytest.mark.slow
def test_it_fits_every_screen_and_shuts_nobody_out(made, tmp_path):
    with started(tmp_path) as driver:
        for width, scheme in itertools.product((390, 1280), ("light", "dark")):
            show(driver, width, scheme)
            driver.get(made[2].as_uri())
            assert driver.execute_script(HEIGHT) < 9 * 900, "short by default"
            assert not violations(driver)  # unfolds
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            assert driver.execute_script(
                "document.querySelectorAll('img').forEach(e => { e.loading = 'eager'; });"
                "return Promise.all([...document.images].map(e => e.decode())).then(() => true);"
            )


def test_the_card_of_an_export_tells_what_was_written(made, tmp_path):
    root, store, _ = made
    (root / "LICENSE-pictures").write_text("CC0")
    out = tmp_path / "out"
    options = [f"--{name}={value}" for name, value in (("root", root), ("store", store))]
    assert main(["export", *options, f"--out={out}"]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    recipe = Store(store).recipe("corpus")
    accepted = sum(not text.rejected for text in Store(store).texts("corpus").values())
    assert f"| candidates | append | {ITEMS} | {accepted} (90.0 %) | 2 |" in card
    assert "| queries | replace | 2 | 1 (50.0 %) | 0 |" in card
    for fact in (recipe.id, recipe.revision, recipe.prompts["rar/corpus"], "refusal 1", "empty 1"):
        assert fact in card
    assert load_prompt("rar/corpus").system in card
    assert yaml.safe_load(card.split("---")[1])["tags"][-1] == "synthetic-text"
    assert (out / "LICENSE-pictures").read_text() == "CC0"
