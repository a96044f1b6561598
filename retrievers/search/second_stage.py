"""The cascade of a live search: the best candidates for one query, in a reranker's order.

What :mod:`retrievers.search.cascade` does to the runs of a folder, without leaving anything behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32
from PIL import Image

from augment.data import DataRoot
from augment.errors import DataError
from augment.records import Hit, Item
from retrievers.data.datasets import Reader
from retrievers.data.examples import Example
from retrievers.data.pictures import ImageLoader
from retrievers.data.texts import TextRecipe
from retrievers.evaluation.fusion import weighted_fusion
from retrievers.evaluation.run import RunTable
from retrievers.models.load import load, open_recipe
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.reranker import Reranker, scorer
from retrievers.search.answers import Cascaded, name_of
from retrievers.search.cascade import in_order
from retrievers.search.rewriting import PairRewriter, PairRewriting, Retrieved
from retrievers.vectors.embed import device_named, examples_of

#: Hits of the first stage, as many as ``test`` and ``bm25`` write: fusing goes over all of them.
FOUND = 100


@dataclass(frozen=True)
class Reranking:
    """What reorders the candidates of a live search.

    Args:
        model: a trained reranker: a checkpoint, an exported folder; with ``preset`` the folder or
            name of a published one.
        preset: layout of a published one, such as qwen3-vl-reranker.
        depth: candidates that are scored; the others are left out, unless scores are fused.
        weights: of the first stage's scores and the reranker's, as ``fuse`` chose them on dev
            queries; null takes the reranker's order.
        pictures: show them; without, texts alone are read.
        rewrite: rewrite the best candidates in sight of the query first (TTE-v2).
        batch: candidates scored at a time.

    Raises:
        DataError: if these cannot be meant.
    """

    model: str
    preset: str | None = None
    depth: int = 50
    weights: tuple[float, float] | None = None
    pictures: bool = True
    rewrite: PairRewriting = PairRewriting()  # noqa: RUF009 - frozen
    batch: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= FOUND or self.batch < 1:
            raise DataError(
                f"depth {self.depth} must be from 1 to {FOUND}, and batch {self.batch} above 0"
            )

    def open(
        self, root: DataRoot, store: Path | None, device: str, allow_mismatch: bool
    ) -> SecondStage:
        """Load the reranker, and the texts that it was trained on.

        Raises:
            DataError: if there is no such model, or it is no reranker.
            MismatchError: if the store has not the texts that it was trained on.
        """
        model = Mllm(self.model, preset=self.preset) if self.preset else load(self.model)
        judge, trained = scorer(model, self.pictures), model.trained_on
        recipe = None if trained is None else open_recipe(trained, root, store, allow_mismatch)
        model.to(device_named(device))
        return SecondStage(self, judge, recipe, root.path)


@final
class SecondStage:
    """A reranker at work. Made by :meth:`Reranking.open`.

    Attributes:
        recipe: which texts it was trained on; None shows those of the first stage.
    """

    def __init__(
        self, config: Reranking, judge: Reranker, recipe: TextRecipe | None, root: Path
    ) -> None:
        self.recipe = recipe
        self._config, self._judge = config, judge
        self._collator = judge.model.collator()
        self._images = ImageLoader(root, self._collator) if judge.pictures else None
        self._rewriter = PairRewriter(config.rewrite, root) if config.rewrite.depth else None

    @property
    def score(self) -> str:
        """What the scores of the new order are."""
        return "Score of the reranker" if self._config.weights is None else "Fused score"

    @property
    def told(self) -> str:
        """What people should know about the order."""
        fused = self._config.weights
        order = "in its order" if fused is None else f"weighed {fused[0]:g} to {fused[1]:g} with it"
        name = name_of(Path(self._config.model))
        return f"the best {self._config.depth} were read again by {name}, {order}"

    def __call__(
        self,
        first: Sequence[Hit],
        name: str,
        asked: tuple[str | None, Image.Image | None],
        recipe: TextRecipe,
        find: Callable[[str], Item | None],
    ) -> list[tuple[Hit, Cascaded]]:
        """Candidates of one query in the new order.

        Args:
            first: what the first stage found, best first.
            name: of the query.
            asked: its text, instruction included, and its picture.
            recipe: renders the candidates.
            find: a candidate by its id.

        Raises:
            DataError: if nothing is to be read of an item, or a score is no number.
            EngineError: if the rewriting model cannot answer.
        """
        if not first:
            return []
        run = RunTable([name], [hit.did for hit in first], [0] * len(first), range(len(first)),
                       [hit.score for hit in first])  # fmt: skip
        items = [item for hit in first[: self._config.depth] if (item := find(hit.did))]
        texts = self._rewritten(name, asked[0], items, recipe)
        (query,) = examples_of(self._collator, [asked], name)
        reader = Reader(recipe, self._images, "skip")
        shown = [reader.candidate(item) for item in items]
        shown = [one._replace(text=texts.get(one.id, one.text)) for one in shown]
        second = in_order(run.cut(self._config.depth), self._scores(query, shown)).run
        scores = {hit.did: hit.score for hit in second.to_run()[name]}
        weights = self._config.weights
        last = second if weights is None else weighted_fusion([run, second], weights, FOUND)
        before = {hit.did: (rank, hit.score) for rank, hit in enumerate(first, start=1)}
        return [
            (hit, Cascaded(*before[hit.did], scores.get(hit.did), texts.get(hit.did)))
            for hit in last.to_run()[name]
        ]

    def _scores(
        self, query: Example, candidates: Sequence[Example]
    ) -> Float32[np.ndarray, " candidates"]:
        step = len(candidates) if self._judge.joint else self._config.batch
        parts = [self._judge.score(query, candidates[start : start + step]).numpy()
                 for start in range(0, len(candidates), step)]  # fmt: skip
        return np.concatenate(parts)

    def _rewritten(
        self, name: str, asked: str | None, items: Sequence[Item], recipe: TextRecipe
    ) -> dict[str, str]:
        """Candidates' texts in sight of the query, by id, of those that were accepted."""
        if self._rewriter is None:
            return {}
        pairs = [Retrieved(name, asked or "", replace(item, text=recipe.candidate(item)))
                 for item in items[: self._config.rewrite.depth]]  # fmt: skip
        made = self._rewriter(pairs)
        return {
            pair.item.id: made(name, pair.item.id, pair.item.text) or ""
            for pair in pairs
            if (found := made.of(name, pair.item.id)) is not None and not found.rejected
        }
