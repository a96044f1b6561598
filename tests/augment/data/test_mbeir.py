"""M-BEIR files: tolerant where published data is loose, strict elsewhere, exact on a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from augment.data import (
    DataRoot,
    InstructionRow,
    Instructions,
    format_text,
    read_candidates,
    read_qrels,
    read_queries,
    write_candidates,
    write_instructions,
    write_qrels,
    write_queries,
)
from augment.data.pools import open_candidates, open_queries
from augment.data.records import derive_task
from augment.data.root import read_instructions
from augment.errors import DataError
from augment.records import TASKS, Item, Qrel, Query, one_picture

REAL = Path(__file__).parents[4] / "shared" / "data" / "mbeir_real"

numbers = st.integers(0, 10**22)
ids = st.builds("{}:{}".format, numbers, numbers)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
modalities = st.sampled_from(["text", "image", "image,text"])
paths = (st.none() | texts.filter(bool)).map(one_picture)  # an empty path is read as none
items = st.builds(Item, ids, st.none() | texts, paths, modalities, st.none() | texts)
queries = st.builds(
    Query,
    items,
    st.none() | st.integers(0, 8),
    st.lists(ids, max_size=3).map(tuple),
    st.lists(ids, max_size=3).map(tuple),
)
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def lines(path: Path, *records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records),
        encoding="utf-8",
    )
    return path


def test_a_written_record_has_the_published_keys(tmp_path):
    query = Query(Item("9:1", "a", (), "text", None), 0, ("9:2",), ())
    write_queries(tmp_path / "q.jsonl", [query])
    assert json.loads((tmp_path / "q.jsonl").read_text()) == {
        "qid": "9:1",
        "query_txt": "a",
        "query_img_path": None,
        "query_modality": "text",
        "query_src_content": None,
        "pos_cand_list": ["9:2"],
        "neg_cand_list": [],
        "task_id": 0,
    }


def test_loose_records_as_published(tmp_path):
    path = tmp_path / "loose.jsonl"
    card = {
        "qid": "6:1",
        "query_txt": "a\u2028b",
        "query_img_path": "i.jpg",
        "query_modality": "text,image",
        "pos_cand_list": [{"did": "6:2"}, "6:3"],
        "neg_cand_list": None,
    }
    body = "\ufeff" + json.dumps(card, ensure_ascii=False) + "\r\n\n" + json.dumps({"qid": "6:9"})
    path.write_bytes(body.encode())
    first, second = read_queries(path)
    assert first == Query(
        Item("6:1", "a\u2028b", ("i.jpg",), "image,text", None), None, ("6:2", "6:3"), ()
    )
    assert second == Query(Item("6:9", None, (), "text", None), None, (), ())


def test_task_of_a_query(tmp_path):
    record = {"qid": "1:1", "query_modality": "image"}
    named = lines(tmp_path / "mbeir_x_task3_test.jsonl", record)
    contrary = lines(tmp_path / "mbeir_x_task0_test.jsonl", record)
    stated = lines(tmp_path / "q.jsonl", {**record, "candidate_modality": "image"})
    given_task = lines(tmp_path / "mbeir_y_task3_test.jsonl", {**record, "task_id": 4})
    tasks = [next(read_queries(path)).task for path in (named, contrary, stated, given_task)]
    assert tasks == [3, None, 4, 4]
    assert [derive_task(*TASKS[code]) for code in range(9)] == list(range(9))
    assert derive_task("text", None) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a line of JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ("[" * 100_000, "not a line of JSON"),
        ('{"did": 7}', "did is 7"),
        ('{"txt": "x"}', "did is None"),
        ('{"did": ""}', "did is ''"),
        ('{"did": "7 x"}', "did is '7 x'"),
        ('{"did": "7:1\\n"}', "did is"),
        ('{"did": "7:1", "txt": 3}', "txt is a int"),
        ('{"did": "7:1", "src_content": {}}', "src_content is a dict"),
        ('{"did": "7:1", "modality": "video"}', "modality is 'video'"),
        ('{"did": "7:1", "txt": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_bad_candidates_name_file_and_line(tmp_path, line, said):
    path = lines(tmp_path / "p.jsonl", {"did": "7:0"}, "", line)
    with pytest.raises(DataError) as caught:
        list(read_candidates(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"task_id": 9},
        {"task_id": True},
        {"task_id": "3"},
        {"pos_cand_list": "9:1"},
        {"pos_cand_list": [1]},
        {"pos_cand_list": [{"id": "9:1"}]},
        {"neg_cand_list": ["x y"]},
    ],
)
def test_bad_queries(tmp_path, fields):
    path = lines(tmp_path / "q.jsonl", {"qid": "9:1", **fields})
    with pytest.raises(DataError, match=r"q\.jsonl:1: "):
        list(read_queries(path))


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"did": "1:1", "txt": "\xff"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl:1: .*UTF-8"):
        list(read_candidates(tmp_path / "p.jsonl"))
    with pytest.raises(DataError, match="cannot be opened"):
        list(read_candidates(tmp_path / "absent.jsonl"))


def test_qrels_of_both_widths(tmp_path):
    path = lines(tmp_path / "q.txt", "9:1 0 9:2 1 3", "", "301\t0\tFBIS3-10082 -1")
    rows = [Qrel("9:1", "9:2", 1, 3), Qrel("301", "FBIS3-10082", -1, None)]
    assert read_qrels(path) == rows
    write_qrels(tmp_path / "four.txt", rows, columns=4)
    assert read_qrels(tmp_path / "four.txt") == [row._replace(task=None) for row in rows]
    write_qrels(tmp_path / "five.txt", rows[:1])
    assert (tmp_path / "five.txt").read_text() == "9:1 0 9:2 1 3\n"
    with pytest.raises(DataError, match="write four columns"):
        write_qrels(tmp_path / "five.txt", rows)


@pytest.mark.parametrize("line", ["9:1 0 9:2", "9:1 0 9:2 x", "9:1 0 9:2 1 9", "a b c d e f"])
def test_bad_qrels_name_file_and_line(tmp_path, line):
    path = lines(tmp_path / "q.txt", "9:1 0 9:2 1", line)
    with pytest.raises(DataError, match=r"q\.txt:2: "):
        read_qrels(path)


def test_instructions(tmp_path):
    rows = [
        InstructionRow("image", "text", "oven", "5", ("What is this?", 'Say "it".')),
        InstructionRow("image,text", "text", "oven", "5", ("a", "b", "c", "d")),
    ]
    path = tmp_path / "i.tsv"
    write_instructions(path, rows)
    table = read_instructions(path)
    assert table.rows == tuple(rows)
    assert table.get("5", "image", "text") == ("What is this?", 'Say "it".')
    with pytest.raises(DataError, match=r"i\.tsv: no instruction for dataset 5, text -> text"):
        table.get("5", "text", "text")
    with pytest.raises(DataError, match="two rows for dataset 5"):
        Instructions([rows[0], rows[0]])
    path.write_text(path.read_text().replace("image,text\t", "video\t"))
    with pytest.raises(DataError, match=r"i\.tsv:3: "):
        read_instructions(path)


@pytest.mark.parametrize(
    ("text", "tidy"),
    [  # the side effects listed in UniIR's contract, and its branches
        (None, ""),
        ("", ""),
        (" \r\n ", ""),
        ("iPhone", "IPhone."),
        ("ends with:", "Ends with:."),
        ('"quoted"', "Quoted."),
        ("why?", "Why?"),
        ("wow!", "Wow!"),
        ("a\rb", "Ab."),
        ("\u65d7", "\u65d7."),
        ('"', ""),
        ("\u00dfeta", "SSeta."),
    ],
)
def test_text_rule(text, tidy):
    assert format_text(text) == format_text(text, rule="uniir") == tidy


def test_plain_rule_only_strips():
    assert format_text(' "iPhone" ', rule="plain") == '"iPhone"'
    assert format_text(None, rule="plain") == ""
    with pytest.raises(DataError, match="no text rule"):
        format_text("a", rule="other")


@pytest.fixture
def published(tmp_path):
    """Empty files under the names of the published data set."""
    for name in (
        "query/train/mbeir_mscoco_train.jsonl",
        "query/train/mbeir_webqa_train.jsonl",
        "query/val/mbeir_mscoco_task0_val.jsonl",
        "query/test/mbeir_mscoco_task0_test.jsonl",
        "query/test/mbeir_webqa_task2_test.jsonl",
        "query/union_train/mbeir_union_up_train.jsonl",
        "query/union_val/mbeir_union_val.jsonl",
        "cand_pool/local/mbeir_mscoco_task0_val_cand_pool.jsonl",
        "cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl",
        "cand_pool/local/mbeir_webqa_task2_cand_pool.jsonl",
        "cand_pool/global/mbeir_union_test_cand_pool.jsonl",
        "qrels/test/mbeir_webqa_task2_test_qrels.txt",
        "qrels/train/mbeir_webqa_train_qrels.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return DataRoot(tmp_path)


def test_layout_of_the_published_data(published):
    root = published
    assert [row[:2] for row in root.query_files("train")] == [("mscoco", None), ("webqa", None)]
    assert [row[:2] for row in root.query_files("test")] == [("mscoco", 0), ("webqa", 2)]
    assert [row[:2] for row in root.pools()] == [("mscoco", 0), ("mscoco", 0), ("webqa", 2)]
    assert root.pool_for("mscoco", 0, "val").name == "mbeir_mscoco_task0_val_cand_pool.jsonl"
    assert root.pool_for("mscoco", 0, "test").name == "mbeir_mscoco_task0_test_cand_pool.jsonl"
    assert root.pool_for("webqa", 2, "test").name == "mbeir_webqa_task2_cand_pool.jsonl"
    assert root.query_file("webqa", 2, "train").name == "mbeir_webqa_train.jsonl"
    assert root.query_file("webqa", 2, "test").name == "mbeir_webqa_task2_test.jsonl"
    assert root.query_file("union", None, "train").name == "mbeir_union_up_train.jsonl"
    assert root.query_file("union", None, "val").name == "mbeir_union_val.jsonl"
    assert root.union_pool("test").name == "mbeir_union_test_cand_pool.jsonl"
    assert [row[:2] for row in root.qrels("test")] == [("webqa", 2)]
    assert root.qrels_file("webqa", 2, "train").name == "mbeir_webqa_train_qrels.txt"


def test_what_a_root_lacks_is_said(published, tmp_path):
    with pytest.raises(DataError, match=r"no mbeir_mscoco_task3_test_cand_pool\.jsonl or .*holds"):
        published.pool_for("mscoco", 3, "test")
    with pytest.raises(DataError, match="mbeir_union_val_cand_pool"):
        published.union_pool("val")
    with pytest.raises(DataError, match="query_instructions"):
        published.instructions()
    with pytest.raises(DataError, match="no such folder"):
        DataRoot(tmp_path / "absent")
    with pytest.raises(DataError, match="not a data root"):
        DataRoot(tmp_path / "query")


@pytest.mark.skipif(not REAL.is_dir(), reason="real M-BEIR-style data is not at ../shared")
def test_a_real_root_round_trips_to_the_same_json(tmp_path):
    root = DataRoot(REAL)
    assert root.instructions().get("94", "image", "text")[0] == "Find the description of this flag."
    for file in root.query_files("test"):
        write_queries(tmp_path / "q.jsonl", read_queries(file.path))
        assert _objects(tmp_path / "q.jsonl") == _objects(file.path)
    for file in root.pools():
        write_candidates(tmp_path / "p.jsonl", read_candidates(file.path))
        assert _objects(tmp_path / "p.jsonl") == _objects(file.path)


def _objects(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def as_form(path: Path, form: str) -> Path:
    """The records of a JSONL file as people hold them; the plain file is gone."""
    records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    other = path.with_name(path.name.removesuffix(".jsonl") + form)
    if form == ".parquet":
        frame = pandas.DataFrame(records)  # makes floats of task codes where one is missing
        frame.assign(picture=b"\x00\x01").to_parquet(
            other, row_group_size=2, compression=None, use_dictionary=False,
            write_page_checksum=True,
        )  # fmt: skip
    else:
        packing = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}[form]
        other.write_bytes(pa.compress(path.read_bytes(), codec=packing, asbytes=True))
    path.unlink()
    return other


@pytest.mark.parametrize("form", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_packed_files_and_parquet(tmp_path, form):
    pool = [Item(f"9:{n}", f"text {n}\x85\u2028", ("a.jpg",), "image,text") for n in range(5)]
    asked = [
        Query(Item(f"9:{n}", "question", (), "text"), 2 if n else None, (f"9:{n}",))
        for n in range(5)
    ]
    root = DataRoot(lines(tmp_path / "query/test/none").parents[2])
    place = tmp_path / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl"
    write_candidates(place, pool)
    candidates = as_form(place, form)
    place = tmp_path / "query/test/mbeir_x_test.jsonl"
    write_queries(place, asked)
    questions = as_form(place, form)
    assert [file.path for file in root.pools()] == [candidates] == [root.pool_for("x", 2, "test")]
    assert [file.path for file in root.query_files("test")] == [questions]
    assert root.query_file("x", None, "test") == questions
    assert list(read_candidates(candidates)) == list(open_candidates(candidates)) == pool
    other = candidates.rename(tmp_path / "pool.data")  # whatever it is called
    assert list(read_candidates(other)) == list(open_candidates(other)) == pool
    assert list(read_queries(questions)) == list(open_queries(questions)) == asked
    write_candidates(tmp_path / "p.jsonl", [*pool, Item("9 1", "bad id", (), "text")])
    bad = as_form(tmp_path / "p.jsonl", form)
    with pytest.raises(DataError, match=f"{bad.name}:6: did is '9 1'"):
        open_candidates(bad)
    whole = other.read_bytes()
    flipped = whole.replace(b"text 3", b"text 7")  # packed ones have checksums of their own
    for damaged in {whole[:-9], flipped} - {whole}:
        other.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be unpacked|is no Parquet file"):
            open_candidates(other)


def test_of_two_forms_the_published_one_is_read(tmp_path):
    plain = lines(tmp_path / "cand_pool/local/mbeir_x_cand_pool.jsonl", {"did": "9:1", "txt": "a"})
    for ending in (".gz", ".zst"):
        plain.with_name(plain.name + ending).write_bytes(b"")
    assert [file.path for file in DataRoot(tmp_path).pools()] == [plain]
