"""BM25 over published or generated text, through the same plans, runs and tables as the rest.

The scores are those of Lucene's BM25 as computed by bm25s (Lù 2024, 2407.03618; variants: Kamphuis
et al., "Which BM25 do you mean?", ECIR 2020). BM25: Robertson and Zaragoza, "The Probabilistic
Relevance Framework", 2009.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, final

import bm25s
import numpy as np

from augment.data import DataRoot, TextRule
from augment.errors import DataError
from augment.files import digest
from augment.records import Hit, Run
from retrievers.data.plan import EvalTask, Plan, plan_test
from retrievers.data.texts import TextRecipe, ViewConfig, check_untrained
from retrievers.evaluation.protocol import PositiveConfig
from retrievers.evaluation.run import writing_runs
from retrievers.vectors.embeddings import Embeddings
from retrievers.vectors.scoring import Results, run_files, score, write_results

#: Scores are rounded so, as those of the vector indexes, before ties are settled by id.
_DECIMALS = 6


@dataclass(frozen=True)
class Bm25Config:
    """The model.

    Args:
        k1: how soon repeating a term stops to help. 0.9 is Anserini's and Pyserini's default,
            tuned on short passages (Yang, Fang and Lin, "Anserini", SIGIR 2017).
        b: share of the normalisation by length; 0.4 likewise.
        stopwords: english drops Lucene's 33 English stop words from both sides, as Anserini does.
    """

    k1: float = 0.9
    b: float = 0.4
    stopwords: Literal["english", "none"] = "english"

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise DataError(f"BM25 needs k1 >= 0 and 0 <= b <= 1, got k1={self.k1}, b={self.b}")


@final
class Bm25Index:
    """Texts under their ids. Words are runs of two or more letters or digits, in lower case.

    There is no stemming, and a script without blanks between words makes one word of a clause.

    Args:
        ids: unique.
        texts: one for each id; texts without a word can never be found.
        config: the model.

    Raises:
        DataError: if ids and texts do not pair up, an id repeats, or no text holds a word.
    """

    def __init__(
        self, ids: Sequence[str], texts: Sequence[str], config: Bm25Config = Bm25Config()
    ) -> None:
        if len(ids) != len(texts):
            raise DataError(f"{len(ids)} ids for {len(texts)} texts; give one text for each id")
        if len(set(ids)) != len(ids):
            raise DataError("an id stands twice; remove duplicates before indexing")
        self._config = config
        # As in Lucene, a text without a word counts in no statistic.
        worded = [
            (did, words) for did, words in zip(ids, self._tokens(texts), strict=True) if words
        ]
        self.ids = [did for did, _ in worded]
        if not worded:
            raise DataError(
                f"none of {len(ids)} candidates has a word to index; BM25 needs text: show "
                "generated text with --corpus.view append, or use a retriever that sees pictures"
            )
        self._bm25 = bm25s.BM25(k1=config.k1, b=config.b, method="lucene")
        self._bm25.index([words for _, words in worded], show_progress=False, leave_progress=False)
        order = sorted(range(len(self.ids)), key=self.ids.__getitem__, reverse=True)
        self._tie = np.empty(len(order), dtype=np.int64)
        self._tie[order] = np.arange(len(order))

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, text: str, k: int) -> list[Hit]:
        """The best ``k`` texts that share a word with the query, ties by id descending.

        Raises:
            DataError: if the query is empty.
            ValueError: if k is less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not text.strip():
            raise DataError("the query is empty; give it some words")
        words = [word for word in self._tokens([text])[0] if word in self._bm25.vocab_dict]
        if not words:
            return []
        scores = np.round(self._bm25.get_scores(words).astype(np.float64), _DECIMALS)
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= least]
        rows = rows[np.lexsort((self._tie[rows], -scores[rows].astype(np.float32)))][:k]
        return [Hit(self.ids[row], float(scores[row])) for row in rows]

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        stopwords = "en" if self._config.stopwords == "english" else []
        found = bm25s.tokenize(
            list(texts), stopwords=stopwords, return_ids=False, show_progress=False
        )
        return [[word for word in words if word] for words in found]


def bm25_plan(
    plan: Plan, recipe: TextRecipe, depth: int, config: Bm25Config
) -> tuple[dict[tuple[str, str], Run], Embeddings, Embeddings]:
    """Search every task in its local pool and, if the plan has one, in the union.

    Queries are searched without their instruction, whose words describe the task and not the
    wanted candidate.

    Returns:
        (task name, "local" or "union") -> run, and what could not take part on either side:
        candidates and queries without text.
    """
    texts = [recipe.candidate(item) or "" for item in plan.catalog.items()]
    asked = [query for task in plan.tasks for query in task.queries]
    lost = Embeddings(len(plan)), Embeddings(len(asked))
    lost[0].fail([row for row, text in enumerate(texts) if not text], [])
    words = [recipe.query_view.text(query.item) or "" for query in asked]
    lost[1].fail([row for row, text in enumerate(words) if not text.strip()], [])
    runs: dict[tuple[str, str], Run] = {}
    for pool, rows in plan.pools.items():
        own = [row for row in rows.tolist() if texts[row]]
        searching = _searching(plan, pool)
        if not searching:
            continue
        if not own:  # pictures only: every query counts 0
            runs.update({(task.name, _kind(pool)): {} for task, _ in searching})
            continue
        ids = plan.catalog.names(np.array(own)).to_pylist()
        index = Bm25Index(ids, [texts[row] for row in own], config)
        for task, start in searching:
            found: dict[str, list[Hit]] = {}
            for place, query in enumerate(task.queries, start=start):
                if words[place].strip():
                    found[query.item.id] = index.search(words[place], depth)
            runs[task.name, _kind(pool)] = {qid: hits for qid, hits in found.items() if hits}
    return runs, *lost


def _kind(pool: str) -> str:
    return "union" if pool == "union" else "local"


def _searching(plan: Plan, pool: str) -> list[tuple[EvalTask, int]]:
    """Tasks that search a pool, with the place of their first query among all."""
    found, start = [], 0
    for task in plan.tasks:
        if pool in ("union", task.pool):
            found.append((task, start))
        start += len(task.queries)
    return found


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
        model: parameters of BM25.

    Raises:
        DataError: if files are missing or malformed.
        StoreError: if generated text is wanted and cannot be read.
    """
    started = time.monotonic()
    check_untrained(query, corpus)
    recipe = TextRecipe(query.open("query"), corpus.open("corpus"), text_rule, None)
    plan = plan_test(DataRoot(root), split, union, tasks, limit, positives)
    settings = {
        "model": {"name": "bm25", **asdict(model)},
        "text": recipe.fingerprint,
        "data": {"root": str(root), "query": asdict(query), "corpus": asdict(corpus)},
        "split": split,
        "depth": depth,
        "positives": asdict(positives),
    }
    made_by = digest({"model": settings["model"], "text": recipe.fingerprint})[:16]
    runs, candidates, queries = bm25_plan(plan, recipe, depth, model)
    seconds = time.monotonic() - started
    with writing_runs(run_files(out, runs), made_by):
        results = score(plan, runs, candidates, queries, made_by)
    results.settings.update(settings)
    results.cost = {
        "search_seconds": round(seconds, 3),
        "items": len(plan) + sum(len(task.queries) for task in plan.tasks),
    }
    write_results(out, plan, results)
    return results
