"""Milvus: search beyond one machine, through its own client; embedded in a file by Milvus Lite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from augment.errors import DataError, EngineError
from retrievers.vectors.approximate import ApproximateIndex, Fetch
from retrievers.vectors.held import Vectors

#: Milvus answers with no more hits a query.
_MOST = 16_384
#: Bytes of vectors in one message; a server takes 64 MiB.
_BYTES = 8 << 20
#: Queries in one message.
_QUERIES = 256


def milvus_index(uri: str, made_by: str | None = None, parameters: str = "") -> ApproximateIndex:
    """Vectors in a collection of Milvus, with the index that Milvus chooses for itself.

    The collection is named after what made the vectors and the ids, so that what a run has put in
    is found by the next one.

    Args:
        uri: a file such as ``vectors.db`` (Milvus Lite), or a server's address such as
            ``http://localhost:19530``.
        made_by: see :class:`~retrievers.vectors.index.Index`.
        parameters: of Milvus's search, such as ``nprobe=32`` or ``ef=128``.

    Returns:
        An empty index. Its ``build`` raises :class:`~augment.errors.EngineError` if pymilvus is not
        installed, or Milvus cannot be reached or refuses.

    Raises:
        DataError: if the address or the parameters cannot be used.
    """
    if not uri.endswith(".db") and "://" not in uri:
        raise DataError(
            f"milvus:{uri} is neither a file that ends in .db nor an address; write "
            "milvus:vectors.db or milvus:http://localhost:19530"
        )
    settings = {"metric_type": "IP", "params": _parsed(parameters)}

    def make(held: Vectors, belongs: str) -> Fetch:
        name = f"candidates_{belongs[:32]}"
        with _told(uri):
            client = _connected(uri)
            there = client.has_collection(name)
            if not there or int(client.get_collection_stats(name)["row_count"]) != len(held):
                fill(client, name, held)
            client.load_collection(name)

        def fetch(queries: Tensor, k: int) -> Int64[np.ndarray, "queries k"]:
            rows = np.full((len(queries), k), -1)
            for start in range(0, len(queries), _QUERIES):
                asked = list(queries[start : start + _QUERIES].numpy())
                with _told(uri):
                    answers = client.search(name, asked, limit=k, search_params=settings)
                for place, hits in enumerate(answers, start=start):
                    rows[place, : len(hits)] = [hit["id"] for hit in hits]
            return rows

        return fetch

    return ApproximateIndex(f"milvus {uri} {parameters}", make, made_by, _MOST)


def fill(client: Any, name: str, held: Vectors) -> None:
    """Put vectors into a collection of their own."""
    if client.has_collection(name):  # left by a run that was killed
        client.drop_collection(name)
    client.create_collection(
        name, held.dim, metric_type="IP", auto_id=False, consistency_level="Strong"
    )
    for start, block in held.blocks(max(1, _BYTES // (4 * held.dim))):
        vectors = np.asarray(block, dtype=np.float32)
        rows = [{"id": start + n, "vector": vector} for n, vector in enumerate(vectors)]
        client.insert(name, rows)
    client.flush(name)


#: Fields of an entry by name.
Row = dict[str, Any]


def fill_named(uri: str, name: str, dim: int, blocks: Iterator[list[Row]]) -> None:
    """Put entries into a new collection; one that is not filled to the end is dropped.

    Args:
        uri: see :func:`milvus_index`.
        name: of the collection.
        dim: of the vectors.
        blocks: entries with ``id``, ``vector`` and other fields.

    Raises:
        DataError: if there is such a collection.
        EngineError: if Milvus cannot be reached or refuses.
    """
    with _told(uri):
        client = _connected(uri)
        if client.has_collection(name):
            raise DataError(f"Milvus has a collection {name}; drop it or choose another name", uri)
        try:
            client.create_collection(name, dim, id_type="string", max_length=512, metric_type="IP",
                                     auto_id=False, consistency_level="Strong")  # fmt: skip
            most = max(1, _BYTES // (4 * dim))
            for block in blocks:
                for start in range(0, len(block), most):
                    client.insert(name, block[start : start + most])
            client.flush(name)
        except BaseException:
            client.drop_collection(name)
            raise


def _connected(uri: str) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise EngineError(
            "searching through Milvus needs its client; "
            "pip install 'reasoning-augmented-retrieval[milvus]'"
        ) from error
    return MilvusClient(uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Whatever Milvus raises in one line."""
    try:
        yield
    except (DataError, EngineError):
        raise
    except Exception as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise EngineError(
            f"Milvus at {uri} does not do what is asked: {last}; see that it runs and can be "
            "reached, or search with --index exact"
        ) from error


def _parsed(parameters: str) -> dict[str, float]:
    """``nprobe=32,ef=64`` as numbers by name."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in parameters.split(","))):
        name, _, value = part.partition("=")
        try:
            found[name] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise DataError(
                f"{part!r} is no parameter of Milvus's search; write such as nprobe=32"
            ) from None
    return found
