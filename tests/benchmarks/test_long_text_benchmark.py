"""The table of remedies: scores averaged over seeds before they are compared."""

from pathlib import Path

import pytest

from augment.data import write_qrels
from augment.records import Hit, Qrel
from benchmarks.experiments.long_text import FACTOR, Bench, compared
from retrievers.evaluation.run_files import write_run


def folder(path, ranks):
    """A test folder in which the positive of query ``n`` stands at rank ``ranks[n]``."""
    path.mkdir()
    run = {
        f"1:{n}": [
            Hit(f"1:{n}" if place == rank else f"9:{place}", -place) for place in range(1, 9)
        ]
        for n, rank in enumerate(ranks)
    }
    write_run(path / "data_task1.local.trec", run)
    qrels = [Qrel(f"1:{n}", f"1:{n}", 1) for n in range(len(ranks))]
    write_qrels(path / "data_task1.qrels", qrels, columns=4)
    return path


def test_scores_are_averaged_over_the_seeds(tmp_path):
    cut = [folder(tmp_path / "a", [1, 2, 7, 7]), folder(tmp_path / "b", [1, 7, 7, 7])]
    other = [folder(tmp_path / "c", [1, 1, 2, 7]), folder(tmp_path / "d", [2, 1, 1, 7])]
    pair = compared(cut, other, "success@1")
    assert (pair.queries, pair.first, pair.second) == (4, 0.25, 0.5)
    # By query: 1 to .5, 0 to 1, 0 to .5, 0 to 0.
    assert (pair.wins, pair.losses) == (2, 1)
    assert pair.difference.mean == pytest.approx(0.25)
    assert compared(cut, other, "success@5").second == 0.75


def test_rows_and_their_settings(tmp_path):
    real = Bench("real", Path("root"), tmp_path, 77, (1,), {}, 1, 1)
    assert real.keep == 20
    assert {remedy.trained for remedy in real.remedies()} == {"cut", "stretch", "sample"}
    stores = {"long": Path("L"), "budget": Path("B")}
    flags = Bench("flags", Path("root"), tmp_path, 32, (1,), stores, 1, 1)
    assert "--data.corpus.store=B" in flags.text("budget")
    assert "--data.corpus.store=L" in flags.text("stretch")
    assert f"--model.text.stretch={FACTOR}" in flags.text("stretch")
    assert not any("context" in given for given in flags.text("all"))
