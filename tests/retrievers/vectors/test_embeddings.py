"""Embeddings on disk: killed, damaged, foreign and half-written folders."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from augment import files
from augment.errors import DataError, MismatchError, StoreError
from retrievers.data.plan import Content
from retrievers.vectors import open_index
from retrievers.vectors.rows import Embeddings, item_keys
from retrievers.vectors.store import EmbeddingStore, EmbeddingWriter


def vectors_of(numbers, dim=8):
    """Unit vectors that depend on the number alone."""
    rows = [torch.randn(dim, generator=torch.Generator().manual_seed(n)) for n in numbers]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def keys_of(numbers, text="", root=Path()):
    return item_keys([Content(f"1:{n}", f"{text}{n}", ()) for n in numbers], root)


def fill(folder, numbers=range(10), text="", **more):
    writer = EmbeddingWriter(folder, "m", {"model": "clip"}, shard_rows=4, **more)
    for start in range(0, len(numbers), 2):
        part = list(numbers)[start : start + 2]
        writer.append([f"1:{n}" for n in part], keys_of(part, text), vectors_of(part))
    writer.finish()
    return folder


def shards(folder):
    return json.loads((folder / "manifest.json").read_text())["shards"]


def test_what_is_written_is_read(tmp_path):
    store = EmbeddingStore.open(fill(tmp_path), "m")
    assert (len(store), store.dim, len(shards(tmp_path))) == (10, 8, 3)
    expected = vectors_of(range(10)).half().numpy()
    for rows in (np.array([9, 0, 4, 3, 3]), np.array([0, 9]), np.array([8])):
        assert (store.take(rows) == expected[rows]).all()
    assert store.take(np.arange(2, 9)).dtype == np.float16
    assert store.take(np.array([], dtype=int)).shape == (0, 8)
    assert store.ids().to_pylist() == [f"1:{n}" for n in range(10)]
    assert store.find(keys_of([7, 99, 0])).tolist() == [7, -1, 0]
    exact = open_index(EmbeddingStore.open(fill(tmp_path / "32", dtype="float32")))
    queries = vectors_of(range(100, 103))
    truth = (queries @ vectors_of(range(10)).T).argsort(dim=1, descending=True)[:, :3]
    assert exact.search(queries, 3).rows.tolist() == truth.tolist()


def test_an_item_embedded_again_replaces_the_first(tmp_path):
    fill(tmp_path)
    fill(tmp_path, [3, 11], text="new")
    store = EmbeddingStore.open(tmp_path)
    assert len(store) == 12
    assert store.live.tolist() == [0, 1, 2, *range(4, 12)]
    assert store.find(keys_of([3], "new")).tolist() == [10]
    index = open_index(store)
    assert sorted(index.ids.to_pylist()) == sorted({f"1:{n}" for n in [*range(10), 11]})


def test_a_key_follows_text_picture_and_id_only(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    base = Content("1:1", "text", ("a.png",))
    other = [
        Content("1:2", "text", ("a.png",)),
        Content("1:1", "texts", ("a.png",)),
        Content("1:1", None, ("a.png",)),
        Content("1:1", "", ("a.png",)),
        Content("1:1", "text", ("b.png",)),
        Content("1:1", "text", ()),
        Content("1:1", "\udc80", ()),
    ]
    keys = item_keys([base, *other], tmp_path).tolist()
    assert len(set(keys)) == 8
    assert item_keys([base], tmp_path)[0] == keys[0]
    os.utime(tmp_path / "a.png", ns=(2, 2))
    assert item_keys([base], tmp_path)[0] != keys[0]


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[-3] ^= 1
        path.write_bytes(data)
    elif how == "short":
        path.write_bytes(data[:-10])
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [("bit", "wrong checksum"), ("short", "wrong checksum"), ("gone", "is missing")],
)
def test_a_damaged_shard_is_named_and_filled_alone(tmp_path, how, said):
    fill(tmp_path)
    name = shards(tmp_path)[1]["name"]
    others = [tmp_path / f"{shards(tmp_path)[n]['name']}.arrow" for n in (0, 2)]
    before = [path.stat().st_mtime_ns for path in others]
    damage(tmp_path / f"{name}.arrow", how)
    with pytest.raises(StoreError, match=rf"1 of 3 shards damaged: {name}.* {said}.* their 4"):
        EmbeddingStore.open(tmp_path)
    writer = EmbeddingWriter(tmp_path, "m", {"model": "clip"})
    assert list(writer.damaged) == [name]
    names = [f"1:{n}" for n in range(10)]
    room = Embeddings(10, writer, keys_of(range(10)), lambda rows: [names[row] for row in rows])
    assert room.missing().tolist() == [4, 5, 6, 7]
    with pytest.raises(StoreError, match="stopped after 6 vectors"):
        EmbeddingStore.open(tmp_path)
    room.put(torch.tensor([4, 5, 6, 7]), vectors_of([4, 5, 6, 7]))
    assert room.finish()
    store = EmbeddingStore.open(tmp_path)
    found = store.take(store.find(keys_of(range(10))))
    assert (found == vectors_of(range(10)).half().numpy()).all()
    assert [path.stat().st_mtime_ns for path in others] == before


def test_what_a_killed_run_left_is_never_read(tmp_path):
    fill(tmp_path)
    for name in (".a0b1.000003-x.arrow", "000003-x.arrow"):
        (tmp_path / name).write_bytes(b"half")
    assert len(EmbeddingStore.open(tmp_path)) == 10
    EmbeddingWriter(tmp_path, "m", {"model": "clip"})
    assert not list(tmp_path.glob("*000003-x*"))


def write_and_die(folder, call):
    """Another process writes shards of two and is killed before a file has its name."""
    kept, calls = files.publish, []

    def publish(partial, path):
        calls.append(path)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        kept(partial, path)

    files.publish = publish
    writer = EmbeddingWriter(folder, "m", {"model": "clip"}, shard_rows=2)
    for n in range(6):
        writer.append([f"1:{n}"], keys_of([n]), vectors_of([n]))


@pytest.mark.parametrize("call", [3, 4])  # a shard and the manifest, twice
def test_a_kill_before_the_manifest_loses_one_shard(tmp_path, call):
    writer = multiprocessing.get_context("spawn").Process(
        target=write_and_die, args=(tmp_path, call)
    )
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.*.*"))
    assert len(EmbeddingWriter(tmp_path, "m", {"model": "clip"}).reader()) == 2
    store = EmbeddingStore.open(fill(tmp_path, range(2, 6)), "m")
    assert store.find(keys_of(range(6))).tolist() == list(range(6))


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    fill(tmp_path)
    for path in (tmp_path / "manifest.json", min(tmp_path.glob("*.arrow"))):
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 if path.suffix == ".json" else 17):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(StoreError):
                EmbeddingStore.open(tmp_path)
        path.write_bytes(whole)


def test_what_is_added_belongs_to_the_folder(tmp_path):
    fill(tmp_path)
    with pytest.raises(MismatchError, match=r"made by 'm', not by 'other'"):
        EmbeddingStore.open(tmp_path, "other")
    with pytest.raises(DataError, match="1 ids and 2 keys for 2 vectors"):
        EmbeddingWriter(tmp_path / "new", "m").append(["1:1"], keys_of([1, 2]), torch.ones(2, 3))
    assert not list((tmp_path / "new").glob("*.arrow"))


def rewrite(folder, **fields):
    manifest = json.loads((folder / "manifest.json").read_text()) | fields
    del manifest["sha256"]
    told = json.dumps({**manifest, "sha256": files.digest(manifest)})
    (folder / "manifest.json").write_text(told)


def test_a_manifest_that_cannot_be_trusted(tmp_path):
    fill(tmp_path)
    for version in (1, 99):
        rewrite(tmp_path, version=version)
        with pytest.raises(StoreError, match=f"version {version}, this package reads 2; upgrade"):
            EmbeddingStore.open(tmp_path)
    rewrite(tmp_path, version=2, dtype="int32")
    with pytest.raises(StoreError, match="dtype 'int32' is none of float16, float32"):
        EmbeddingWriter(tmp_path, "m")
    rewrite(tmp_path, dtype="float32")
    with pytest.raises(StoreError, match=r"holds .*halffloat.* manifest says .*item: float>"):
        EmbeddingStore.open(tmp_path)
    rewrite(tmp_path, dtype="float16", shards=[{**shards(tmp_path)[0], "name": "../x"}])
    with pytest.raises(StoreError, match="outside the folder"):
        EmbeddingStore.open(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write embeddings: .*folder that can be written"):
        EmbeddingWriter(tmp_path / "file" / "store", "m")


def test_several_processes_share_the_rows(tmp_path):
    writer = EmbeddingWriter(tmp_path, "m")
    room = Embeddings(50, writer, keys_of(range(50)), lambda rows: [f"1:{row}" for row in rows])
    parts = [room.missing(part, 3).tolist() for part in range(3)]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(50))
    assert all(parts)
    room.put(torch.tensor(parts[0]), vectors_of(parts[0]), degraded=parts[0][:1])
    assert not room.finish()
    assert room.degraded == parts[0][:1]
    assert [room.missing(part, 3).tolist() for part in range(3)] == [[], *parts[1:]]
    with pytest.raises(StoreError, match="run the same python -m retrievers embed again"):
        EmbeddingStore.open(tmp_path)
