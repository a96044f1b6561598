"""Imported roots, searched and scored: ties, queries without gold, what a protocol leaves out."""

import json

import pytest

from augment import import_data
from retrievers.cli import main
from retrievers.evaluation.evaluate import evaluate
from retrievers.vectors.bm25 import bm25


@pytest.fixture
def root(tmp_path):
    rows = [
        {"id": "r-1", "text": "red bag", "kind": "bag"},
        {"id": "r-2", "text": "red bag", "kind": "bag"},
        {"id": "c", "text": "red red cup", "kind": ""},
    ]
    asks = [{"id": "lost", "text": "red"}, {"id": "tie", "text": "bag", "positives": ["r-1"]}]
    for name, lines in (("t", rows), ("q", asks)):
        text = "".join(f"{json.dumps(row)}\n" for row in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    import_data("table", tmp_path / "t.jsonl", tmp_path / "root", group="kind",
                queries=tmp_path / "q.jsonl")  # fmt: skip
    return tmp_path / "root"


def test_own_ids_are_left_out_and_queries_without_gold_do_not_count(root, tmp_path):
    results = bm25(root, tmp_path / "run", union=False)
    (row,) = results.rows
    hits = [line.split() for line in (tmp_path / "run/t_task1.local.trec").read_text().splitlines()]
    found = {(qid, did): int(rank) for qid, _, did, rank, *_ in hits}
    assert ("r-1", "r-1") not in found
    assert ("r-2", "r-2") not in found
    assert {qid for qid, _ in found} == {"r-1", "r-2", "lost", "tie"}
    # Of "tie" both bags score the same: the greater id stands first, as in trec_eval.
    assert (found["tie", "r-2"], found["tie", "r-1"]) == (1, 2)
    assert row.queries == 3
    assert row.metrics["success@1"] == pytest.approx(2 / 3)
    assert row.metrics["mrr@10"] == pytest.approx(2.5 / 3)


def test_a_run_of_others_is_scored_by_the_same_protocol(root, tmp_path):
    run = tmp_path / "others.trec"
    run.write_text("".join(f"{qid} Q0 {did} 1 {score} x\n" for qid, did, score in (
        ("r-1", "r-1", 9), ("r-1", "r-2", 8), ("tie", "r-1", 1), ("tie", "r-2", 1))))  # fmt: skip
    qrels = root / "qrels/test/mbeir_t_task1_test_qrels.txt"
    asked = {"metrics": ["success@1"], "short": True}
    (kept,) = evaluate(run, qrels, **asked).rows
    (row,) = evaluate(run, qrels, root=root, **asked).rows
    assert kept["metrics"]["success@1"] == 0
    assert row["metrics"]["success@1"] == pytest.approx(1 / 3)  # r-2 is missing and counts 0


def test_submissions_are_as_the_servers_of_circo_and_cirr_take_them(tmp_path, capsys):
    run, out = tmp_path / "x.trec", tmp_path / "x.json"
    hits = [(qid, n) for qid in ("q7", "q8") for n in range(60)]
    run.write_text("".join(f"{qid} Q0 {n} {n + 1} {-n} x\n" for qid, n in hits))
    assert main(["submission", str(run), "--to=circo", f"--out={out}"]) == 0
    assert json.loads(out.read_text()) == {"7": list(range(50)), "8": list(range(50))}
    (tmp_path / "s.json").write_text(json.dumps({q: ["59", "3", "8", "1"] for q in ("q7", "q8")}))
    more = [f"--subsets={tmp_path / 's.json'}", f"--out={out}"]
    assert main(["submission", str(run), "--to=cirr", *more]) == 0
    best = ["1", "3", "8"]
    assert json.loads(out.read_text()) == {
        "version": "rc2", "metric": "recall_subset", "q7": best, "q8": best}  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps({"q7": ["1", "2", "77"]}))
    assert main(["submission", str(run), "--to=cirr", *more]) == 2
    assert "query q7: has 2 of 3 candidates; search deeper" in capsys.readouterr().err


def test_roots_that_lack_something_do_what_they_can_and_say_what_is_left_out(tmp_path, capsys):
    made = {}
    for name, text in (("t", "red bag"), ("q", "red")):
        made[name] = tmp_path / f"{name}.jsonl"
        made[name].write_text(json.dumps({"id": name, "text": text}) + "\n")
    import_data("table", made["t"], tmp_path / "bare")
    import_data("table", made["t"], tmp_path / "asked", queries=made["q"])
    told = str(bm25(tmp_path / "asked", tmp_path / "run", union=False))
    assert "no judged queries, searched and not scored: t task 1" in told
    assert (tmp_path / "run/t_task1.local.trec").read_text().startswith("q Q0 t 1 ")
    given = ["bm25", "--config=bm25", f"--root={tmp_path / 'bare'}", f"--out={tmp_path / 'none'}"]
    assert main(given) == 2
    assert "no query files in query/test; search, serve and embed need" in capsys.readouterr().err
    audit = ["audit", "--model=flagland-clip", f"--data.root={tmp_path / 'bare'}"]
    assert main([*audit, f"--out={tmp_path / 'audit'}"]) == 0
    assert json.loads((tmp_path / "audit/audit.json").read_text())["pools"] is not None
