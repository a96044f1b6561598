"""The measurements: turns, ratios, pages and the index; every stage at full size, at hardly any."""

import json
import time

import pytest

from augment.__main__ import main as augment
from augment.data import DataRoot
from benchmarks.mbeir import ROWS
from benchmarks.speed import full_size, harness
from benchmarks.speed.__main__ import STAGES, main


def test_ways_take_turns_and_are_compared_with_the_first():
    calls = []

    def work(name, seconds):
        calls.append(name)
        time.sleep(seconds)
        return name.upper()

    turns = harness.take_turns({"a": lambda: work("a", 0.02), "b": lambda: work("b", 0.2)}, 2)
    assert calls == ["a", "b"] * 3
    assert turns["a"].ratio == 1 < turns["b"].ratio
    assert turns["b"].seconds >= 0.2
    assert [own.result for own in turns.values()] == ["A", "B"]
    ours, theirs = harness.rows_of(turns, 10)
    assert ours["items/s"] > theirs["items/s"]


def test_a_page_says_how_it_was_made_and_the_index_too(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "source_commit", lambda: "a" * 40 + "-dirty")
    (tmp_path / "index.json").write_text(json.dumps({"x.md": {"measures": ["augment/data"]}}))
    rows = [{"": "ours", "items/s": 12345.6, "s": 0.0123}, {"": "theirs", "s": 2.0, "n": 3}]
    page = harness.Page("Title", "About.", {"": rows})
    text = page.write(tmp_path / "x.md", ["benchmarks.speed", "data", "--rows=[1, 2]"])
    assert text == (tmp_path / "x.md").read_text(encoding="utf-8")
    assert "|  | items/s | s | n |\n|---|--:|--:|--:|\n| ours | 12,346 | 0.012 |  |\n" in text
    assert "| theirs |  | 2.00 | 3 |\n\nCommand: `python -m benchmarks.speed" in text
    entry = json.loads((tmp_path / "index.json").read_text())["x.md"]
    assert entry["commit"] == "a" * 40
    assert entry["measures"] == ["augment/data"]
    assert entry["command"] == "python -m benchmarks.speed data '--rows=[1, 2]'"


def test_stages_are_told_and_options_come_from_their_functions(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(stage in told for stage in STAGES)
    assert main(["nonsense"]) == 2
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["search", "--help"])
    assert "--rows ROWS" in capsys.readouterr().out


def test_stages_of_the_full_size_run_once_and_a_failure_names_its_log(tmp_path, monkeypatch):
    fit = full_size.STAGES["fit"]
    few = (*fit.does, "--trainer.max_steps=2", "--data.batch_size=8")
    monkeypatch.setitem(full_size.STAGES, "fit", fit._replace(does=few))
    names = ("world", "fit", "embed", "test")
    report = full_size.measure((0.0,), names, tmp_path)
    ((heading, rows),) = report.tables.items()
    assert heading == "## 960 candidates, 80 test queries"
    assert [row["stage"] for row in rows] == [full_size.STAGES[name].title for name in names]
    assert rows[2]["items"] == 16 * (60 + 5)
    assert all(row["private GiB"] > 0 for row in rows)
    assert full_size.measure((0.0,), names, tmp_path).tables[heading] == rows
    root = DataRoot(tmp_path / "0" / "root")
    assert {(file.dataset, file.task) for file in root.pools()} == set(ROWS)
    assert augment(["validate", str(root.path), "--texts", "none"]) == 0
    found = json.loads((tmp_path / "0" / "test" / "metrics.json").read_text())
    assert len(found["rows"]) == 32  # sixteen rows, each in its pool and in the union
    assert sum(row["queries"] for row in found["rows"]) == 2 * 16 * 5
    stage = full_size.Stage("no such command", full_size.queries, ("augment.nothing",))
    monkeypatch.setitem(full_size.STAGES, "lost", stage)
    with pytest.raises(SystemExit, match=r"lost\.log"):
        full_size.run_share(tmp_path, 0.0, ["lost"])
    assert "lost" not in json.loads((tmp_path / "0" / "stages.json").read_text())
