"""M-BEIR's protocol: cut-offs, rows and policies for positives, on a tiny OVEN and InfoSeek."""

import json
from pathlib import Path

import pytest

from augment.data import DataRoot, write_candidates, write_qrels, write_queries
from augment.records import Item, Qrel, Query
from retrievers.cli import main
from retrievers.data.plan import PositiveConfig, keep_positives, plan_test
from retrievers.evaluation.protocol import ROWS, missing_rows, reported_k, row_order


def test_the_rows_and_cut_offs_are_those_of_the_paper():
    assert len(ROWS) == len(set(ROWS)) == 16
    assert {dataset for dataset, _ in ROWS if reported_k(dataset) == 10} == {
        "fashion200k",
        "fashioniq",
    }
    assert sorted([("x", 1), ("oven", 8), ("visualnews", 0)], key=lambda row: row_order(*row)) == [
        ("visualnews", 0),
        ("oven", 8),
        ("x", 1),
    ]
    assert missing_rows({("x", 0)}) == []
    assert len(missing_rows({("oven", 6), ("x", 0)})) == 15


GRADES = {
    "5:1": {"5:1": 1, "6:1": 1, "5:9": 0},
    "5:2": {"6:2": 1},
    "5:3": {"5:3": 1},
    "5:4": {"5:4": 0},
}


@pytest.mark.parametrize(
    ("policy", "kept", "dropped", "left_out"),
    [
        (PositiveConfig(), GRADES, 0, []),
        (
            PositiveConfig(dangling="drop"),
            {"5:1": {"5:1": 1, "5:9": 0}, "5:3": {"5:3": 1}, "5:4": {"5:4": 0}}, 2, ["5:2"],
        ),
        (
            PositiveConfig(foreign="drop"),
            {"5:1": {"5:1": 1, "5:9": 0}, "5:3": {"5:3": 1}, "5:4": {"5:4": 0}}, 2, ["5:2"],
        ),
        (PositiveConfig(dangling="combine"), GRADES, 0, []),
    ],
)  # fmt: skip
def test_policies(policy, kept, dropped, left_out):
    found = keep_positives(GRADES, policy, {"5:1", "5:3", "5:4", "5:9"}.__contains__)
    assert found == (kept, dropped, left_out)


@pytest.fixture
def root(tmp_path):
    """Task 6 of both data sets; a positive of an OVEN query lies in InfoSeek's pool only."""
    words = ("tower", "bridge", "church", "river")
    for number, name in ((5, "oven"), (6, "infoseek")):
        items = [
            Item(f"{number}:{n}", f"{word} of {name}", (), "text")
            for n, word in enumerate(words, 1)
        ]
        stem = f"mbeir_{name}_task6"
        write_candidates(tmp_path / "cand_pool/local" / f"{stem}_cand_pool.jsonl", items)
        queries = [
            Query(Item(f"{number}:{n}", word, ("a.jpg",), "image,text"), 6, (f"{number}:{n}",))
            for n, word in enumerate(words, 1)
        ]
        write_queries(tmp_path / "query/test" / f"{stem}_test.jsonl", queries)
        qrels = [Qrel(q.item.id, q.positives[0], 1, 6) for q in queries]
        if name == "oven":
            qrels[0] = Qrel("5:1", "6:1", 1, 6)
            qrels.append(Qrel("5:2", "6:2", 1, 6))
        write_qrels(tmp_path / "qrels/test" / f"{stem}_test_qrels.txt", qrels)
    return tmp_path


def test_combined_pools_hold_what_dangled(root):
    plan = plan_test(DataRoot(root), "test", False, None, None, PositiveConfig("combine"))
    oven = next(task for task in plan.tasks if task.dataset == "oven")
    assert oven.pool == "mbeir_oven_task6_cand_pool.jsonl+mbeir_infoseek_task6_cand_pool.jsonl"
    assert len(plan.pools[oven.pool]) == 8
    other = next(task for task in plan.tasks if task.dataset == "infoseek")
    assert len(plan.pools[other.pool]) == 4


def oven_row(root, out, *more):
    assert main(["bm25", f"--root={root}", f"--out={out}", *more]) == 0
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    return next(row for row in rows if row["dataset"] == "oven" and row["pool"] == "local")


def test_a_test_reports_dangling_positives_and_obeys_the_policy(root, tmp_path, capsys):
    keep = oven_row(root, tmp_path / "keep")
    assert (keep["dangling"], keep["dropped"], keep["queries"]) == (2, 0, 4)
    # The first query's only positive is out of reach; the second's other one is found.
    assert keep["metrics"]["success@1"] == 0.75
    assert keep["metrics"]["recall@1"] == 0.625
    assert "relevant candidates that are not in the pool: 2" in capsys.readouterr().out
    drop = oven_row(root, tmp_path / "drop", "--positives.dangling=drop")
    assert (drop["dangling"], drop["dropped"], drop["left_out"], drop["queries"]) == (0, 2, 1, 3)
    assert drop["metrics"]["recall@1"] == drop["metrics"]["mbeir"] == 1
    combined = oven_row(root, tmp_path / "combined", "--positives.dangling=combine")
    assert (combined["dangling"], combined["candidates"]) == (0, 8)
    assert combined["metrics"]["recall@5"] == 1


def test_results_say_where_they_come_from(root, tmp_path):
    assert main(["bm25", f"--root={root}", f"--out={tmp_path / 'out'}", "--model.k1=1.2"]) == 0
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert told["settings"]["model"]["k1"] == 1.2
    assert told["versions"]["bm25s"] != "absent"
    assert told["cost"]["items"] == 16
    assert len(told["made_by"]) == 16
    assert "commit" in told


def test_the_packaged_config_and_fusion_on_dev_queries(root, tmp_path, capsys):
    from augment.data.pools import open_queries

    for name in ("oven", "infoseek"):
        stem = f"mbeir_{name}_task6"
        dev = [
            Query(
                Item(f"{q.item.dataset}:{100 + n}", q.item.text, ("a.jpg",), "image,text"), 6, own
            )
            for n, q in enumerate(open_queries(root / "query/test" / f"{stem}_test.jsonl"))
            for own in [q.positives]
        ]
        write_queries(root / "query/val" / f"{stem}_val.jsonl", dev)
    runs = {}
    for name, options in (("a", ()), ("b", ("--model.b=0.0",))):
        for split in ("test", "val"):
            runs[name, split] = str(tmp_path / name / split)
            shown = [f"--root={root}", f"--out={runs[name, split]}", f"--split={split}"]
            assert main(["bm25", "--config", "bm25", *shown, *options]) == 0
    test, dev = ([runs[name, split] for name in ("a", "b")] for split in ("test", "val"))
    out = tmp_path / "fused"
    assert main(["fuse", *test, "--out", str(out), "--dev", *dev]) == 0
    told = json.loads((out / "fusion.json").read_text())
    # Both runs are alike, so that equal weights are as good as any.
    assert told["tuned"]["queries"] == 8
    assert told["weights"] == [0.5, 0.5]
    scores = json.loads((out / "metrics.json").read_text())
    assert [(row["dataset"], row["task"]) for row in scores["rows"] if row["pool"] == "local"] == [
        ("oven", 6),
        ("infoseek", 6),
    ]
    assert "lacks visualnews task 0" in capsys.readouterr().out
    # Of a pool that is not fused again nothing older is left.
    for path in (path for own in test for path in Path(own).glob("*.union.trec")):
        path.unlink()
    assert len(list(out.glob("*.union.trec"))) == 2
    assert main(["fuse", *test, "--out", str(out)]) == 0
    assert not list(out.glob("*.union.trec"))
    assert main(["evaluate", test[0], "--metrics", "success@1", "ndcg@10"]) == 0
    assert "| oven task 6 | local | 4 | 0 | 75.00 |" in capsys.readouterr().out
