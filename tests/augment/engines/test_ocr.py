"""Text in pictures, read by real weights: from the wheel, with every socket shut."""

import socket

import pytest
from PIL import Image, ImageDraw

from augment import corpus, open_view
from augment.checks import judge
from augment.data import write_candidates
from augment.engines import load_engine, ocr
from augment.enrichment.pipeline import Options
from augment.errors import DataError, EngineError
from augment.prompts import load_prompt
from augment.prompts.route import followed
from augment.records import Item, Reply

pytest.importorskip("rapidocr", reason="the extra ocr is not installed")


def sign(path, *lines):
    picture = Image.new("RGB", (320, 160), "white")
    for n, line in enumerate(lines):
        ImageDraw.Draw(picture).text((20, 15 + 60 * n), line, "black", font_size=36)
    picture.save(path)


def test_what_stands_in_a_picture_is_a_text_and_nothing_is_a_normal_outcome(tmp_path, monkeypatch):
    sign(tmp_path / "milk.png", "MILK 1.5%", "ORGANIC")
    sign(tmp_path / "blank.png")
    names = ("milk", "milk", "blank", "broken")
    pool = [Item(f"3:{n}", f"text {n}", (f"{name}.png",), "image,text")
            for n, name in enumerate(names)]  # fmt: skip
    write_candidates(tmp_path / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl", pool)
    monkeypatch.setattr(socket.socket, "connect", None)
    monkeypatch.setattr("rapidocr.utils.download_file.DownloadFile.run", None)
    summary = corpus.run(tmp_path, tmp_path / "s", options=Options(model="ocr", threads=1))
    assert (summary.generated, summary.duplicates, summary.empty) == (2, 1, 1)
    assert "2 generated, 1 of them empty" in str(summary)
    assert set(summary.failed) == {"missing"}
    view = open_view("corpus", "append", tmp_path / "s")
    shown = [view.text(item) for item in pool]
    assert shown[:3] == ["text 0\nMILK 1.5%\nORGANIC", "text 1\nMILK 1.5%\nORGANIC", "text 2"]
    assert set(view.recipe["settings"]) == {"rapidocr", "onnxruntime", "min_score"}


def test_it_is_graphs_of_onnx_and_is_refused_with_a_way_out(tmp_path, monkeypatch):
    for path in ocr.model_files().values():
        assert path.read_bytes()[:1] == b"\x08"  # a pickle begins with 0x80, torch's files with PK
    with pytest.raises(DataError, match="follows no prompt, so not tte/corpus"):
        followed("tte/corpus", "ocr", "rar/corpus")
    monkeypatch.setattr(ocr.util, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"pip install 'reasoning-augmented-retrieval\[ocr\]'"):
        load_engine("ocr", root=tmp_path)
    for text in ("Mellanmj\u00f6lk och 5 %", "NEW NEW NEW NEW", "- 5\n1. Soup", ""):
        found = judge(Reply(text), load_prompt("ocr/text"))  # as a caption each is refused
        assert (found.text, found.rejected) == (text, "")
