"""Pools with vectors, read by others without our code, which find what exact search finds."""

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from augment.data import DataRoot
from augment.data.pools import open_candidates
from retrievers.cli import main
from retrievers.vectors.store import EmbeddingWriter
from tests.retrievers.models.test_retriever import make_root


@pytest.fixture
def embedded(tmp_path):
    """A root of two pools and a folder of vectors, one of which was embedded twice."""
    root = make_root(tmp_path / "root", 12)
    items = [item for file in DataRoot(root).pools() for item in open_candidates(file.path)]
    vectors = np.random.default_rng(0).normal(size=(len(items), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    writer = EmbeddingWriter(tmp_path / "v/corpus", "me", {}, "float32")
    keys = np.array([f"{n}".encode() for n in range(len(items))], "S16")
    writer.append([items[0].id], keys[:1], torch.from_numpy(-vectors[:1]))
    writer.append([item.id for item in items], keys, torch.from_numpy(vectors))
    writer.finish()
    return root, items, vectors


def export(tmp_path, root, to, out, *more):
    given = [f"--embeddings={tmp_path / 'v'}", f"--root={root}", f"--to={to}"]
    return main(["export", *given, f"--out={out}", *more])


def test_parquet_has_id_text_picture_and_vector(tmp_path, embedded, capsys):
    root, items, vectors = embedded
    out = tmp_path / "pool.parquet"
    assert export(tmp_path, root, "parquet", out) == 0
    assert "24 candidates with vectors" in capsys.readouterr().out
    table = pq.read_table(out)
    kind = table.schema.field("vector").type
    assert (pa.types.is_fixed_size_list(kind), kind.list_size) == (True, 8)
    assert kind.value_type == pa.float32()
    assert table.schema.metadata[b"made_by"] == b"me"
    assert table.drop_columns("vector").to_pylist() == [
        {"id": item.id, "text": item.text, "image": item.image} for item in items]  # fmt: skip
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)
    assert export(tmp_path, root, "parquet", out) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["export", f"--out={out}", "--to=faiss"]) == 2
    assert "--to=faiss needs --embeddings" in capsys.readouterr().err
    other = make_root(tmp_path / "other", 3)
    assert export(tmp_path, other, "parquet", tmp_path / "x.parquet") == 2
    assert "stands in no pool of the root" in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()


def test_faiss_and_milvus_find_what_exact_search_finds(tmp_path, embedded, capsys):
    root, items, vectors = embedded
    queries = vectors[:3] + 0.1 * vectors[5:8]
    best = np.argsort(-queries @ vectors.T, axis=1)[:, :5]
    names = [[items[row].id for row in rows] for rows in best]
    assert export(tmp_path, root, "faiss", tmp_path / "index") == 0
    ids = (tmp_path / "index/ids.txt").read_text().splitlines()
    found = faiss.read_index(str(tmp_path / "index/index.faiss")).search(queries, 5)[1]
    assert [[ids[row] for row in rows] for rows in found] == names
    assert export(tmp_path, root, "faiss", tmp_path / "bad", "--factory=PQ7") == 2
    assert not (tmp_path / "bad").exists()
    from pymilvus import MilvusClient

    out = tmp_path / "pool.db"
    assert export(tmp_path, root, "milvus", out, "--name=flags") == 0
    client = MilvusClient(str(out))
    client.load_collection("flags")
    hits = client.search("flags", list(queries), limit=5, output_fields=["text", "image"])
    assert [[hit["id"] for hit in own] for own in hits] == names
    first = items[int(best[0, 0])]
    assert hits[0][0]["entity"] == {"text": first.text, "image": first.image}
    assert export(tmp_path, root, "milvus", out, "--name=flags") == 2
    assert "has a collection flags" in capsys.readouterr().err
