"""The run of every stage at full size, tried at almost no size."""

import json
from pathlib import Path

import pytest

from augment.data import DataRoot
from augment.data.validate import main
from benchmarks.mbeir import ROWS
from benchmarks.speed import full_size


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
    first = full_size.run_share(tmp_path, 0.0, ["world", "open", "judge"], keep=True)
    assert first["open"]["items"] == 16 * 60
    assert first["judge"]["private"] > 0
    assert full_size.run_share(tmp_path, 0.0, ["open"], keep=True) == first
    report = full_size.measure((0.0,), ("open",), tmp_path, keep=True)
    ((heading, rows),) = report.tables.items()
    assert heading == "## 960 candidates, 80 test queries"
    assert [row["stage"] for row in rows] == [full_size.STAGES[name].title for name in first]
    stage = full_size.Stage("no such command", None, ("augment.nothing",), "all")
    monkeypatch.setitem(full_size.STAGES, "lost", stage)
    with pytest.raises(SystemExit, match=r"lost\.log"):
        full_size.run_share(tmp_path, 0.0, ["lost"], keep=True)
    assert "lost" not in json.loads((tmp_path / "0" / "stages.json").read_text())


def test_a_small_encoder_goes_through_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = full_size.STAGES["fit"]
    few = (*fit.command, "--trainer.max_steps=2", "--data.batch_size=8")
    monkeypatch.setitem(full_size.STAGES, "fit", fit._replace(command=few))
    names = ["world", "training", "fit", "embed", "test"]
    done = full_size.run_share(tmp_path, 0.0, names, keep=True)
    assert done["training"]["items"] == 16 * 16
    assert done["embed"]["items"] == 16 * (60 + 5)
    found = json.loads((tmp_path / "0" / "test" / "metrics.json").read_text())
    assert len(found["rows"]) == 32  # sixteen rows, each in its pool and in the union
    assert sum(row["queries"] for row in found["rows"]) == 2 * 16 * 5
