"""The index of results: nothing is missing from it, and documents hold the numbers of the JSON."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.errors import DataError
from benchmarks import results
from benchmarks.experiments import plots, spec, tables
from benchmarks.experiments.notebooks import RESULTS, load, picture
from benchmarks.flagland.world import WorldConfig, write_world
from benchmarks.results import FOLDER, ROOT, Measured, ages, fill, index, main, newer


def test_every_result_is_in_the_index_and_measures_what_is_there():
    names = [result.name for result in index()]
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.iterdir()} - {"index.json"}
    assert {name.partition("/")[0] for name in names} == files
    for result in index():
        assert re.fullmatch(r"[0-9a-f]{40}", result.commit)
        assert result.command
        assert all((ROOT / path).exists() for path in result.measures), result.name


def test_changes_of_the_measured_code_are_counted(tmp_path, monkeypatch):
    def git(*arguments):
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = [shutil.which("git"), *named, *arguments]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setattr(results, "ROOT", tmp_path)
    git("init", "-q")
    for name in ("code", "other", "code", "code"):
        (tmp_path / name).write_text(f"{len(git('log', '--all', '--oneline'))}")
        git("add", ".")
        git("commit", "-q", "-m", f"change of {name}")
    first = git("rev-list", "--max-parents=0", "HEAD")
    result = Measured("x.md", "command", first, ["code"])
    assert len(newer(result)) == 2
    assert "x.md" in ages([result])
    assert newer(Measured("x.md", "command", "0" * 40, ["code"])) is None
    assert "history not here" in ages([Measured("x.md", "command", "0" * 40, ["code"])])


def test_the_page_about_your_data_holds_the_minutes(tmp_path):
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    measured = "|".join(json.loads((FOLDER / "doors.json").read_text())["kinds"])
    stale = re.sub(rf"(\| `({measured})` \| [^|]* \| )[\d.]+", r"\1stale", text)
    copy = tmp_path / "page.md"
    copy.write_text(stale, encoding="utf-8")
    fill(copy)
    assert stale.count("| stale |") == measured.count("|") + 1
    assert copy.read_text(encoding="utf-8") == text


def test_the_readme_holds_the_demos_numbers(tmp_path, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(re.sub(r"\| mean \|.*", "| mean | stale |", text), encoding="utf-8")
    fill(copy)
    assert copy.read_text(encoding="utf-8") == text
    row = json.loads((FOLDER / "demo.json").read_text())["comparisons"][0]["rows"][-1]
    assert f"| mean | {row['queries']} | {100 * row['first']:.1f} " in text
    copy.write_text("<!-- filled from none.json -->\n<!-- end -->", encoding="utf-8")
    with pytest.raises(DataError, match=r"no result none\.json"):
        fill(copy)
    assert main([]) == 0
    assert "changes since" in capsys.readouterr().out


NOTEBOOKS = ROOT / "notebooks"


def test_every_published_experiment_has_its_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.delenv("RAR_RESULTS", raising=False)
    every = zip(spec.packaged().values(), spec.load_all(["all"]), strict=True)
    run = [(path.parent.name, experiment) for path, experiment in every
           if (RESULTS / path.parent.name / f"{experiment.name}.json").is_file()]  # fmt: skip
    assert len(run) >= 8, "the others are predictions that wait for their run"
    for paper, experiment in run:
        value = load(experiment.name, paper)
        assert value["prediction"].strip() == experiment.prediction.strip(), (
            "not written afterwards"
        )
        text = tables.report(value)
        assert value["prediction"].strip() in text
        assert list(value["arms"]) == list(experiment.arms)
        published = (RESULTS / paper / f"{experiment.name}.md").read_text(encoding="utf-8")
        first = next(iter(experiment.arms))
        row = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
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
    paths = sorted(NOTEBOOKS.glob("*/*.ipynb"))
    assert len(paths) >= 4
    command = [sys.executable, "-m", "benchmarks.experiments.notebooks", *map(str, paths)]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True)
    for path in paths:
        book = json.loads((tmp_path / path.name).read_text())
        assert "**Question.**" in "".join(book["cells"][0]["source"])
        assert "prediction" in json.dumps(book["cells"]).lower()
        outputs = [one for cell in book["cells"] for one in cell.get("outputs", ())]
        assert any("image/png" in one.get("data", {}) for one in outputs)
        assert (tmp_path / path.name).stat().st_size < 2_000_000
