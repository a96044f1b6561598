"""The comparison of two runs: means by hand."""

import json
import random
from pathlib import Path

import pytest

from augment.data import write_qrels
from augment.records import Hit, Item, Qrel, Query, one_picture
from retrievers.cli import main
from retrievers.evaluation.compare import compare
from retrievers.evaluation.run import write_run


def write_folder(folder: Path, right: dict[str, list[bool]]) -> Path:
    """Runs in which a query of a task finds its positive first, or finds something else."""
    folder.mkdir()
    for task, hits in right.items():
        run = {f"1:{n}": [Hit(f"1:{n}" if hit else "1:999", 1.0)] for n, hit in enumerate(hits, 1)}
        write_run(folder / f"{task}.local.trec", run)
        qrels = [Qrel(f"1:{n}", f"1:{n}") for n in range(1, len(hits) + 1)]
        write_qrels(folder / f"{task}.qrels", qrels, columns=4)
    return folder


def test_means_and_the_mean_of_tasks(tmp_path: Path) -> None:
    first = write_folder(
        tmp_path / "a", {"x_task0": [True] * 5 + [False] * 5, "x_task3": [False] * 4}
    )
    second = write_folder(
        tmp_path / "b", {"x_task0": [True] * 10, "x_task3": [True] * 2 + [False] * 2}
    )
    result = compare(first, second, ["x_task0", "x_task3"])
    rows = {row.name: row for row in result.rows}
    assert rows["0: text → image"].first == pytest.approx(0.5)
    assert rows["0: text → image"].second == pytest.approx(1.0)
    assert rows["3: image → text"].difference.mean == pytest.approx(0.5)
    # Each task weighs the same although one has more queries.
    assert rows["mean"].first == pytest.approx((0.5 + 0.0) / 2)
    assert rows["mean"].second == pytest.approx((1.0 + 0.5) / 2)
    low, high = rows["mean"].difference.low, rows["mean"].difference.high
    assert low <= rows["mean"].difference.mean <= high
    assert "| mean | 14 | 25.0 | 75.0 | +50.0" in result.table()


def test_equal_systems_differ_by_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    hits = {"x_task4": [rng.random() < 0.5 for _ in range(30)]}
    result = compare(
        write_folder(tmp_path / "a", hits), write_folder(tmp_path / "b", hits), ["x_task4"]
    )
    assert result.rows[0].difference == (0, 0, 0)
    assert result.rows[0].p == 1


def test_wins_losses_slices_and_correction(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", {"x_task0": [True] * 5 + [False] * 15})
    second = write_folder(tmp_path / "b", {"x_task0": [False] * 2 + [True] * 18})
    asked = [
        Query(Item(f"1:{n}", text, one_picture(image), "text"), 0)
        for n, text, image in (
            *((n, "a red flag", None) for n in range(1, 11)),
            *((n, "Which river is it?", "p.jpg") for n in range(11, 16)),
            *((n, "the same in red, " + "word " * 20, "p.jpg") for n in range(16, 21)),
        )
    ]
    result = compare(first, second, queries=asked, metric="success@1")
    task = result.rows[0]
    assert (task.wins, task.losses) == (15, 2)
    assert result.rows[-1].holm == result.rows[-1].p
    slices = {row.name: row.queries for row in result.slices}
    assert slices["type: question"] == 5
    assert slices["type: modification"] == 5
    assert slices["type: description"] == 10
    assert slices["text: 16 to 40 words"] == 5
    assert slices["text: 1 to 5 words"] == 15
    assert all(row.holm >= row.p for row in result.slices)
    assert [change.second - change.first for change in result.changes] == [1] * 15 + [-1] * 2
    assert "| 15 | 2 |" in result.table()


def test_the_command_prints_tables_and_writes_everything(tmp_path: Path, capsys) -> None:
    first = write_folder(tmp_path / "a", {"x_task0": [False] * 8, "x_task3": [True] * 4})
    second = write_folder(tmp_path / "b", {"x_task0": [True] * 8, "x_task3": [True] * 4})
    out = tmp_path / "comparison.json"
    arguments = ["compare", str(first), str(second), "--out", str(out), "--examples", "2"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "| mean | 12 | 50.0 | 100.0 | +50.0 [+50.0, +50.0] |" in told
    assert "wins of b:\n- 0: text → image, 1:1: 0.000 → 1.000" in told
    record = json.loads(out.read_text())
    assert len(record["changes"]) == 8
    assert record["seed"] == 0
