"""Search with a typed query: the same ranking as evaluation, clear errors, both outputs."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

import retrievers
from augment import corpus, queries
from augment.data.pools import open_queries
from augment.enrichment.pipeline import Options
from augment.errors import DataError, EngineError, ImageError, MismatchError, StoreError
from retrievers import Searcher, cli
from retrievers.data.module import EmbeddingConfig, LoaderConfig, MBeirData
from retrievers.data.texts import ViewConfig
from retrievers.evaluation.run_files import read_run
from retrievers.models.load import load
from retrievers.search import answers
from retrievers.search import searcher as searching
from retrievers.search.command import stoppable
from retrievers.search.pictures import QueryPictures
from retrievers.vectors.embed import embed, embed_contents
from retrievers.vectors.search import test as evaluate
from tests.retrievers.models.test_retriever import make_root
from tests.worlds import HOSTILE, SCRIPTED, World

TASKS = {0: "squares_task0", 3: "squares_task3"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def raw(world):
    return Searcher.open(world.raw, world.root)


def test_ranks_as_the_evaluation_does(world, raw, tmp_path):
    data = MBeirData(str(world.root), on_bad_image="skip", loader=LoaderConfig(eval_batch_size=8))
    evaluate(load(world.raw), data, tmp_path, device="cpu")
    for task, name in TASKS.items():
        run = read_run(tmp_path / f"{name}.union.trec")
        file = world.root / "query" / "test" / f"mbeir_squares_task{task}_test.jsonl"
        for query in open_queries(file):
            image = query.item.image and world.root / query.item.image
            answer = raw.search(query.item.text or "", image, k=7)
            expected = run[query.item.id][:7]
            assert [result.id for result in answer] == [hit.did for hit in expected]
            assert [r.score for r in answer] == pytest.approx([h.score for h in expected], abs=2e-6)
            assert [result.rank for result in answer] == list(range(1, 8))


def test_the_recipe_of_the_training_is_found_in_the_store(world, tmp_path):
    # Another recipe ran last; the checkpoint's own is still there.
    kinds = ("image", "question", "modification", "text")
    none = dict.fromkeys(f"{kind}_prompt" for kind in kinds)
    queries.run(world.root, world.store, options=SCRIPTED, **none)
    searcher = Searcher.open(
        world.enriched, world.root, store=world.store, vlm="scripted:", pools=["squares_task3"]
    )
    assert searcher.corpus_view == "append"
    trained = world.retriever.trained_on
    assert trained is not None
    recipes = sorted(world.store.glob("recipes/query-*.json"))
    views = [
        world.recipe(
            ViewConfig("replace", str(world.store), path.stem.partition("-")[2]),
            ViewConfig("append", str(world.store)),
        )
        for path in recipes
    ]
    own = next(view for view in views if view.fingerprint == trained)
    # A typed query with the picture of a training query becomes the text it was trained as.
    file = world.root / "query" / "test" / "mbeir_squares_task3_test.jsonl"
    for query in list(open_queries(file))[:3]:
        answer = searcher.search(image=world.root / query.item.image)
        assert answer.rewritten
        assert answer.read == own.query(query, "text")
    plain = searcher.search("red")
    assert (plain.rewritten, plain.read) == (None, "Find it. red")
    assert "not rewritten: text (no picture)" in plain.notes


def test_generated_text_is_shown_beside_a_raw_retriever(world):
    searcher = Searcher.open(world.raw, world.root, store=world.store, pools=["squares_task0"])
    assert searcher.corpus_view == "raw"
    assert all(result.generated for result in searcher.search("red"))
    enriched = Searcher.open(world.enriched, world.root, store=world.store)
    assert any("rewritten" in note for note in enriched.notes)


def test_more_like_one_is_nearest_by_its_own_vector_or_words(world, raw):
    shown = {row: raw.item(row) for row in raw._index.ids.to_pylist() if row != "7:99"}
    pictures = {d: i and Image.open(world.root / i.image) if i.image else None
                for d, i in shown.items()}  # fmt: skip
    contents = [(item.text, pictures[did]) for did, item in shown.items()]
    vectors = dict(zip(shown, embed_contents(load(world.raw), contents, "corpus"), strict=True))
    for one in ("7:1", "7:30"):
        scores = {d: float(v @ vectors[one]) for d, v in vectors.items() if d != one}
        found = raw.like(one, k=5)
        assert [r.id for r in found] == sorted(scores, key=lambda d: -scores[d])[:5]
        assert [r.score for r in found] == pytest.approx(sorted(scores.values())[:-6:-1], abs=2e-6)
    words = Searcher.open("bm25", world.root, store=world.store, pools=["squares_task3"])
    texts = [r for r in words.search("the number", k=9) if r.text and "number" in r.text]
    assert words.like(texts[0].id, k=3)[0].shared
    with pytest.raises(DataError, match="no candidate '9:9'"):
        raw.like("9:9")


def test_seconds_are_told_with_their_middle_and_the_slowest(world, monkeypatch):
    searcher = Searcher.open(world.raw, world.root)
    assert searcher.pace is None
    took = [0.5, 0.1, 0.3, 0.2, 1.5]
    clock = itertools.accumulate(0 if n % 2 == 0 else took[n // 2] for n in range(10))
    monkeypatch.setattr(searching, "monotonic", lambda: next(clock))
    assert [searcher.search("red").seconds for _ in took] == pytest.approx(took)
    # Linear between the sorted values, as numpy's default: 0.5 + 0.8 * (1.5 - 0.5) at 95 %.
    assert searcher.pace == (5, pytest.approx(0.3), pytest.approx(1.3), 0)
    assert str(searcher.pace) == "latest 5: p50 0.300 s, p95 1.300 s"
    assert str(answers.Pace.of([(0.1, 3), (0.2, 4)])).endswith("; 3.5 tokens written a query")


def test_shared_words_are_those_that_both_texts_that_were_read_hold(world, raw):
    enriched = Searcher.open(world.enriched, world.root, store=world.store)
    for searcher in (raw, enriched):
        for result in searcher.search("The RED number, red 7", k=41):
            read = result.text or ""
            if searcher is enriched:
                read = f"{read}\n{result.generated or ''}"
            expected = {"red", "number", "7"} & set(re.findall(r"\w+", read.lower()))
            assert set(result.shared) == expected, read


def test_instructions(raw):
    assert raw.search("red").instruction == "Find it."
    assert raw.search("red").read == "Find it. red"
    assert raw.search("red", instruction="").read == "red"
    assert raw.search("red", instruction=" Look for ").read == "Look for red"
    assert [row.prompts[0] for row in raw.instructions()] == ["Find it.", "Name it."]


def test_the_instruction_says_what_is_searched_and_the_filter_which_is_taken(world, raw, tmp_path):
    image = world.root / "mbeir_images/squares_images/3.png"
    for query, given, kind in (({"query": "red"}, None, "image"), ({"image": image}, None, "text"),
                               ({"query": "red"}, "Show it.", "image")):  # fmt: skip
        asked = raw.search(**query, instruction=given, k=41, modality="asked")
        assert list(asked) == list(raw.search(**query, instruction=given, k=41, modality=kind))
        assert len(asked) == 20
    for given in ("", "Look for it"):
        answer = raw.search("red", instruction=given, k=41, modality="asked")
        assert len(answer) == 41
        assert "no instruction of the root says what is asked for" in answer.notes[-1]
    root = tmp_path / "two"
    shutil.copytree(world.root, root, symlinks=True)
    table = root / "instructions" / "query_instructions.tsv"
    table.write_text(table.read_text() + "text\ttext\tsquares\t7\tRead it.\t\t\t\n")
    two = Searcher.open(world.raw, root)
    for kind, want in ((None, "Find it."), ("text", "Read it."), ("image,text", "Find it.")):
        assert two.search("red", modality=kind).instruction == want


def test_of_several_data_sets_the_instruction_is_named(world, tmp_path):
    root = tmp_path / "two"
    shutil.copytree(world.root, root, symlinks=True)
    pool = root / "cand_pool" / "local" / "mbeir_squares_task3_cand_pool.jsonl"
    pool.write_text(pool.read_text().replace('"7:99"', '"8:1"'))
    table = root / "instructions" / "query_instructions.tsv"
    table.write_text(table.read_text() + "text\timage\tcircles\t8\tFind a circle.\t\t\t\n")
    answer = Searcher.open(world.raw, root).search("red")
    assert answer.instruction == "Find it."
    assert answer.notes == (
        "2 data sets have an instruction for such a query; that of squares was taken",
    )


def test_an_untrained_model_reads_published_text(world, tmp_path):
    searcher = Searcher.open("flagland-clip", world.root, pools=["squares"])
    assert len(searcher) == 41
    answer = searcher.search("a red flag", instruction="Find it", k=100)
    assert len(answer) == 41
    assert answer.read == "a red flag"
    assert answer.notes == ("the retriever was trained without instructions; none was used",)


def test_an_unreadable_picture_of_a_candidate_costs_only_the_picture(raw):
    assert (
        "candidates found by their text alone, because their picture cannot be read: 1" in raw.notes
    )
    assert "7:99" in [result.id for result in raw.search("red", k=100)]


def test_candidates_of_one_modality_and_without_the_own_picture(world, raw):
    image = world.root / "mbeir_images/squares_images/3.png"
    whole = {kind: [] for kind in ("image", "text", "image,text")}
    for result in raw.search("red", image, k=41):
        item = raw.item(result.id)
        whole[item.modality].append(result.id)
    assert [len(ids) for ids in whole.values()] == [20, 20, 1]
    for kind, ids in whole.items():
        for k in (1, 5, 41):
            answer = raw.search("red", image, k, modality=kind)
            assert [result.id for result in answer] == ids[:k]
            assert [result.rank for result in answer] == list(range(1, len(answer) + 1))
    left = [did for did in whole["image"] if did != "7:4"]  # the candidate with this very picture
    for k in (3, 19, 20):
        answer = raw.search("red", image, k, modality="image", own_picture="content")
        assert [result.id for result in answer] == left[:k]
    assert len(raw.search("red", image, 41, own_picture="content")) == 40
    assert len(raw.search("red", k=41, own_picture="content")) == 41
    words = Searcher.open("bm25", world.root, store=world.store)
    found = {words.item(result.id).modality for result in words.search("number", k=41)}
    assert "text" in found
    assert len(words.search("number", k=7, modality="text")) == 7
    pictures = Searcher.open(world.raw, world.root, pools=["squares_task0"])
    with pytest.raises(DataError, match="no candidate of these pools is image,text"):
        pictures.search("red", modality="image,text")


def picture(path, size=(8, 8), **options):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path, **options)
    return path


def test_embeddings_are_searched_where_they_lie(world, raw, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(world.raw.parent, run / "checkpoints")
    kept = EmbeddingConfig(str(run / "embeddings"), dtype="float32")
    data = MBeirData(str(world.root), on_bad_image="skip", embeddings=kept)
    embed(load(world.raw), data, device="cpu")
    # Found beside the checkpoint, or named; nothing is embedded again.
    monkeypatch.setattr("retrievers.search.searcher._embed", None)
    checkpoint = run / "checkpoints" / "last.ckpt"
    image = world.root / "mbeir_images/squares_images/3.png"
    for given in ({}, {"embeddings": run / "embeddings"}, {"embeddings": kept.folder + "/corpus"}):
        searcher = Searcher.open(checkpoint, world.root, **given)
        assert searcher.notes == raw.notes
        for query in ({"query": "green number 6"}, {"image": image}):
            assert searcher.search(**query, k=41) == raw.search(**query, k=41)
    few = Searcher.open(checkpoint, world.root, pools=["squares_task3"])
    assert len(few) == 21
    with pytest.raises(MismatchError, match="holds vectors made by"):
        Searcher.open(world.enriched, world.root, store=world.store, embeddings=run / "embeddings")
    with pytest.raises(StoreError, match="no embeddings here"):
        Searcher.open(checkpoint, world.root, embeddings=tmp_path)
    shard = next((run / "embeddings" / "corpus").glob("*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"?")
    with pytest.raises(StoreError, match="wrong checksum"):
        Searcher.open(checkpoint, world.root, embeddings=run / "embeddings")
    shard.write_bytes(whole)
    other = make_root(tmp_path / "other")
    for path in (other / "cand_pool" / "local").iterdir():
        path.write_text(path.read_text().replace('"7:', '"8:'))
    with pytest.raises(DataError, match="holds no vector of these pools"):
        Searcher.open(checkpoint, other)


def test_bad_queries_are_refused(raw, tmp_path):
    with pytest.raises(DataError, match="query is empty; type a text or give a picture"):
        raw.search("  \n")
    with pytest.raises(DataError, match="ask for at least 1"):
        raw.search("red", k=0)
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read: No such file"):
        raw.search("red", image=tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.jpg: is no picture that can be read; use JPEG"):
        raw.search("red", image=tmp_path / "text.jpg")
    svg = tmp_path / "a.svg"
    svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    with pytest.raises(ImageError, match="is no picture"):
        raw.search(image=svg)
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(tmp_path / "whole.png", (64, 64)).read_bytes()[:60])
    with pytest.raises(ImageError, match="is no picture"):
        raw.search(image=cut)
    assert raw.search(image=picture(tmp_path / "good.png")).read == "Name it."


def test_pictures_of_queries_are_bounded(tmp_path):
    pictures = QueryPictures(max_bytes=3000, max_pixels=100, kept=2)
    names = [pictures.add_file(picture(tmp_path / f"{n}.png", (n + 2, 3))) for n in range(3)]
    assert pictures.open(names[2]).size == (3, 4)
    assert sorted(path.name for path in pictures.folder.iterdir()) == sorted(names[1:])
    for name in (names[0], "../" + names[1], "", "0" * 40):
        with pytest.raises(ImageError, match="no longer here"):
            pictures.open(name)
    with pytest.raises(ImageError, match="more than 100 pixels"):
        pictures.add_file(picture(tmp_path / "bomb.png", (1000, 1000)))
    with pytest.raises(ImageError, match="make it smaller"):
        pictures.add(b"x" * 3001)
    assert len(list(pictures.folder.iterdir())) == 2


def test_what_cannot_be_opened(world, tmp_path):
    with pytest.raises(DataError, match=r"none\.ckpt: no such checkpoint; name a \.ckpt file"):
        Searcher.open(tmp_path / "none.ckpt", world.root)
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no checkpoint of this package"):
        Searcher.open(tmp_path / "bad.ckpt", world.root)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="is no checkpoint of this package"):
        Searcher.open(tmp_path / "other.ckpt", world.root)
    settings = {"class": "Unheard", "settings": {}, "text": {}}
    torch.save({"state_dict": {}, "retriever": settings}, tmp_path / "kind.ckpt")
    with pytest.raises(DataError, match=r"holds a Unheard; known encoders: .*ClipScoreFusion"):
        Searcher.open(tmp_path / "kind.ckpt", world.root)
    with pytest.raises(DataError, match="no such folder"):
        Searcher.open(world.raw, tmp_path / "none")
    (tmp_path / "bare" / "query").mkdir(parents=True)
    with pytest.raises(DataError, match="no candidate pool in cand_pool/local"):
        Searcher.open(world.raw, tmp_path / "bare")
    with pytest.raises(DataError, match="no pool named flags; there are squares, squares_task0"):
        Searcher.open(world.raw, world.root, pools=["flags"])
    with pytest.raises(DataError, match="name the store it is in"):
        Searcher.open(world.enriched, world.root)
    with pytest.raises(StoreError, match="no such folder of generated texts"):
        Searcher.open(world.enriched, world.root, store=tmp_path / "none")
    with pytest.raises(DataError, match="no device 'tpu7' here"):
        Searcher.open(world.raw, world.root, device="tpu7")
    with pytest.raises(EngineError):
        Searcher.open(world.enriched, world.root, store=world.store, vlm="scripted:none.json")


def test_settings_of_training_may_come_and_go(world, raw, tmp_path):
    saved = torch.load(world.raw, weights_only=True)
    saved["retriever"]["settings"]["symmetric"] = True
    torch.save(saved, tmp_path / "older.ckpt")
    older = Searcher.open(tmp_path / "older.ckpt", world.root)
    assert older.search("red") == raw.search("red")
    del saved["retriever"]["settings"]["model_name"]
    torch.save(saved, tmp_path / "less.ckpt")
    with pytest.raises(DataError, match=r"cannot be built from its settings .*'model_name'"):
        Searcher.open(tmp_path / "less.ckpt", world.root)


def test_text_of_another_recipe_is_refused_unless_allowed(world, tmp_path):
    other = tmp_path / "store"
    options = Options(model="scripted:", max_new_tokens=7)
    queries.run(world.root, other, options=options)
    corpus.run(world.root, other, options=options)
    with pytest.raises(MismatchError, match=r"another text recipe .*corpus: trained on"):
        Searcher.open(world.enriched, world.root, store=other)
    allowed = Searcher.open(world.enriched, world.root, store=other, allow_mismatch=True)
    assert allowed.search("red")
    with pytest.raises(MismatchError, match="trained on queries as published"):
        Searcher.open(world.raw, world.root, vlm="scripted:")
    script = tmp_path / "answers.json"
    script.write_text('["three black squares"]')
    with pytest.raises(MismatchError, match=r"rewritten otherwise .*revision"):
        Searcher.open(world.enriched, world.root, store=world.store, vlm=f"scripted:{script}")
    tried = Searcher.open(world.raw, world.root, vlm=f"scripted:{script}", allow_mismatch=True)
    answer = tried.search(image=picture(tmp_path / "q.png"))
    assert answer.rewritten == "three black squares"
    assert answer.read.endswith("three black squares")


def test_the_command_prints_text_or_json(world, capsys):
    args = ["--root", str(world.root), "--checkpoint", str(world.raw), "--k", "41"]
    assert cli.main(["search", *args, "red\x1b[31m"]) == 0
    printed = capsys.readouterr()
    assert "  1  " in printed.out
    assert "read as    Find it. red" in printed.out
    assert "\x1b" not in printed.out
    assert str(world.root / "mbeir_images/squares_images/0.png") in printed.out
    assert "note: candidates found by their text alone" in printed.err
    image = str(world.root / "mbeir_images/squares_images/3.png")
    more = ["--image", image, "--instruction", "none", "--json"]
    assert cli.main(["search", *args, *more, "--modality=image", "--own-picture=content"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 19
    assert cli.main(["search", *args, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["results"]) == 41
    assert told["read"] is None
    assert HOSTILE in [result["text"] for result in told["results"]]


def test_nothing_of_a_candidate_moves_the_cursor(tmp_path, capsys):
    bad = "x\x1b[2J\nerror: forged\u202e\x9b"
    answer = answers.Answer(
        (answers.Result(1, 0.5, bad, bad, bad, bad),), bad, False, None, bad, ()
    )
    told = answers.render(answer, tmp_path)
    assert told.count("x\\x1b[2J") == 6
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", told)
    assert "\nerror" not in told
    # What a store or a run says of a folder.
    args = ["search", "red", "--root", str(tmp_path), "--checkpoint=bm25", "--store", bad]
    assert cli.main(args) == 2
    assert not re.search("[\x1b\x9b]", capsys.readouterr().err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_search_told_to_end_forgets_its_pictures(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.signal(number, signal.SIG_DFL)

    def work(_):
        QueryPictures().add_file(picture(tmp_path / "q.png"))
        os.kill(os.getpid(), number)
        return 0

    assert stoppable(work, []) == 130
    signal.signal(number, before)
    assert capsys.readouterr().err == "stopped\n"
    assert [path.name for path in tmp_path.iterdir()] == ["q.png"]


def test_importing_the_package_stays_light():
    code = "import sys, retrievers; assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        retrievers.Nothing  # noqa: B018
