"""Validation: a clean root is clean; each defect planted in it is found, counted and placed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from augment.__main__ import main
from augment.data import (
    InstructionRow,
    write_candidates,
    write_instructions,
    write_qrels,
    write_queries,
)
from augment.data.sampling import Reservoir
from augment.data.tokens import clip_token_counter
from augment.data.validate import measure, validate
from augment.records import Item, Qrel, Query
from benchmarks.flagland.world import WorldConfig, write_world

REAL = Path(__file__).parents[4] / "shared" / "data" / "mbeir_real"
POOL = "cand_pool/local/mbeir_x_task3_cand_pool.jsonl"
TEST = "query/test/mbeir_x_task3_test.jsonl"
TRAIN = "query/train/mbeir_x_train.jsonl"
QUIET = {"images": "all", "texts": "none"}


@pytest.fixture
def root(tmp_path):
    """Ten pictures that ask for ten texts; six to train on, four to test on."""
    (tmp_path / "i").mkdir()
    for number in range(1, 11):
        Image.new("RGB", (4, 4)).save(tmp_path / f"i/{number}.jpg")
    queries = [
        Query(Item(f"5:{n}", None, (f"i/{n}.jpg",), "image"), 3, (f"5:{100 + n}",))
        for n in range(1, 11)
    ]
    write_candidates(
        tmp_path / POOL, (Item(f"5:{100 + n}", f"entry {n}", (), "text") for n in range(1, 11))
    )
    write_queries(tmp_path / TRAIN, queries[:6])
    write_queries(tmp_path / TEST, queries[6:])
    judged = [Qrel(query.item.id, query.positives[0], 1, 3) for query in queries[6:]]
    write_qrels(tmp_path / "qrels/test/mbeir_x_task3_test_qrels.txt", judged)
    row = InstructionRow("image", "text", "x", "5", ("What is it?",))
    write_instructions(tmp_path / "instructions/query_instructions.tsv", [row])
    return tmp_path


def kinds(report) -> dict[str, int]:
    counts: dict[str, int] = {}
    for found in report.findings:
        counts[found.kind] = counts.get(found.kind, 0) + found.count
    return counts


def edit(path: Path, line: int, **fields) -> None:
    rows = path.read_text().splitlines()
    rows[line - 1] = json.dumps({**json.loads(rows[line - 1]), **fields})
    path.write_text("\n".join(rows) + "\n")


def example(report, kind: str) -> str:
    return next(found.examples[0] for found in report.findings if found.kind == kind)


def test_a_clean_root(root, monkeypatch):
    monkeypatch.setattr(Reservoir, "offer", None)  # texts that nobody measures are not kept
    report = validate(root, **QUIET)
    assert report.findings == []
    assert {stats.file: stats.records for stats in report.files} == {TRAIN: 6, TEST: 4, POOL: 10}
    assert report.pictures == {"named": 10, "decoded": 10}


def test_a_bad_line_is_placed_and_the_rest_is_checked(root):
    path = root / TEST
    path.write_text(path.read_text() + "{bad\n" + '{"qid": 7}\n')
    edit(root / POOL, 2, modality="text", img_path="i/none.jpg")
    report = validate(root, **QUIET)
    assert kinds(report) == {"unreadable": 2, "extra-image": 1, "missing": 1}
    assert example(report, "unreadable").startswith(f"{TEST}:5: is not a line of JSON")
    assert example(report, "missing").startswith(f"{POOL}:2 (5:102): i/none.jpg: ")


@pytest.mark.parametrize(
    "name",
    [
        "cand_pool/local/mbeir_x_task3_cand_pool.json",
        "cand_pool/mbeir_y_cand_pool.jsonl",
        "query/test/mbeir_x_task3_test.jsonl.gz",  # beside the plain file, which is read
        "query/dev/mbeir_x_dev.jsonl",
        "qrels/test/mbeir_x_test_qrels.tsv",
        "instructions/other.tsv",
    ],
)
def test_a_root_is_not_clean_whose_files_were_not_read(root, name):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("{bad")
    (root / "query/.DS_Store").write_text("")
    report = validate(root, **QUIET)
    assert [(found.kind, found.file) for found in report.findings] == [("not-read", name)]
    assert not report.to_json()["clean"]


def test_pictures(root):
    (root / "i/1.jpg").unlink()
    (root / "i/2.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n")
    (root / "i/3.jpg").write_bytes(b"\xff\xd8\xff broken")
    edit(root / TRAIN, 4, query_img_path="../x.jpg")
    found = {"missing": 1, "lfs-pointer": 1, "corrupt": 1, "outside-root": 1}
    assert kinds(validate(root, **QUIET)) == found
    assert kinds(validate(root, "none", "none")) == {}


def test_a_sample_still_looks_every_picture_up(root, monkeypatch):
    monkeypatch.setattr("augment.data.validate.SAMPLED_PICTURES", 2)
    (root / "i/1.jpg").unlink()
    (root / "i/2.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n")
    report = validate(root, "sample", "none")
    assert kinds(report) == {"missing": 1, "lfs-pointer": 1}
    assert report.pictures == {"named": 10, "looked_up": 8, "decoded": 2}


def test_dangling_links(root):
    edit(root / TEST, 1, pos_cand_list=["5:107", "5:999"], neg_cand_list=["5:998"])
    edit(root / TEST, 2, pos_cand_list=["6:1"])
    edit(root / TRAIN, 1, pos_cand_list=[])
    report = validate(root, **QUIET)
    assert kinds(report) == {
        "no-positive": 1,
        "no-judgement": 1,
        "dangling-positive": 1,
        "foreign-positive": 1,
        "dangling-negative": 1,
        "qrel-mismatch": 2,
    }
    assert example(report, "dangling-positive") == f"{TEST}:1: query 5:7, positive 5:999"
    named = {found.file for found in report.findings if found.kind == "dangling-positive"}
    assert named == {f"{TEST} -> {Path(POOL).name}"}


def test_a_world_of_our_own_is_clean_and_so_are_mixed_tasks(tmp_path):
    # Its training queries are one file of all tasks, their judgements a file for each.
    write_world(tmp_path / "world", WorldConfig(countries=200, width=64), workers=1)
    assert kinds(validate(tmp_path / "world", **QUIET)) == {}
    qrels = tmp_path / "world" / "qrels" / "train" / "mbeir_flagland_task1_train_qrels.txt"
    first, *rest = qrels.read_text().splitlines(keepends=True)
    qrels.write_text("".join(rest))
    report = validate(tmp_path / "world", **QUIET)
    assert kinds(report) == {"qrel-mismatch": 1}
    assert example(report, "qrel-mismatch") == f"query {first.split()[0]}: has no judgement"


def test_duplicates(root):
    (root / POOL).write_text((root / POOL).read_text() * 2)
    rows = (root / TRAIN).read_text().splitlines(keepends=True)
    (root / TRAIN).write_text("".join([*rows, rows[0], rows[1].replace("5:102", "5:103")]))
    report = validate(root, **QUIET)
    assert kinds(report) == {"duplicate-id": 11, "repeated": 1}
    assert example(report, "duplicate-id") == f"{POOL}:11: 5:101, first in line 1"


def test_modalities_tasks_and_ids(root):
    edit(root / TRAIN, 1, query_modality="image,text", task_id=None)
    edit(root / TRAIN, 2, query_txt="hm", task_id=0)
    edit(root / TRAIN, 3, qid="5:500001")
    edit(root / TRAIN, 4, query_img_path=None)
    edit(root / POOL, 8, txt=" ")
    edit(root / POOL, 9, did="5:10000001")
    report = validate(root, **QUIET)
    assert {
        "no-task": 1,
        "no-text": 2,
        "task-mismatch": 1,
        "extra-text": 1,
        "no-image": 1,
        "id-overflow": 2,
    }.items() <= kinds(report).items()


def test_the_union_pool_is_searched_too(root):
    write_candidates(
        root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl",
        [Item("5:107", "entry", (), "text")],
    )
    assert kinds(validate(root, **QUIET)) == {"no-positive": 3, "dangling-positive": 3}
    (root / POOL).unlink()
    assert "no-pool" in kinds(validate(root, **QUIET))


def test_lengths_by_hand():
    sample = Reservoir(None)
    for count in (1, 2, 3, 4, 100):
        sample.offer("w " * count)
    found = measure(sample, lambda text: len(text.split()) + 2, 77)
    assert [*found.values()] == [5, 5, 24.0, 5, 102, 102, 1]
    assert measure(Reservoir(None), len, 77) is None


def test_clip_tokens_as_in_the_reference():
    """CLIP's tokenizer gives 'a photo of a cat' five tokens between two marks."""
    assert clip_token_counter()("a photo of a cat") == 7


def test_command(root, tmp_path, capsys):
    quiet = ["--texts", "none"]
    assert main(["validate", str(root), *quiet, "--json", str(tmp_path / "r.json")]) == 0
    assert "Clean: no errors, 0 warnings." in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["clean"] is True
    (root / "i/1.jpg").unlink()
    assert main(["validate", str(root), *quiet, "--json", str(tmp_path / "r.json")]) == 1
    shown = capsys.readouterr().out
    assert "ERROR  1 pictures that are not there; unpack them under the root" in shown
    assert f"  1 in {TRAIN}\n      line 1 (5:1): i/1.jpg: no such file" in shown
    assert json.loads((tmp_path / "r.json").read_text())["findings"][0]["kind"] == "missing"
    assert main(["validate", str(tmp_path / "absent")]) == 2
    assert main(["validate", str(root), *quiet, "--json", str(tmp_path / "r.json" / "r.json")]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["validate", str(root), "--images", "some"])
    assert stopped.value.code == 2


def test_validation_starts_without_torch(root):
    code = (
        "import sys; from augment.__main__ import main; "
        f"main(['validate', {str(root)!r}, '--texts', 'none']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="real M-BEIR-style data is not at ../shared")
def test_the_real_root_is_clean():
    report = validate(REAL, "none", "none")
    assert kinds(report) == {}
