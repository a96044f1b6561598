"""Hard negatives from a ranking: near the query, and not taken for positives; with reasons.

Ranking by a trained retriever and dropping what scores too near the positive is NV-Retriever's
positive-aware mining (2407.15831, section 4); rank ranges, margins and duplicates are judged by id
and by vector, whatever the modality. :func:`by_vectors` ranks by a retriever's vectors,
:func:`by_run` takes any run, such as a reranked one.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from pyarrow import parquet

from augment.data import DataRoot
from augment.errors import DataError
from augment.files import replacing_path, sha256, write_json
from augment.records import Item, Modality, OwnPicture, Query
from retrievers.data.datasets import target_modality
from retrievers.data.module import MBeirData
from retrievers.data.plan import EvalTask, Plan, leave_out_own
from retrievers.evaluation.compare import files_of, tasks_of
from retrievers.evaluation.results import fitting, spans
from retrievers.evaluation.run import DECIMALS, RunTable
from retrievers.evaluation.run_files import read_table
from retrievers.models.base import Encoder
from retrievers.vectors import make_index
from retrievers.vectors.embed import embed
from retrievers.vectors.rows import Embeddings

KEPT = "kept"
WEAK = "weak positive"
#: Reasons why a candidate may be a positive that nobody has judged.
DOUBTFUL = ("near duplicate of a positive", "relative margin", "absolute margin", "highest score")

#: Queries searched at a time: each block of candidates is read once for all of them.
_SEARCHED = 16_384
#: Queries per row group of the tables.
_GROUP = 4096
_ALL = "all"

_NAMES, _SCORES = pa.list_(pa.string()), pa.list_(pa.float32())
_NEGATIVES = pa.schema(
    [
        ("qid", pa.string()),
        ("positive_ids", _NAMES),
        ("positive_scores", _SCORES),
        ("negative_ids", _NAMES),
        ("negative_scores", _SCORES),
        ("doubtful_ids", _NAMES),
        ("weak", pa.bool_()),
    ]
)
_CANDIDATES = pa.schema(
    [
        ("qid", pa.string()),
        ("did", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
        ("verdict", pa.dictionary(pa.int32(), pa.string())),
    ]
)


@dataclass(frozen=True)
class MiningConfig:
    """Which candidates become hard negatives.

    Args:
        per_query: negatives kept for each query.
        first: rank of the first candidate that may be kept, from 1.
        last: rank of the last one; so many are looked at.
        relative_margin: reject scores above the positive's by this share of it or nearer: 0.05
            keeps those below 95 % of it (NV-Retriever's best); null for none.
        absolute_margin: reject scores nearer to the positive's than this, or above; null for none.
        positive_score: which of several positives the margins refer to: min is the strictest.
        min_score: reject scores below; null for none.
        max_score: reject scores at or above, whatever the positive's is; null for none.
        min_positive: weak positives: queries whose positive scores below get no negatives, and are
            left out of a training on the table; null for none.
        duplicate: reject candidates whose cosine with a positive of the query is at least this;
            null for none.
        same_modality: search only candidates of the wanted modality.
        other_modality: share of the kept ones, of 1, that are of another modality than the wanted
            one, which no margin or duplicate rules out: first what shows the picture or has the
            text of the query or of a positive, then the nearest.
        scope: dataset searches candidates of the query's own data set, all those of all.
        own_picture: file rejects candidates that show the query's own picture by path, content also
            those whose picture has the same bytes; keep takes them as any other.
        pick: top takes the best-ranked that may be kept, random draws among them.
        seed: of the draws.
        tables: also write every candidate looked at, with score and reason.
    """

    per_query: int = 8
    first: int = 1
    last: int = 100
    relative_margin: float | None = 0.05
    absolute_margin: float | None = None
    positive_score: Literal["min", "mean", "max"] = "mean"
    min_score: float | None = None
    max_score: float | None = None
    min_positive: float | None = None
    duplicate: float | None = 0.98
    same_modality: bool = True
    other_modality: float = 0.0
    scope: Literal["dataset", "all"] = "dataset"
    own_picture: OwnPicture = "keep"
    pick: Literal["top", "random"] = "top"
    seed: int = 0
    tables: bool = True

    def __post_init__(self) -> None:
        """Refuse ranges that hold nothing."""
        if self.per_query < 1:
            raise DataError(f"mining.per_query must be at least 1, got {self.per_query}")
        if not 1 <= self.first <= self.last:
            raise DataError(
                f"mining looks at ranks first to last, counted from 1; got {self.first} to "
                f"{self.last}"
            )
        if not 0 <= self.other_modality <= 1:
            raise DataError(f"mining.other_modality is a share, 0 to 1; got {self.other_modality}")
        if self.other_modality and not self.same_modality:
            raise DataError("mining.other_modality stands beside same_modality; leave that true")


class Ranked(NamedTuple):
    """What is known of the candidates of one query before they are judged.

    Attributes:
        qid: the query.
        wanted: its known positives.
        own: candidates that show its own picture.
        dids: candidates by rank.
        scores: of each: cosines with the query, or what a run or its judge says.
        positives: id -> score of the positives that have one; scores of the same kind.
        likeness: highest cosine of each candidate with one of these; None where nothing is known.
        others: candidates of other modalities with their scores, the best to learn from first.
    """

    qid: str
    wanted: Collection[str]
    own: Collection[str]
    dids: list[str]
    scores: Float[np.ndarray, " ranks"]
    positives: dict[str, float]
    likeness: Float[np.ndarray, " ranks"] | None
    others: Mapping[str, float] = {}


class Mined(NamedTuple):
    """What was found for one query.

    Attributes:
        qid: the query.
        positives: id -> score, of those that have one.
        dids: candidates by rank, behind them those of other modalities.
        scores: of each.
        verdicts: ``kept``, or the reason of each rejection.
    """

    qid: str
    positives: dict[str, float]
    dids: list[str]
    scores: Float[np.ndarray, " ranks"]
    verdicts: list[str]

    @property
    def negatives(self) -> dict[str, float]:
        """Kept candidates with their scores, best first."""
        found = zip(self.dids, self.scores.tolist(), self.verdicts, strict=True)
        return {did: score for did, score, verdict in found if verdict == KEPT}

    @property
    def doubtful(self) -> list[str]:
        """Candidates that may be positives, best first."""
        return [d for d, reason in zip(self.dids, self.verdicts, strict=True) if reason in DOUBTFUL]


def by_run(
    run: RunTable,
    positives: Mapping[str, Collection[str]],
    own: Mapping[str, Collection[str]] | None = None,
    judge: RunTable | None = None,
) -> Iterator[Ranked]:
    """What a run says of its queries, whoever ranked or reranked it.

    Scores of positives are those of the run, so that a query whose positives were not found has
    none; no duplicates are known.

    Args:
        run: such as :func:`retrievers.evaluation.run_files.read_table` reads.
        positives: query id -> ids of its positives.
        own: query id -> candidates that show its own picture.
        judge: another run whose scores count in place of its own, such as a reranked one: the
            retriever says what is hard, the reranker what is false. What it lacks is left out.

    Raises:
        DataError: if the positives of a query are not known.
    """
    given = None if judge is None else judge.to_run()
    bounds = run.starts.tolist()
    for qid, start, stop in zip(run.qids.to_pylist(), bounds[:-1], bounds[1:], strict=True):
        if qid not in positives:
            raise DataError("is no query that has positives; mine from a run of these", qid)
        dids = run.ids.take(pa.array(run.rows[start:stop])).to_pylist()
        scores, wanted = run.scores[start:stop], set(positives[qid])
        if given is not None:
            judged = {hit.did: hit.score for hit in given.get(qid, ())}
            dids = [did for did in dids if did in judged]
            scores = np.array([judged[did] for did in dids], dtype=np.float32)
        known = {did: s for did, s in zip(dids, scores.tolist(), strict=True) if did in wanted}
        yield Ranked(qid, wanted, (own or {}).get(qid, ()), dids, scores, known, None)


def by_vectors(
    plan: Plan,
    candidates: Embeddings,
    queries: Embeddings,
    depth: int,
    device: str = "cpu",
    pool_of: Callable[[EvalTask], str] = lambda task: task.pool,
) -> Iterator[Ranked]:
    """The exact ranking of every query of a plan that has a vector, in the plan's order.

    Vectors are read where they lie: memory holds those of the positives and of the candidates
    found for one query, and what is found for a block of queries.

    Args:
        plan: see :func:`plan_mining`.
        candidates: vectors by row of the plan.
        queries: vectors by row of the plan's queries.
        depth: candidates of each query.
        device: where products are taken.
        pool_of: name of the pool that a task is searched in.
    """
    done, asked = candidates.done.numpy(), queries.done.numpy()
    for pool, group in groupby(spans(plan), key=lambda pair: pool_of(pair[0])):
        members = plan.pools[pool][done[plan.pools[pool]]]
        index = make_index("exact", device=device)
        candidates.add_to(index, plan.catalog.names(members), torch.from_numpy(members), "")
        for task, span in group:
            rows = span.start + np.flatnonzero(asked[span.start : span.stop])
            for start in range(0, len(rows), _SEARCHED):
                block = rows[start : start + _SEARCHED]
                vectors = queries.take(torch.from_numpy(block))
                found = index.search(vectors, min(depth, len(index)))
                for place, row in enumerate(block.tolist()):
                    query = task.queries[row - span.start]
                    near, scores = members[found.rows[place]], found.scores[place]
                    anchors, of_anchors = _anchors(query, plan, candidates)
                    likeness, own = None, {}
                    if anchors:
                        values = np.round(of_anchors @ vectors[place].double().numpy(), DECIMALS)
                        own = dict(zip(anchors, values.tolist(), strict=True))
                        others = candidates.take(torch.from_numpy(near)).double().numpy()
                        likeness = (others @ of_anchors.T).max(axis=1)
                    qid, dids = query.item.id, plan.catalog.names(near).to_pylist()
                    pictures = task.own.get(qid, ())
                    yield Ranked(qid, query.positives, pictures, dids, scores, own, likeness)


def _anchors(
    query: Query, plan: Plan, candidates: Embeddings
) -> tuple[list[str], Float[np.ndarray, "positives dim"]]:
    """The positives of a query that have a vector, and these."""
    rows = plan.catalog.rows_of(query.positives)
    known = np.flatnonzero(rows >= 0)
    known = known[candidates.done.numpy()[rows[known]]]
    vectors = candidates.take(torch.from_numpy(rows[known])).double().numpy()
    return [query.positives[place] for place in known], vectors


def beside(
    ranked: Iterable[Ranked], others: Iterable[Ranked], twins: Mapping[str, Sequence[str]]
) -> Iterator[Ranked]:
    """Two rankings of the same queries as one: of the wanted modality, and of the others.

    Args:
        ranked: candidates of the wanted modality.
        others: those of other modalities.
        twins: query id -> those of others that come first; they need not have been found.
    """
    for one, other in zip(ranked, others, strict=True):
        scores = dict(zip(other.dids, other.scores.tolist(), strict=True))
        first = {did: scores.get(did, math.nan) for did in twins.get(one.qid, ())}
        yield one._replace(others={**first, **scores})


def twins_of(plan: Plan) -> Mapping[str, Sequence[str]]:
    """Query id -> candidates of other modalities than it asks for that are of the same item.

    They show the picture, or have the text, of the query or of one of its positives.
    """
    wanted: dict[str, dict[str, Modality]] = defaultdict(dict)
    for query, target in plan.queries:
        rows = plan.catalog.rows_of(query.positives)
        for item in (query.item, *plan.catalog.items(rows[rows >= 0])):
            for name in _content(item):
                wanted[name][query.item.id] = target
    found: dict[str, list[str]] = defaultdict(list)
    for item in plan.catalog.items():
        asked = {q: one for name in _content(item) for q, one in wanted.get(name, {}).items()}
        for qid, target in asked.items():
            if item.modality != target:
                found[qid].append(item.id)
    return found


def _content(item: Item) -> list[str]:
    """Pictures and text of an item, which no other kind is mistaken for."""
    return [*item.images, *([f"\0{item.text.strip()}"] if item.text else [])]


def mine(ranked: Iterable[Ranked], config: MiningConfig) -> Iterator[Mined]:
    """Hard negatives of queries, in order, from what ranks before ``config.last``."""
    for one in ranked:
        others = list(one.others)
        apart = [_never(did, one) for did in others]
        scores, dids = one.scores[: config.last], one.dids[: config.last]
        twins = np.zeros(len(dids), dtype=bool)
        if config.duplicate is not None and one.likeness is not None:
            twins = one.likeness[: config.last] >= config.duplicate
        relative, absolute = _limits(list(one.positives.values()), config)
        best = max(one.positives.values(), default=np.inf)
        weak = config.min_positive is not None and best < config.min_positive
        verdicts = []
        for rank, (did, twin, score) in enumerate(zip(dids, twins, scores, strict=True), start=1):
            reasons = {
                (never := _never(did, one)): bool(never),
                "query without a positive that has a score": not one.positives,
                WEAK: weak,
                "near duplicate of a positive": twin,
                "above the rank range": rank < config.first,
                "relative margin": score > relative,
                "absolute margin": score > absolute,
                "highest score": config.max_score is not None and score >= config.max_score,
                "below the least score": config.min_score is not None and score < config.min_score,
            }
            # The first reason counts.
            verdicts.append(next((reason for reason, met in reasons.items() if met), ""))
        if weak:
            apart = [reason or WEAK for reason in apart]
        _pick(one.qid, apart, config, round(config.other_modality * config.per_query))
        _pick(one.qid, verdicts, config, config.per_query - apart.count(KEPT))
        every = np.concatenate([scores, np.fromiter(one.others.values(), np.float64)])
        yield Mined(one.qid, one.positives, dids + others, every, verdicts + apart)


def _never(did: str, one: Ranked) -> str:
    """Why a candidate can be no negative of a query, whatever its score; empty if it can."""
    if did in one.wanted:
        return "known positive"
    return "the query's own picture" if did in one.own else ""


def _limits(scores: list[float], config: MiningConfig) -> tuple[float, float]:
    """The relative and the absolute margin, as the highest score that a negative may have."""
    if not scores:
        return np.inf, np.inf
    levels = {"min": min(scores), "mean": sum(scores) / len(scores), "max": max(scores)}
    level = levels[config.positive_score]
    relative, absolute = config.relative_margin, config.absolute_margin
    return (
        np.inf if relative is None else level - relative * abs(level),
        np.inf if absolute is None else level - absolute,
    )


def _pick(qid: str, verdicts: list[str], config: MiningConfig, most: int) -> None:
    """Keep some of those that no reason speaks against."""
    open_places = [place for place, verdict in enumerate(verdicts) if not verdict]
    chosen = open_places[:most]
    if config.pick == "random":
        random = Random(f"{config.seed}:{qid}")  # noqa: S311
        chosen = random.sample(open_places, min(most, len(open_places)))
    for place in open_places:
        verdicts[place] = KEPT if place in chosen else "not needed"


@dataclass
class Tally:
    """What mining has done, for people.

    Attributes:
        verdicts: how many candidates met which fate.
        queries: all of them.
        short: queries with fewer negatives than wanted.
        none: those of them with none.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    queries: int = 0
    short: int = 0
    none: int = 0

    def add(self, mined: Mined, wanted: int) -> None:
        """Count one query."""
        kept = mined.verdicts.count(KEPT)
        self.verdicts.update(mined.verdicts)
        self.queries += 1
        self.short += kept < wanted
        self.none += kept == 0

    def table(self) -> str:
        """Reasons with counts and shares, then the queries that came out short."""
        total = sum(self.verdicts.values())
        lines = [
            f"{verdict:<36}{count:>12}{100 * count / total:>8.1f} %"
            for verdict, count in self.verdicts.most_common()
        ]
        lines.append(
            f"{self.queries} queries; {self.short} with fewer negatives than wanted, "
            f"{self.none} of them with none"
        )
        return "\n".join(lines)


def plan_mining(
    root: DataRoot,
    queries: Iterable[Query],
    find: Callable[[str], Item | None],
    config: MiningConfig,
) -> Plan:
    """Training queries, each once, by data set, task and wanted modality; and their pools.

    M-BEIR's local pools of MSCOCO hold no training candidates, so that the union pool of the
    training split is searched where there is one, cut to the query's data set and the wanted
    modality; candidates of other modalities are those of the whole union.

    Args:
        root: the data.
        queries: training queries, each with a positive in a pool.
        find: a candidate by id.
        config: says which candidates are searched.

    Raises:
        DataError: if a query has no candidate to be searched in.
    """
    plan = Plan()
    union = [file.path for file in root.union_pools() if file.dataset == "union_train"]
    for path in union or [file.path for file in root.pools()]:
        plan.add_pool(path.name, path)
    names: dict[str, int] = {}
    of = (_pool(item.dataset, item.modality, config) for item in plan.catalog.items())
    numbers = np.fromiter((names.setdefault(name, len(names)) for name in of), np.int32)
    plan.pools = {name: np.flatnonzero(numbers == number) for name, number in names.items()}
    groups: dict[tuple[str, int | None, Modality], dict[str, Query]] = defaultdict(dict)
    for query in queries:
        target = target_modality(query, find)
        groups[query.item.dataset, query.task, target].setdefault(query.item.id, query)
    for (dataset, task, target), members in groups.items():
        pool = _pool(dataset, target, config)
        if pool not in plan.pools:
            raise DataError(
                f"no {target} candidate of data set {dataset} to mine from; mining.scope=all "
                "searches those of all data sets",
                next(iter(members)),
            )
        others = f"not {target}"
        plan.tasks.append(EvalTask(dataset, task, list(members.values()), {}, pool, union=others))
        if config.other_modality and others not in plan.pools:
            differs = (item.modality != target for item in plan.catalog.items())
            plan.pools[others] = np.flatnonzero(np.fromiter(differs, bool))
    leave_out_own(plan, root.path, config.own_picture, root.excluded("train"))
    return plan


def _pool(dataset: str, modality: Modality, config: MiningConfig) -> str:
    scope = dataset if config.scope == "dataset" else _ALL
    return f"{scope}: {modality if config.same_modality else _ALL}"


def mine_negatives(
    ranker: Encoder | str | Path,
    data: MBeirData,
    out: str | Path,
    mining: MiningConfig = MiningConfig(),
    *,
    device: str | torch.device = "auto",
    precision: str = "32-true",
    allow_mismatch: bool = False,
    judge: str | Path | None = None,
) -> Tally:
    """Write hard negatives of the training queries for ``data.negatives.path``.

    Args:
        ranker: an encoder, whose weights are used as they are, or a TREC run of training queries
            (or a folder of them), such as a reranked one; see :func:`by_run`.
        data: the root, what is shown of it, and where vectors are kept and found again.
        out: folder of ``negatives.parquet`` and ``mining.json``.
        mining: which candidates become hard negatives.
        device: auto, cpu, cuda, cuda:N.
        precision: of embedding; 32-true, bf16-mixed or 16-mixed.
        allow_mismatch: show text of another recipe than the one trained on.
        judge: run, or folder of runs, whose scores count in place of the ranker's own run.

    Returns:
        What became of the candidates.

    Raises:
        DataError: if data is missing or malformed, a run has other queries, or an encoder has a
            judge.
        MismatchError: if the weights were trained on another text recipe.
    """
    about: dict[str, Any] = {"data": data.digest(), "mining": asdict(mining)}
    held: list[Query] = []  # for validation, of a root without a val split: never mined
    book, queries = data.training_queries(None if data.root.query_files("val") else held)
    plan = plan_mining(data.root, queries, book.find, mining)
    apart = bool(mining.other_modality)
    if not isinstance(ranker, Encoder):
        left_out, positives = {query.item.id for query in held}, defaultdict[str, set[str]](set)
        positives.update((qid, set()) for qid in left_out)
        for query in queries:
            positives[query.item.id].update(query.positives)
        own = {qid: dids for task in plan.tasks for qid, dids in task.own.items()}
        run, judged = _read(Path(ranker)), None if judge is None else _read(Path(judge))
        targets = {query.item.id: target for query, target in plan.queries}
        fits = fitting(plan.catalog, run, targets) if apart else np.ones(len(run.rows), bool)

        def trained_on(part: np.ndarray) -> Iterator[Ranked]:
            found = by_run(run.where(part), positives, own, judged)
            return (one for one in found if one.qid not in left_out)

        ranked, others = trained_on(fits), trained_on(~fits)
        about |= {"run": str(ranker), "judge": None if judge is None else str(judge)}
    else:
        if judge is not None:
            raise DataError("a judge scores what a run found; name that run in place of a model")
        if data.embeddings.parts > 1:
            raise DataError("mining needs all vectors; run it without data.embeddings.parts")
        vectors = embed(
            ranker, data, plan, device=device, precision=precision, allow_mismatch=allow_mismatch
        )
        about |= {
            "made_by": vectors.made_by,
            "text": data.recipe.fingerprint,
            "without_a_vector": int((~vectors.queries.done).sum()),
        }
        sides = (vectors.candidates, vectors.queries, mining.last, str(ranker.device))
        ranked, others = (by_vectors(plan, *sides, of) for of in map(attrgetter, ("pool", "union")))
    ranked = beside(ranked, others, twins_of(plan)) if apart else ranked
    return write_mined(ranked, mining, Path(out), about)


def _read(path: Path) -> RunTable:
    """A run, or all local ones of a folder as one."""
    if not path.is_dir():
        return read_table(path)
    runs = [read_table(files_of(path, task, "local")[0], empty=True).to_run()
            for task in tasks_of(path, "local")]  # fmt: skip
    return RunTable.from_run({qid: hits for run in runs for qid, hits in run.items()})


def write_mined(
    ranked: Iterable[Ranked], config: MiningConfig, folder: Path, about: Mapping[str, Any]
) -> Tally:
    """Mine and write what was found.

    Writes ``negatives.parquet`` (one row per query, for ``data.negatives.path``),
    ``candidates.parquet`` (every candidate looked at: rank, score, reason) if asked for, and
    ``mining.json``. Each appears when it is whole.

    Args:
        ranked: of :func:`by_vectors` or :func:`by_run`.
        config: what is kept.
        folder: where the tables go.
        about: what made the ranking, on which text and data; stored with the tables.
    """
    tally = Tally()
    made = {"made": json.dumps(about, sort_keys=True, default=str)}
    with ExitStack() as files:

        def table(name: str, schema: pa.Schema) -> Callable[[list[dict[str, Any]]], None]:
            partial = files.enter_context(replacing_path(folder / name))
            schema = schema.with_metadata(made)
            writer = parquet.ParquetWriter(partial, schema, write_page_checksum=True)
            files.enter_context(writer)
            return lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema=schema))

        kept = table("negatives.parquet", _NEGATIVES)
        seen = table("candidates.parquet", _CANDIDATES) if config.tables else None
        found = mine(ranked, config)
        while block := list(islice(found, _GROUP)):
            for mined in block:
                tally.add(mined, config.per_query)
            kept([_kept(mined) for mined in block])
            if seen is not None:
                seen([row for mined in block for row in _seen(mined)])
    summary = {
        **about,
        "queries": tally.queries,
        "short": tally.short,
        "none": tally.none,
        "verdicts": dict(tally.verdicts.most_common()),
        "sha256": sha256(folder / "negatives.parquet"),
    }
    write_json(folder / "mining.json", summary)
    return tally


def _kept(mined: Mined) -> dict[str, Any]:
    negatives = mined.negatives
    return {
        "qid": mined.qid,
        "positive_ids": list(mined.positives),
        "positive_scores": list(mined.positives.values()),
        "negative_ids": list(negatives),
        "negative_scores": list(negatives.values()),
        "doubtful_ids": mined.doubtful,
        "weak": WEAK in mined.verdicts,
    }


def _seen(mined: Mined) -> Iterator[dict[str, Any]]:
    scores = list(mined.positives.values())
    about = {"qid": mined.qid, "positive_score": float(np.mean(scores)) if scores else None}
    columns = zip(mined.dids, mined.scores.tolist(), mined.verdicts, strict=True)
    for rank, (did, score, verdict) in enumerate(columns, start=1):
        yield {**about, "did": did, "rank": rank, "score": score, "verdict": verdict}
