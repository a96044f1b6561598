"""Embeddings: in memory while a run lasts, or in a folder that outlives it.

Open what ``python -m retrievers embed`` left, and search it::

    store = EmbeddingStore.open("runs/mine/embeddings/corpus")
    index = open_index(store)
    found = index.run(["q"], vectors, k=10, made_by=store.made_by)
"""

from retrievers.vectors.embeddings.items import Content, item_keys
from retrievers.vectors.embeddings.manifest import Dtype, Manifest, Shard
from retrievers.vectors.embeddings.store import EmbeddingStore
from retrievers.vectors.embeddings.vectors import Embeddings, open_index
from retrievers.vectors.embeddings.writer import EmbeddingWriter

__all__ = [
    "Content",
    "Dtype",
    "EmbeddingStore",
    "EmbeddingWriter",
    "Embeddings",
    "Manifest",
    "Shard",
    "item_keys",
    "open_index",
]
