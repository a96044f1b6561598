"""Search by words beside search by vectors: the same root, the same answers, the same page."""

import json
import shutil
from dataclasses import replace

import pytest

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.errors import DataError
from augment.records import Enrichment
from augment.store import Store
from augment.views import open_view
from retrievers import Searcher
from retrievers.cli import main
from retrievers.data.texts import TextRecipe
from retrievers.models.load import open_recipe
from retrievers.search.page import Question, render_page
from retrievers.vectors.bm25 import Bm25Index
from tests.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("words"))


def test_bm25_answers_as_its_index_and_says_what_it_does_not_see(world):
    searcher = Searcher.open("bm25", world.root)
    texts = {
        item.id: item.text or ""
        for file in DataRoot(world.root).pools()
        for item in open_candidates(file.path)
    }
    index = Bm25Index()
    index.add(list(texts), list(texts.values()), "words")
    want = index.run(["q"], ["number word"], 5, "words").to_run()["q"]
    answer = searcher.search("number word", k=5)
    assert [(r.id, r.score) for r in answer] == [(h.did, round(h.score, 6)) for h in want]
    picture = next((world.root / "mbeir_images").rglob("*.png"))
    both = searcher.search("number word", picture, k=5)
    assert [r.id for r in both] == [r.id for r in answer]
    assert "does not see the picture" in both.notes[-1]
    assert not both.seen
    alone = searcher.search("", picture)
    assert (len(alone), alone.described()) == (0, "nothing")
    assert searcher.score == "BM25 score"
    assert len(searcher.search("zzz unheard")) == 0
    with pytest.raises(DataError, match="the query is empty"):
        searcher.search("  ")


def test_the_page_says_what_bm25_did_not_see_and_did_not_find(world):
    words, dense = Searcher.open("bm25", world.root), Searcher.open(world.raw, world.root)
    picture = next((world.root / "mbeir_images").rglob("*.png"))
    answers = {
        "words": words.search("", picture),
        "dense": dense.search("", picture, instruction=""),
    }
    page = render_page({"words": words, "dense": dense}, Question(), answers, "", 1)
    assert page.count("No candidate was found.") == 1
    assert page.count("the picture alone") == 1
    assert "words: found nothing" in page
    both = words.search("number word"), dense.search("number word")
    page = render_page(
        {"words": words, "dense": dense},
        Question(),
        dict(zip(("words", "dense"), both, strict=True)),
        "",
        1,
    )
    assert page.count('title="BM25 score"') == len(both[0])
    assert page.count('title="Cosine similarity"') == len(both[1])
    assert "No candidate was found." not in page


def test_generated_text_is_found_and_what_words_cannot_do_is_refused(world):
    enriched = Searcher.open("bm25", world.root, store=world.store)
    assert enriched.corpus_view == "append"
    texts = Store(world.store).texts("corpus")
    pool = next(f.path for f in DataRoot(world.root).pools() if f.task == 0)
    made = next(text for item in open_candidates(pool) if (text := texts.get(item.id)))
    found = {result.generated for result in enriched.search(made.text, k=40)}
    assert made.text in found
    with pytest.raises(DataError, match="bm25 has no embeddings"):
        Searcher.open("bm25", world.root, embeddings="x")


def test_captions_and_transcripts_are_searched_together_and_found_again(world, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(world.store, store)
    pool = next(f.path for f in DataRoot(world.root).pools() if f.task == 0)
    item = next(iter(open_candidates(pool)))
    with Store(store) as opened:
        (seen,) = opened.recipes("corpus")
        read = replace(seen, model="ocr")
        opened.save_recipe(read)
        opened.append(Enrichment("r", item.id, "quixotic", "ocr/text@1", "ocr", "1"))
        opened.link(read.id, item.id, "r")
    both = f"{seen.id}+{read.id}"
    asked = ["search", "--root", str(world.root), "--store", str(store), "--checkpoint", "bm25"]
    assert main([*asked, "--recipe", both, "--json", "quixotic"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    caption = Store(store).texts("corpus", seen.id)[item.id].text
    assert (found["id"], found["generated"]) == (item.id, f"{caption}\nquixotic")
    words = ["bm25", f"--root={world.root}", f"--out={tmp_path / 'run'}", "--corpus.view=append",
             f"--corpus.store={store}", f"--corpus.recipe={both}"]  # fmt: skip
    assert main(words) == 0
    view = open_view("corpus", "append", store, both)
    assert view.name in (tmp_path / "run/metrics.json").read_text()
    trained = TextRecipe(open_view("query"), view, "plain", None).fingerprint
    assert open_recipe(trained, DataRoot(world.root), store).corpus_view.name == view.name
