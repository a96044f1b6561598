"""Run files: whatever blanks and packing they have."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from augment.data import read_qrels, write_qrels
from augment.errors import DataError
from augment.records import Hit, Qrel
from retrievers.cli import main
from retrievers.evaluation.compare import scores_from_run
from retrievers.evaluation.run_files import read_run, write_run


def test_run_file_round_trip_and_ties(tmp_path):
    path = tmp_path / "x" / "a.trec"
    write_run(
        path, {"9:1": [Hit("9:2", 0.5), Hit("9:10", 0.75), Hit("9:3", 0.5)], "9:2": []}, "tag"
    )
    assert path.read_text().splitlines()[0] == "9:1 Q0 9:10 1 0.750000 tag"
    assert read_run(path) == {"9:1": [Hit("9:10", 0.75), Hit("9:3", 0.5), Hit("9:2", 0.5)]}
    assert not list(path.parent.glob("*.partial"))


def test_tag_must_be_one_word(tmp_path):
    with pytest.raises(ValueError, match="one word"):
        write_run(tmp_path / "a.trec", {}, "two words")


#: Blanks of Unicode, and separators of ASCII that Python takes for blanks; trec_eval does not.
NO_BLANKS = "\xa0\u2009\u3000\x85\x1c\x1d\x1e\x1f\u2028"


@pytest.mark.parametrize("mark", NO_BLANKS)
@pytest.mark.parametrize("gap", [" ", "  ", "\t"])  # two blanks: read line by line
def test_only_blanks_of_ascii_part_fields(tmp_path, mark, gap):
    did = f"5:1{mark}a"
    run, qrels = tmp_path / "a.trec", tmp_path / "a.qrels"
    run.write_text(gap.join(["1:1", "Q0", did, "1", "0.5", f"my{mark}tag\n"]), newline="")
    qrels.write_text(gap.join(["1:1", "0", did, "1\n"]), newline="")
    assert read_run(run) == {"1:1": [Hit(did, 0.5)]}
    assert scores_from_run(run, qrels, "success@1") == {"1:1": 1.0}
    write_run(run, {"1:1": [Hit(did, 0.5)]}, f"my{mark}tag")
    write_qrels(qrels, read_qrels(qrels), columns=4)
    assert scores_from_run(run, qrels, "success@1") == {"1:1": 1.0}


@pytest.mark.parametrize("blank", " \t\n\v\f\r")
def test_ids_with_blanks_of_ascii_are_not_written(tmp_path, blank):
    did = f"5:1{blank}a"
    with pytest.raises(DataError, match="blank"):
        write_run(tmp_path / "a.trec", {"1:1": [Hit(did, 0.5)]})
    with pytest.raises(DataError, match="blank"):
        write_qrels(tmp_path / "a.qrels", [Qrel("1:1", did)], columns=4)


def test_a_tag_of_several_words(tmp_path):
    path = tmp_path / "a.trec"
    path.write_text("q Q0 d 1 0.5 run of 5\nq  Q0 e 2 0.25 run  of 5\n")
    assert read_run(path) == {"q": [Hit("d", 0.5), Hit("e", 0.25)]}
    path.write_text("q Q0 d 1 0.5 5 negatives\n")
    assert read_run(path) == {"q": [Hit("d", 0.5)]}
    path.write_text("q Q0 d 1 0.5 run of 5\nq Q0 e 2 0.25 one of 5\n")
    with pytest.raises(DataError, match="tag 'one' after 'run'"):
        read_run(path)


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("gap", [" ", "  "])
def test_packed_runs_and_judgements(tmp_path, packing, gap):
    def pack(path, text):
        path.write_bytes(pa.compress(text.encode(), codec=packing, asbytes=True))
        return path

    run = pack(tmp_path / "run", f"q Q0 d{gap}1 0.5 t\nq Q0 e{gap}2 0.25 t\n")
    qrels = pack(tmp_path / "qrels", "q 0 e 1\n")
    assert scores_from_run(run, qrels, "mrr") == {"q": 0.5}
    run.write_bytes(run.read_bytes()[:-3])
    with pytest.raises(DataError, match=f"run: cannot be unpacked \\({packing}\\)"):
        read_run(run)


@pytest.mark.parametrize(("packing", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_packed_files_in_folders(tmp_path, capsys, packing, ending):
    files = {
        "x_task3.local.trec": "9:1 Q0 9:5 1 0.5 t\n9:1 Q0 9:6 2 0.25 t\n",
        "x_task3.qrels": "9:1 0 9:6 1\n",
        ".0a1b2c3d.x_task3.local.trec": "9:1 Q0 9:5",  # of a kill
    }
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            packed = pa.compress(text.encode(), codec=packing, asbytes=True)
            (tmp_path / folder / f"{name}{ending}").write_bytes(packed)
    a, b, out = (str(tmp_path / name) for name in "abc")
    assert main(["evaluate", a, "--metrics", "mrr", "--out", f"{out}.json"]) == 0
    [row] = json.loads(Path(f"{out}.json").read_text())["rows"]
    assert (row["dataset"], row["task"], row["metrics"]["mrr"]) == ("x", 3, 0.5)
    assert main(["compare", a, b, "--metric", "mrr"]) == 0
    assert main(["fuse", a, b, "--out", out]) == 0
    assert "x" in capsys.readouterr().out
    assert {path.name for path in Path(out).iterdir()} >= {
        "x_task3.local.trec", f"x_task3.qrels{ending}",
    }  # fmt: skip
    uniir = tmp_path / "uniir" / f"mbeir_x_task3_single_pool_test_k10_run.txt{ending}"
    judged = tmp_path / "root/qrels/test/mbeir_x_task3_test_qrels.txt"
    write_qrels(judged, [Qrel("9:1", "9:6", 1, 3)])
    uniir.parent.mkdir()
    (tmp_path / "root/query").mkdir()
    uniir.write_bytes((tmp_path / "a" / f"x_task3.local.trec{ending}").read_bytes())
    root = f"--root={tmp_path / 'root'}"
    assert main(["evaluate", str(uniir.parent), root, "--metrics", "mrr"]) == 0
    assert "50.0" in capsys.readouterr().out
