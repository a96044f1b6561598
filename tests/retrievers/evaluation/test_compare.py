"""The comparison of two runs: means by hand, intervals and tests against slow ones."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from augment.data import write_qrels
from augment.records import Hit, Item, Qrel, Query, one_picture
from retrievers.cli import main
from retrievers.evaluation.compare import (
    compare,
    holm,
    macro_bootstrap,
    macro_randomisation,
    paired,
    scores_from_run,
)
from retrievers.evaluation.run_files import write_run


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


def test_the_column_of_holm_is_corrected_for_all_tasks(tmp_path: Path) -> None:
    gains = {"x_task0": 6, "x_task3": 7, "x_task4": 2}
    first = write_folder(tmp_path / "a", {task: [False] * 20 for task in gains})
    second = write_folder(
        tmp_path / "b",
        {task: [True] * gain + [False] * (20 - gain) for task, gain in gains.items()},
    )
    *rows, mean = compare(first, second).rows
    ordered = sorted(rows, key=lambda row: row.p)
    assert ordered[0].holm == pytest.approx(3 * ordered[0].p)
    assert ordered[1].holm == pytest.approx(2 * ordered[1].p)
    assert ordered[2].holm == ordered[2].p
    assert (mean.holm, mean.name) == (mean.p, "mean")


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
    for rows in (result.rows[:-1], result.slices):
        assert [row.holm for row in rows] == pytest.approx(holm([row.p for row in rows]))
    assert any(row.holm > row.p for row in result.slices)
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


def test_randomisation_agrees_with_all_sign_flips():
    a = np.zeros(9)
    b = np.array([0.3, 0.1, -0.2, 0.4, 0.2, 0.0, 0.1, 0.5, -0.1])
    sums = [abs(np.dot(signs, b)) for signs in itertools.product((-1, 1), repeat=9)]
    exact = np.mean([value >= abs(b.sum()) - 1e-9 for value in sums])
    assert macro_randomisation([(a, b)], n=40_000) == pytest.approx(exact, abs=0.006)


def test_no_difference_gives_no_evidence():
    same = [([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])]
    assert macro_bootstrap(same) == (0.0, 0.0, 0.0)
    assert macro_randomisation(same) == 1.0


def test_seeds_decide():
    random = np.random.default_rng(0)
    pair = [(random.normal(0, 1, 30), random.normal(0.2, 1, 30))]
    for measure in (macro_bootstrap, macro_randomisation):
        found = [measure(pair, seed=seed, n=500) for seed in (1, 1, 2, 3)]
        assert found[0] == found[1]
        assert len(set(found)) > 1, measure


def test_p_counts_the_observed_assignment_once():
    """However extreme, (0 + 1) / (n + 1): that of more flips is smaller, and none is 0."""
    certain = [(np.zeros(60), np.ones(60))]
    for n in (99, 999):
        assert macro_randomisation(certain, n=n) == 1 / (n + 1)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0])])
def test_unusable_scores_are_refused(a, b):
    with pytest.raises(ValueError, match="scores"):
        macro_bootstrap([(a, b)])


def test_scores_of_a_run_count_missing_queries(tmp_path):
    write_run(tmp_path / "a.trec", {"9:1": [Hit("9:5", 0.9), Hit("9:6", 0.8)]})
    (tmp_path / "a.qrels").write_text("9:1 0 9:6 1\n9:2 0 9:6 1\n")
    files = tmp_path / "a.trec", tmp_path / "a.qrels"
    assert scores_from_run(*files, "success@2") == {"9:1": 1.0, "9:2": 0.0}
    assert scores_from_run(*files, "success@1") == {"9:1": 0.0, "9:2": 0.0}
    assert scores_from_run(*files, "mrr@5") == {"9:1": 0.5, "9:2": 0.0}
    with pytest.raises(ValueError, match="metric"):
        scores_from_run(*files, "accuracy@1")


def test_pairs_must_be_about_the_same_queries():
    assert paired({"a": 1.0, "b": 0.0}, {"b": 0.5, "a": 0.0}) == ([1.0, 0.0], [0.0, 0.5])
    with pytest.raises(ValueError, match="different queries"):
        paired({"a": 1.0}, {"b": 1.0})


def test_counts_are_drawn_as_queries_would_be():
    """The interval of many queries with few distinct differences, against resampled queries."""
    random = np.random.default_rng(5)
    a, b = random.integers(0, 2, 300).astype(float), random.integers(0, 2, 300).astype(float)
    slow = (b - a)[random.integers(0, 300, (10_000, 300))].mean(axis=1)
    interval = macro_bootstrap([(a, b)], seed=1)
    assert interval.low == pytest.approx(np.quantile(slow, 0.025), abs=0.008)
    assert interval.high == pytest.approx(np.quantile(slow, 0.975), abs=0.008)


def test_tasks_weigh_alike_and_are_resampled_apart():
    random = np.random.default_rng(2)
    tasks = [
        (random.normal(0, 1, size), random.normal(gain, 1, size))
        for size, gain in ((400, 0.1), (50, 0.5))
    ]
    interval = macro_bootstrap(tasks, seed=3)
    differences = [b - a for a, b in tasks]
    assert interval.mean == pytest.approx(np.mean([d.mean() for d in differences]))
    error = np.sqrt(sum(d.var() / len(d) for d in differences)) / 2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    exact = [(np.zeros(3), np.array([0.3, 0.1, -0.2])), (np.zeros(2), np.array([0.5, 0.25]))]
    means = [
        np.mean([np.mean(np.array(s[:3]) * exact[0][1]), np.mean(np.array(s[3:]) * exact[1][1])])
        for s in itertools.product((-1, 1), repeat=5)
    ]
    observed = np.mean([np.mean(b) for _, b in exact])
    want = np.mean([abs(mean) >= observed - 1e-12 for mean in means])
    assert macro_randomisation(exact, n=40_000) == pytest.approx(want, abs=0.006)


def test_holm_by_hand():
    """Holm 1979: the smallest times m, the next times m - 1, and never falling."""
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])
