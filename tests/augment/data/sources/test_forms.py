"""What is written in another format is what is read back, and others read it without us."""

import dataclasses
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from augment import import_data
from augment.__main__ import main
from augment.data import DataRoot, read_candidates, read_qrels, read_queries
from augment.data.images import content_hash
from augment.data.sources import forms
from augment.data.validate import validate
from tests.augment.data.sources.test_sources import put


def small_root(folder: Path) -> Path:
    """Three splits, graded, an own list, exclusions, a query that nobody judged, odd ids."""
    for number in range(3):
        path = put(folder / f"shots/{number}.png", None)
        Image.new("RGB", (8, 6), (number * 90, 0, 0)).save(path)
    rows = [{"id": f"http://x/{n}\u00e9", "text": text, "image": f"{n}.png" if n < 3 else None}
            for n, text in enumerate(["red\nbag", None, "hat", "only text"])]  # fmt: skip
    asks = [{"id": "q.1", "text": "a hat", "positives": [rows[2]["id"]]},
            {"id": "q2", "text": "this", "image": "0.png", "positives": [rows[0]["id"]]},
            {"id": "q3", "text": "nobody knows", "positives": []}]  # fmt: skip
    made, asked = folder / "made", put(folder / "q.jsonl", asks)
    import_data("table", put(folder / "t.jsonl", rows), made, images=folder / "shots",
                queries=asked, name="goods", instruction="Find.")  # fmt: skip
    (made / "import.json").unlink()
    put(made / "excluded/test.json", {"q2": [rows[1]["id"]]})
    put(made / "subsets/test.json", {"q2": [rows[0]["id"], rows[3]["id"]]})
    line = json.dumps({"qid": "t1", "query_txt": "train", "query_modality": "text", "task_id": 0,
                       "pos_cand_list": [rows[1]["id"]], "neg_cand_list": [rows[3]["id"]],
                       "query_src_content": "kept"})  # fmt: skip
    put(made / "query/train/mbeir_goods_train.jsonl", [json.loads(line)])
    return made


def held(root: Path):
    """All that a root says, with the bytes of pictures in place of their names."""

    def seen(item):
        return dataclasses.replace(item, images=tuple(content_hash(root, p) for p in item.images))

    assert validate(root, "all", "none").total("error") == 0
    data = DataRoot(root)
    pool = [seen(item) for file in data.pools() for item in read_candidates(file.path)]
    asked, judged = {}, {}
    for split in forms.SPLITS:
        for file in data.query_files(split):
            for query in read_queries(file.path):
                asked[split, query.item.id] = dataclasses.replace(query, item=seen(query.item))
        judged |= {(split, one.qid, one.did): one.relevance for file in data.qrels(split)
                   for one in read_qrels(file.path)}  # fmt: skip
    lists = {path.relative_to(root): path.read_text() for name in ("excluded", "subsets")
             for path in (root / name).glob("*.json")}  # fmt: skip
    lists = {path: json.loads(text) for path, text in lists.items()}
    return pool, asked, judged, lists


@pytest.mark.parametrize("form", ["mbeir", "beir", "datasets", "webdataset"])
def test_out_and_in_again_is_the_same(tmp_path, form, capsys):
    root = small_root(tmp_path)
    out, again = tmp_path / "out", tmp_path / "again"
    assert main(["export", f"--root={root}", f"--out={out}", f"--to={form}"]) == 0
    told = capsys.readouterr().out
    assert ("instructions are left out" in told) == (form != "mbeir")
    if form == "mbeir":
        out.rename(again)
    else:
        import_data(form, out, again, name="goods")
    before, after = held(root), held(again)
    after[2].pop(("train", "t1", "http://x/3\u00e9"), None)  # a negative, listed as judged 0
    before[2].setdefault(("train", "t1", "http://x/1\u00e9"), 1)
    after[2].setdefault(("train", "t1", "http://x/1\u00e9"), 1)
    assert after == before
    if form == "beir":
        assert "BEIR's own readers see texts alone" in told
    # Nothing half-written is there, and nothing is written over.
    assert main(["export", f"--root={root}", f"--out={again}", f"--to={form}"]) == 2
    assert "exists" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_data_set_loads_without_us(tmp_path):
    from datasets import load_dataset

    out = tmp_path / "out"
    assert main(["export", f"--root={small_root(tmp_path)}", f"--out={out}", "--to=datasets"]) == 0
    corpus = load_dataset(str(out), "corpus", split="corpus", cache_dir=str(tmp_path / "cache"))
    assert [row["image"] and row["image"].size for row in corpus] == [(8, 6)] * 3 + [None]
    assert corpus[2]["image"].getpixel((0, 0)) == (180, 0, 0)
    for config, name, held in (("queries", "id", ["q.1", "q2", "q3"]),
                               ("qrels", "query-id", ["q.1", "q2"])):  # fmt: skip
        rows = load_dataset(str(out), config, split="test", cache_dir=str(tmp_path / "cache"))
        assert sorted(rows[name]) == held


def two_pools(root: Path) -> Path:
    """A data set whose tasks have pools of their own, and one file of training queries."""
    put(root / "mbeir_images/p.png", None)
    put(root / "instructions/query_instructions.tsv", "query_modality\tcand_modality\t"
        "dataset_name\tdataset_id\tprompt_1\ntext\timage\tx\t*\tFind.\n")  # fmt: skip
    pools = {0: {"img_path": "mbeir_images/p.png", "modality": "image"},
             1: {"txt": "words", "modality": "text"}}  # fmt: skip
    train = []
    for task, kind in pools.items():
        rows = [{"did": f"{task}:{n}", **kind} for n in range(9)]
        put(root / f"cand_pool/local/mbeir_x_task{task}_cand_pool.jsonl", rows)
        asks = [{"qid": f"q{task}", "query_txt": "ask", "query_modality": "text", "task_id": task,
                 "pos_cand_list": [f"{task}:3"]}]  # fmt: skip
        train += asks
        put(root / f"query/test/mbeir_x_task{task}_test.jsonl", asks)
        qrels = f"q{task} 0 {task}:3 1 {task}\n"
        put(root / f"qrels/test/mbeir_x_task{task}_test_qrels.txt", qrels)
    put(root / "query/train/mbeir_x_train.jsonl", [*train, {**train[0], "qid": "q9",
                                                            "pos_cand_list": []}])  # fmt: skip
    return root


def test_several_pools_a_selection_and_files_of_a_bounded_size(tmp_path, monkeypatch, capsys):
    root = two_pools(tmp_path / "root")
    monkeypatch.setattr(forms, "_FILE_BYTES", 500)
    monkeypatch.setattr(forms, "_GROUP_BYTES", 500)
    for form in ("datasets", "webdataset", "beir"):
        assert main(["export", f"--root={root}", f"--out={tmp_path / form}", f"--to={form}"]) == 0
        assert "1 queries have no positive in a pool" in capsys.readouterr().out
    assert len(list((tmp_path / "datasets/x_task0-corpus").glob("corpus-*.parquet"))) > 1
    assert len(list((tmp_path / "webdataset").glob("x_task0-corpus-*.tar"))) > 1
    import_data("beir", tmp_path / "beir/x_task0", tmp_path / "one")
    pool, asked, judged, _ = held(tmp_path / "one")
    assert {item.id for item in pool if item.images} == {f"0:{n}" for n in range(9)}
    assert judged == {("test", "q0", "0:3"): 1, ("train", "q0", "0:3"): 1}
    before = held(root)
    for kind, form in (("mteb", "datasets"), ("webdataset", "webdataset")):
        import_data(kind, tmp_path / form, tmp_path / "again" / form)
        pool, asked, judged, _ = held(tmp_path / "again" / form)
        assert pool == before[0]
        assert set(asked) == {(split, f"q{task}") for split in ("train", "test") for task in (0, 1)}
        assert before[2].items() <= judged.items()
    chosen = tmp_path / "chosen"
    assert main(["export", f"--root={root}", f"--out={chosen}", "--tasks", "0"]) == 0
    pool, asked, _, _ = held(chosen)
    assert {item.id for item in pool} == {f"0:{n}" for n in range(9)}
    assert set(asked) == {("train", "q0"), ("train", "q9"), ("test", "q0")}
    bad = ["export", f"--root={root}", f"--out={tmp_path / 'x'}", "--datasets", "nosuch"]
    assert main(bad) == 2
    assert "there are data sets x" in capsys.readouterr().err


def test_a_picture_that_is_lost_is_told_and_its_entry_stays(tmp_path, capsys):
    root = small_root(tmp_path)
    next((root / "mbeir_images").rglob("2.png")).unlink()
    for form in ("datasets", "webdataset"):
        out = tmp_path / form
        assert main(["export", f"--root={root}", f"--out={out}", f"--to={form}"]) == 0
        assert "1 pictures missing" in capsys.readouterr().out
    with tarfile.open(next((tmp_path / "webdataset").glob("corpus-*.tar"))) as tar:
        assert [name for name in tar.getnames() if name.endswith(".json")] == [
            f"{number:09}.json" for number in range(4)]  # fmt: skip
