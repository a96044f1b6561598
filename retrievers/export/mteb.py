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
from typing import Any, final

import numpy as np

from augment.errors import DataError
from retrievers.models.base import Encoder
from retrievers.vectors.embed import embed_contents

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    raise DataError(
        "mteb is not installed; pip install 'reasoning-augmented-retrieval[mteb]'"
    ) from error

#: What mteb asks of a model and nobody knows of a checkpoint.
_UNKNOWN = (
    "loader", "release_date", "languages", "memory_usage_mb", "max_tokens", "embed_dim", "license",
    "open_weights", "public_training_code", "public_training_data", "training_datasets",
)  # fmt: skip


@final
class MtebEncoder(AbsEncoder):
    """A retriever as mteb calls it.

    The task's instruction stands before a query's text, never before a candidate's, as the
    retriever was trained; ``instructions=False`` leaves it out.

    Args:
        retriever: its weights are used as they are, on the device they are on.
        name: ``organization/model``, under which mteb files the results.
        revision: of the weights, for the record.
        instructions: put the task's instruction before queries.
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
        unknown: dict[str, Any] = dict.fromkeys(_UNKNOWN)
        #: What mteb writes beside the scores; vectors are unit vectors.
        self.mteb_model_meta = ModelMeta(
            **unknown,
            name=name,
            revision=revision,
            n_parameters=sum(parameter.numel() for parameter in retriever.parameters()),
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.from_str("cosine"),
            use_instructions=True,
            modalities=["text", "image"],
        )

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
