"""The query's own picture in the pool: by file and by content, against plain loops."""

import hashlib
import json
import random
import unicodedata

import pytest

from augment.data import DataRoot, write_candidates, write_qrels, write_queries
from augment.records import Hit, Item, Qrel, Query
from retrievers.cli import main
from retrievers.data.datasets import CandidateBook
from retrievers.data.plan import plan_test
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import write_run


@pytest.fixture
def root(tmp_path):
    """Composed queries; the pool holds their pictures, copies, a positive copy, and others."""
    for name, content in {"a": "one", "b\u00e9": "two", "copy": "one", "other": "uno"}.items():
        (tmp_path / f"{name}.jpg").write_text(content)
    queries = [
        Query(Item("9:1", "in red", ("a.jpg",), "image,text"), 7, ("9:4",)),
        Query(Item("9:2", "in blue", ("./b\u00e9.jpg",), "image,text"), 7, ("9:5",)),
        Query(Item("9:3", "in green", ("gone.jpg",), "image,text"), 7, ("9:4",)),
    ]
    images = (
        "a.jpg",
        "copy.jpg",
        "be\u0301.jpg",
        "other.jpg",
        "b\u00e9.jpg",
        "gone.jpg",
        None,
        "also_gone.jpg",
    )
    items = [
        Item(f"9:{n}", None if image else "words", (image,) if image else (), "image")
        for n, image in enumerate(images, start=1)
    ]
    write_candidates(tmp_path / "cand_pool/local/mbeir_dress_task7_cand_pool.jsonl", items)
    write_queries(tmp_path / "query/test/mbeir_dress_task7_test.jsonl", queries)
    # A judgement says more than the query's own list does: this copy is right.
    write_qrels(
        tmp_path / "qrels/test/mbeir_dress_task7_test_qrels.txt",
        [Qrel("9:1", "9:4", 1, 7), Qrel("9:2", "9:5", 1, 7), Qrel("9:3", "9:6", 1, 7)],
    )
    return tmp_path


@pytest.mark.parametrize("by", ["file", "content"])
def test_candidates_that_show_the_picture_of_a_query(root, by):
    def same(first, second):
        one, other = (root / unicodedata.normalize("NFC", path) for path in (first, second))
        if by == "file" or not (one.is_file() and other.is_file()):
            return one == other
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, other)]
        return digests[0] == digests[1]

    plan = plan_test(DataRoot(root), "test", True, None, None, own_picture=by)
    [task] = plan.tasks
    expected = {}
    for query in task.queries:
        found = [
            item.id
            for item in plan.catalog.items()
            if item.image and same(query.item.image, item.image)
        ]
        expected[query.item.id] = [did for did in found if not task.grades[query.item.id].get(did)]
    assert task.own == {qid: dids for qid, dids in expected.items() if dids}
    assert task.own == {"9:1": ["9:1", *["9:2"] * (by == "content")], "9:2": ["9:3"]}
    assert plan_test(DataRoot(root), "test", True, None, None).tasks[0].own == {}


def test_a_run_without_candidates_and_with_some_only():
    rng = random.Random(0)
    run = {
        f"q{q}": [Hit(f"d{d}", 2.0**-n) for n, d in enumerate(rng.sample(range(20), q * 3))]
        for q in range(6)
    }
    lists = {f"q{q}": [f"d{d}" for d in rng.sample(range(25), 8)] for q in (1, 2, 4, 9)}
    table = RunTable.from_run(run)
    assert table.without(lists).to_run() == {
        qid: [hit for hit in hits if hit.did not in lists.get(qid, ())] for qid, hits in run.items()
    }
    assert table.only(lists).to_run() == {
        qid: [hit for hit in hits if hit.did in lists.get(qid, ())] for qid, hits in run.items()
    }
    assert table.without({}).to_run() == run


def evaluated(tmp_path, run, *more):
    write_run(tmp_path / "a.trec", run)
    (tmp_path / "a.qrels").write_text("9:1 0 9:4 1\n9:2 0 9:5 1\n9:3 0 9:6 1\n")
    out = tmp_path / "scores.json"
    arguments = ["evaluate", str(tmp_path / "a.trec"), f"--qrels={tmp_path / 'a.qrels'}"]
    if main([*arguments, f"--out={out}", "--metrics", "success@1", *more]):
        return None
    return json.loads(out.read_text())["rows"][0]["metrics"]


#: The own picture first, its copy second, what is right third; but "9:6" is judged right, too.
RANKED = {"9:1": "1 2 4 7", "9:2": "3 5 4 7", "9:3": "6 2 4 7"}
RUN = {
    qid: [Hit(f"9:{n}", 2.0**-place) for place, n in enumerate(found.split())]
    for qid, found in RANKED.items()
}


@pytest.mark.parametrize(("by", "right"), [("keep", 1), ("file", 2), ("content", 3)])
def test_runs_are_scored_without_the_own_picture(root, tmp_path, by, right):
    found = evaluated(tmp_path, RUN, f"--own-picture={by}", f"--root={root}")
    assert found == {"success@1": right / 3}


def test_the_own_picture_needs_a_root(tmp_path, capsys):
    assert evaluated(tmp_path, RUN, "--own-picture=file") is None
    assert "--own-picture needs --root" in capsys.readouterr().err


def test_success_among_the_candidates_of_a_list(tmp_path, capsys):
    def with_lists(lists, run=RUN, *more):
        (tmp_path / "lists.json").write_text(json.dumps(lists))
        return evaluated(tmp_path, run, f"--subsets={tmp_path / 'lists.json'}", *more)

    lists = {"9:1": ["9:4", "9:7", "9:8"], "9:2": ["9:3", "9:5"], "9:3": ["9:2", "9:4", "9:6"]}
    expected = {f"subset_success@{k}": hit for k, hit in ((1, 2 / 3), (2, 1), (3, 1))}
    assert with_lists(lists) == {"success@1": 1 / 3, **expected}
    # What stands behind the relevant candidate may be cut off, but not that itself.
    assert with_lists(lists, {qid: hits[:3] for qid, hits in RUN.items()})["subset_success@2"] == 1
    cut = {qid: hits[:2] for qid, hits in RUN.items()}
    assert with_lists(lists, cut) is None
    assert "of 1 queries it holds no relevant candidate" in capsys.readouterr().err
    assert with_lists(lists, cut, "--short")["subset_success@2"] == 2 / 3
    assert with_lists({"9:1": ["9:4"]}) is None
    assert "query 9:2: has no list of candidates" in capsys.readouterr().err
    assert with_lists(["9:1"]) is None
    assert "expected a JSON object" in capsys.readouterr().err


def test_what_pools_know(tmp_path):
    rng = random.Random(0)
    items = {f"{n % 3}:{n}": Item(f"{n % 3}:{n}", f"text {n}", (), "text") for n in range(60)}
    known = {}
    for number in range(4):
        pool = rng.sample(list(items), 15)
        known |= {did: items[did] for did in pool}
        write_candidates(tmp_path / f"{number}.jsonl", [items[did] for did in pool])
    book = CandidateBook([tmp_path / f"{number}.jsonl" for number in range(4)])
    asked = [*items, "0:999", "", "zz:1"]
    assert [book.find(did) for did in asked] == [known.get(did) for did in asked]
    assert book.known(asked).tolist() == [did in known for did in asked]
    assert book.known([]).tolist() == []
