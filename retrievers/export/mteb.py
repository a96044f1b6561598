"""Our retrievers, rerankers, and cascades of both in the mteb library, over text and pictures.

::

    import mteb
    from retrievers.export.mteb import MtebEncoder
    tasks = mteb.get_tasks(tasks=["VidoreArxivQARetrieval"])
    encoder = MtebEncoder(retriever, "me/my-clip")
    mteb.evaluate(encoder, tasks)
    cascade = MtebCascade(encoder, MtebReranker(scorer(mllm)), depth=50, weights=(0.3, 0.7))
    mteb.evaluate(cascade, tasks)

Needs the extra ``mteb`` (``pip install 'reasoning-augmented-retrieval[mteb]'``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, final

import numpy as np

from augment.errors import DataError
from augment.records import Hit
from retrievers.evaluation.fusion import weighted_fusion
from retrievers.evaluation.run import RunTable
from retrievers.models.base import Encoder
from retrievers.models.reranker import Reranker
from retrievers.vectors.embed import embed_contents, examples_of

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.models.search_wrappers import SearchCrossEncoderWrapper, SearchEncoderWrapper
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
        #: What mteb writes beside the scores; vectors are unit vectors.
        self.mteb_model_meta = _meta(retriever, name, revision)

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


@final
class MtebReranker:
    """A reranker as mteb calls it, for candidates of a task or a first stage.

    Args:
        reranker: pointwise.
        name: see :class:`MtebEncoder`, as the rest.
        revision: of the weights.
        instructions: put the task's instruction before queries.

    Raises:
        DataError: if it is listwise, which needs all candidates of a query at once.
    """

    def __init__(
        self,
        reranker: Reranker,
        name: str = "local/reranker",
        revision: str = "local",
        instructions: bool = True,
    ) -> None:
        if reranker.joint:
            raise DataError("mteb hands over pairs, and a listwise reranker orders whole lists")
        self.reranker = reranker
        self._instructions = instructions
        self.mteb_model_meta = _meta(reranker.model, name, revision, "cross-encoder")

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        **kwargs: Any,
    ) -> np.ndarray:
        """The score of every pair, in order.

        Args:
            inputs1: batches of queries; a query that follows itself is prepared once.
            inputs2: batches of candidates, of the same sizes.
            task_metadata: of the task; its prompt is the instruction.
            **kwargs: unused.

        Raises:
            DataError: if an item has neither text nor picture, or a score is no number.
        """
        instruction = _instruction(task_metadata) if self._instructions else ""
        name, collator, scores = task_metadata.name, self.reranker.model.collator(), []
        for first, second in zip(inputs1, inputs2, strict=True):
            queries = _contents(first, instruction, name)
            candidates = examples_of(collator, _contents(second, "", name), f"{name} candidate")
            pairs = zip(queries, candidates, strict=True)
            for _, same in groupby(pairs, itemgetter(0)):  # pictures are equal by their pixels
                own = list(same)
                (asked,) = examples_of(collator, [own[0][0]], f"{name} query")
                scores.append(self.reranker.score(asked, [candidate for _, candidate in own]))
        return np.concatenate(scores)


@final
class MtebCascade:
    """A retriever, its best candidates reranked, and both fused: mteb's ``SearchProtocol``.

    Args:
        first: searches the corpus.
        second: scores what it found.
        depth: candidates of a query that are scored; the others are left out.
        weights: of the first and the second stage in a sum of scores brought to 0..1, from other
            queries than the task's; None takes the reranker's order.
    """

    def __init__(
        self,
        first: MtebEncoder,
        second: MtebReranker,
        depth: int = 50,
        weights: tuple[float, float] | None = None,
    ) -> None:
        encoder: Any = first
        self._stages = SearchEncoderWrapper(encoder), SearchCrossEncoderWrapper(second)
        self._depth, self._weights = depth, weights
        self.mteb_model_meta = second.mteb_model_meta

    def index(self, corpus: Any, **options: Any) -> None:
        """Take the corpus."""
        for stage in self._stages:
            stage.index(corpus, **options)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Any = None, **options: Any
    ) -> dict[str, dict[str, float]]:
        """Scores of each query's best candidates."""
        retriever, reranker = self._stages
        found = retriever.search(queries, top_k=self._depth, top_ranked=top_ranked, **options)
        listed = {qid: list(own) for qid, own in found.items()}
        scores = reranker.search(queries, top_k=top_k, top_ranked=listed, **options)
        runs = _run(found), _run(scores)
        fused = weighted_fusion(runs, self._weights) if self._weights else runs[1]
        best = fused.cut(top_k).to_run()
        return {qid: {hit.did: hit.score for hit in hits} for qid, hits in best.items()}


def _run(scores: Mapping[str, Mapping[str, float]]) -> RunTable:
    return RunTable.from_run(
        {qid: [Hit(did, score) for did, score in own.items()] for qid, own in scores.items()}
    )


def _meta(
    model: Encoder, name: str, revision: str, kind: Literal["dense", "cross-encoder"] = "dense"
) -> Any:
    unknown: dict[str, Any] = dict.fromkeys(_UNKNOWN)
    return ModelMeta(
        **unknown,
        name=name,
        revision=revision,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.from_str("cosine"),
        use_instructions=True,
        modalities=["text", "image"],
        model_type=[kind],
    )


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
