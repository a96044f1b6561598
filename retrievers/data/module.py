"""M-BEIR data for Lightning: training pairs, a small validation search, the test protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, final

import lightning
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Subset

from augment.data import DataRoot, TextRule
from augment.data.pools import StoredQueries
from augment.errors import DataError
from augment.records import Query, Side
from augment.views import TextView
from retrievers.data.datasets import (
    CandidateBook,
    ImageLoader,
    ItemDataset,
    OnBadImage,
    PairDataset,
    Reader,
)
from retrievers.data.examples import ItemCollator, PairCollator, Processor
from retrievers.data.mixtures import Mixture
from retrievers.data.negatives import NegativesConfig
from retrievers.data.plan import Embedder, Plan, plan_pools, plan_test, plan_validation
from retrievers.data.samplers import PairBatches, PairLoader, SamplingConfig
from retrievers.data.settings import EmbeddingConfig, LoaderConfig, SearchConfig, ValidationConfig
from retrievers.data.texts import TextRecipe, ViewConfig
from retrievers.data.training import group_codes, open_negatives, training_digest, training_queries
from retrievers.models.audit import SAMPLED, Audit, audit_plan, audit_training
from retrievers.search.mining import MiningConfig, plan_mining
from retrievers.vectors.embed import Embeddings, item_keys
from retrievers.vectors.store import EmbeddingWriter


@final
class MBeirData(lightning.LightningDataModule):
    """An M-BEIR data root: queries with instructions on one side, candidates on the other.

    Args:
        root: folder in M-BEIR's layout.
        query: text shown of queries.
        corpus: text shown of candidates.
        text_rule: plain (as written) or uniir (parity: first letter raised, full stop added).
        instructions: put instructions before queries; one at random in training, the first in test.
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
        text_rule: TextRule = "plain",
        instructions: bool = True,
        tasks: list[int] | None = None,
        limit: int | None = None,
        batch_size: int = 128,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - frozen
        positives: int = 1,
        negatives: NegativesConfig = NegativesConfig(),  # noqa: B008 - frozen
        on_bad_image: OnBadImage = "error",
        seed: int = 0,
        loader: LoaderConfig = LoaderConfig(),  # noqa: B008 - frozen
        validation: ValidationConfig = ValidationConfig(),  # noqa: B008 - frozen
        test: SearchConfig = SearchConfig(),  # noqa: B008 - frozen
        embeddings: EmbeddingConfig = EmbeddingConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        for name, number in (("batch_size", batch_size), ("positives", positives)):
            if number < 1:
                raise DataError(f"data.{name} must be at least 1, got {number}")
        self.root = DataRoot(Path(root))
        self.batch_size = batch_size
        self.loader = loader
        self.validation = validation
        self.test = test
        self.embeddings = embeddings
        #: Whether only vectors are wanted, which needs no queries.
        self.only_embed = False
        self._rooms: list[Embeddings] | None = None
        self.sampling = sampling
        self.negatives = negatives
        self.seed = seed
        self._tasks, self._limit, self._positives = tasks, limit, positives
        self._on_bad_image: OnBadImage = on_bad_image
        self._views = (query, corpus)
        views = {"query": query.open("query"), "corpus": corpus.open("corpus")}
        self.recipe = TextRecipe(
            views["query"],
            views["corpus"],
            text_rule,
            self.root.instructions() if instructions else None,
            _mixtures(zip(self._views, views.values(), strict=True)),
        )
        #: Set by ``mine``: embed training queries and what they may be confused with.
        self.mining: MiningConfig | None = None
        self._processor: Processor | None = None
        self._images: ImageLoader | None = None
        self._plan: Plan | None = None
        self._train: PairDataset | None = None
        #: What the context cuts off of the latest fit or test; None where it is not known.
        self.audit: Audit | None = None
        #: What the command ``audit`` found, by stage.
        self.audits: dict[str, Audit | None] = {}

    def describe(self) -> dict[str, Any]:
        """Settings that move scores, for the record beside the metrics."""
        return {
            "cut_text": None if self.audit is None else self.audit.to_json(),
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

    @property
    def plan(self) -> Plan:
        """What the running validation or test embeds and searches; there after ``setup``."""
        if self._plan is None:
            raise DataError("no validation or test is set up; call setup('test') first")
        return self._plan

    def use(self, processor: Processor) -> None:
        """Take the tokenizer and image transform of a retriever."""
        if processor is not self._processor:
            self._processor = processor
            self._images = ImageLoader(
                self.root.path,
                processor,
                self.loader.cache_mib,
                Path(self.loader.resized) if self.loader.resized else None,
            )

    def setup(self, stage: str) -> None:
        """Open the files that a stage needs.

        Raises:
            DataError: if they are missing, or nothing is left to train on.
        """
        if self.trainer is not None and self.trainer.lightning_module is not None:
            self.use(cast("Processor", self.trainer.lightning_module.processor))
        self._rooms = None
        self.prepare(stage)
        self.audit = self.audited(stage)
        if self.audit is not None:
            rank_zero_info(self.audit.line())

    def audited(self, stage: str, most: int | None = SAMPLED) -> Audit | None:
        """What the context cuts off of the stage that was set up; None if it is not known.

        Args:
            stage: fit (the training pairs), else what is embedded.
            most: texts of each side that are looked at, None for all.
        """
        if self._processor is None:
            return None
        if stage == "fit" and self._train is not None:
            return audit_training(self._train, self.recipe, self._processor, most)
        return audit_plan(self.plan, self.recipe, self._processor, most)

    def prepare(self, stage: str) -> None:
        """Open the files that a stage needs; :meth:`setup` without the retriever and the audit."""
        if stage == "test" and self.mining is not None:
            held = None if self.root.query_files("val") else list[Query]()
            book, kept = self._training_queries(held)
            self._plan = plan_mining(self.root, kept, book.find, self.mining)
            return
        if stage == "test":
            if self.only_embed and not self.root.query_files(self.test.split):
                self._plan = plan_pools(self.root)
                return
            self._plan = plan_test(
                self.root,
                self.test.split,
                self.test.union,
                self._tasks,
                self._limit,
                self.test.positives,
            )
            return
        held_out: list[Query] | None = None if self.root.query_files("val") else []
        if stage == "fit" or held_out is not None:
            self._train = self._training(held_out)
        split = "val" if held_out is None else "train"
        wanted = self.validation
        self._plan = Plan()
        if wanted.queries > 0 and (held_out is None or held_out):
            self._plan = plan_validation(
                self.root, split, held_out, wanted.queries, wanted.pool, self.seed
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Seeded pairs; the last incomplete batch of an epoch is left out."""
        assert self._train is not None  # noqa: S101 - setup() comes first
        assert self._processor is not None  # noqa: S101 - setup() comes first
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        size = max(1, min(self.batch_size, len(self._train) // world))
        if size * world == 1 and self.negatives.open() is None:
            raise DataError(
                "a batch of one pair has nothing to tell its positive from; raise data.batch_size, "
                f"or add data.negatives ({len(self._train)} training queries)",
                str(self.root.path),
            )
        batches = PairBatches(
            group_codes(self._train, self.sampling.group_by),
            size,
            self.seed,
            rank,
            world,
            self.sampling.homogeneous,
            self.sampling.exponent,
        )
        return PairLoader(
            self._train,
            batches,
            collate_fn=PairCollator(self._processor),
            num_workers=self.loader.workers,
            persistent_workers=self.loader.workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Candidates, then queries, of the small validation search."""
        return self._embedding(None) if self.plan.tasks else []

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Candidates (each once), then queries, of the test protocol; those without a vector."""
        return self._embedding(self.rooms)

    @property
    def rooms(self) -> list[Embeddings]:
        """Room for the vectors of the running test: candidates, then queries.

        Raises:
            StoreError: if the folder cannot be read or written.
            MismatchError: if it holds vectors of other weights or text.
        """
        if self._rooms is None:
            plan, wanted = self.plan, self.embeddings
            sizes: dict[Side, int] = {"corpus": len(plan), "query": len(plan.queries)}
            if wanted.folder is None or self.trainer is None:
                self._rooms = [Embeddings(size) for size in sizes.values()]
            else:
                embedder = Embedder(plan, self._reader())
                self._rooms = [self._stored(side, size, embedder) for side, size in sizes.items()]
        return self._rooms

    def _stored(self, side: Side, size: int, embedder: Embedder) -> Embeddings:
        assert self.trainer is not None  # noqa: S101 - rooms() looks
        wanted = self.embeddings
        made_by, made_with = cast("Any", self.trainer.lightning_module).made_by()
        writer = EmbeddingWriter(
            Path(wanted.folder or "") / side,
            made_by,
            made_with,
            wanted.dtype,
            wanted.shard_rows,
            wanted.shard_seconds,
        )
        for name, problem in writer.damaged.items():
            rank_zero_info(f"shard {name} of {writer.folder} is embedded again: {problem}")
        keys = item_keys(embedder.contents(side), self.root.path)
        return Embeddings(size, writer, keys, lambda rows: embedder.names(side, rows))

    def _reader(self) -> Reader:
        assert self._images is not None  # noqa: S101 - use() comes first
        return Reader(self.recipe, self._images, self._on_bad_image)

    def _embedding(self, rooms: list[Embeddings] | None) -> list[DataLoader[Any]]:
        assert self._processor is not None  # noqa: S101 - use() comes first
        embedder = Embedder(self.plan, self._reader())
        sets = (
            ItemDataset(len(self.plan), embedder.candidate),
            ItemDataset(len(self.plan.queries), embedder.query),
        )
        collate = ItemCollator(self._processor)
        rows = [room.missing(self.embeddings.part, self.embeddings.parts) for room in rooms or ()]
        loaders: list[DataLoader[Any]] = []
        for place, items in enumerate(sets):
            if rows and not len(rows[place]):
                # Lightning skips a test without batches, and its end with it.
                loaders.append(DataLoader([collate([])], batch_size=None))  # type: ignore[arg-type]
                continue
            loaders.append(
                DataLoader(
                    # An array does for a sequence, at a quarter of the memory.
                    Subset(items, cast("Any", rows[place])) if rows else items,
                    batch_size=self.loader.eval_batch_size,
                    collate_fn=collate,
                    num_workers=self.loader.workers,
                )
            )
        return loaders

    def _training(self, held_out: list[Query] | None) -> PairDataset:
        """Training pairs; where there is no val split, ``held_out`` receives some queries."""
        book, kept = self._training_queries(held_out)
        negatives = open_negatives(self.negatives, kept)
        return PairDataset(kept, book, self._reader(), self.seed, self._positives, negatives)

    def _training_queries(
        self, held_out: list[Query] | None
    ) -> tuple[CandidateBook, StoredQueries]:
        return training_queries(
            self.root, self._tasks, self._limit, held_out, self.validation.holdout
        )

    def digest(self) -> str:
        """SHA-256 over the bytes of all pools and training queries."""
        return training_digest(self.root)


def _mixtures(sides: Iterable[tuple[ViewConfig, TextView]]) -> dict[Side, Mixture]:
    made = (config.mixture(view.side, view) for config, view in sides)
    return {mixture.side: mixture for mixture in made if mixture is not None}
