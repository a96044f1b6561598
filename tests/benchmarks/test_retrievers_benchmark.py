"""The table of retrievers and losses: run in parts, killed, gone on, and its numbers."""

import csv
import json
import shutil

import pytest

from augment.errors import DataError
from benchmarks.experiments import graph
from benchmarks.experiments.build import digest_root
from benchmarks.experiments.texts import Enriching
from benchmarks.retrievers import steps as steps_module
from benchmarks.retrievers.__main__ import main
from benchmarks.retrievers.rows import FIRST, ROWS, choose
from benchmarks.retrievers.steps import Bench
from benchmarks.retrievers.table import lines, pairs_per_second
from retrievers.cli import main as retrievers
from tests.retrievers.models.test_retriever import make_config, make_root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return make_root(folder / "root"), make_config(folder)


def bench(root, *fit):
    return Bench("squares", Enriching(root, digest_root(root), tolerate=True), 4, 8, fit=fit)


def test_rows_share_minings_and_the_first_training(world):
    one = bench(world[0])
    every = [one.test(row, seed) for seed in (0, 1) for row in ROWS]
    kinds = [step.kind for step in graph.in_order(every)]
    trained = sum(row.trained for row in ROWS)
    assert kinds.count("train") == 2 * len({(row.model, row.data, row.config) for row in ROWS
                                            if row.trained})  # fmt: skip
    assert kinds.count("mine") == 2
    assert kinds.count("test") == 2 * trained + 1  # no seed moves what is not trained


def test_what_changes_a_result_changes_its_place(world):
    one = bench(world[0])
    places = {one.test(row, 0).fingerprint for row in ROWS}
    assert len(places) == len(ROWS)
    other = Bench("squares", one.enriching, 5, 8)
    assert one.train(FIRST, 0).fingerprint != other.train(FIRST, 0).fingerprint
    assert one.test(FIRST, 0).fingerprint != bench(world[0], "--x=1").test(FIRST, 0).fingerprint


def test_settings_of_every_row_are_known_to_the_command_line(world, capsys):
    root, _ = world
    for row in ROWS:
        given = [*row.model, *row.data, *row.shown]
        told = ["fit", "--config", row.config, f"--data.root={root}", *given, "--print_config"]
        with pytest.raises(SystemExit) as ended:
            retrievers(told)
        assert ended.value.code == 0, row.key
    capsys.readouterr()


def test_unknown_rows_and_roots_are_named(tmp_path, capsys):
    with pytest.raises(DataError, match="no row hard; there are infonce, untrained"):
        choose(["hard"])
    assert [row.key for row in choose(["siglip"])] == ["infonce", "siglip"]
    assert main(["--root", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "none: no such folder; name an M-BEIR root, or flagland" in capsys.readouterr().err
    assert main(["--countries", "30", "--out", str(tmp_path)]) == 2
    assert "no Flagland: countries is 30" in capsys.readouterr().err
    assert main(["--root", "x", "--steps", "0"]) == 2
    assert "--steps is at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_a_kill_and_the_table(world, tmp_path, capsys, monkeypatch):
    root, config = world
    out, page = tmp_path / "out", tmp_path / "page.md"
    given = ["--root", str(root), "--out", str(out), "--steps", "4", "--batch-size", "8",
             "--fit", f"model.model_name={config}", "--threads", "1"]  # fmt: skip
    rows = ["--rows", "untrained", "kl", "--seeds", "0", "1"]
    assert main([*given, *rows, "--table"]) == 2
    assert "infonce was not tested yet" in capsys.readouterr().err
    assert main([*given, "--rows", "infonce", "--seeds", "0"]) == 0

    def killed(arguments):
        if arguments[0] == "mine":
            raise KeyboardInterrupt
        return plain(arguments)

    plain = steps_module.command
    monkeypatch.setattr(steps_module, "command", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*given, *rows])
    monkeypatch.undo()
    capsys.readouterr()
    assert main([*given, *rows, "--dry-run"]) == 0
    before = capsys.readouterr().out
    assert before.count("cached") >= 3
    assert main([*given, *rows, "--results", str(page)]) == 0
    text = page.read_text()
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0] for line in table[1:]] == [
        "| CLIP-SF, InfoNCE both ways", "| the same weights, not trained",
        "| mined negatives, distillation (KL)",
    ]  # fmt: skip
    assert [line[1] for line in table[1:]] == ["2", "", "2"]
    assert "Command: `python -m benchmarks.retrievers" in text
    # The means are those of the tests' own files.
    one = bench(root, f"--model.encoder.model_name={config}")
    tests = [one.test(FIRST, seed).folder(out) / "metrics.json" for seed in (0, 1)]
    means = [json.loads(path.read_text())["mean"]["local"]["success@5"] for path in tests]
    assert table[1][5].startswith(f"{50 * sum(means):.1f} ± ")
    # All of it is there now: another call trains nothing, and a lost test is made again.
    assert main([*given, *rows, "--dry-run"]) == 0
    assert "about 0 minutes" in capsys.readouterr().out
    shutil.rmtree(tests[1].parent)
    assert main([*given, *rows, "--table"]) == 0
    assert [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines()
            if line.startswith("| CLIP-SF")] == ["1"]  # fmt: skip


def test_a_training_that_went_on_has_one_speed(tmp_path):
    for version, rates in (("version_0", [10.0, 30.0]), ("version_1", [20.0])):
        folder = tmp_path / "logs" / version
        folder.mkdir(parents=True)
        with (folder / "metrics.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["step", "speed/pairs_per_s"])
            writer.writerows([[1, rate] for rate in rates])
            writer.writerow([2, ""])
    assert pairs_per_second(tmp_path) == 20.0
    assert pairs_per_second(tmp_path / "logs") is None
    assert lines([]) == []
