"""Our retrievers in the mteb library: its encoder protocol over text and pictures.

::

    import mteb
    from retrievers.export.mteb import MtebEncoder
    tasks = mteb.get_tasks(tasks=["VidoreArxivQARetrieval"])
    mteb.evaluate(MtebEncoder(retriever, "me/my-clip"), tasks)

Needs the extra ``mteb`` (``pip install 'reasoning-augmented-retrieval[mteb]'``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from augment.errors import DataError
from retrievers.models.base import Encoder
from retrievers.vectors.embed import embed_contents

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta


@final
class MtebEncoder:
    """A retriever as mteb calls it.

    The task's instruction stands before a query's text, never before a candidate's, as the
    retriever was trained; ``instructions=False`` leaves it out.

    Args:
        retriever: its weights are used as they are, on the device they are on.
        name: ``organization/model``, under which mteb files the results.
        revision: of the weights, for the record.
        instructions: put the task's instruction before queries.

    Raises:
        DataError: if mteb is not installed.
    """

    def __init__(
        self,
        retriever: Encoder,
        name: str = "local/retriever",
        revision: str = "local",
        instructions: bool = True,
    ) -> None:
        self.retriever = retriever
        self._instructions = instructions
        self._meta = _meta(retriever, name, revision)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb writes beside the scores."""
        return self._meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Unit vectors of all batches, in order.

        Args:
            inputs: batches with ``text``, ``image`` or both, lists of equal length.
            task_metadata: of the task; its prompt is the instruction.
            hf_split: unused.
            hf_subset: unused.
            prompt_type: "query", "document" or None (as a document).
            **kwargs: unused; the loader has set the size of the batches.

        Raises:
            DataError: if a batch holds neither text nor pictures.
        """
        query = getattr(prompt_type, "value", prompt_type) == "query"
        instruction = _instruction(task_metadata) if query and self._instructions else ""
        parts = [
            embed_contents(
                self.retriever,
                _contents(batch, instruction, task_metadata.name),
                "query" if query else "corpus",
                f"{task_metadata.name} item",
            ).numpy()
            for batch in inputs
        ]
        return np.concatenate(parts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Inner products of all pairs; cosines, as the vectors are unit vectors."""
        first, second = (torch.as_tensor(part) for part in (embeddings1, embeddings2))
        return first.reshape(-1, first.shape[-1]) @ second.reshape(-1, second.shape[-1]).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Inner products of corresponding pairs."""
        first, second = (torch.as_tensor(part) for part in (embeddings1, embeddings2))
        return (first * second).sum(dim=-1)


def _contents(
    batch: Mapping[str, Any], instruction: str, task: str
) -> list[tuple[str | None, Any]]:
    texts, images = batch.get("text"), batch.get("image")
    if texts is None and images is None:
        raise DataError(f"a batch has {', '.join(batch)}; only text and image are read", task)
    size = len(texts if texts is not None else images or ())
    words = [text or "" for text in texts] if texts is not None else [""] * size
    if instruction:
        words = [f"{instruction} {text}".strip() for text in words]
    pictures = list(images) if images is not None else [None] * size
    return [(text or None, image) for text, image in zip(words, pictures, strict=True)]


def _instruction(metadata: Any) -> str:
    prompt = metadata.prompt
    found = prompt.get("query", "") if isinstance(prompt, dict) else prompt
    return (found or "").strip()


def _meta(retriever: Encoder, name: str, revision: str) -> ModelMeta:
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError as error:
        raise DataError(
            "mteb is not installed; pip install 'reasoning-augmented-retrieval[mteb]'"
        ) from error
    size = sum(parameter.numel() for parameter in retriever.parameters())
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=size,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.from_str("cosine"),
        use_instructions=True,
        training_datasets=None,
        modalities=["text", "image"],
    )
