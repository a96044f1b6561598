"""Every kind on three rows written by hand, and what the one writer does with bad ones."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from augment import import_data
from augment.__main__ import main
from augment.data import DataRoot, open_instructions, read_candidates, read_qrels, read_queries
from augment.data.images import open_image
from augment.data.sources import Bounds
from augment.data.sources.forms import add_member
from augment.data.validate import validate
from augment.errors import DataError
from benchmarks.speed.doors import write_set


def put(path: Path, value, colour: str = "red") -> Path:
    """A file of JSON, of JSON lines, of text, or a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".jpg"):
        Image.new("RGB", (8, 6), colour).save(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def pictures(folder: Path, *names: str) -> Path:
    for name, colour in zip(names, ("red", "green", "blue", "white"), strict=False):
        put(folder / name, None, colour)
    return folder


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "PNG")
    return stream.getvalue()


PAIRS = [("a", png("red")), ("b", png("green")), (None, png("blue"))]


def held(root: Path):
    """Candidates, queries and judgements of a root that validates, by id."""
    assert validate(root, "all", "none").total("error") == 0
    data = DataRoot(root)
    pool = {item.id: item for file in data.pools() for item in read_candidates(file.path)}
    files = [file for split in ("train", "val", "test") for file in data.query_files(split)]
    asked = {query.item.id: query for file in files for query in read_queries(file.path)}
    judged = [one for split in ("train", "val", "test") for file in data.qrels(split)
              for one in read_qrels(file.path)]  # fmt: skip
    return pool, asked, {(one.qid, one.did): one.relevance for one in judged}


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table(tmp_path, form):
    rows = [
        {"sku": "A 1", "title": "a red bag", "more": "of felt", "photo": "a.png", "kind": "bag"},
        {"sku": "http://x/\u00e9", "title": "a bag", "more": "", "photo": "b.png", "kind": "bag"},
        {"sku": "3", "title": "", "more": "", "photo": "c.png", "kind": "hat"},
    ]
    path = tmp_path / f"goods.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "jsonl":
        put(path, rows)
    else:
        mark = {"csv": ",", "tsv": "\t"}[form]
        put(path, "".join(mark.join(row) + "\n" for row in (rows[0], *map(dict.values, rows))))
    pictures(tmp_path / "shots", "a.png", "b.png", "c.png")
    done = import_data("table", path, tmp_path / "root", images=tmp_path / "shots", id="sku",
                       text=["title", "more"], image=["photo"], group="kind")  # fmt: skip
    pool, asked, judged = held(tmp_path / "root")
    assert {did: item.text for did, item in pool.items()} == {
        "A%201": "a red bag of felt", "http://x/\u00e9": "a bag", "3": None}  # fmt: skip
    assert judged == {("A%201", "http://x/\u00e9"): 1, ("http://x/\u00e9", "A%201"): 1}
    assert {query.task for query in asked.values()} == {8}
    assert DataRoot(tmp_path / "root").excluded("test") == {did: [did] for did in asked}
    assert done.kept["candidates"] == 3
    assert not done.left_out


def test_every_row_is_accounted_for(tmp_path):
    outside = put(tmp_path / "secret.png", None)
    folder = pictures(tmp_path / "shots", "a.png", "big.png")
    (folder / "lie.png").write_text("no picture")
    Image.new("RGB", (90, 90)).save(folder / "big.png")
    (folder / "link.png").symlink_to(outside)
    rows = [
        {"id": "1", "text": "kept", "image": "a.png"}, {"id": "1", "text": "again"},
        {"id": "2", "text": "bare", "image": "lie.png"}, {"id": "3", "image": "../secret.png"},
        {"id": "4", "image": "link.png"}, {"id": "5", "image": "big.png"}, {"id": "6"}, {"id": ""},
        {"id": "7", "text": "two", "image": ["a.png", "b.png"]}, {"id": "8", "image": "http://x/y"},
        {"id": "9", "text": "odd", "image": 5},
    ]  # fmt: skip
    asks = [{"id": "q1", "text": "find", "positives": "1 nowhere"}, {"id": "q2", "text": "lost"},
            {"id": "q3", "text": "this", "image": "lie.png", "positives": ["1"]}]  # fmt: skip
    table, queries = put(tmp_path / "t.jsonl", rows), put(tmp_path / "q.jsonl", asks)
    done = import_data("table", table, tmp_path / "root", images=folder, queries=queries,
                       bounds=Bounds(max_pixels=1000))  # fmt: skip
    pool, asked, judged = held(tmp_path / "root")
    assert list(pool) == ["1", "2", "7", "9"]
    assert list(asked) == ["q1", "q2"]
    assert judged == {("q1", "1"): 1}
    assert done.left_out == {
        "candidates whose id stood there before": 1, "pictures: corrupt": 1, "pictures: missing": 1,
        "pictures: outside-root": 3, "pictures: too-large": 1, "rows without an id": 1,
        "candidates whose only content is a picture left out": 4, "further pictures of an entry": 1,
        "candidates with neither text nor picture": 1, "queries whose picture is left out": 1,
        "judgements of candidates that are not there": 1,
    }  # fmt: skip
    read = sum(done.left_out[why] for why in done.left_out if why.startswith(("cand", "rows")))
    assert done.kept["candidates"] + read == len(rows)
    assert json.loads((tmp_path / "root/import.json").read_text())["left_out"] == done.left_out


def test_a_folder_with_text_beside_and_groups(tmp_path, capsys):
    pictures(tmp_path / "my pets", "cats/one cat.jpg", "cats/b.jpg", "dogs/c.jpg", ".hidden/d.jpg")
    put(tmp_path / "my pets/cats/b.txt", "a tabby\n")
    root = tmp_path / "root"
    assert main(["import", "folder", str(tmp_path / "my pets"), "--out", str(root), "--group"]) == 0
    assert f"next: python -m augment validate {root}" in capsys.readouterr().out
    pool, asked, judged = held(root)
    assert {did: item.text for did, item in pool.items()} == {
        "cats/b.jpg": "a tabby", "cats/one%20cat.jpg": None, "dogs/c.jpg": None}  # fmt: skip
    assert set(judged) == {("cats/b.jpg", "cats/one%20cat.jpg"),
                           ("cats/one%20cat.jpg", "cats/b.jpg")}  # fmt: skip
    assert {qid: query.task for qid, query in asked.items()} == {
        "cats/b.jpg": 7, "cats/one%20cat.jpg": 5}  # fmt: skip


def test_a_hugging_face_data_set(tmp_path):
    write_set("datasets", tmp_path, PAIRS)
    import_data("datasets", tmp_path / "set", tmp_path / "root")
    pool, asked, _ = held(tmp_path / "root")
    assert [(item.id, item.text, item.modality) for item in pool.values()] == [
        ("1", "a", "image,text"), ("2", "b", "image,text"), ("3", None, "image")]  # fmt: skip
    assert not asked
    with pytest.raises(DataError, match="no part 'dev'; there are train"):
        import_data("datasets", tmp_path / "set", tmp_path / "other", part="dev")


def test_a_snapshot_of_the_hub(tmp_path):
    from datasets import load_from_disk

    write_set("datasets", tmp_path, PAIRS)
    rows = load_from_disk(str(tmp_path / "set"))["train"]
    snapshot, card = tmp_path / "snapshot", ["---", "configs:"]
    for name in ("large", "small"):
        (snapshot / name).mkdir(parents=True)
        rows.to_parquet(snapshot / name / "test.parquet")
        card += [f"- config_name: {name}", f"  data_files: {name}/test.parquet"]
    import_data("datasets", snapshot / "small", tmp_path / "root", part="test")
    assert [(item.id, item.text, len(item.images)) for item in held(tmp_path / "root")[0].values()
            ] == [("1", "a", 1), ("2", "b", 1), ("3", None, 1)]  # fmt: skip
    put(snapshot / "README.md", "\n".join([*card, "---", ""]))
    with pytest.raises(DataError, match="--subset names one of large, small"):
        import_data("datasets", snapshot, tmp_path / "other")
    import_data("datasets", snapshot, tmp_path / "other", "small", subset="small")
    assert held(tmp_path / "other")[0] == held(tmp_path / "root")[0]


def tar_file(folder: Path) -> Path:
    members = {"x/1.png": png("red"), "x/1.txt": b"one", "x/2.json": b'{"caption": "two"}',
               "x/2.png": png("green"), "../3.txt": b"three", "x/4.json": b"{"}  # fmt: skip
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        for name, data in members.items():
            add_member(tar, name, data)
    return folder


def test_tars_of_a_webdataset(tmp_path):
    tar_file(tmp_path)
    done = import_data("webdataset", tmp_path / "a.tar.gz", tmp_path / "root")
    pool, _, _ = held(tmp_path / "root")
    assert {did: (item.text, len(item.images)) for did, item in pool.items()} == {
        "x/1": ("one", 1), "x/2": ("two", 1), "../3": ("three", 0)}  # fmt: skip
    assert done.left_out == {"members of a tar whose text or JSON cannot be read": 1}


def beir_files(folder: Path) -> Path:
    put(folder / "corpus.jsonl", [
        {"_id": "MED-10", "title": "Heart", "text": "beats"}, {"_id": "9:41", "text": "tea"},
        {"_id": "D 3", "title": "", "text": "sky"}])  # fmt: skip
    put(folder / "queries.jsonl", [{"_id": f"PLAIN-{n}", "text": f"t{n}"} for n in (1, 2, 3)])
    head = "query-id\tcorpus-id\tscore\n"
    put(folder / "qrels/test.tsv", f"{head}PLAIN-1\tMED-10\t2\nPLAIN-1\tD 3\t0\n")
    put(folder / "qrels/dev.tsv", f"{head}PLAIN-2\t9:41\t1\n")
    return folder


def test_beir_keeps_ids_joins_titles_and_knows_splits(tmp_path):
    beir_files(tmp_path / "b")
    done = import_data("beir", tmp_path / "b", tmp_path / "root", name="NF Corpus",
                       instruction="Find it.")  # fmt: skip
    pool, asked, judged = held(tmp_path / "root")
    assert {did: item.text for did, item in pool.items()} == {
        "MED-10": "Heart beats", "9:41": "tea", "D%203": "sky"}  # fmt: skip
    assert judged == {("PLAIN-1", "MED-10"): 2, ("PLAIN-1", "D%203"): 0, ("PLAIN-2", "9:41"): 1}
    assert asked["PLAIN-1"].positives == ("MED-10",)
    data = DataRoot(tmp_path / "root")
    assert data.query_file("nf-corpus", 1, "val").is_file()
    assert data.instructions().get("", "text", "text") == ("Find it.",)
    assert done.left_out == {"queries that no file of judgements has": 1}


def coco(folder: Path) -> Path:
    pictures(folder, "1.jpg", "2.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]
    captions = [{"id": n, "image_id": 1 + n // 3, "caption": f"cap {n}"} for n in (1, 2, 3)]
    return put(folder / "captions_val.json", {"images": images, "annotations": captions})


def flickr(folder: Path) -> Path:
    pictures(folder, "1.jpg", "2.jpg")
    sentences = [[{"sentid": 1, "raw": "cap 1"}, {"sentid": 2, "raw": "cap 2"}],
                 [{"sentid": 3, "raw": "cap 3"}]]  # fmt: skip
    images = [{"imgid": n, "filename": f"{n}.jpg", "split": ("test", "restval")[n - 1],
               "sentences": sentences[n - 1]} for n in (1, 2)]  # fmt: skip
    return put(folder / "dataset_flickr30k.json", {"images": images})


@pytest.mark.parametrize(("kind", "make"), [("coco", coco), ("flickr30k", flickr)])
def test_captions_ask_for_pictures_and_pictures_for_captions(tmp_path, kind, make):
    import_data(kind, make(tmp_path / "set"), tmp_path / "root")
    pool, asked, judged = held(tmp_path / "root")
    assert pool["i2"].modality == "image"
    assert pool["c2"].text == "cap 2"
    assert judged["i1", "c2"] == judged["c2", "i1"] == 1
    assert len(judged) == 6
    assert {asked["i1"].task, asked["c1"].task} == {3, 0}
    splits = {split for split in ("train", "test") if DataRoot(tmp_path / "root").qrels(split)}
    assert splits == ({"train", "test"} if kind == "flickr30k" else {"test"})


def cirr_files(folder: Path) -> Path:
    pictures(folder / "img/dev", "a.png", "b.png", "c.png")
    put(folder / "image_splits/split.rc2.val.json", {n: f"./dev/{n}.png" for n in "abc"})
    rows = [{"pairid": 7, "reference": "a", "target_hard": "b", "caption": "now green",
             "target_soft": {"b": 1.0}, "img_set": {"id": 1, "members": ["a", "b", "c"]}},
            {"pairid": 8, "reference": "b", "caption": "test1 has no target",
             "img_set": {"members": ["a", "b"]}}]  # fmt: skip
    put(folder / "captions/cap.rc2.val.json", rows)
    return folder


def test_cirr_leaves_out_the_reference_and_has_subsets(tmp_path):
    folder = tmp_path / "cirr"
    cirr_files(folder)
    import_data("cirr", folder, tmp_path / "root", images=folder / "img")
    pool, asked, judged = held(tmp_path / "root")
    assert judged == {("7", "b"): 1}
    assert asked["7"].task == 7
    assert asked["8"].positives == ()
    assert asked["7"].item.images == pool["a"].images
    assert DataRoot(tmp_path / "root").excluded("val") == {"7": ["a"], "8": ["b"]}
    assert json.loads((tmp_path / "root/subsets/val.json").read_text())["7"] == ["b", "c"]


def fashioniq_files(folder: Path) -> Path:
    pictures(folder / "images", "X1.jpg", "X2.png", "X3.png")
    for kind in ("dress", "shirt", "toptee"):
        put(folder / f"image_splits/split.{kind}.val.json", ["X1", "X2", "X3"])
        rows = [{"candidate": "X1", "target": target, "captions": ["is red", "is long"]}
                for target in ("X2", "X3")]  # fmt: skip
        put(folder / f"captions/cap.{kind}.val.json", rows)
    return folder


def test_fashioniq_is_three_data_sets_whose_pictures_have_no_endings(tmp_path):
    fashioniq_files(tmp_path / "fiq")
    import_data("fashioniq", tmp_path / "fiq", tmp_path / "root", images=tmp_path / "fiq/images")
    _, asked, judged = held(tmp_path / "root")
    names = [file.dataset for file in DataRoot(tmp_path / "root").pools()]
    assert names == ["fashioniq-dress", "fashioniq-shirt", "fashioniq-toptee"]
    assert asked["dress-X1-2"].item.text == "is red and is long"
    assert judged["dress-X1-2", "dress-X3"] == 1
    assert len(judged) == 6


def circo_files(folder: Path) -> Path:
    pictures(folder, "p/1.jpg", "p/2.jpg", "p/3.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]
    put(folder / "coco/image_info_unlabeled2017.json", {"images": images})
    row = {"id": 0, "reference_img_id": 1, "target_img_id": 2, "relative_caption": "with a dog",
           "shared_concept": "a dog", "gt_img_ids": [2, 3]}  # fmt: skip
    put(folder / "annotations/val.json", [row])
    return folder


def test_circo_has_several_right_ones(tmp_path):
    folder = circo_files(tmp_path / "circo")
    import_data("circo", folder, tmp_path / "root", images=folder / "p")
    _, asked, judged = held(tmp_path / "root")
    assert judged == {("q0", "2"): 1, ("q0", "3"): 1}
    assert asked["q0"].task == 7
    assert DataRoot(tmp_path / "root").excluded("val") == {"q0": ["1"]}


def test_zero_shot_sets(tmp_path):
    write_set("urban1k", tmp_path, PAIRS[:2])
    put(tmp_path / "urban/caption/3.txt", "a long text\n")
    done = import_data("urban1k", tmp_path / "urban", tmp_path / "u")
    assert held(tmp_path / "u")[2] == {("i1", "c1"): 1, ("c1", "i1"): 1,
                                       ("i2", "c2"): 1, ("c2", "i2"): 1}  # fmt: skip
    assert done.left_out == {"captions without a picture": 1}
    write_set("sugarcrepe", tmp_path, PAIRS[:2])
    import_data("sugarcrepe", tmp_path / "sugar", tmp_path / "s")
    subsets = json.loads((tmp_path / "s/subsets/test.json").read_text())
    assert subsets["sugarcrepe-swap-obj-1"] == [f"sugarcrepe-swap-obj-1-{w}"
                                                for w in ("true", "false")]  # fmt: skip
    assert len(held(tmp_path / "s")[2]) == 2


def bright_files(folder: Path) -> Path:
    part = "biology-00000-of-00001.parquet"
    rows = [{"id": f"d {n}.txt", "content": f"doc {n}"} for n in (1, 2, 3)]
    parquet_rows(folder / "documents" / part, rows)
    parquet_rows(folder / "examples" / part, [
        {"id": "0", "query": "why?", "gold_ids": ["d 1.txt"], "excluded_ids": ["d 2.txt"]},
        {"id": "1", "query": "how?", "gold_ids": [], "excluded_ids": ["N/A"]}])  # fmt: skip
    return folder


def test_bright_leaves_out_what_it_excludes(tmp_path):
    bright_files(tmp_path / "bright")
    import_data("bright", tmp_path / "bright", tmp_path / "root")
    _, asked, judged = held(tmp_path / "root")
    assert judged == {("biology:q0", "biology:d%201.txt"): 1}
    assert asked["biology:q1"].positives == ()
    assert DataRoot(tmp_path / "root").excluded("test") == {"biology:q0": ["biology:d%202.txt"]}


def parquet_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def mm_bright_files(folder: Path) -> Path:
    parquet_rows(folder / "documents/gis.parquet",
                 [{"id": f"d{n}", "content": f"doc {n}"} for n in (1, 2, 3)])  # fmt: skip
    row = {
        "id": "0",
        "query": "why?",
        "gold_ids": ["d1"],
        "negative_ids": ["d2"],
        "image_paths": ["a.png", "b.png"],
        "positive_images": [{"image_path": "x\\1.png"}],
    }
    other = {**row, "id": "1", "gold_ids": [], "negative_ids": [], "image_paths": []}
    for name in ("examples", "examples_multimodal"):
        parquet_rows(folder / name / "gis.parquet", [row, other])
    shots = [{"path": f"{n}.png", "bytes": png(c)} for n, c in (("a", "red"), ("b", "green"))]
    parquet_rows(folder / "examples_images/gis.parquet", shots)
    pages = [{"path": f"x/{n}.png", "bytes": png(c)} for n, c in ((1, "blue"), (2, "white"))]
    parquet_rows(folder / "document_images/gis.parquet", pages)
    return folder


def test_mm_bright_and_several_pictures(tmp_path):
    folder = mm_bright_files(tmp_path / "mm")
    done = import_data("mm_bright", folder, tmp_path / "two")
    _, asked, judged = held(tmp_path / "two")
    assert judged == {("gis:q0", "gis:d1"): 1}
    assert asked["gis:q0"].task == 6
    assert done.left_out == {"further pictures of an entry": 1}
    assert DataRoot(tmp_path / "two").excluded("test") == {"gis:q0": ["gis:d2"]}
    import_data("mm_bright", folder, tmp_path / "three", task=3, bounds=Bounds(several="beside"))
    pool, asked, judged = held(tmp_path / "three")
    assert [item.modality for item in pool.values()] == ["image", "image"]
    assert judged == {(f"gis:q{n}", "gis:x/1.png"): 1 for n in (0, 1)}
    shown = Image.open(tmp_path / "three" / asked["gis:q0"].item.images[0])
    assert (shown.size, shown.getpixel((7, 0)), shown.getpixel((8, 0))) == (
        (16, 6), (255, 0, 0), (0, 128, 0))  # fmt: skip
    assert not DataRoot(tmp_path / "three").excluded("test")


def mteb_files(folder: Path) -> Path:
    """Names as in MRMR and in ViDoRe; two languages over one pool of pages."""
    card = ["---", "configs:"]
    for config, rows in {
        "fr-corpus": [{"corpus-id": n, "image": {"bytes": png(c), "path": None}}
                      for n, c in enumerate(("red", "blue"))],
        "fr-queries": [{"query-id": 7, "query": "rouge", "language": "fr"}],
        "fr-qrels": [{"query-id": 7, "corpus-id": 0, "score": 2}],
        "corpus": [{"id": "d1", "text": None, "image": None, "image 1": {"bytes": png("red")},
                    "image 2": {"bytes": png("blue")}}, {"id": "d2", "text": "words"}],
        "query": [{"id": "q1", "text": "red?", "image": None}],
        "qrels": [{"query_id": "q1", "corpus_id": "d1", "score": 1.0}],
    }.items():  # fmt: skip
        parquet_rows(folder / config / "test-00000-of-00001.parquet", rows)
        card += [f"- config_name: {config}", "  data_files:", "  - split: test",
                 f"    path: {config}/test-*"]  # fmt: skip
    put(folder / "README.md", "\n".join([*card, "---", ""]))
    return folder


def test_mtebs_fields_in_both_spellings(tmp_path):
    done = import_data("mteb", mteb_files(tmp_path / "set"), tmp_path / "r")
    names = [file.dataset for file in DataRoot(tmp_path / "r").pools()]
    assert names == ["fr", "set"]
    pool, asked, judged = held(tmp_path / "r")
    assert judged == {("7", "0"): 2, ("q1", "d1"): 1}
    assert asked["7"].item.text == "rouge"
    assert {did: item.modality for did, item in pool.items()} == {
        "0": "image", "1": "image", "d1": "image", "d2": "text"}  # fmt: skip
    assert done.left_out == {"further pictures of an entry": 1}
    with pytest.raises(DataError, match="no corpus of de; there are"):
        import_data("mteb", tmp_path / "set", tmp_path / "x", subset="de")


def genecis_files(folder: Path) -> Path:
    pictures(folder, "000000000001.jpg", "000000000002.jpg", "000000000003.jpg")
    for number in (4, 5):
        Image.new("RGB", (40, 30), "red").save(folder / f"{number}.jpg")
    own = [{"val_image_id": n} for n in (1, 2, 3)]
    rows = {"condition": "wall", "reference": own[0], "target": own[1], "gallery": [own[2]]}
    put(folder / "focus_object.json", [rows])
    cut = [{"image_id": n, "instance_bbox": [x, 10, 10, 4]} for n, x in ((4, 10), (5, 2), (5, 30))]
    rows = {"condition": "red", "reference": cut[0], "target": cut[1], "gallery": [cut[2]]}
    put(folder / "change_attribute.json", [rows])
    return folder


def test_genecis_has_lists_and_parts_of_pictures(tmp_path):
    import_data("genecis", genecis_files(tmp_path / "g"), tmp_path / "r")
    pool, asked, judged = held(tmp_path / "r")
    assert judged == {("change_attribute-0", "5-2-10-10-4"): 1,
                      ("focus_object-0", "000000000002"): 1}  # fmt: skip
    assert json.loads((tmp_path / "r/subsets/test.json").read_text()) == {
        "change_attribute-0": ["5-2-10-10-4", "5-30-10-10-4"],
        "focus_object-0": ["000000000002", "000000000003"]}  # fmt: skip
    assert {query.task for query in asked.values()} == {7}
    # (10, 10) - 0.7 * (10, 4) = (3, 7.2); 17 wide, 6.8 high; black above and below
    shown = Image.open(tmp_path / "r" / asked["change_attribute-0"].item.images[0])
    assert shown.size == (17, 17)
    assert shown.getpixel((8, 0)) == (0, 0, 0)
    assert shown.getpixel((8, 8))[0] > 250
    assert Image.open(tmp_path / "r" / pool["5-30-10-10-4"].images[0]).size == (
        17,
        17,
    )  # at the edge


def visdial_files(folder: Path) -> Path:
    pictures(folder, "a.jpg", "b.jpg", "VisualDialog_val2018_000000000009.jpg")
    rounds = [{"img": "a.jpg", "dialog": ["a dog", "is it big? yes", "is it red? no"]}]
    put(folder / "chatir.json", rounds)
    put(folder / "space.json", ["a.jpg", "b.jpg"])
    turns = [{"question": 1, "answer": 0}, {"question": 0}]
    told = {"questions": ["is it red", "is it big"], "answers": ["yes", "no"],
            "dialogs": [{"image_id": 9, "caption": "a cat", "dialog": turns}]}  # fmt: skip
    put(folder / "visdial_1.0_val.json", {"data": told})
    return folder


def test_dialogues_and_stories_ask_for_pictures(tmp_path):
    folder = visdial_files(tmp_path / "v")
    import_data("visdial", folder / "chatir.json", tmp_path / "c", corpus=folder / "space.json",
                rounds=1)  # fmt: skip
    pool, asked, judged = held(tmp_path / "c")
    assert (asked["d0"].item.text, judged) == ("a dog, is it big? yes", {("d0", "a.jpg"): 1})
    assert list(pool) == ["a.jpg", "b.jpg"]
    import_data("visdial", folder / "visdial_1.0_val.json", tmp_path / "d")
    _, asked, judged = held(tmp_path / "d")
    assert asked["d0"].item.text == "a cat, is it big? yes"
    assert judged == {("d0", "VisualDialog_val2018_000000000009.jpg"): 1}
    import_data("vist", vist_file(tmp_path / "s"), tmp_path / "t")
    _, asked, judged = held(tmp_path / "t")
    assert {qid: query.item.text for qid, query in asked.items()} == {
        "5-1": "we left .", "5-2": "we left . it rained ."}  # fmt: skip
    assert judged == {("5-1", "2"): 1, ("5-2", "1"): 1}


def vist_file(folder: Path) -> Path:
    pictures(folder, "1.jpg", "2.jpg")
    rows = [[{"story_id": "5", "photo_flickr_id": str(n), "worker_arranged_photo_order": 2 - n,
              "text": text}] for n, text in ((1, "it rained ."), (2, "we left ."))]  # fmt: skip
    told = {"images": [{"id": "1"}, {"id": "2"}], "annotations": rows}
    return put(folder / "test.story-in-sequence.json", told)


def test_sharegpt4v_is_its_first_records(tmp_path):
    write_set("sharegpt4v", tmp_path, PAIRS[:2])
    import_data("sharegpt4v", tmp_path / "share/share.json", tmp_path / "r", first=1)
    pool, _, judged = held(tmp_path / "r")
    assert judged == {("i0", "c0"): 1, ("c0", "i0"): 1}
    assert pool["c0"].text == "a"


def test_mmeb_has_lists_whose_first_is_right(tmp_path):
    write_set("mmeb", tmp_path, PAIRS[:2])
    import_data("mmeb", tmp_path / "mmeb", tmp_path / "r", images=tmp_path / "shots")
    pool, asked, judged = held(tmp_path / "r")
    name = "MSCOCO_t2i"
    assert judged == {(f"{name}:q1", f"{name}:c1"): 1, (f"{name}:q2", f"{name}:c2"): 1}
    assert json.loads((tmp_path / "r/subsets/test.json").read_text())[f"{name}:q2"] == [
        f"{name}:c2", f"{name}:c1"]  # fmt: skip
    assert len(pool) == 2
    assert asked[f"{name}:q1"].task == 0


def test_mmebs_pages_keep_their_grades_and_its_videos_some_frames(tmp_path):
    shots = tmp_path / "shots"
    for path in ("ViDoSeek-doc/1.png", "ViDoSeek-doc/2.png",
                 *(f"video_mret/QVHighlight/v/{clip}/0.png" for clip in ("positive", "query")),
                 *(f"video_ret/MSVD/v/{n}.png" for n in range(10))):  # fmt: skip
        (shots / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (20 * len(path), 0, 0)).save(shots / path)
    for table, rows in {
        "corpus": [{"corpus-id": 1}, {"corpus-id": 2}],
        "queries": [{"query-id": "q", "query": "why"}],
        "qrels": [{"query-id": "q", "corpus-id": did, "score": did} for did in (1, 2)],
    }.items():
        path = tmp_path / f"mmeb/ViDoSeek-doc/{table}/test-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    put(tmp_path / "mmeb/MSVD.jsonl", [{"video_id": "v", "caption": ["a jump", "a leap"]}])
    put(tmp_path / "mmeb/QVHighlight.jsonl", [{"query": "a jump", "video_path": "x/v.mp4"}])
    for several, width, left_out in (("first", 4, 7), ("beside", 8 * 4, 0)):
        bounds, root = Bounds(several=several), tmp_path / several
        told = import_data(
            "mmeb", tmp_path / "mmeb", root, images=shots, bounds=bounds, clips=shots
        )
        pool, asked, judged = held(root)
        assert judged["ViDoSeek-doc:q1", "ViDoSeek-doc:c2"] == 2
        assert asked["MSVD:q1"].item.text.endswith("summary: a jump")
        assert asked["QVHighlight:q1"].task == 7
        assert judged["QVHighlight:q1", "QVHighlight:c1"] == 1
        assert pool["ViDoSeek-doc:c1"].text is None
        assert open_image(root, pool["MSVD:c1"].image).size == (width, 3)
        assert told.left_out["further pictures of an entry"] == left_out
        own = json.loads((root / "subsets/test.json").read_text())
        assert own == {"QVHighlight:q1": ["QVHighlight:c1"]}


def test_what_mmeb_trains_on_is_a_data_set_of_its_own(tmp_path):
    write_set("mmeb", tmp_path, PAIRS[:2])
    begun = {"qry_image_path": "", "pos_text": "", "neg_text": "", "neg_image_path": ""}
    rows = [{**begun, "qry": f"<|image_1|> Find it: {text}", "pos_image_path": f"{n}.jpg"}
            for n, text in enumerate(("a bird", "a cat"), 1)]  # fmt: skip
    rows[1]["neg_text"] = "a dog"
    for files, some in (("original", rows), ("diverse_instruction", rows[:1])):
        path = tmp_path / f"train/MSCOCO_t2i/{files}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(some), path)
    given = {"images": tmp_path / "shots", "train": tmp_path / "train"}
    import_data("mmeb", tmp_path / "mmeb", tmp_path / "r", **given, instructions="rge")
    data, name = DataRoot(tmp_path / "r"), "train-MSCOCO_t2i"
    asked = list(read_queries(data.query_files("train")[0].path))
    prompt = next(row.prompts[0] for row in open_instructions("rge").rows
                  if row.dataset_id == "MSCOCO_t2i")  # fmt: skip
    assert [query.item.text for query in asked] == [f"{prompt} a bird", f"{prompt} a cat"]
    assert [(query.positives, query.negatives) for query in asked] == [
        ((f"{name}:c1",), ()), ((f"{name}:c2",), (f"{name}:c3",))]  # fmt: skip
    assert set(json.loads((tmp_path / "r/subsets/test.json").read_text())) == {
        "MSCOCO_t2i:q1", "MSCOCO_t2i:q2"}  # fmt: skip
    import_data("mmeb", tmp_path / "mmeb", tmp_path / "d", **given, files="diverse_instruction")
    assert len(held(tmp_path / "d")[2]) == 3
    pq.write_table(pa.Table.from_pylist([{"qry": "a"}]), path)
    with pytest.raises(DataError, match="lacks the columns pos_image_path, pos_text, qry_image"):
        import_data("mmeb", tmp_path / "mmeb", tmp_path / "e", **given, files="diverse_instruction")


def test_what_cannot_be_imported_says_so(tmp_path):
    table = put(tmp_path / "t.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match="no column of text or pictures; there are a, b"):
        import_data("table", table, tmp_path / "r")
    with pytest.raises(DataError, match="no kind 'excel'; there are table"):
        import_data("excel", table, tmp_path / "r")
    with pytest.raises(DataError, match="lacks 'images'; is it of kind coco"):
        import_data("coco", put(tmp_path / "c.json", {}), tmp_path / "r")
    with pytest.raises(DataError, match="has another form than kind coco"):
        import_data("coco", put(tmp_path / "l.json", [1, 2]), tmp_path / "r")
    with pytest.raises(DataError, match="no candidate is left"):
        import_data("table", put(tmp_path / "e.jsonl", [{"text": ""}]), tmp_path / "r")
    assert not (tmp_path / "r").exists()
