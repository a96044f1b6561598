"""Kinds of bad vectors, indexes and queries; each error says what was seen and what to do.

The second table in docs/bad-input-runs.md lists them with the text; a test sees that it does.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from augment.errors import ToolkitError
from retrievers.evaluation.run import RunTable
from retrievers.vectors import make_index
from retrievers.vectors.bm25 import Bm25Config, Bm25Index
from retrievers.vectors.exact import MatrixIndex
from retrievers.vectors.store import EmbeddingStore, EmbeddingWriter

DOCS = Path(__file__).parents[2] / "docs" / "bad-input-runs.md"
ONE = torch.eye(3)[:1]


def index(*, kind="exact", parameters="", size=3):
    made = make_index(kind, "m", "cpu", parameters)
    made.add([f"1:{n}" for n in range(size)], torch.eye(3).repeat(-(-size // 3), 1)[:size], "m")
    return made


def writer(folder, made_by="m", dtype="float16"):
    return EmbeddingWriter(folder, made_by, {"model": made_by}, dtype)


def keys(count):
    return np.array([b"%015dx" % n for n in range(count)], dtype="S16")


def filled(folder):
    store = writer(folder)
    store.append(["1:1", "1:2"], keys(2), torch.eye(3)[:2])
    store.finish()
    return folder


def unfinished(folder):
    store = writer(folder)
    store.append(["1:1"], keys(1), ONE)
    store.finish(complete=False)
    return folder


def damaged(folder):
    shard = next(filled(folder).glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    return folder


def newer(folder):
    path = filled(folder) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    return folder


def broken(folder):
    (filled(folder) / "manifest.json").write_text('{"version": 1, "shards": [')
    return folder


def flipped(folder):
    path = filled(folder) / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 2', '"rows": 3'))
    return folder


def words(texts):
    found = Bm25Index()
    found.add([f"1:{n}" for n in range(len(texts))], texts, "words")
    return found


def append(folder, vectors, ids=("1:9",), **more):
    writer(filled(folder), **more).append(list(ids), keys(len(ids)), vectors)


def nan():
    return torch.full((1, 3), torch.nan)


#: kind -> what is done with a folder
KINDS = {
    "NaN among the candidates' vectors": lambda f: index().add(["1:9"], nan(), "m"),
    "NaN in a query's vector": lambda f: index().search(nan(), 1, "m"),
    "NaN written to a folder": lambda f: append(f, nan()),
    "number beyond fp16": lambda f: append(f, ONE * 1e6),
    "vectors of another dimension in an index": lambda f: index().search(torch.eye(4), 1, "m"),
    "vectors of another dimension in a folder": lambda f: append(f, torch.eye(4)[:1]),
    "vectors of whole numbers": lambda f: index().search(ONE.long(), 1, "m"),
    "index of another model": lambda f: index().search(ONE, 1, "another"),
    "folder of another model": lambda f: writer(filled(f), "another"),
    "folder of another dtype": lambda f: append(f, ONE, dtype="float32"),
    "id twice in an index": lambda f: index().add(["1:0"], ONE, "m"),
    "ids that do not pair up with vectors": lambda f: index().add(["1:8", "1:9"], ONE, "m"),
    "ids that are no strings": lambda f: index().add([7], ONE, "m"),
    "search in an empty index": lambda f: MatrixIndex("m").search(ONE, 1, "m"),
    "k larger than the pool": lambda f: index().search(ONE, 4, "m"),
    "index that faiss cannot make": lambda f: index(kind="IVF64,Flat").search(ONE, 1, "m"),
    "parameter that faiss does not know": lambda f: index(
        kind="IVF1,Flat", parameters="depth=3"
    ).search(ONE, 1, "m"),
    "empty query": lambda f: words(["red flag"]).search(["  "], 1),
    "candidates without a word": lambda f: words(["?!"]).build(),
    "BM25's parameters out of range": lambda f: Bm25Config(b=1.5),
    "no embeddings in a folder": lambda f: EmbeddingStore.open(f),
    "embeddings that were not finished": lambda f: EmbeddingStore.open(unfinished(f)),
    "damaged shard": lambda f: EmbeddingStore.open(damaged(f)),
    "embeddings of a newer version": lambda f: EmbeddingStore.open(newer(f)),
    "manifest with a flipped bit": lambda f: EmbeddingStore.open(flipped(f)),
    "stop words of no language": lambda f: Bm25Index(Bm25Config(stopwords="klingon")),
    "manifest that is cut off": lambda f: EmbeddingStore.open(broken(f)),
    "scores of a search that are not finite": lambda f: RunTable.from_search(
        ["q"], ["1:1"], np.array([[0]]), np.array([[np.nan]])
    ),
    "candidate twice in a search": lambda f: RunTable.from_search(
        ["q"], ["1:1", "1:2"], np.array([[0, 0]]), np.array([[0.5, 0.5]])
    ),
}


def listed():
    """Kind -> text in the table, with ... for what differs."""
    table = DOCS.read_text(encoding="utf-8").partition("## Vectors, indexes and queries")[2]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return {kind.strip(): text.strip().strip("`") for kind, text in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_ends_in_the_error_that_the_table_shows(tmp_path, kind):
    with pytest.raises(ToolkitError) as error:
        KINDS[kind](tmp_path / "folder")
    shape = ".*".join(map(re.escape, listed()[kind].split("...")))
    assert re.fullmatch(shape, str(error.value), re.DOTALL), str(error.value)


def test_the_table_lists_these_and_no_others():
    found = set(listed()) - {"what is wrong", "---"}
    assert found == set(KINDS)
    assert len(KINDS) >= 25
