"""From a folder of pictures to a page: killed, again, changed; and what cannot be used."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from starlette.testclient import TestClient

from augment.store import Store
from augment.store.runs import load_runs
from retrievers import quickstart
from retrievers.cli import main


def test_killed_while_it_describes_it_goes_on_to_a_page(tmp_path, monkeypatch, capsys):
    folder, store = tmp_path / "my p", tmp_path / "my p-search" / "texts"
    for n in range(40):
        path = folder / ("a b.png" if n == 1 else f"sub/{n}#%\u00e4.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (43 * n % 256, 90, 97 * n % 256)).save(path)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "a b.txt").write_text("a purple teapot")
    words = ["quickstart", str(folder), "--port=0", "--no-open", "--model=scripted:?delay=0.7"]
    command = [sys.executable, "-m", "retrievers", *words]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as first:
        while not any('"kind":"text"' in log.read_text() for log in store.rglob("*.jsonl")):
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    kept = len(Store(store).rows("text"))
    assert 0 < kept < 40

    def asked(app):
        found = (
            TestClient(app, "http://localhost").get("/search.json?q=teapot&k=7").json()["answers"]
        )
        assert len(found["flagland-clip"]["results"]) == 7
        assert found["bm25"]["results"][0]["id"] == "a%20b.png"
        raise KeyboardInterrupt

    monkeypatch.setattr("retrievers.search.serve.make_server", asked)
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"{40 - kept:>9,} generated" in told
    assert told.count("flagland-clip knows generated flags and nothing else") == 2
    vectors = {one: one.stat().st_mtime_ns for one in store.parent.rglob("vectors/**/*.arrow")}
    (folder / "new.png").write_bytes((folder / "a b.png").read_bytes())
    found = quickstart(folder, model="scripted:", threads=1)
    assert load_runs(store)[-1].counts["generated"] == 1
    assert len(found["bm25"]) == 41
    assert vectors == {one: one.stat().st_mtime_ns for one in vectors}
