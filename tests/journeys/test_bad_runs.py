"""Kinds of bad files and runs; each ends in an error that names the place and the remedy.

The table in docs/bad-input-runs.md lists them; a test sees that it lists each kind tried here.
"""

import gzip
import json
from pathlib import Path

import pytest

from augment.data import grades_of, read_qrels
from augment.errors import DataError
from augment.records import Qrel
from retrievers.cli import main
from retrievers.evaluation.run_files import read_run

DOCS = Path(__file__).parents[2] / "docs" / "bad-input-runs.md"
RUN = "1:1 Q0 1:5 1 0.9 a\n1:1 Q0 1:6 2 0.8 a\n1:2 Q0 1:5 1 0.7 a\n"
QRELS = "1:1 0 1:5 1\n1:2 0 1:6 1\n"

#: kind -> (run, qrels, further arguments, what the message says)
EVALUATED = {
    "qrels with three columns": (RUN, "1:1 1:5 1\n", [], "b.qrels:1: has 3 columns; expected"),
    "relevance as text": (RUN, "1:1 0 1:5 yes\n", [], "b.qrels:1: relevance is 'yes'"),
    "one pair judged twice, differently": (
        RUN, "1:1 0 1:5 1\n1:1 0 1:5 0\n", [], "query 1:1: candidate 1:5 is judged 1 and 0; keep",
    ),
    "empty qrels": (RUN, "", [], "b.qrels: holds no judgement; name the qrels"),
    "empty run": ("", QRELS, [], "a.trec: is empty; a run has a line"),
    "run cut off in the middle of a line": (
        RUN[:-6], QRELS, [], "a.trec:3: expected 'qid Q0 did rank score tag', found 4 columns",
    ),
    "run in MS MARCO's three columns": (
        "1:1\t1:5\t1\n", QRELS, [], "found 3 columns (MS MARCO's form? write the run with",
    ),
    "score as text": (
        "1:1 Q0 1:5 1 high a\n", QRELS, [], "a.trec:1: score 'high' is not a number; the fifth",
    ),
    "score that is not finite": (
        "1:1 Q0 1:5 1 nan a\n", QRELS, [], "a.trec:1: score 'nan' is not finite",
    ),
    "score beyond single precision": (
        RUN + "1:2 Q0 1:6 2 1e39 a\n", QRELS, [], "a.trec:4: score '1e39' is not finite in single",
    ),
    "candidate twice under one query": (
        RUN + "1:1 Q0 1:6 3 0.1 a\n", QRELS, [],
        "a.trec:4: candidate 1:6 stands twice under query 1:1, first in line 2; keep",
    ),
    "two runs in one file": (
        RUN + "1:2 Q0 1:6 2 0.1 b\n", QRELS, [], "a.trec:4: tag 'b' after 'a' in line 1: two runs",
    ),
    "blank in an id": (
        "1:1 Q0 1:5 b 1 0.9 a\n", QRELS, [], "a.trec:1: expected 'qid Q0 did rank score tag', fou",
    ),
    "run of another data set": (
        "7:1 Q0 7:5 1 0.9 a\n", QRELS, [], "is judged in",
    ),
    "runs of two data sets mixed": (
        RUN + "7:1 Q0 7:5 1 0.9 a\n", QRELS, [], "two data sets in one run? split it, or pass",
    ),
    "candidates that the pool lacks": (
        RUN, QRELS, ["--candidates"], "3 hits are not in",
    ),
    "cut-off beyond what was retrieved": (
        RUN, QRELS, ["--metrics", "success@10"], "a metric at 10 needs 10; search again",
    ),
    "unknown metric": (RUN, QRELS, ["--metrics", "hits@5"], "metric 'hits@5' is none of success@k"),
    "k of 0": (RUN, QRELS, ["--metrics", "success@0"], "with k from 1"),
    "run file without qrels": (RUN, None, [], "a run file needs --qrels"),
    "gzip that is cut off": (
        gzip.compress(RUN.encode())[:-9], QRELS, [], "a.trec: cannot be unpacked (gzip): Trunc",
    ),
    "bytes that are not UTF-8": (b"1:1 Q0 1:\xff 1 0.5 a\n", QRELS, [], "a.trec:1: is not UTF-8"),
    "run that does not exist": (None, QRELS, [], "cannot be opened"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVALUATED)
def test_a_bad_run_or_qrels_is_named(tmp_path, capsys, kind):
    run, qrels, more, message = EVALUATED[kind]
    path = tmp_path / "a.trec"
    if run is not None:
        path.write_bytes(run if isinstance(run, bytes) else run.encode())
    arguments = ["evaluate", str(path), *more]
    if more == ["--candidates"]:
        pool = tmp_path / "mbeir_x_task0_cand_pool.jsonl"
        pool.write_text('{"did": "1:5", "txt": "a", "modality": "text"}\n')
        message = "1 of 3 hits are not in"
        arguments.append(str(pool))
    if "--metrics" not in more:
        arguments += ["--metrics", "success@1"]
    if qrels is not None:
        (tmp_path / "b.qrels").write_text(qrels)
        arguments += ["--qrels", str(tmp_path / "b.qrels")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def write_folder(folder, runs, qrels=QRELS):
    folder.mkdir()
    for name, run in runs.items():
        (folder / f"{name}.local.trec").write_text(run)
        (folder / f"{name}.qrels").write_text(qrels)
    return str(folder)


def test_folders_that_cannot_be_compared_or_fused_are_named(tmp_path, capsys):
    a = write_folder(tmp_path / "a", {"x_task0": RUN})
    b = write_folder(tmp_path / "b", {"x_task0": RUN, "x_task3": RUN})
    other = write_folder(tmp_path / "c", {"x_task0": RUN}, "1:1 0 1:5 1\n")
    dev = write_folder(tmp_path / "d", {"x_task0": RUN})
    z, zd = (write_folder(tmp_path / n, {"x_task0": RUN.replace(" a", " z")}) for n in ("z", "zd"))
    (tmp_path / "e").mkdir()
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        (["compare", a, b], "has x_task3; test both"),
        (["compare", a, other], "judge different queries"),
        (["compare", a, str(tmp_path / "e")], "holds no *.local.trec; name a folder"),
        (["compare", f"{a}/x_task0.local.trec", f"{b}/x_task0.local.trec"], "need --qrels"),
        (["fuse", a, b, *out], "differs in tasks"),
        (["fuse", a, dev, "--out", dev], "would be written over"),
        (["fuse", a, other, *out, "--weights", "1"], "one for each"),
        (["fuse", a, other, *out, "--dev", dev, dev], "is among the dev queries and among"),
        (["fuse", a, other, *out, "--dev", a, other], "is fused and tuned on"),
        (["fuse", a, z, *out, "--dev", zd, dev], "in another order"),
        (["fuse", a, other, *out, "--dev", a, "--weights", "1"], "each tell the weights; pass one"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_missing_queries_count_zero_and_are_told(tmp_path, capsys):
    (tmp_path / "a.trec").write_text(RUN)
    (tmp_path / "b.qrels").write_text(QRELS + "1:3 0 1:5 1\n1:4 0 1:5 1\n")
    out = tmp_path / "scores.json"
    arguments = ["evaluate", str(tmp_path / "a.trec"), "--qrels", str(tmp_path / "b.qrels")]
    assert main([*arguments, "--metrics", "success@1", "--out", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][0]
    assert (row["queries"], row["missing"]) == (4, 2)
    assert row["metrics"] == {"success@1": 0.25}
    assert "| 4 | 2 | 25.00 |" in capsys.readouterr().out


def test_unevenly_spaced_lines_are_read_all_the_same(tmp_path):
    (tmp_path / "a.trec").write_text("1:1  Q0 1:5\t1   0.5 a\n\n1:1 Q0 1:6 2 0.75 a\r\n")
    assert [hit.did for hit in read_run(tmp_path / "a.trec")["1:1"]] == ["1:6", "1:5"]


def test_equal_judgements_may_repeat(tmp_path):
    (tmp_path / "b.qrels").write_text("1:1 0 1:5 1\n1:1 0 1:5 1\n")
    assert grades_of(read_qrels(tmp_path / "b.qrels")) == {"1:1": {"1:5": 1}}
    with pytest.raises(DataError, match="keep one judgement"):
        grades_of([*read_qrels(tmp_path / "b.qrels"), Qrel("1:1", "1:5", 2)])


def test_the_table_lists_every_kind():
    told = DOCS.read_text(encoding="utf-8")
    assert [kind for kind in EVALUATED if f"| {kind} |" not in told] == []
