"""Twenty steps on a small Flagland: losses and validation of the code before the rebuild."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.flagland.world import WorldConfig, write_world
from retrievers.cli import main

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "losses.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "world"
    write_world(folder, WorldConfig(countries=200, seed=3))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "config"), [("ClipScoreFusion", "flagland"), ("ClipFeatureFusion", "flagland_ff")]
)
def test_losses_are_those_of_before(root, tmp_path, name, config):
    given = [
        f"--config={config}", f"--data.root={root}", f"--out={tmp_path}", "--data.batch_size=16",
        "--trainer.max_steps=20", "--trainer.val_check_interval=20",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    assert main(["fit", *given]) == 0
    (log,) = tmp_path.glob("logs/*/metrics.csv")
    rows = list(csv.DictReader(log.open()))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    # To the digit on one machine; processors differ in how they add.
    assert losses == pytest.approx(GOLDEN[name]["loss"], rel=2e-3)
    assert losses[:3] == pytest.approx(GOLDEN[name]["loss"][:3], rel=1e-5)
