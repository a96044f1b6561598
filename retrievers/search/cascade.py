"""A first stage's best candidates, rewritten for the query, in a reranker's order: resumable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32
from tqdm import tqdm

from augment.data import grades_of, read_qrels
from augment.errors import DataError, StoreWriteError
from augment.files import digest, write_json
from augment.store.log import Log, encode, read
from retrievers.data.datasets import Reader
from retrievers.data.module import MBeirData
from retrievers.data.plan import Content, EvalTask, Plan, PlanItems
from retrievers.data.texts import check_recipe
from retrievers.evaluation.evaluate import CASCADE, Evaluated, evaluate
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.results import forget_runs, spans
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_table, write_run
from retrievers.models.reranker import Reranker
from retrievers.search.rewriting import PairRewriting, Retrieved, RewrittenPairs, rewrite_pairs
from retrievers.vectors.embed import device_named
from retrievers.vectors.rows import item_keys


@final
class ScoreLog:
    """Scores by what was read, on disk as soon as they are made; a torn end is passed over.

    Args:
        folder: any number of processes may write into it, each its own file.

    Attributes:
        made: scores added by this process.
        tokens: query and candidate -> tokens that were read for their latest score.
    """

    def __init__(self, folder: Path) -> None:
        self.made = 0
        self._log: Log | None = None
        self._folder = folder
        self._known: dict[str, float] = {}
        self.tokens: dict[tuple[str, str], int] = {}
        for path in sorted(folder.glob("*.jsonl")):
            with path.open("rb") as file:
                for line in read(file):
                    if line.record is not None:
                        self._take(line.record)

    def _take(self, record: Mapping[str, Any]) -> None:
        self._known[record["key"]] = record["score"]
        if "tokens" in record:
            self.tokens[record["qid"], record["did"]] = record["tokens"]

    def get(self, key: str) -> float | None:
        """The score that was made of this, None if none was."""
        return self._known.get(key)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep scores: ``key`` and ``score``, and whatever else tells people what they are.

        The cascade's have ``qid``, ``did``, and the ``tokens`` that were read for the score.
        """
        try:
            self._log = self._log or Log(self._folder)
            for record in records:
                self._log.append(encode(record))
                self._take(record)
        except OSError as error:
            raise StoreWriteError(
                f"{self._folder}: scores cannot be written ({error.strerror}); those before are "
                "safe, make room and run the same command again"
            ) from error
        self.made += len(records)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._log is not None:
            self._log.close()


class Reranked(NamedTuple):
    """A run in a reranker's order.

    Attributes:
        run: the candidates that were scored, and no others.
        ties: hits of the score of the one before; they stand as in the first stage, and are told
            apart by the last bit of their scores.
    """

    run: RunTable
    ties: int


@final
@dataclass(frozen=True)
class Rerank:
    """The best of a run by what a scorer gives them.

    Args:
        scorer: reads a query and its candidates.
        plan: what the run was searched in.
        reader: renders and loads.
        root: data root.
        made_by: what makes the scores, text included.
        kept: scores that are made already.
        batch: candidates scored, and written down, at a time.
        rewritten: candidates' texts in sight of the queries; None shows their own.
    """

    scorer: Reranker
    plan: Plan
    reader: Reader
    root: Path
    made_by: str
    kept: ScoreLog
    batch: int = 8
    rewritten: RewrittenPairs | None = None

    def __call__(self, run: RunTable, task: EvalTask, depth: int) -> Reranked:
        """Score the best ``depth`` of each query, those in the log not again.

        Raises:
            DataError: if queries or candidates are not in the plan, or a score is no number.
        """
        first = run.cut(depth)
        scores = np.zeros(len(first.rows), dtype=np.float32)
        found = self._found(first, task)
        for own, query, dids, rows in tqdm(
            found, total=len(first.qids), desc=task.name, leave=False, disable=None
        ):
            scores[own] = self._scores(query, dids, rows)
        return in_order(first, scores)

    def retrieved(self, run: RunTable, task: EvalTask) -> Iterator[Retrieved]:
        """Each query with each of its candidates, as they are handed to a rewriting.

        Raises:
            DataError: if queries or candidates are not in the plan.
        """
        for _, query, _, rows in self._found(run, task):
            name, asked = self._name(query), self._query(query).text or ""
            for row in rows.tolist():
                item = self.plan.item(row)
                yield Retrieved(name, asked, replace(item, text=self.reader.recipe.candidate(item)))

    def _found(
        self, run: RunTable, task: EvalTask
    ) -> Iterator[tuple[slice, int, list[str], np.ndarray]]:
        """Of each query its hits in the run, its row, and ids and rows of its candidates."""
        places = {query.item.id: place for place, query in enumerate(task.queries)}
        before = next(span.start for own, span in spans(self.plan) if own is task)
        for number, qid in enumerate(run.qids.to_pylist()):
            if qid not in places:
                raise DataError(
                    "is in the run and not in the data; name the root and the split that were "
                    "searched", f"query {qid}",
                )  # fmt: skip
            own = slice(int(run.starts[number]), int(run.starts[number + 1]))
            dids = run.ids.take(pa.array(run.rows[own])).to_pylist()
            rows = self.plan.catalog.rows_of(dids)
            for row, did in zip(rows.tolist(), dids, strict=True):
                if row < 0:
                    raise DataError("is in the run and in no pool of this root", f"candidate {did}")
            yield own, before + places[qid], dids, rows

    def _scores(
        self, query: int, dids: list[str], rows: np.ndarray
    ) -> Float32[np.ndarray, " candidates"]:
        texts = [self._text(query, int(row)) for row in rows]
        keys = self._keys(query, rows, texts)
        known = {key: score for key in keys if (score := self.kept.get(key)) is not None}
        missing = [n for n, key in enumerate(keys) if key not in known]
        step = len(missing) if self.scorer.joint else self.batch
        items = PlanItems(self.plan, "corpus", self.reader)
        asked = self._asked[query] if missing else None
        for start in range(0, len(missing), max(step, 1)):
            part = missing[start : start + step]
            assert asked is not None  # noqa: S101 - something is missing
            made = self.scorer.judge(asked, [items[rows[n]]._replace(text=texts[n]) for n in part])
            records = [
                {"key": keys[n], "qid": asked.id, "did": dids[n], "score": score, "tokens": tokens}
                for n, score, tokens in zip(part, made.scores.tolist(), made.tokens.tolist(),
                                            strict=True)
            ]  # fmt: skip
            self.kept.add(records)
            known.update((record["key"], record["score"]) for record in records)
        return np.array([known[key] for key in keys], dtype=np.float32)

    @cached_property
    def _asked(self) -> PlanItems:
        return PlanItems(self.plan, "query", self.reader)

    def _name(self, query: int) -> str:
        """A query by its task too, because its instruction depends on it."""
        return self._asked.names([query])[0]

    def _query(self, query: int) -> Content:
        asked, target = self.plan.queries[query]
        return Content(asked.item.id, self.reader.recipe.query(asked, target), asked.item.images)

    def _text(self, query: int, row: int) -> str | None:
        """What is shown of a candidate's text to a query's judge."""
        item = self.plan.item(row)
        text = self.reader.recipe.candidate(item)
        return text if self.rewritten is None else self.rewritten(self._name(query), item.id, text)

    def _keys(self, query: int, rows: np.ndarray, texts: Sequence[str | None]) -> list[str]:
        """Hashes of all that is read for each candidate; of all of them where they are joint."""
        items = [self.plan.item(int(row)) for row in rows]
        contents = [self._query(query)]
        contents += [Content(item.id, text, item.images)
                     for item, text in zip(items, texts, strict=True)]  # fmt: skip
        first, *rest = [key.hex() for key in item_keys(contents, self.root).tolist()]
        together = rest if self.scorer.joint else []
        return [digest([self.made_by, first, key, together]) for key in rest]


def in_order(first: RunTable, scores: Float32[np.ndarray, " hits"]) -> Reranked:
    """A run by other scores; equal ones stay in its own order, and are counted.

    Args:
        first: the order that settles ties.
        scores: of its hits.
    """
    order = np.lexsort((np.arange(len(scores)), -scores, first.query))
    query, values = first.query[order], scores[order].astype(np.float32)
    same = query[1:] == query[:-1]
    ties = int((same & (values[1:] == values[:-1])).sum())
    # A run file knows scores and ids alone: one step of float32 says what stands before what.
    for place in np.flatnonzero(same & (values[1:] >= values[:-1])).tolist() if ties else ():
        while place < len(same) and same[place] and values[place + 1] >= values[place]:
            values[place + 1] = np.nextafter(values[place], np.float32(-np.inf))
            place += 1
    return Reranked(RunTable(first.qids, first.ids, query, first.rows[order], values), ties)


def rerank(
    scorer: Reranker,
    data: MBeirData,
    run: str | Path,
    out: str | Path,
    depth: int = 50,
    *,
    batch: int = 8,
    device: str | torch.device = "auto",
    allow_mismatch: bool = False,
    rewrite: PairRewriting = PairRewriting(),  # noqa: B008 - frozen
) -> Evaluated:
    """Rerank the runs of a folder; runs, judgements and ``cascade.json`` go to another.

    Scores lie in OUT/scores as soon as they are made. A run that was killed goes on where it stood,
    and no pair of the same content is scored twice by the same weights, at whatever depth. The
    result is put together with its first stage by :func:`retrievers.evaluation.fusion.fuse`.

    Args:
        scorer: reads a query and a candidate together; moved to the device.
        data: the root that was searched, what is shown of it, and its split (``data.test``).
        run: folder that ``test``, ``bm25`` or ``fuse`` wrote.
        out: folder of the reranked runs.
        depth: candidates of each query that are scored; the others are left out.
        batch: candidates scored at a time.
        device: auto, cpu, cuda, cuda:N.
        allow_mismatch: show text of another recipe than the one trained on.
        rewrite: the best candidates' texts in sight of the query, before they are scored.

    Returns:
        Scores of the reranked runs, with the first stage's recall at this depth, which caps them.

    Raises:
        DataError: if the folder holds no run of this data, a run has queries or candidates that the
            data lacks, or a score is no number.
        EngineError: if the rewriting model cannot be had, or ends before all is asked.
        MismatchError: if the weights were trained on another text recipe.
    """
    if depth < 1 or batch < 1:
        raise DataError(f"depth and batch must be at least 1, got {depth} and {batch}")
    source, target = Path(run), Path(out)
    model, plan = scorer.model, data.test_plan()
    if model.trained_on is not None:
        check_recipe(model.trained_on, data.recipe.fingerprint, allow_mismatch)
    files = list(_files(plan.tasks, source))
    if not files or source.resolve() == target.resolve():
        raise DataError(
            f"holds no run of {data.test.split} queries of {data.root.path}; name a folder that "
            "`test` or `bm25` wrote, and another one with --out",
            str(source),
        )
    model.to(device_named(device))
    made_by = scorer.made_by(data.recipe.fingerprint)
    reader = data.reader(model.collator())
    stage = Rerank(
        scorer, plan, reader if scorer.pictures else reader._replace(images=None),
        data.root.path, made_by,
        ScoreLog(target / "scores"), batch,
    )  # fmt: skip
    runs = {name: (task, read_table(source / name, empty=True).without(task.own))
            for task, name in files}  # fmt: skip
    about: dict[str, Any] = {"run": str(source), "made_by": made_by, "model": model.settings()}
    if rewrite.depth:
        pairs = chain.from_iterable(
            stage.retrieved(first.cut(min(rewrite.depth, depth)), task)
            for task, first in runs.values()
        )
        made = rewrite_pairs(pairs, rewrite, data.root.path, target / "rewritten")
        stage = replace(stage, rewritten=made)
        kept = replace(rewrite, store=rewrite.store or str(target / "rewritten"))
        about["rewrite"] = {**asdict(kept), "recipe": made.recipe, "asked": made.asked}
        made_by = digest([made_by, made.recipe, rewrite.depth, rewrite.view])[:16]
    stages: dict[str, Any] = {}
    try:
        for name, (task, first) in runs.items():
            found = stage(first, task, depth)
            write_run(target / name, found.run, made_by)
            shutil.copyfile(source / f"{task.name}.qrels", target / f"{task.name}.qrels")
            judged = grades_of(read_qrels(target / f"{task.name}.qrels"))
            cap = score_run(first.cut(depth), judged, [f"recall@{depth}"]).means()
            stages[name] = {**cap, "depth": depth, "ties": found.ties, "hits": len(found.run.rows)}
    finally:
        stage.kept.close()
    forget_runs(target, (task.name for task in plan.tasks), runs)
    (target / "fusion.json").unlink(missing_ok=True)
    about |= {"runs": stages, "scored": stage.kept.made, "joint": scorer.joint}
    write_json(target / CASCADE, about, DataError)
    return evaluate(target)


def _files(tasks: Sequence[EvalTask], folder: Path) -> Iterator[tuple[EvalTask, str]]:
    for task in tasks:
        for pool in ("local", "union"):
            if (folder / f"{task.name}.{pool}.trec").is_file():
                yield task, f"{task.name}.{pool}.trec"
