"""The run of every stage at full size, tried at almost no size."""

import json
from pathlib import Path

import pytest

from augment.mbeir import DataRoot
from augment.validate import main
from benchmarks import full_size
from benchmarks.mbeir import ROWS


def test_the_world_has_the_sixteen_rows(tmp_path: Path) -> None:
    items = full_size.write_world(tmp_path, 0.0)
    root = DataRoot(tmp_path / "root")
    assert items == 16 * (60 + 5)
    assert {(file.dataset, file.task) for file in root.pools()} == set(ROWS)
    assert main([str(root.path), "--texts", "none"]) == 0
    assert len(root.union_pool("test").read_text().splitlines()) == 16 * 60


def test_stages_run_once_and_a_failure_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = full_size.measure(tmp_path, 0.0, ["world", "open", "judge"], keep=True)
    assert first["open"]["items"] == 16 * 60
    assert first["judge"]["private"] > 0
    assert full_size.measure(tmp_path, 0.0, ["open"], keep=True) == first
    text = full_size.table({0.0: first})
    assert "960 candidates, 80 test queries" in text
    assert text.count("| the same again |") == 1
    stage = full_size.Stage("no such command", None, ("augment.nothing",), "all")
    monkeypatch.setitem(full_size.STAGES, "lost", stage)
    with pytest.raises(SystemExit, match=r"lost\.log"):
        full_size.measure(tmp_path, 0.0, ["lost"], keep=True)
    assert "lost" not in json.loads((tmp_path / "0" / "stages.json").read_text())
