"""An M-BEIR root as a model reads it: training pairs, a small validation search, the test."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader, Subset
from typing_extensions import final

from augment.data import DataRoot, TextRule, open_instructions
from augment.data.pools import StoredQueries
from augment.errors import DataError
from augment.records import OwnPicture, Query, Side
from retrievers.data.datasets import (
    CandidateBook,
    OnBadImage,
    PairDataset,
    Reader,
    group_codes,
    open_negatives,
    training_queries,
)
from retrievers.data.examples import Collator, ItemCollator, PairCollator
from retrievers.data.negatives import NegativesConfig
from retrievers.data.pictures import ImageLoader
from retrievers.data.plan import (
    Plan,
    PlanItems,
    PositiveConfig,
    SearchedModality,
    plan_test,
    plan_validation,
)
from retrievers.data.samplers import PairBatches, PairLoader, SamplingConfig
from retrievers.data.texts import TextRecipe, ViewConfig, WrittenConfig


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
        union: search what all tasks search, together, so that wrong modalities count.
    """

    queries: int = 100
    pool: int = 1000
    holdout: float = 0.05
    union: bool = False


@dataclass(frozen=True)
class SearchConfig:
    """The test protocol.

    Args:
        split: query split.
        union: also search the union of all pools.
        depth: hits per query in the run files.
        index: exact, or a factory string of faiss such as IVF1024,PQ64; approximate ones print
            their true recall against exact search.
        index_parameters: of faiss, such as nprobe=32.
        positives: what becomes of positives that a pool lacks or that are of another data set.
        own_picture: keep ranks candidates that show the query's own picture, as UniIR does; file
            leaves those of the same file out, content those of a file with the same bytes.
        modality: any ranks all candidates of a pool; asked only those of the modality that M-BEIR's
            task asks for, which takes wrong modality out of the union's loss.
    """

    split: str = "test"
    union: bool = True
    depth: int = 100
    index: str = "exact"
    index_parameters: str = ""
    positives: PositiveConfig = PositiveConfig()  # noqa: RUF009 - frozen
    own_picture: OwnPicture = "keep"
    modality: SearchedModality = "any"


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
    dtype: Literal["float16", "float32"] = "float16"
    shard_rows: int = 16_384
    shard_seconds: float = 60.0
    part: int = 0
    parts: int = 1


@final
class MBeirData:
    """An M-BEIR data root: queries with instructions on one side, candidates on the other.

    Args:
        root: folder in M-BEIR's layout.
        query: text shown of queries.
        corpus: text shown of candidates.
        written: what a model is taught to write before vectors.
        text_rule: plain (as written) or uniir (parity: first letter raised, full stop added).
        instructions: put instructions before queries; one at random in training, the first in test.
            A file's or a packaged table's (``rge``) in place of the root's own, if one is named.
        tasks: only queries of these task codes (0 to 8).
        limit: at most so many training queries, and test queries per task.
        batch_size: training pairs per batch and process.
        sampling: which pairs stand together in a batch.
        positives: positives per query in a batch; more than one serve ``objective.several``.
        negatives: hard negatives, published or mined.
        on_bad_image: error stops at an unreadable picture; skip drops the pair, in test embeds
            the text alone.
        seed: of order, instructions and positives.
        loader: processes, cache, batch size of embedding.
        validation: the search during fit.
        test: the test protocol.
        embeddings: where vectors are kept.
    """

    def __init__(
        self,
        root: str,
        query: ViewConfig = ViewConfig(),  # noqa: B008 - frozen
        corpus: ViewConfig = ViewConfig(),  # noqa: B008 - frozen
        written: WrittenConfig = WrittenConfig(),  # noqa: B008 - frozen
        text_rule: TextRule = "plain",
        instructions: bool | str = True,
        tasks: list[int] | None = None,
        limit: int | None = None,
        batch_size: int = 128,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - frozen
        positives: int = 1,
        negatives: NegativesConfig = NegativesConfig(),  # noqa: B008 - frozen
        on_bad_image: OnBadImage = "error",
        seed: int = 0,
        loader: LoaderConfig = LoaderConfig(),
        validation: ValidationConfig = ValidationConfig(),
        test: SearchConfig = SearchConfig(),
        embeddings: EmbeddingConfig = EmbeddingConfig(),
    ) -> None:
        for name, number in (("batch_size", batch_size), ("positives", positives)):
            if number < 1:
                raise DataError(f"data.{name} must be at least 1, got {number}")
        self.root = DataRoot(Path(root))
        self.batch_size = batch_size
        self.loader = loader
        self.validation = validation
        self.test = test
        self.embeddings = embeddings
        self.sampling = sampling
        self.negatives = negatives
        self.seed = seed
        self._tasks, self._limit, self._positives = tasks, limit, positives
        self._on_bad_image: OnBadImage = on_bad_image
        self._views = (query, corpus)
        views = (query.open("query"), corpus.open("corpus"))
        self.recipe = TextRecipe(
            *views,
            text_rule,
            open_instructions(instructions)
            if isinstance(instructions, str)
            else self.root.instructions(needed=False)
            if instructions
            else None,
            {view.side: mixed for config, view in zip(self._views, views, strict=True)
             if (mixed := config.mixture(view.side, view))},
            written.open(),
        )  # fmt: skip
        self._written = written
        self._collator: Collator | None = None
        self._images: ImageLoader | None = None

    def describe(self) -> dict[str, Any]:
        """Settings that move scores, for the record beside the metrics."""
        taught = self.recipe.written
        written = {} if taught is None else {
            "written": asdict(self._written), "written_recipe": dict(taught.view.recipe),
            **({"written_candidates_recipe": dict(taught.corpus_view.recipe)}
               if taught.corpus_view else {}),
        }  # fmt: skip
        return {
            **written,
            "root": str(self.root.path),
            "query": asdict(self._views[0]),
            "corpus": asdict(self._views[1]),
            "text": self.recipe.fingerprint,
            "query_recipe": dict(self.recipe.query_view.recipe),
            "corpus_recipe": dict(self.recipe.corpus_view.recipe),
            "tasks": self._tasks,
            "limit": self._limit,
            "sampling": asdict(self.sampling),
            "positives": self._positives,
            "negatives": asdict(self.negatives),
            "on_bad_image": self._on_bad_image,
            "seed": self.seed,
            "test": asdict(self.test),
            "vectors": self.embeddings.dtype if self.embeddings.folder else "float32",
        }

    def keep_embeddings(self, folder: str | Path | None, out: str | Path) -> str:
        """Say where vectors are kept: in a folder, else where the settings say, else in OUT."""
        kept = str(folder or self.embeddings.folder or Path(out) / "embeddings")
        self.embeddings = replace(self.embeddings, folder=kept)
        return kept

    def reader(self, collator: Collator) -> Reader:
        """What turns records into examples for a model; its pictures are kept in memory."""
        if not getattr(collator, "reads_pictures", True):
            return Reader(self.recipe, None, self._on_bad_image)
        if self._images is None or collator is not self._collator:
            self._collator = collator
            resized = Path(self.loader.resized) if self.loader.resized else None
            self._images = ImageLoader(self.root.path, collator, self.loader.cache_mib, resized)
        return Reader(self.recipe, self._images, self._on_bad_image)

    def training(self, collator: Collator) -> tuple[PairDataset, Plan]:
        """Training pairs, and the small search that validates.

        Where the root has no val split, a share of the training queries is held out for it.

        Raises:
            DataError: if files are missing, or nothing is left to train on.
        """
        if self.recipe.instructions is not None:
            self.root.instructions()  # a search goes on without a table, a training does not
        held_out = self._held_out()
        book, kept = self.training_queries(held_out)
        negatives = open_negatives(self.negatives, kept)
        if negatives is not None and negatives.weak:
            kept = kept.where([query.item.id not in negatives.weak for query in kept])
        pairs = PairDataset(
            kept, book, self.reader(collator), self.seed, self._positives, negatives
        )
        return pairs, self._validation(held_out)

    def validation_plan(self) -> Plan:
        """The small search of :meth:`training` alone.

        Raises:
            DataError: if files are missing.
        """
        held_out = self._held_out()
        if held_out is not None:
            self.training_queries(held_out)
        return self._validation(held_out)

    def _held_out(self) -> list[Query] | None:
        return None if self.root.query_files("val") else []

    def _validation(self, held_out: list[Query] | None) -> Plan:
        wanted, split = self.validation, "val" if held_out is None else "train"
        if wanted.queries <= 0 or held_out == []:
            return Plan()
        plan = plan_validation(self.root, split, held_out, wanted.queries, wanted.pool, self.seed)
        if wanted.union:
            plan.search_union()
        return plan

    def test_plan(self) -> Plan:
        """What the test protocol embeds and searches.

        Raises:
            DataError: if files are missing.
        """
        wanted = self.test
        return plan_test(
            self.root, wanted.split, wanted.union, self._tasks, self._limit, wanted.positives,
            wanted.own_picture, wanted.modality,
        )  # fmt: skip

    def pairs_loader(
        self, pairs: PairDataset, collator: Collator, rank: int = 0, world: int = 1
    ) -> PairLoader:
        """Seeded batches of pairs; the last incomplete batch of an epoch is left out.

        Raises:
            DataError: if a batch is one pair, and there are no hard negatives.
        """
        size = max(1, min(self.batch_size, len(pairs) // world))
        if size * world == 1 and self.negatives.open() is None:
            raise DataError(
                "a batch of one pair has nothing to tell its positive from; raise data.batch_size, "
                f"or add data.negatives ({len(pairs)} training queries)",
                str(self.root.path),
            )
        batches = PairBatches(
            group_codes(pairs, self.sampling.group_by),
            size,
            self.seed,
            rank,
            world,
            self.sampling,
            group_codes(pairs, "item") if self.sampling.together else None,
        )
        return PairLoader(
            pairs,
            batches,
            collate_fn=PairCollator(collator),
            num_workers=self.loader.workers,
            persistent_workers=self.loader.workers > 0,
        )

    def item_loader(
        self,
        plan: Plan,
        side: Side,
        collator: Collator,
        rows: Int64[np.ndarray, " rows"] | None = None,
    ) -> DataLoader[Any]:
        """Batches of a plan's candidates or queries, to embed."""
        items = PlanItems(plan, side, self.reader(collator))
        return DataLoader(
            # An array does for a sequence, at a quarter of the memory.
            items if rows is None else Subset(items, cast("Any", rows)),
            batch_size=self.loader.eval_batch_size,
            collate_fn=ItemCollator(collator, side),
            num_workers=self.loader.workers,
        )

    def training_queries(self, held_out: list[Query] | None) -> tuple[CandidateBook, StoredQueries]:
        """See :func:`retrievers.data.datasets.training_queries`."""
        taught = self.recipe.written
        return training_queries(
            self.root, self._tasks, self._limit, held_out, self.validation.holdout,
            taught.leaves_out if taught is not None and taught.skip else None,
        )  # fmt: skip

    def digest(self) -> str:
        """SHA-256 over the bytes of all pools and training queries."""
        root, digest = self.root, hashlib.sha256()
        for file in [*root.union_pools(), *root.pools(), *root.query_files("train")]:
            digest.update(file.path.name.encode())
            with file.path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()
