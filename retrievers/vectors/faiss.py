"""faiss: any index of its factory, exact or approximate, with the recall it really has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from augment.errors import DataError, MismatchError, StoreError
from augment.files import write_text
from retrievers.vectors.exact import tell_recall
from retrievers.vectors.index import Index, Nearest, Vectors, may_tie
from retrievers.vectors.store import sha256

#: Candidates fetched beyond k.
_SPARE = 16
#: Vectors added at a time.
_BLOCK = 65_536
#: k-means learns little from more points per centroid (faiss's own limit).
_POINTS = 256
#: Vectors that a training reads at most.
_MOST_POINTS = 1_000_000
_VERSION = 1


@final
class FaissIndex(Index[Vectors]):
    """An index made by a factory string of faiss (``Flat``, ``IVF1024,PQ64``, ``HNSW32``, ``SQ8``).

    Approximate ones fetch ``refine * k`` candidates and score those again from the vectors
    themselves, so a score is always exact; what may be missing are candidates. At the first search
    of each depth the true recall is measured against exact search and printed.

    Args:
        made_by: see :class:`retrievers.vectors.index.Index`.
        factory: of faiss's ``index_factory``; int8 is ``SQ8``.
        parameters: of faiss's ``ParameterSpace``, such as ``nprobe=32`` or ``efSearch=128``.
        refine: candidates fetched per wanted one.
        sample: queries that measure the recall.
    """

    def __init__(
        self,
        made_by: str | None = None,
        factory: str = "Flat",
        parameters: str = "",
        refine: int = 4,
        sample: int = 256,
    ) -> None:
        super().__init__(Vectors(), made_by)
        if refine < 1 or sample < 1:
            raise ValueError(f"refine and sample must be at least 1, got {refine} and {sample}")
        self.factory = factory
        self.parameters = parameters
        self._refine = refine
        self._sample = sample
        self._index: Any = None

    @property
    def exact(self) -> bool:
        """Whether nothing can be missed."""
        return self.factory == "Flat"

    def build(self) -> None:
        """Train and fill now, rather than at the first search.

        Raises:
            DataError: if the factory string, its parameters or the number of vectors do not do.
        """
        if self._index is not None:
            return
        if not len(self):
            raise DataError("the index is empty; add candidates first")
        try:
            index = faiss.index_factory(
                self.held.dim or 0, self.factory, faiss.METRIC_INNER_PRODUCT
            )
            if not index.is_trained:
                index.train(self._training())
            for _, block in self.held.blocks(_BLOCK):
                index.add(np.ascontiguousarray(block, dtype=np.float32))
            self._set_parameters(index)
        except RuntimeError as error:
            raise DataError(
                f"faiss cannot make {self.factory!r} {self.parameters!r} of {len(self)} vectors of "
                f"{self.held.dim} dimensions: {_last_line(error)}; PQ needs a divisor of the "
                "dimensions, IVF fewer lists than vectors; parameters are such as nprobe=32"
            ) from error
        self._index = index

    def save(self, folder: Path) -> None:
        """Write ``index.faiss`` and, last, ``index.json`` with what it belongs to.

        Raises:
            StoreError: if the folder cannot be written.
        """
        self.build()
        partial, target = folder / ".index.faiss.partial", folder / "index.faiss"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "index.json").unlink(missing_ok=True)
            partial.write_bytes(faiss.serialize_index(self._index).tobytes())
            partial.replace(target)
            record = {"version": _VERSION, **self._belongs(), "sha256": sha256(target)}
            write_text(folder / "index.json", json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise StoreError(f"{folder}: cannot write the index: {error}") from error

    def load(self, folder: Path) -> None:
        """Take the trained and filled index that :meth:`save` wrote for the vectors added here.

        Raises:
            StoreError: if there is none, it is damaged, or a newer version wrote it.
            MismatchError: if it was built from other vectors or by another factory.
        """
        try:
            record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version, digest = record.pop("version"), record.pop("sha256")
            if version > _VERSION:
                raise StoreError(
                    f"{folder / 'index.json'}: version {version}, this package reads up to "
                    f"{_VERSION}; upgrade the package"
                )
            if sha256(folder / "index.faiss") != digest:
                raise StoreError(
                    f"{folder / 'index.faiss'}: wrong checksum; delete it and build again"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{folder}: no index that can be read ({error}); build and save it again"
            ) from error
        expected = self._belongs()
        wrong = [name for name in expected if record.get(name) != expected[name]]
        if wrong:
            told = "; ".join(f"{n}: saved {record.get(n)!r}, here {expected[n]!r}" for n in wrong)
            raise MismatchError(f"{folder}: index of other vectors ({told}); build it again")
        data = np.frombuffer((folder / "index.faiss").read_bytes(), dtype=np.uint8)
        self._index = faiss.deserialize_index(data)
        self._set_parameters(self._index)

    def _belongs(self) -> dict[str, object]:
        return {
            "made_by": self.made_by,
            "factory": self.factory,
            "size": len(self),
            "dim": self.held.dim,
            "ids": self._digest(),
        }

    def _changed(self) -> None:
        self._index = None
        self.recall = {}

    def _training(self) -> Float32[np.ndarray, "n dim"]:
        """Vectors to train on: all, or as many as k-means makes use of, drawn with a seed."""
        lists = [int(n) for n in _numbers(self.factory)] or [256]
        wanted = min(len(self), _MOST_POINTS, max(_POINTS * max(*lists, 256), 65_536))
        rows = np.random.default_rng(0).choice(len(self), wanted, replace=False)
        return np.ascontiguousarray(self.held.take(np.sort(rows)), dtype=np.float32)

    def _set_parameters(self, index: Any) -> None:
        if self.parameters:
            space: Any = faiss.ParameterSpace()
            space.set_index_parameters(index, self.parameters)

    def _find(self, queries: Tensor, k: int) -> Nearest:
        self.build()
        if not self.exact:
            name = f"{self.factory} {self.parameters}".strip()
            tell_recall(self, queries, k, name, self._sample)
        wide = min(k + _SPARE if self.exact else max(self._refine * k, k + _SPARE), len(self))
        rows, raw = self._fetch(queries, wide)
        found = self._rank(rows, self.held.rescore(queries, rows))
        if self.exact and wide < len(self):
            for query in np.nonzero(may_tie(queries, found, raw[:, -1], k))[0]:
                one = queries[query : query + 1]
                rows, _ = self._fetch(one, len(self))
                whole = self._rank(rows, self.held.rescore(one, rows))
                found.rows[query], found.scores[query] = (part[0, :wide] for part in whole)
        return Nearest(found.rows[:, :k], found.scores[:, :k])

    def _fetch(
        self, vectors: Tensor, k: int
    ) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        scores, rows = self._index.search(np.ascontiguousarray(vectors.numpy()), k)
        return rows, scores


def _numbers(factory: str) -> list[str]:
    """Numbers of inverted lists in a factory string."""
    return [p[3:].split("_")[0] for p in factory.split(",") if p.startswith("IVF") and p[3:4] != ""]


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
