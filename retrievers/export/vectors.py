"""Pools with their vectors for other libraries: Parquet as LanceDB reads it, faiss, Milvus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augment.data import DataRoot
from augment.data.pools import Catalog
from augment.errors import DataError
from augment.files import new_folder, replacing, replacing_path
from retrievers.export.card import Place
from retrievers.vectors.held import Vectors
from retrievers.vectors.store import EmbeddingStore

#: Candidates taken at a time.
_BLOCK = 4096


def write_vectors(
    embeddings: Path | None, root: Path | None, out: str, to: Place, factory: str, name: str
) -> int:
    """Write the candidates of a folder of vectors with their texts, paths of pictures and vectors.

    Texts are as the root has them: for generated ones export a view first. Vectors are unit
    vectors in single precision, so that inner products and cosines are one.

    Args:
        embeddings: what ``embed`` wrote.
        root: the root that was embedded.
        out: new file of Parquet; new folder for faiss (``index.faiss``, and ``ids.txt``, whose
            line n is the id of its vector n); file or address of Milvus.
        to: what reads it.
        factory: of faiss's index.
        name: of Milvus's collection, with fields id, text, image, vector.

    Returns:
        How many candidates.

    Raises:
        DataError: if there is something of that name, or a candidate is not in the root.
        StoreError: if the folder cannot be read.
        EngineError: if Milvus is not installed or refuses.
    """
    if embeddings is None or root is None:
        raise DataError(f"--to={to} needs --embeddings of embed, and the --root embedded")
    inner = embeddings / "corpus"
    store, path = EmbeddingStore.open(inner if inner.is_dir() else embeddings), Path(out)
    blocks = _blocks(store, DataRoot(root))
    if to == "milvus":
        from retrievers.vectors.milvus import fill_named

        fill_named(out, name, store.dim, (block.to_pylist() for block in blocks))
    elif to == "faiss":
        _write_faiss(store, path, factory)
    elif path.exists():
        raise DataError("exists; remove it or name another file", out)
    else:
        with replacing_path(path, DataError) as partial:
            schema = _schema(store)
            with pq.ParquetWriter(partial, schema) as file:
                for block in blocks:
                    file.write_table(block)
    return len(store.live)


def _schema(store: EmbeddingStore) -> Any:
    texts = [(name, pa.string()) for name in ("id", "text", "image")]
    vector = ("vector", pa.list_(pa.float32(), store.dim))
    return pa.schema([*texts, vector], {"made_by": store.made_by})


def _blocks(store: EmbeddingStore, root: DataRoot) -> Iterator[pa.Table]:
    catalog, schema, live = Catalog(), _schema(store), store.live
    for file in root.pools():
        catalog.add(file.path)
    for start in range(0, len(live), _BLOCK):
        rows = live[start : start + _BLOCK]
        ids = store.ids(rows).to_pylist()
        places = catalog.rows_of(ids)
        if (places < 0).any():
            lost = ids[int(np.argmin(places))]
            raise DataError("stands in no pool of the root; name the one that was embedded", lost)
        items = list(catalog.items(places))
        flat = pa.array(store.take(rows).astype(np.float32).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, store.dim)
        texts = ([item.text for item in items], [item.image for item in items])
        yield pa.table([ids, *texts, vectors], schema=schema)


def _write_faiss(store: EmbeddingStore, out: Path, factory: str) -> None:
    import faiss

    from retrievers.vectors.faiss import built

    held = Vectors()
    held.append(store, store.live)
    with new_folder(out) as partial:
        faiss.write_index(built(held, factory), str(partial / "index.faiss"))
        with replacing(partial / "ids.txt") as stream:
            stream.writelines(f"{did}\n" for did in store.ids(store.live).to_pylist())
