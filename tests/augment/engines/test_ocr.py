"""Text in pictures, read by real weights: from the wheel, with every socket shut."""

import socket

import pytest
from PIL import Image, ImageDraw, ImageFont

from augment import corpus, enrich, open_view
from augment.checks import judge
from augment.corpus import plan
from augment.data import write_candidates
from augment.engines import load_engine, ocr
from augment.enrichment.pipeline import Options
from augment.errors import DataError, EngineError
from augment.prompts import load_prompt
from augment.records import Item, Reply
from augment.store import Store
from augment.store.upkeep import status

pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
pytest.importorskip("onnxruntime", reason="the extra ocr is not installed")

OCR = Options(model="ocr", threads=1)


def sign(path, *lines):
    """White, with words on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (320, 160), "white")
    for n, line in enumerate(lines):
        font = ImageFont.load_default(36)
        ImageDraw.Draw(picture).text((20, 15 + 60 * n), line, "black", font)
    picture.save(path)


@pytest.fixture
def root(tmp_path, monkeypatch):
    sign(tmp_path / "p/milk.png", "MILK 1.5%", "ORGANIC")
    sign(tmp_path / "p/blank.png")
    (tmp_path / "p/broken.png").write_bytes(b"no picture")
    pool = [
        Item("3:1", "a carton", ("p/milk.png",), "image,text"),
        Item("3:2", "the same carton", ("p/milk.png",), "image,text"),
        Item("3:3", "nothing written", ("p/blank.png",), "image,text"),
        Item("3:4", "unreadable", ("p/broken.png",), "image,text"),
        Item("3:5", "no picture", (), "text"),
    ]
    write_candidates(tmp_path / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl", pool)

    def shut(*_):
        raise AssertionError("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", shut)
    monkeypatch.setattr("rapidocr.utils.download_file.DownloadFile.run", shut)
    return tmp_path


def test_what_stands_in_a_picture_is_a_text_of_its_own_and_nothing_is_a_normal_outcome(root):
    store = root / "store"
    summary = corpus.run(root, store, options=OCR)
    assert (summary.total, summary.generated, summary.duplicates) == (5, 2, 1)
    # One picture with one text is read once, whatever is published beside it.
    assert summary.empty == 1
    assert "2 generated, 1 of them empty: no text in the picture" in str(summary)
    assert not summary.rejected
    assert set(summary.failed) == {"corrupt"}
    assert set(summary.skipped) == {"no picture"}
    view = open_view("corpus", "append", store)
    shown = {one: view.text(Item(one, "as published", (), "text")) for one in ("3:1", "3:2", "3:3")}
    assert shown["3:1"] == shown["3:2"] == "as published\nMILK 1.5%\nORGANIC"
    assert shown["3:3"] == "as published"
    again = corpus.run(root, store, options=OCR)
    assert (again.generated, again.cached) == (0, 3)


def test_texts_say_what_read_them(root):
    corpus.run(root, root / "store", options=OCR)
    (found,) = status(Store(root / "store"))
    assert found.model == "rapidocr"
    assert found.prompts == [load_prompt("ocr/text").id]
    recipe = Store(root / "store").recipe("corpus")
    assert set(recipe.settings) == {"rapidocr", "onnxruntime", "min_score"}
    assert len(recipe.revision) == 40


def test_its_weights_are_graphs_of_onnx(root):
    files = ocr.model_files()
    assert set(files) == set(ocr.PARTS)
    for path in files.values():
        # A message of protocol buffers begins with its first field, the version of the format;
        # a pickle would begin with 0x80, and what torch packs with PK.
        assert path.suffix == ".onnx"
        assert path.read_bytes()[:1] == b"\x08"
    engine = load_engine("ocr", root=root)
    prompt, item = load_prompt("ocr/text"), Item("1", None, ("p/milk.png",), "image")
    assert next(engine.generate([prompt.render(item)], OCR.sampling(prompt))).finish == "stop"
    assert engine._loaded.cfg.Rec.model_path == str(files["Rec"])


def test_it_is_refused_with_a_way_out(root, monkeypatch):
    with pytest.raises(DataError, match="follows no prompt, so not tte/corpus"):
        plan(root, prompt="tte/corpus", options=OCR)
    with pytest.raises(EngineError, match="takes no name, got 'x'"):
        load_engine("ocr:x", root=root)
    monkeypatch.setattr(ocr.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"pip install 'reasoning-augmented-retrieval\[ocr\]'"):
        load_engine("ocr", root=root)


def test_checks_take_others_words_as_they_are():
    """As a caption each of these would be refused, or lose its bullet."""
    prompt = load_prompt("ocr/text")
    for text in (
        "Mellanmj\u00f6lk 1,5 % fetthalt och \u00e4r",
        "NEW NEW NEW NEW",
        "- 5\n1. Soup",
        "",
    ):
        found = judge(Reply(text), prompt)
        assert (found.text, found.rejected) == (text, "")
    assert judge(Reply(""), prompt).scores["empty"] == 1
    assert judge(Reply("word " * 2001), prompt).rejected.startswith("too long")


def test_from_python(root):
    items = [Item("9:1", None, ("p/milk.png",), "image")]
    store = Store(root / "own")
    enrich(items, "ocr/text", load_engine("ocr", root=root), store, root=root)
    assert store.texts("corpus")["9:1"].text == "MILK 1.5%\nORGANIC"
