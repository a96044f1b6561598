"""The harness of the measurements: turns, ratios, a page and its entry in the index."""

import json
import time

import pytest

from benchmarks.speed import harness
from benchmarks.speed.__main__ import STAGES, main


def test_variants_take_turns_and_are_compared_with_the_first():
    calls = []

    def work(name, seconds):
        calls.append(name)
        time.sleep(seconds)
        return name.upper()

    ways = {"a": lambda: work("a", 0.2), "b": lambda: work("b", 0.02)}
    turns = harness.take_turns(ways, rounds=2)
    assert calls == ["a", "b"] * 3
    assert turns["a"].ratio == 1
    assert turns["b"].ratio > 1  # even where other work makes the second wait
    assert turns["a"].least >= 0.2
    assert [own.result for own in turns.values()] == ["A", "B"]
    first, second = harness.rows_of(turns, 10)
    assert first["items/s"] < second["items/s"]


def test_a_page_says_how_it_was_made_and_the_index_too(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "source_commit", lambda: "a" * 40 + "-dirty")
    (tmp_path / "index.json").write_text(json.dumps({"x.md": {"measures": ["augment/data"]}}))
    rows = [{"": "ours", "items/s": 12345.6, "s": 0.0123}, {"": "theirs", "s": 2.0, "n": 3}]
    page = harness.Page("Title", "About.", {"": rows}, notes=["A note."], settings=["1 thread"])
    text = page.write(tmp_path / "x.md", ["benchmarks.speed", "data", "--rows=[1, 2]"])
    assert text == (tmp_path / "x.md").read_text(encoding="utf-8")
    assert "|  | items/s | s | n |\n|---|--:|--:|--:|\n| ours | 12,346 | 0.012 |  |\n" in text
    assert "| theirs |  | 2.00 | 3 |\n\nA note.\n\nCommand: `python -m benchmarks.speed" in text
    entry = json.loads((tmp_path / "index.json").read_text())["x.md"]
    assert entry["commit"] == "a" * 40
    assert entry["measures"] == ["augment/data"]
    assert entry["command"] == "python -m benchmarks.speed data '--rows=[1, 2]'"
    assert "1 thread" in entry["machine"]


def test_stages_are_told_and_options_come_from_their_functions(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(stage in told for stage in STAGES)
    assert main(["nonsense"]) == 2
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["data", "--help"])
    assert "--rows ROWS" in capsys.readouterr().out
