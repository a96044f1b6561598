"""Milvus: search beyond one machine, through its own client; embedded in a file by Milvus Lite."""

from __future__ import annotations

import hashlib
from typing import Any, final

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from augment.errors import DataError, EngineError, ToolkitError
from retrievers.vectors.approximate import ApproximateIndex

#: Bytes of vectors in one message; a server takes 64 MiB.
_BYTES = 8 << 20
#: Queries in one message.
_QUERIES = 256


@final
class MilvusIndex(ApproximateIndex):
    """Vectors in a collection of Milvus, with the index that Milvus chooses for itself.

    The collection is named after what made the vectors and the ids, so that what a run has put in
    is found by the next one.

    Args:
        uri: a file such as ``vectors.db`` (Milvus Lite), or a server's address such as
            ``http://localhost:19530``.
        made_by: see :class:`~retrievers.vectors.index.Index`.
        parameters: of Milvus's search, such as ``nprobe=32`` or ``ef=128``.
        refine: candidates fetched per wanted one.
        sample: queries that measure the recall.

    Raises:
        DataError: if the address or the parameters cannot be used.
    """

    #: Milvus answers with no more hits a query.
    most = 16_384

    def __init__(
        self,
        uri: str,
        made_by: str | None = None,
        parameters: str = "",
        refine: int = 4,
        sample: int = 256,
    ) -> None:
        super().__init__(f"milvus {uri} {parameters}", made_by, refine, sample)
        if not uri.endswith(".db") and "://" not in uri:
            raise DataError(
                f"milvus:{uri} is neither a file that ends in .db nor an address; write "
                "milvus:vectors.db or milvus:http://localhost:19530"
            )
        self.uri = uri
        self._parameters = _parsed(parameters)
        self._client: Any = None
        self._collection = ""

    def build(self) -> None:
        """Put the vectors into their collection, unless it holds them already.

        Raises:
            EngineError: if pymilvus is not installed, or Milvus cannot be reached or refuses.
        """
        if self._collection or not len(self):
            return
        client = self._connected()
        belongs = f"{self.made_by} {self.held.dim} {self._digest()}"
        name = f"candidates_{hashlib.sha256(belongs.encode()).hexdigest()[:32]}"
        try:
            if not self._is_whole(name):
                self._fill(name)
            client.load_collection(name)
        except Exception as error:
            raise self._failed(error) from error
        self._collection = name

    def _is_whole(self, name: str) -> bool:
        if not self._client.has_collection(name):
            return False
        return int(self._client.get_collection_stats(name)["row_count"]) == len(self)

    def _fill(self, name: str) -> None:
        client = self._client
        if client.has_collection(name):  # left by a run that was killed
            client.drop_collection(name)
        client.create_collection(
            name, self.held.dim, metric_type="IP", auto_id=False, consistency_level="Strong"
        )
        for start, block in self.held.blocks(max(1, _BYTES // (4 * self.held.dim))):
            vectors = np.asarray(block, dtype=np.float32)
            rows = [{"id": start + n, "vector": vector} for n, vector in enumerate(vectors)]
            client.insert(name, rows)
        client.flush(name)

    def _fetch(self, queries: Tensor, k: int) -> Int64[np.ndarray, "queries k"]:
        rows = np.full((len(queries), k), -1)
        try:
            for start in range(0, len(queries), _QUERIES):
                answers = self._client.search(
                    self._collection,
                    list(queries[start : start + _QUERIES].numpy()),
                    limit=k,
                    search_params={"metric_type": "IP", "params": self._parameters},
                )
                for place, hits in enumerate(answers, start=start):
                    rows[place, : len(hits)] = [hit["id"] for hit in hits]
        except Exception as error:
            raise self._failed(error) from error
        return rows

    def _connected(self) -> Any:
        if self._client is None:
            try:
                from pymilvus import MilvusClient
            except ImportError as error:
                raise EngineError(
                    "searching through Milvus needs its client; "
                    "pip install 'reasoning-augmented-retrieval[milvus]'"
                ) from error
            try:
                self._client = MilvusClient(self.uri)
            except Exception as error:
                raise self._failed(error) from error
        return self._client

    def _failed(self, error: Exception) -> ToolkitError:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return EngineError(
            f"Milvus at {self.uri} does not do what is asked: {last}; see that it runs and can be "
            "reached, or search with --index exact"
        )

    def _changed(self) -> None:
        super()._changed()
        self._collection = ""


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
