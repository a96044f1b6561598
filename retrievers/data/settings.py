"""Settings of the data module: loading, validation, the test protocol, where vectors are kept."""

from __future__ import annotations

from dataclasses import dataclass

from retrievers.data.plan import PositiveConfig
from retrievers.vectors.store import Dtype


@dataclass(frozen=True)
class LoaderConfig:
    """How data is loaded.

    Args:
        workers: loader processes; 0 loads in the main process.
        cache_mib: keep so many MiB of preprocessed pictures in memory, per process.
        resized: keep pictures at the model's size in this folder, which later epochs and runs
            share; the tensors are the same.
        eval_batch_size: items per batch when embedding.
    """

    workers: int = 0
    cache_mib: int = 256
    resized: str | None = None
    eval_batch_size: int = 128


@dataclass(frozen=True)
class ValidationConfig:
    """The small search that validates during fit.

    Args:
        queries: queries per data set and task.
        pool: distractors per data set and task, besides the positives.
        holdout: share of the training queries held out where the root has no val split.
    """

    queries: int = 100
    pool: int = 1000
    holdout: float = 0.05


@dataclass(frozen=True)
class SearchConfig:
    """The test protocol.

    Args:
        split: query split.
        union: also search the union of all pools.
        depth: hits per query in the run files.
        index: exact, faiss (flat), or a factory string of faiss such as IVF1024,PQ64; approximate
            ones print their true recall against exact search.
        index_parameters: of faiss, such as nprobe=32.
        positives: what becomes of positives that a pool lacks or that are of another data set.
    """

    split: str = "test"
    union: bool = True
    depth: int = 100
    index: str = "exact"
    index_parameters: str = ""
    positives: PositiveConfig = PositiveConfig()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class EmbeddingConfig:
    """Where the embeddings of ``embed`` and ``test`` are kept.

    Args:
        folder: finished vectors stay here and are not made again; null keeps them in memory.
        dtype: float16 or float32, on disk.
        shard_rows: vectors per file.
        shard_seconds: a file is written at least so often; a killed run loses no more.
        part: number of this process, from 0, where several embed into one folder.
        parts: how many they are; the last run goes without, to see that nothing is missing.
    """

    folder: str | None = None
    dtype: Dtype = "float16"
    shard_rows: int = 16_384
    shard_seconds: float = 60.0
    part: int = 0
    parts: int = 1
