"""Memory-mapped tables: the same records as the file, found by id, rebuilt when bytes change."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from random import Random

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from augment.data import read_candidates, read_queries, write_candidates, write_queries
from augment.data.columnar import open_candidates, open_queries
from augment.data.columnar.build import BATCH
from augment.errors import DataError
from augment.records import Item, Query

numbers = st.integers(0, 10**22)
ids = st.builds("{}:{}".format, numbers, numbers)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
modalities = st.sampled_from(["text", "image", "image,text"])
paths = texts.filter(lambda path: path != "")  # an empty path is read as none
items = st.builds(Item, ids, texts, paths, modalities, texts)
lists = st.lists(ids, max_size=3).map(tuple)
queries = st.builds(Query, items, st.none() | st.integers(0, 8), lists, lists)
relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

#: Pairs that UniIR's hash, int64 or a number parser would confuse.
TWINS = ["0:500001", "1:1", "0:10000001", "99999999999999999999:1", "1:01", "01:1", "0:1", "10:1"]


def pool(path: Path, *names: str, text: str = "a") -> Path:
    write_candidates(path, (Item(name, text, None, "text") for name in names))
    return path


def built(path: Path) -> set[int]:
    """Inodes of the cached rows: another inode means another build."""
    return {file.stat().st_ino for file in path.parent.rglob("rows-*.arrow")}


@relaxed
@given(st.lists(items, max_size=6, unique_by=lambda item: item.id))
def test_candidates_come_back(tmp_path, records):
    write_candidates(tmp_path / "p.jsonl", records)
    table = open_candidates(tmp_path / "p.jsonl")
    assert list(table) == [table[row] for row in range(len(table))] == records
    assert table.take(range(len(table))) == records
    assert table.find_all([item.id for item in records]) == list(range(len(records)))
    assert [table.row(item.id) for item in records] == list(range(len(records)))
    assert table.ids.to_pylist() == [item.id for item in records]


@relaxed
@given(st.lists(queries, max_size=6, unique_by=lambda query: query.item.id))
def test_queries_come_back(tmp_path, records):
    write_queries(tmp_path / "q.jsonl", records)
    table = open_queries(tmp_path / "q.jsonl")
    assert list(table) == [table[row] for row in range(len(table))] == records


def test_ids_never_alias(tmp_path):
    table = open_candidates(pool(tmp_path / "p.jsonl", *TWINS))
    assert [table.row(name) for name in TWINS] == list(range(len(TWINS)))
    assert table.find("1:500001") is None
    with pytest.raises(DataError, match=r"p\.jsonl: no record has the id '500001'"):
        table.row("500001")


def test_more_rows_than_a_batch(tmp_path):
    """Against the plain reader; private memory grows by far less than the records would take."""
    path = tmp_path / "p.jsonl"
    rows = BATCH + 3_700
    write_candidates(
        path, (Item(f"{n % 7}:{n}", f"text {n} " * 20, None, "text", "{}") for n in range(rows))
    )
    open_candidates(path)
    process = psutil.Process()
    before = process.memory_info()
    table = open_candidates(path)
    after = process.memory_info()
    private = (after.rss - after.shared) - (before.rss - before.shared)
    assert private < 2 << 20
    assert len(table) == rows
    assert list(table) == list(read_candidates(path))
    for row in (0, BATCH - 1, BATCH, rows - 1):
        assert table[row] == table[row - rows]
        assert table.row(table[row].id) == row
        assert table.where(row) == f"{path}:{row + 1}"
    assert table[BATCH - 1 : BATCH + 2] == [table[BATCH - 1], table[BATCH], table[BATCH + 1]]
    assert table.column("modality").unique().to_pylist() == ["text"]
    with pytest.raises(IndexError):
        table[rows]
    with pytest.raises(DataError, match="no column 'colour'; there are id, text"):
        table.column("colour")


def test_a_worker_gets_the_path_and_maps_again(tmp_path):
    table = open_candidates(pool(tmp_path / "p.jsonl", *TWINS, text="long" * 1000))
    data = pickle.dumps(table)
    assert len(data) < 500
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert workers.apply(_second_id, (data,)) == TWINS[1]


def _second_id(data: bytes) -> str:
    return pickle.loads(data)[1].id  # noqa: S301 - written a moment ago


def test_duplicates_name_both_lines(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1", "1:2", "1:3", "1:2")
    with pytest.raises(DataError, match=r"p\.jsonl:4: id 1:2 was used before in line 2"):
        open_candidates(path)
    assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.rglob(".building-*"))


def test_upsampled_queries_may_repeat_but_not_differ(tmp_path):
    path = tmp_path / "q.jsonl"
    one, two = (Query(Item(f"1:{n}", "a", None, "text"), 0, ("1:9",)) for n in (1, 2))
    write_queries(path, [one, two, one])
    assert list(open_queries(path)) == [one, two, one]
    assert open_queries(path).row("1:1") == 0
    write_queries(path, [one, two, Query(one.item, 0, ("1:8",))])
    with pytest.raises(DataError, match=r"q\.jsonl:3: id 1:1 .* line 1, with other content"):
        open_queries(path)


def test_bad_lines_keep_their_place(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1")
    with path.open("a") as stream:
        stream.write("\n{broken\n")
    with pytest.raises(DataError, match=r"p\.jsonl:3: is not a line of JSON"):
        open_candidates(path)


def test_rebuilt_by_content_and_only_then(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1", text="one")
    open_candidates(path)
    first = built(path)
    open_candidates(path)
    os.utime(path, ns=(1, 1))  # touched, same bytes
    open_candidates(path)
    assert built(path) == first
    pool(path, "1:1", text="two")  # same size, other bytes
    assert open_candidates(path)[0].text == "two"
    assert len(built(path)) == 1
    assert built(path) != first


def test_an_open_table_outlives_a_rebuild(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1", text="one")
    table = open_candidates(path)
    pool(path, "1:1", "1:2", text="two")
    assert len(open_candidates(path)) == 2
    assert [item.text for item in table] == ["one"]


def test_damaged_or_foreign_caches(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1")
    open_candidates(path)
    (record,) = tmp_path.rglob("source.json")
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({**fields, "version": 0}))
    assert len(open_candidates(path)) == 1  # rebuilt
    record.write_text("{")
    assert len(open_candidates(path)) == 1  # rebuilt
    (rows,) = tmp_path.rglob("rows-*.arrow")
    for kept in (40, 0):
        rows.write_bytes(rows.read_bytes()[:kept])
        with pytest.raises(DataError, match="cached table is damaged"):
            open_candidates(path)
    shutil.rmtree(rows.parent)
    assert len(open_candidates(path)) == 1


def test_one_file_read_as_pool_and_as_queries(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text('{"did": "1:1", "qid": "2:1", "txt": "a"}\n')
    assert open_candidates(path)[0].id == "1:1"
    assert open_queries(path)[0].item.id == "2:1"
    assert list(open_queries(path)) == list(read_queries(path))


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    named, locked = tmp_path / "named", tmp_path / "locked"
    for folder in ("a", "b"):  # equal names in two folders do not meet in one cache folder
        (tmp_path / folder).mkdir()
        path = pool(tmp_path / folder / "p.jsonl", f"1:{ord(folder)}")
        assert open_candidates(path, named)[0].id == f"1:{ord(folder)}"
        assert not (tmp_path / folder / ".cache").exists()
    assert len(list(named.rglob("rows-*"))) == 2
    locked.mkdir()
    path = pool(locked / "p.jsonl", "1:1")
    locked.chmod(0o555)
    try:
        assert len(open_candidates(path)) == 1
        assert os.listdir(locked) == ["p.jsonl"]  # noqa: PTH208
        assert len(list((tmp_path / "home").rglob("rows-*"))) == 1
        monkeypatch.setenv("XDG_CACHE_HOME", str(path))
        with pytest.raises(DataError, match="no cache folder can be written"):
            open_candidates(path)
    finally:
        locked.chmod(0o755)


def test_two_processes_build_at_once(tmp_path):
    path = pool(tmp_path / "p.jsonl", *(f"1:{n}" for n in range(3_000)))
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as workers:
        counts = workers.map(_open, [path] * 4, chunksize=1)
    assert counts == [3_000] * 4
    assert len(list(tmp_path.rglob("*.arrow"))) == 2
    assert not list(tmp_path.rglob(".building-*"))


def _open(path: Path) -> int:
    table = open_candidates(path)
    assert table.row("1:2999") == 2_999
    return len(table)


def test_batched_look_ups_equal_single_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("augment.data.columnar.build.BATCH", 8)
    monkeypatch.setattr("augment.data.columnar.tables.BATCH", 8)
    monkeypatch.setattr("augment.data.columnar.tables._STEP", 4)
    path = tmp_path / "pool.jsonl"
    random = Random(3)
    numbers = random.sample(range(1, 500), 70)
    alike = "0" * 30 + "1"  # ids that differ only beyond what landmarks compare

    def text():
        return random.choice(["é", "x", "", None, "long " * 99])

    items = [
        Item(f"{n % 3}:{alike * (n % 2)}{n}", text(), text() or None, "text", text())
        for n in numbers
    ]
    write_candidates(path, items)
    table = open_candidates(path)
    assert table.take(range(70)) == items
    rows = [random.randrange(70) for _ in range(100)]
    assert table.take(rows) == [table[row] for row in rows]
    assert table.take([]) == []
    ids = [table[row].id for row in rows] + ["0:0", "", "9:9", "é", "1:"]
    assert table.find_all(ids) == [table.find(did) for did in ids]
    assert table.find_all([]) == []
    for bad in (-1, 70):
        with pytest.raises(IndexError, match=f"row {bad} of 70"):
            table.take([0, bad])


def test_batched_look_ups_give_the_first_of_equal_queries(tmp_path, monkeypatch):
    monkeypatch.setattr("augment.data.columnar.tables._STEP", 3)
    random = Random(4)
    different = [Query(Item(f"1:{n}", "a", None, "text"), 1, ("2:1",)) for n in range(9)]
    repeated = random.choices(different, k=80)
    write_queries(tmp_path / "q.jsonl", repeated)
    table = open_queries(tmp_path / "q.jsonl")
    ids = [query.item.id for query in different] + ["0:1", "1:44", "9:9"]
    first = {query.item.id: row for row, query in reversed(list(enumerate(repeated)))}
    assert table.find_all(ids) == [first.get(id_) for id_ in ids]
