"""The notebooks run from top to bottom; here on results with random scores."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.files import write_json
from benchmarks.experiments import plots, results, spec, tables
from benchmarks.experiments.build import Builder, Setup
from benchmarks.experiments.notebooks import picture
from benchmarks.experiments.results import ArmReader
from benchmarks.experiments.roots import digest_root
from benchmarks.experiments.texts import Enriching
from benchmarks.flagland.world import WorldConfig, write_world

FOLDER = Path(__file__).parents[2] / "notebooks"
_SIDE = {"items": 9, "refused": 0, "generations": 9, "prompt_tokens": 9, "output_tokens": 9,
         "mean_words": 9.0}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks") / "world-200-5"
    write_world(folder, WorldConfig(200, 5, width=48))
    return folder


def random_scores(self, folder):
    rng = random.Random(folder.name)
    rate = rng.random()
    return {(f"{n}: task", f"q{n}-{k}"): float(rng.random() < rate)
            for n in (0, 4, 7) for k in range(30)}  # fmt: skip


def an_example(root):
    data = DataRoot(root)
    query = open_queries(data.query_file("flagland", 7, "test"))[0]
    pool = open_candidates(data.pool_for("flagland", 7, "test"))
    wanted = pool[pool.row(query.positives[0])]
    hit = {"id": wanted.id, "image": wanted.image, "text": "a flag"}
    return {"task": "flagland_task7", "title": "7: task", "qid": query.item.id, "first": None,
            "second": 1, "image": query.item.image, "published": query.item.text,
            "read": [query.item.text, ""], "wanted": hit, "found": [None, hit]}  # fmt: skip


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """Results of every experiment, random but for their form."""
    folder = tmp_path_factory.mktemp("results")
    setup = Setup(Enriching(root, digest_root(root)), steps=60, seeds=(0, 1, 2))
    example = an_example(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArmReader, "_read", random_scores)
        patch.setattr(results, "_cost", lambda reader, name: {"train cpu_seconds": 60.0})
        patch.setattr(results, "texts_json", lambda reader: {
            "vlm": {"kind": "vlm", "sides": {"query": _SIDE, "corpus": _SIDE}}})  # fmt: skip
        patch.setattr(results, "_not_read", lambda folder: 0.4)
        patch.setattr(results, "moves_json", lambda _, *arms: {
            "changes": {"arms": list(arms), "rows": [
                ["0: task", f"q{n}", n or None, n % 3 + 1] for n in range(30)]},
            "examples": {"wins": [example], "losses": [example]}})  # fmt: skip
        for experiment in spec.load_all(["all"]):
            reader = ArmReader(Builder(experiment, setup), folder, "success@1")
            write_json(folder / f"{experiment.name}.json", results.collect(reader))
    return folder


def test_every_experiment_has_its_tables_and_figures(made, tmp_path):
    for name in spec.packaged():
        value = json.loads((made / f"{name}.json").read_text())
        text = tables.report(value)
        assert value["prediction"].strip() in text
        assert all(arm in text for arm in value["arms"])
        plots.save(value, tmp_path)
        assert (tmp_path / f"{name}-arms.png").is_file()
        if value["comparisons"]:
            assert (tmp_path / f"{name}-tasks.png").is_file()


def test_a_mean_and_its_spread_are_over_seeds(made):
    value = json.loads((made / "sides.json").read_text())
    for arm in value["arms"].values():
        seeds = arm["mean"]["seeds"]
        assert arm["mean"]["score"] == pytest.approx(sum(seeds) / 3)
    pair = value["comparisons"][0]
    row = pair["rows"][-1]
    assert row["difference"]["mean"] == pytest.approx(sum(row["seeds"]) / 3)


def test_pictures_are_drawn_again(root):
    value = {"setup": {"root": "world-200-5"}}
    path = open_candidates(DataRoot(root).pool_for("flagland", 4, "test"))[7].image
    assert picture(value, path, 90).width == 90
    with pytest.raises(ValueError, match="no picture of a made Flagland"):
        picture({"setup": {"root": "mbeir"}}, path)


@pytest.mark.slow
def test_the_notebooks_run_from_top_to_bottom(made, tmp_path):
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra dev)")
    paths = sorted(FOLDER.glob("*/*.ipynb"))
    assert len(paths) >= 4
    command = [sys.executable, "-m", "benchmarks.experiments.notebooks", *map(str, paths)]
    subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=FOLDER.parent, check=True,
        env={**os.environ, "RAR_RESULTS": str(made)},
    )  # fmt: skip
    for path in paths:
        book = json.loads((tmp_path / path.name).read_text())
        assert "**Question.**" in "".join(book["cells"][0]["source"])
        code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        assert "prediction" in json.dumps(book["cells"]).lower()
        outputs = [one for cell in code for one in cell["outputs"]]
        assert any("image/png" in one.get("data", {}) for one in outputs)
        assert (tmp_path / path.name).stat().st_size < 2_000_000
