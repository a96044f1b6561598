"""Published results have their tables and figures; the notebooks run on them from top to bottom."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from augment.data import DataRoot
from augment.data.pools import open_candidates
from benchmarks.experiments import plots, spec, tables
from benchmarks.experiments.notebooks import RESULTS, load, picture
from benchmarks.flagland.world import WorldConfig, write_world

FOLDER = Path(__file__).parents[2] / "notebooks"


def test_every_published_experiment_has_its_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.delenv("RAR_RESULTS", raising=False)
    every = spec.load_all(["rar"])
    run = [one for one in every if (RESULTS / f"{one.name}.json").is_file()]
    assert len(run) >= 8, "the others are predictions that wait for their run"
    for experiment in run:
        value = load(experiment.name)
        assert value["prediction"].strip() == experiment.prediction.strip(), (
            "not written afterwards"
        )
        text = tables.report(value)
        assert value["prediction"].strip() in text
        assert list(value["arms"]) == list(experiment.arms)
        published = (RESULTS / f"{experiment.name}.md").read_text(encoding="utf-8")
        row = next(line for line in text.splitlines() if line.startswith("| raw "))
        assert row in published
        plots.save(value, tmp_path)
        for kind in ("arms", "tasks", "differences"):
            assert (tmp_path / f"{experiment.name}-{kind}.png").is_file()


def test_pictures_are_drawn_again(tmp_path):
    root = tmp_path / "world-200-5"
    write_world(root, WorldConfig(200, 5, width=48))
    path = open_candidates(DataRoot(root).pool_for("flagland", 4, "test"))[7].image
    assert picture({"setup": {"root": root.name}}, path, 90).width == 90
    with pytest.raises(ValueError, match="no picture of a made Flagland"):
        picture({"setup": {"root": "mbeir"}}, path)


@pytest.mark.slow
def test_the_notebooks_run_from_top_to_bottom(tmp_path):
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra dev)")
    paths = sorted(FOLDER.glob("*/*.ipynb"))
    assert len(paths) >= 4
    command = [sys.executable, "-m", "benchmarks.experiments.notebooks", *map(str, paths)]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=FOLDER.parent, check=True)
    for path in paths:
        book = json.loads((tmp_path / path.name).read_text())
        assert "**Question.**" in "".join(book["cells"][0]["source"])
        assert "prediction" in json.dumps(book["cells"]).lower()
        outputs = [one for cell in book["cells"] for one in cell.get("outputs", ())]
        assert any("image/png" in one.get("data", {}) for one in outputs)
        assert (tmp_path / path.name).stat().st_size < 2_000_000
