"""From a folder of pictures to a page: once, again, changed, killed; and what cannot be used."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from augment.errors import DataError, MismatchError
from augment.store import Store
from augment.store.runs import load_runs
from retrievers import quickstart
from retrievers.cli import main
from retrievers.commands.quickstart import small
from retrievers.models.load import load
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.layout import LAYOUTS
from retrievers.search.serve import listen
from tests.worlds import World

HOME = Path(__file__).parents[3]
ODD = ("a b.png", "100%#.PNG", "\u00e4\u6f22 'x'.png", "sub/deep/\\back.png", "sub/a b.png")


def pictures(folder, names):
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = (43 * n % 256, 90, 97 * n % 256)
        Image.new("RGB", (40, 30), colour).save(folder / name, "PNG")
    return folder


@pytest.fixture
def folder(tmp_path):
    return pictures(tmp_path / "my pics", ODD)


def test_once_again_and_after_a_change(folder, capsys):
    (folder / "broken.jpg").write_bytes(b"no picture")
    with suppress(OSError):  # some disks take no such name
        (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "a b.png").read_bytes())
    (folder / "a b.txt").write_text("a purple teapot")
    found = quickstart(folder, model="scripted:")
    told = capsys.readouterr().out
    assert re.search(r"1 left out: pictures: corrupt \(such as .*broken.jpg", told)
    assert list(found) == ["flagland-clip", "bm25"]
    assert {len(searcher) for searcher in found.values()} == {len(ODD)}
    first = found["bm25"].search("a teapot").results[0]
    assert (first.id, first.text) == ("a%20b.png", "a purple teapot")
    assert first.generated.startswith("answer to")
    own = found["flagland-clip"].search(image=folder / "sub/a b.png", k=1).results[0]
    assert own.id == "sub/a%20b.png"

    out = folder.with_name("my pics-search")
    vectors = {path: path.stat().st_mtime_ns for path in (out / "vectors").rglob("*.arrow")}
    assert vectors
    quickstart(folder, model="scripted:")
    assert "pictures are imported already" in capsys.readouterr().out
    assert load_runs(out / "texts")[-1].counts["generated"] == 0
    assert vectors == {path: path.stat().st_mtime_ns for path in vectors}

    pictures(folder, [*ODD, "new.png"])
    (folder / "a b.png").unlink()
    found = quickstart(folder, model="scripted:?delay=0", retriever="bm25")
    assert list(found) == ["bm25"]
    assert {found["bm25"].item(one) is None for one in ("new.png", "sub/a%20b.png")} == {False}
    assert found["bm25"].item("a%20b.png") is None


def test_texts_of_the_latest_model_are_shown(tmp_path):
    ocr = pytest.importorskip("tests.augment.engines.test_ocr")
    folder = pictures(tmp_path / "p", ["blank.png"])
    ocr.sign(folder / "sign.png", "ORANGE JUICE")
    quickstart(folder, model="scripted:", retriever="bm25")
    found = quickstart(folder, model="ocr", retriever="bm25", threads=1)
    first = found["bm25"].search("orange").results[0]
    assert (first.id, first.generated) == ("sign.png", "ORANGE JUICE")


def test_what_cannot_be_used_is_told(folder, tmp_path):
    (tmp_path / "empty/deep").mkdir(parents=True)
    with pytest.raises(DataError, match="no picture"):
        quickstart(tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        quickstart(tmp_path / "none")
    with pytest.raises(DataError, match="lies in the folder of pictures"):
        quickstart(folder, folder / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(DataError, match="no quickstart made it"):
        quickstart(folder, tmp_path / "full")
    quickstart(folder, tmp_path / "out", model="scripted:", retriever="bm25")
    other = pictures(tmp_path / "other", ["x.png"])
    with pytest.raises(DataError, match="of another folder"):
        quickstart(other, tmp_path / "out")


def test_a_port_in_use_is_told_before_anything_is_done(folder, capsys):
    with listen("127.0.0.1", 0) as held:
        assert main(["quickstart", str(folder), f"--port={held.getsockname()[1]}"]) == 2
    assert "choose another --port" in capsys.readouterr().err
    assert not folder.with_name("my pics-search").exists()


def test_packaged_models_are_called_what_they_are():
    both = small("flagland-vlm", "flagland-clip")
    assert both.startswith("note: flagland-vlm and flagland-clip know generated flags and nothing")
    assert small("ocr", "flagland-clip").startswith("note: flagland-clip knows generated flags")
    assert small("ocr", "ViT-B-16-SigLIP2-256") == ""


def test_a_checkpoint_of_ours_reads_the_texts_that_it_was_trained_on(folder, tmp_path):
    world = World(tmp_path)
    searcher = quickstart(folder, model="scripted:", retriever=str(world.enriched))["enriched"]
    assert (searcher.query_view, searcher.corpus_view) == ("replace", "append")
    other = tmp_path / "other.json"
    other.write_text('["of another model"]')
    with pytest.raises(MismatchError, match="another text recipe"):
        quickstart(folder, tmp_path / "out", f"scripted:{other}", retriever=str(world.enriched))


def test_published_retrievers_by_name(folders, monkeypatch):
    encoder = load(str(folders["qwen3"]))
    assert isinstance(encoder, Mllm)
    assert encoder.layout.query == LAYOUTS["qwen3-vl-embedding"].query
    seen = []

    class Taken(torch.nn.Module):
        def __init__(self, *given, **named):
            super().__init__()
            seen.append((*given, *named.values()))

    monkeypatch.setattr("retrievers.models.load.ClipScoreFusion", Taken)
    load("ViT-B-16-SigLIP2-256")
    load("ViT-B-32-quickgelu:openai")
    assert seen == [("ViT-B-16-SigLIP2-256", "webli"), ("ViT-B-32-quickgelu", "openai")]
    with pytest.raises(DataError, match="name ViT-B-32:TAG, where TAG is one of"):
        load("ViT-B-32")


def test_killed_while_it_describes_it_goes_on_to_a_page(tmp_path, monkeypatch, capsys):
    folder = pictures(tmp_path / "p", [f"{n}.png" for n in range(60)])
    store = tmp_path / "p-search" / "texts"
    words = ["quickstart", str(folder), "--port=0", "--model=scripted:?delay=0.7"]
    command = [sys.executable, "-m", "retrievers", *words]
    with subprocess.Popen(command, cwd=HOME, stdout=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 120
        while not any('"kind":"text"' in log.read_text() for log in store.rglob("*.jsonl")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    kept = len(Store(store).rows("text"))
    assert 0 < kept < 60

    def asked(app):
        with TestClient(app, "http://localhost") as client:
            found = client.get("/search.json?q=answer&k=7").json()["answers"]
            assert [len(found[name]["results"]) for name in ("flagland-clip", "bm25")] == [7, 7]
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr("retrievers.search.serve.make_server", asked)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"{60 - kept:>9,} generated" in told
    assert told.count("flagland-clip knows generated flags and nothing else") == 2
    assert "next: python -m retrievers search --root" in told
    assert f"serving on {opened[0]} until" in told
    assert main([*words, "--no-open"]) == 0
    assert len(opened) == 1


def test_a_stop_in_the_middle_goes_on(folder, monkeypatch, capsys):
    def stopped(*_, **__):
        signal.raise_signal(signal.SIGINT)
        return []

    with monkeypatch.context() as patched:
        patched.setattr("augment.engines.scripted.ScriptedEngine._reply", stopped)
        assert main(["quickstart", str(folder), "--port=0", "--model=scripted:"]) == 130
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert len(quickstart(folder, model="scripted:", retriever="bm25")["bm25"]) == len(ODD)
