"""BM25 over published or generated text, through the same plans, runs and tables as the rest.

The scores are those of Lucene's BM25 as computed by bm25s (Lù 2024, 2407.03618; variants: Kamphuis
et al., "Which BM25 do you mean?", ECIR 2020). BM25: Robertson and Zaragoza, "The Probabilistic
Relevance Framework", 2009.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int64

from augment.data import DataRoot, TextRule
from augment.errors import DataError
from augment.files import digest
from augment.records import OwnPicture
from retrievers.data.plan import Plan, PositiveConfig, SearchedModality, plan_test
from retrievers.data.texts import TextRecipe, ViewConfig, check_untrained
from retrievers.evaluation.results import Lost, Results, Runs, score, write_results
from retrievers.evaluation.run import DECIMALS
from retrievers.vectors.index import Index, Nearest, rank_plan
from retrievers.vectors.words import VERSION, Language, Words

logging.getLogger("bm25s").setLevel(logging.WARNING)  # as imported it tells all it does


@dataclass(frozen=True)
class Bm25Config:
    """The model.

    Args:
        k1: how soon repeating a term stops to help. 0.9 is Anserini's and Pyserini's default,
            tuned on short passages (Yang, Fang and Lin, "Anserini", SIGIR 2017).
        b: share of the normalisation by length; 0.4 likewise.
        stopwords: language whose stop words are dropped from both sides; see
            :func:`retrievers.vectors.words.analyser`.
    """

    k1: float = 0.9
    b: float = 0.4
    stopwords: Language = "english"

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise DataError(f"BM25 needs k1 >= 0 and 0 <= b <= 1, got k1={self.k1}, b={self.b}")

    def to_json(self) -> dict[str, Any]:
        """What decides the score of a text, the analyser included."""
        return {"name": "bm25", "words": VERSION, **asdict(self)}

    @property
    def fingerprint(self) -> str:
        """Made of :meth:`to_json`: what an index of words is ``made_by``."""
        return digest(self.to_json())[:16]


@final
class Bm25Index(Index[Words]):
    """Candidates found by the words they share with a query; those without one never are."""

    def __init__(self, config: Bm25Config = Bm25Config(), made_by: str | None = None) -> None:
        super().__init__(Words(config.stopwords), made_by)
        self._config = config
        self._bm25: Any = None
        #: Rows whose text has a word: as in Lucene, the others count in no statistic.
        self._worded: Int64[np.ndarray, " worded"] = np.empty(0, np.int64)

    def build(self) -> None:
        """Count the words now, rather than at the first search.

        Raises:
            DataError: if no text holds a word.
        """
        if self._bm25 is not None:
            return
        words = self.held.words
        self._worded = np.array([row for row, own in enumerate(words) if own], dtype=np.int64)
        if not len(self._worded):
            raise DataError(
                f"none of {len(self)} candidates has a word to index; BM25 needs text: show "
                "generated text with --corpus.view append, or use a retriever that sees pictures"
            )
        import bm25s  # behind retrievers.vectors.words

        self._bm25 = bm25s.BM25(k1=self._config.k1, b=self._config.b, method="lucene")
        worded = [words[row] for row in self._worded.tolist()]
        self._bm25.index(worded, show_progress=False, leave_progress=False)

    def _find(self, queries: Sequence[list[str]], k: int) -> Nearest:
        self.build()
        rows = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf)
        for place, asked in enumerate(queries):
            words = [word for word in asked if word in self._bm25.vocab_dict]
            if not words:
                continue
            found = np.round(self._bm25.get_scores(words).astype(np.float64), DECIMALS)
            good = np.flatnonzero(found > 0)
            if len(good) > k:
                least = np.partition(found[good], len(good) - k)[len(good) - k]
                good = good[found[good] >= least]
            best = self._rank(self._worded[good][None], found[good][None])
            most = min(k, len(good))
            rows[place, :most], scores[place, :most] = best.rows[0, :k], best.scores[0, :k]
        return Nearest(rows, scores.astype(np.float32))

    def _changed(self) -> None:
        self._bm25 = None


def bm25_plan(
    plan: Plan, recipe: TextRecipe, depth: int, config: Bm25Config
) -> tuple[Runs, Lost, Lost]:
    """Search every task in its local pool and, if the plan has one, in the union.

    Queries are searched without their instruction, whose words describe the task and not the
    wanted candidate.

    Returns:
        (task name, "local" or "union") -> run, and what could not take part on either side:
        candidates and queries without text.
    """
    texts = [recipe.candidate(item) or "" for item in plan.catalog.items()]
    words = [recipe.query_view.text(query.item) or "" for query, _ in plan.queries]
    lost = (
        Lost([row for row, text in enumerate(texts) if not text], []),
        Lost([row for row, text in enumerate(words) if not text.strip()], []),
    )

    def index_of(_: str, rows: Int64[np.ndarray, " rows"]) -> Bm25Index | None:
        own = [row for row in rows.tolist() if texts[row]]
        index = Bm25Index(config)
        ids = plan.catalog.names(np.array(own, np.int64))
        index.add(ids, [texts[row] for row in own], config.fingerprint)
        return index if own else None  # in a pool of pictures only, every query counts 0

    def queries_of(span: range) -> tuple[list[int], list[str]]:
        worded = [row for row in span if words[row].strip()]
        return worded, [words[row] for row in worded]

    return rank_plan(plan, depth, config.fingerprint, index_of, queries_of), *lost


def bm25(
    root: Path,
    out: Path,
    query: ViewConfig = ViewConfig(),  # noqa: B008 - frozen
    corpus: ViewConfig = ViewConfig(),  # noqa: B008 - frozen
    text_rule: TextRule = "plain",
    split: str = "test",
    union: bool = True,
    depth: int = 100,
    tasks: list[int] | None = None,
    limit: int | None = None,
    positives: PositiveConfig = PositiveConfig(),  # noqa: B008 - frozen
    own_picture: OwnPicture = "keep",
    modality: SearchedModality = "any",
    model: Bm25Config = Bm25Config(),
) -> Results:
    """Search a data root by BM25; writes runs, judgements and ``metrics.json`` as ``test`` does.

    Args:
        root: folder in M-BEIR's layout.
        out: run files, qrels and ``metrics.json`` go here.
        query: text shown of queries.
        corpus: text shown of candidates.
        text_rule: plain (as written) or uniir.
        split: query split.
        union: also search the union of all pools.
        depth: hits per query in the run files.
        tasks: only these task codes (0 to 8).
        limit: at most so many queries per data set and task.
        positives: what becomes of positives that a pool lacks or that are of another data set.
        own_picture: whether candidates that show the query's own picture are left out: keep, file
            or content.
        modality: asked ranks only candidates of the modality that the task asks for.
        model: parameters of BM25.

    Raises:
        DataError: if files are missing or malformed.
        StoreError: if generated text is wanted and cannot be read.
    """
    started = time.monotonic()
    check_untrained(query, corpus)
    recipe = TextRecipe(query.open("query"), corpus.open("corpus"), text_rule, None)
    plan = plan_test(DataRoot(root), split, union, tasks, limit, positives, own_picture, modality)
    settings = {
        "model": model.to_json(),
        "text": recipe.fingerprint,
        "data": {"root": str(root), "query": asdict(query), "corpus": asdict(corpus)},
        "split": split,
        "depth": depth,
        "positives": asdict(positives),
        "own_picture": own_picture,
        "modality": modality,
    }
    made_by = digest({"model": settings["model"], "text": recipe.fingerprint})[:16]
    runs, candidates, queries = bm25_plan(plan, recipe, depth, model)
    seconds = time.monotonic() - started
    results = score(plan, runs, candidates, queries, made_by)
    results.settings.update(settings)
    results.cost = {
        "search_seconds": round(seconds, 3),
        "items": len(plan) + sum(len(task.queries) for task in plan.tasks),
    }
    write_results(out, plan, results)
    return results
