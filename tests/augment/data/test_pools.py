"""Memory-mapped tables: the same records as the file, found by id, rebuilt when bytes change."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.data import arrow, read_candidates, read_queries, write_candidates, write_queries
from augment.data.pools import Catalog, StoredQueries, open_candidates, open_queries
from augment.errors import DataError
from augment.records import Item, Query, one_picture
from tests.augment.data.test_mbeir import ids, items, queries, relaxed, texts

lists = st.lists(ids, max_size=3).map(tuple)

#: Pairs that UniIR's hash, int64 or a number parser would confuse.
TWINS = ["0:500001", "1:1", "0:10000001", "99999999999999999999:1", "1:01", "01:1", "0:1", "10:1"]


def pool(path: Path, *names: str, text: str = "a") -> Path:
    write_candidates(path, (Item(name, text, (), "text") for name in names))
    return path


def built(path: Path) -> set[int]:
    """Inodes of the cached rows: another inode means another build."""
    return {file.stat().st_ino for file in path.parent.rglob("rows-*.arrow")}


@relaxed
@given(st.lists(items, max_size=6, unique_by=lambda item: item.id))
def test_candidates_come_back(tmp_path, records):
    write_candidates(tmp_path / "p.jsonl", records)
    assert list(read_candidates(tmp_path / "p.jsonl")) == records
    table = open_candidates(tmp_path / "p.jsonl")
    assert list(table) == [table[row] for row in range(len(table))] == records
    assert table.take(range(len(table))) == records
    assert table.rows_of([item.id for item in records]).tolist() == list(range(len(records)))
    assert [table.row(item.id) for item in records] == list(range(len(records)))
    assert table.ids.to_pylist() == [item.id for item in records]


@relaxed
@given(st.lists(queries, max_size=6, unique_by=lambda query: query.item.id))
def test_queries_come_back(tmp_path, records):
    write_queries(tmp_path / "q.jsonl", records)
    table = open_queries(tmp_path / "q.jsonl")
    assert list(table) == [table[row] for row in range(len(table))] == records
    assert list(read_queries(tmp_path / "q.jsonl")) == records


def test_ids_never_alias(tmp_path):
    table = open_candidates(pool(tmp_path / "p.jsonl", *TWINS))
    assert [table.row(name) for name in TWINS] == list(range(len(TWINS)))
    assert table.find("1:500001") is None
    with pytest.raises(DataError, match=r"p\.jsonl: no record has the id '500001'"):
        table.row("500001")


def test_more_rows_than_a_batch(tmp_path, monkeypatch):
    """Against the plain reader; private memory grows by far less than the records would take."""
    monkeypatch.setattr(arrow, "BLOCK", 1 << 20)
    path = tmp_path / "p.jsonl"
    rows = 20_000
    write_candidates(
        path, (Item(f"{n % 7}:{n}", f"text {n} " * 20, (), "text", "{}") for n in range(rows))
    )
    edge = len(open_candidates(path).ids.chunks[0])
    process = psutil.Process()
    before = process.memory_info()
    table = open_candidates(path)
    after = process.memory_info()
    private = (after.rss - after.shared) - (before.rss - before.shared)
    assert private < 2 << 20
    assert len(table) == rows
    assert list(table) == list(read_candidates(path))
    for row in (0, edge - 1, edge, rows - 1):
        assert table[row] == table[row - rows]
        assert table.row(table[row].id) == row
    assert table[edge - 1 : edge + 2] == [table[edge - 1], table[edge], table[edge + 1]]
    assert edge < rows / 2
    assert table.column("modality").unique().to_pylist() == ["text"]
    for row in (rows, -rows - 1):
        with pytest.raises(IndexError):
            table[row]
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
    one, two = (Query(Item(f"1:{n}", "a", (), "text"), 0, ("1:9",)) for n in (1, 2))
    random = Random(4)
    different = [one, two, *(Query(Item(f"1:{n}", "a", (), "text"), 1) for n in range(3, 9))]
    repeated = [two, *random.choices(different, k=80)]
    write_queries(path, repeated)
    table = open_queries(path)
    assert list(table) == repeated
    ids = [query.item.id for query in different] + ["0:1", "1:44", "9:9"]
    first = {query.item.id: row for row, query in reversed(list(enumerate(repeated)))}
    assert table.rows_of(ids).tolist() == [first.get(id_, -1) for id_ in ids]
    assert table.row("1:2") == 0
    write_queries(path, [one, two, Query(one.item, 0, ("1:8",))])
    with pytest.raises(DataError, match=r"q\.jsonl:3: id 1:1 .* line 1, with other content"):
        open_queries(path)


def test_rebuilt_by_content_and_only_then(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1", text="one")
    table = open_candidates(path)
    first = built(path)
    open_candidates(path)
    os.utime(path, ns=(1, 1))  # touched, same bytes
    open_candidates(path)
    assert built(path) == first
    pool(path, "1:1", text="two")  # same size, other bytes
    assert open_candidates(path)[0].text == "two"
    assert len(built(path)) == 1
    assert built(path) != first
    assert [item.text for item in table] == ["one"], "what is open outlives a rebuild"


def test_damaged_or_foreign_caches(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1")
    open_candidates(path)
    (record,) = tmp_path.rglob("source.json")
    fields = json.loads(record.read_text())
    (rows,) = tmp_path.rglob("rows-*.arrow")
    for damage in (
        lambda: record.write_text(json.dumps({**fields, "version": 0})),
        lambda: record.write_text("{"),
        lambda: rows.write_bytes(rows.read_bytes()[:40]),
        lambda: rows.write_bytes(b""),
        lambda: shutil.rmtree(rows.parent),
    ):
        damage()
        assert [item.id for item in open_candidates(path)] == ["1:1"]  # rebuilt


@pytest.mark.parametrize("part", ["rows-*.arrow", "ids-*.npy", "order-*.npy", "source.json"])
def test_a_flipped_bit_in_a_cache_changes_nothing(tmp_path, part):
    path = pool(tmp_path / "p.jsonl", *(f"1:{n}" for n in range(50, 0, -1)))
    expected = list(read_candidates(path))
    for at in range(24):
        open_candidates(path)
        (cached,) = tmp_path.rglob(part)
        status = cached.stat()
        damaged = bytearray(cached.read_bytes())
        damaged[len(damaged) * at // 24] ^= 1 << at % 8
        cached.write_bytes(damaged)
        os.utime(cached, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a worn-out disk does
        arrow._checksum.cache_clear()  # as in another process
        table = open_candidates(path)
        assert list(table) == expected
        assert table.rows_of([item.id for item in expected]).tolist() == list(range(50))


def test_a_cache_keeps_its_folder_but_not_what_others_put_there(tmp_path):
    path = pool(tmp_path / "p.jsonl", "1:1")
    open_candidates(path)
    (record,) = tmp_path.rglob("source.json")
    (record.parent / "vectors.npy").write_bytes(b"mine")
    pool(path, "1:1", "1:2")
    assert len(open_candidates(path)) == 2
    assert len(list(record.parent.glob("rows-*"))) == 1
    assert (record.parent / "vectors.npy").read_bytes() == b"mine"


def test_one_file_read_as_pool_and_as_queries(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text('{"did": "1:1", "qid": "2:1", "txt": "a"}\n')
    assert open_candidates(path)[0].id == "1:1"
    assert open_queries(path)[0].item.id == "2:1"
    assert list(open_queries(path)) == list(read_queries(path))


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    locked = [tmp_path / "a", tmp_path / "b"]
    for folder in locked:
        folder.mkdir()
        path = pool(folder / "p.jsonl", f"1:{ord(folder.name)}")
        folder.chmod(0o555)
    try:
        for folder in locked:  # equal names in two folders do not meet in one cache folder
            assert open_candidates(folder / "p.jsonl")[0].id == f"1:{ord(folder.name)}"
            assert os.listdir(folder) == ["p.jsonl"]  # noqa: PTH208
        assert len(list((tmp_path / "home").rglob("rows-*"))) == 2
        monkeypatch.setenv("XDG_CACHE_HOME", str(path))
        with pytest.raises(DataError, match="no cache folder can be written"):
            open_candidates(path)
    finally:
        for folder in locked:
            folder.chmod(0o755)


def test_two_processes_build_at_once(tmp_path):
    path = pool(tmp_path / "p.jsonl", *(f"1:{n}" for n in range(3_000)))
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as workers:
        counts = workers.map(_open, [path] * 4, chunksize=1)
    assert counts == [3_000] * 4
    assert len(list(tmp_path.rglob("*.arrow"))) == 1
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert not list(tmp_path.rglob(".building-*"))


def _open(path: Path) -> int:
    table = open_candidates(path)
    assert table.row("1:2999") == 2_999
    return len(table)


def test_batched_look_ups_equal_single_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BLOCK", 1_000)
    path = tmp_path / "pool.jsonl"
    random = Random(3)
    numbers = random.sample(range(1, 500), 70)
    alike = "0" * 30 + "1"

    def text():
        return random.choice(["é", "x", "", None, "long " * 99])

    items = [
        Item(f"{n % 3}:{alike * (n % 2)}{n}", text(), one_picture(text() or None), "text", text())
        for n in numbers
    ]
    write_candidates(path, items)
    table = open_candidates(path)
    assert table.take(range(70)) == items
    rows = [random.randrange(70) for _ in range(100)]
    assert table.take(rows) == [table[row] for row in rows]
    assert table.take([]) == []
    ids = [table[row].id for row in rows] + [
        "0:0",
        "",
        "9:9",
        "é",
        "1:",
        f"{items[3].id}\0",
        "1" * 99,
    ]
    found = [table.find(did) for did in ids]
    assert table.rows_of(ids).tolist() == [-1 if row is None else row for row in found]
    assert table.rows_of([]).tolist() == []
    for bad in (-1, 70):
        with pytest.raises(IndexError, match=f"row {bad} of 70"):
            table.take([0, bad])


def lines_of(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


PLAIN = {
    "did": "1:1",
    "txt": "é",
    "img_path": None,
    "modality": "text,image",
    "src_content": "{}",
}
ASKED = {"qid": "1:2", "query_txt": "a", "query_modality": "text", "pos_cand_list": ["1:1"]}
ODD = [
    b'{"did": "1:1", "txt": "half \\ud83d"}\n',
    b'{"did": "1:1", "txt": "\xff"}\n',
    b'{"did": "1:1", "other": "\xff"}\n',
    b'{"did": "1:1", "did": "1:2"}\n',
    b'{"did": "1:1"} {"did": "1:2"}\n\n',
    b'{"did": "1:1"}{"did": "1:2"}\n{"did": "1:3"}\n',
    b'{"did": "1:1",\n"txt": "a"}\n',
    b'{"did": "1:1"}\r\n{"did": "1:2"}\r\n',
    b'\xef\xbb\xbf{"did": "1:1"}\n',
    b'\n{"did": "1:1"}\n  \n',
    b'{"did": "1:1", "txt": "a\tb"}\n',
    b'{"did": "1:1", "txt": NaN}\n',
    b"{}\n",
    b"[]\n",
    b"null\n",
    *(
        lines_of({**PLAIN, "did": value})
        for value in (None, 7, "1", "1:x", " 1:1", "1:1\n", "1:1\0")
    ),
    *(lines_of({**PLAIN, "txt": value}) for value in (7, ["a"], {"a": 1}, True)),
    *(lines_of({**PLAIN, "modality": value}) for value in (7, "video", "", "Text")),
]
ODD_QUERIES = [
    lines_of({**ASKED, key: value})
    for key, values in {
        "task_id": (9, -1, "3", 3.0, True, 10**30),
        "candidate_modality": ("text", "video", 5),
        "pos_cand_list": ("1:1", [None], [7], [{"did": "1:5"}], ["x"], [["1:1"]]),
        "neg_cand_list": ({}, ["1:1", ""]),
    }.items()
    for value in values
]


def by_lines(kind, block: bytes, path: Path, monkeypatch) -> object:
    """What the plain reader makes of a block: rows, or the error in words."""
    with monkeypatch.context() as patched:
        patched.setattr(arrow, "_columns", lambda *_: None)
        return outcome(kind, block, path)


def outcome(kind, block: bytes, path: Path) -> object:
    try:
        return arrow.batch(kind, block, 5, path).to_pylist()
    except DataError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "name", "block"),
    [(arrow.CANDIDATES, "p.jsonl", before + block) for block in ODD
     for before in (b"", lines_of(PLAIN))]
    + [(arrow.QUERIES, name, block) for block in ODD_QUERIES
       for name in ("q.jsonl", "x_task0_test.jsonl")],
)  # fmt: skip
def test_odd_lines_come_out_as_line_by_line(kind, name, block, monkeypatch):
    wanted = by_lines(kind, block, Path(name), monkeypatch)
    assert outcome(kind, block, Path(name)) == wanted


strings = st.none() | st.sampled_from(["", " ", "a", "\U0001f600", "\0"]) | texts
spellings = st.sampled_from([None, "text", "image", "image,text", "text,image", "image, text"])
plain = st.fixed_dictionaries(
    {"did": ids, "txt": strings}, optional={"img_path": strings, "modality": spellings,
                                            "src_content": strings, "other": st.integers()}
)  # fmt: skip
asked = st.fixed_dictionaries(
    {"qid": ids, "query_txt": strings, "query_modality": spellings},
    optional={"task_id": st.none() | st.integers(0, 8), "query_img_path": strings,
              "pos_cand_list": st.none() | st.lists(ids, max_size=3), "neg_cand_list": lists},
)  # fmt: skip


@relaxed
@given(st.lists(plain, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_plain_blocks_are_read_as_a_whole_and_the_same(monkeypatch, records, escaped, end):
    block = "\n".join(json.dumps(record, ensure_ascii=escaped) for record in records).encode()
    block += b"\n" * end
    assert arrow._columns(arrow.CANDIDATES, block, None) is not None
    wanted = by_lines(arrow.CANDIDATES, block, Path("p"), monkeypatch)
    assert outcome(arrow.CANDIDATES, block, Path("p")) == wanted


@relaxed
@given(st.lists(asked, min_size=1, max_size=5), st.sampled_from(["q.jsonl", "x_task3_test.jsonl"]))
def test_plain_queries_are_read_as_a_whole_and_the_same(monkeypatch, records, name):
    block = lines_of(*records)
    assert arrow._columns(arrow.QUERIES, block, 3 if "3" in name else None) is not None
    wanted = by_lines(arrow.QUERIES, block, Path(name), monkeypatch)
    assert outcome(arrow.QUERIES, block, Path(name)) == wanted


def test_an_id_too_long_to_look_up_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"p\.jsonl: an id is 302 bytes long; up to 255"):
        open_candidates(pool(tmp_path / "p.jsonl", "1:1", f"1:{'7' * 300}"))


@pytest.mark.parametrize("stop_at", range(1, 5))
def test_a_build_that_stops_leaves_nothing_that_is_taken_for_a_table(
    tmp_path, monkeypatch, stop_at
):
    path = pool(tmp_path / "p.jsonl", "1:1", "1:2")
    rename, named = Path.replace, []

    def stop(self, target):
        named.append(target.name)
        if len(named) == stop_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            open_candidates(path)
    assert not list(tmp_path.rglob("source.json"))
    assert named[3:] in ([], ["source.json"])
    assert [item.id for item in open_candidates(path)] == ["1:1", "1:2"]


class Slow:
    """Records by id, in order of first appearance."""

    def __init__(self):
        self.items = {}

    def add(self, items, keep=None, check=True):
        names = []
        for item in items:
            if keep is None or item.id in keep:
                if check and self.items.setdefault(item.id, item) != item:
                    raise DataError("another", item.id)
                self.items.setdefault(item.id, item)
                names.append(item.id)
        order = list(self.items)
        return [order.index(name) for name in names]


def random_item(number, rng):
    text = rng.choice([None, "", f"text {number}", "á"])
    image = f"mbeir_images/{number}.jpg" if text is None else None
    return Item(
        f"{number % 3}:{number}", text, one_picture(image), "text" if text is not None else "image"
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_catalog_is_equal_to_a_dict_of_records(tmp_path, seed):
    rng = Random(seed)
    everything = [random_item(number, rng) for number in range(60)]
    catalog, slow = Catalog(), Slow()
    for number in range(5):
        pool = rng.sample(everything, rng.randint(0, 40))
        pool = everything if number == 4 else pool
        if seed == 5:  # pools of one data set each, as M-BEIR's
            pool = [one for one in pool if number == 4 or one.id[0] == str(number % 3)]
        keep = (
            {one.id for one in rng.sample(everything, 30)}
            if number < 4 and rng.random() < 0.3
            else None
        )
        path = tmp_path / f"{number}.jsonl"
        write_candidates(path, pool)
        assert catalog.add(path, keep).tolist() == slow.add(pool, keep)
        assert catalog.add(path, keep).tolist() == slow.add(pool, keep), "the same file again"
    known = list(slow.items.values())
    assert len(catalog) == len(known) == 60
    assert list(catalog.items()) == known
    assert [catalog.item(row) for row in range(60)] == known
    rows = np.array(rng.sample(range(60), 30))
    assert list(catalog.items(rows)) == [known[row] for row in rows]
    assert catalog.names(rows).to_pylist() == [known[row].id for row in rows]
    assert catalog.names(np.arange(60)).to_pylist() == list(slow.items)
    asked = [*rng.sample(list(slow.items), 20), "0:999", "", "zz:1"]
    order = list(slow.items)
    want = [order.index(did) if did in slow.items else -1 for did in asked]
    assert catalog.rows_of(asked).tolist() == want
    assert catalog.find("9:9") is None
    assert catalog.find(known[7].id) == known[7]
    assert catalog.rows_of([]).tolist() == []


@pytest.mark.parametrize("field", ["text", "images", "source"])
def test_an_id_that_stands_for_another_candidate_is_named(tmp_path, field):
    pool = [Item(f"1:{n}", "a", ("x.jpg",), "image,text", None) for n in range(5)]
    write_candidates(tmp_path / "a.jsonl", pool)
    other = replace(pool[3], **{field: ("b.jpg",) if field == "images" else "b.jpg"})
    write_candidates(tmp_path / "b.jsonl", [pool[4], other])
    catalog = Catalog()
    catalog.add(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="another candidate") as error:
        catalog.add(tmp_path / "b.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'b.jsonl'}: 1:3: ")
    assert catalog.add(tmp_path / "b.jsonl", check=False).tolist() == [4, 3]


def test_a_candidate_takes_six_bytes_and_eight_in_each_pool(tmp_path):
    size = 3000
    pools = [[Item(f"{d}:{n}", "a", (), "text") for n in range(size)] for d in range(2)]
    for number, pool in enumerate([*pools, [*pools[0], *pools[1]]]):
        write_candidates(tmp_path / f"{number}.jsonl", pool)
    catalog = Catalog()
    for number in range(3):
        catalog.add(tmp_path / f"{number}.jsonl", check=number < 2)
    assert len(catalog) == 2 * size
    held = [catalog._source, catalog._place, *(pool.rows for pool in catalog._pools)]
    assert sum(array.nbytes for array in held) == 2 * size * (6 + 8 + 8)
    assert all(pool.places is None for pool in catalog._pools)


def test_stored_queries_are_equal_to_a_list(tmp_path, monkeypatch):
    monkeypatch.setattr("augment.data.pools._BLOCK", 7)
    random = Random(0)
    files = [
        [Query(Item(f"{f}:{n}", f"t{n}", (), "text"), 1, (f"2:{n}",)) for n in range(size)]
        for f, size in enumerate((13, 0, 1, 30))
    ]
    for number, some in enumerate(files):
        write_queries(tmp_path / f"{number}.jsonl", some)
    tables = [open_queries(tmp_path / f"{number}.jsonl") for number in range(4)]
    picked = [
        (f, n) for f, own in enumerate(files) for n in range(len(own)) if random.random() < 0.7
    ]
    source, rows = (np.array(part) for part in zip(*picked, strict=True))
    slow = [files[f][n] for f, n in picked]
    stored = StoredQueries(tables, source.astype(np.uint16), rows.astype(np.int32))
    assert list(stored) == slow
    assert [stored[n] for n in range(len(stored))] == slow
    assert list(stored[::3][:5]) == slow[::3][:5]
    assert list(stored[::-1]) == slow[::-1]
    assert list(pickle.loads(pickle.dumps(stored))) == slow  # noqa: S301 - our own
    assert not stored[:0]
    assert list(stored[:0]) == []
