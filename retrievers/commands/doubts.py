"""Likely missing judgements of a test set, for people: what a judge puts beside the positives."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from augment.data import grades_of, read_qrels, write_qrels
from augment.errors import DataError
from augment.files import say, write_text
from augment.records import Item, Qrel
from augment.store.page import thumbnail
from retrievers.data.module import MBeirData
from retrievers.data.plan import EvalTask, Plan
from retrievers.evaluation.compare import files_of
from retrievers.evaluation.run_files import read_table
from retrievers.search.mining import DOUBTFUL, MiningConfig, by_run, mine


class Doubt(NamedTuple):
    """A candidate that nobody has judged and that may be relevant.

    Attributes:
        qid: the query.
        did: the candidate.
        rank: in the run.
        score: of the judge.
        positives: the judge's scores of the known positives.
        why: the rule that names it.
    """

    qid: str
    did: str
    rank: int
    score: float
    positives: tuple[float, ...]
    why: str


def doubts(data: MBeirData, run: Path, judge: Path, out: Path, mining: MiningConfig) -> None:
    """List likely missing judgements: what a reranker puts beside the known positives.

    Writes the pairs to review, the best first, as qrels (``OUT/TASK.qrels``, which hold no others),
    and a page with texts and pictures, ``OUT/doubts.html``.

    Args:
        data: the root that was searched, and its split.
        run: folder that ``test``, ``bm25`` or ``fuse`` wrote; its judgements count.
        judge: folder of the same run, reranked.
        out: folder of what is to be reviewed.
        mining: margins in the judge's scores: absolute_margin, max_score.

    Raises:
        DataError: if the folders hold no run of this data.
    """
    if out.resolve() in (run.resolve(), judge.resolve()):
        raise DataError("its judgements would be written over; name another --out", str(out))
    plan = data.test_plan()
    found = {task.name: sorted(_of(task, run, judge, mining), key=lambda one: -one.score)
             for task in plan.tasks if files_of(run, task.name, "local")[0].is_file()}  # fmt: skip
    if not found:
        raise DataError(f"holds no run of {data.test.split} queries of {data.root.path}", str(run))
    codes = {task.name: task.task for task in plan.tasks}
    for name, own in found.items():
        rows = [Qrel(one.qid, one.did, 1, codes[name]) for one in own]
        write_qrels(out / f"{name}.qrels", rows, 4 if codes[name] is None else 5)
    write_text(out / "doubts.html", _page(plan, found, Path(data.root.path), out))
    counts = ", ".join(f"{name} {len(own)}" for name, own in found.items())
    say(f"pairs to review: {counts}\n{out}/doubts.html")


def _of(task: EvalTask, run: Path, judge: Path, mining: MiningConfig) -> Iterator[Doubt]:
    path, qrels = files_of(run, task.name, "local")
    grades = grades_of(read_qrels(qrels))
    positives = {q: [d for d, grade in own.items() if grade > 0] for q, own in grades.items()}
    judged = read_table(files_of(judge, task.name, "local")[0], empty=True)
    for mined in mine(by_run(read_table(path, empty=True), positives, task.own, judged), mining):
        rows = zip(mined.dids, mined.scores.tolist(), mined.verdicts, strict=True)
        for rank, (did, score, why) in enumerate(rows, 1):
            if why in DOUBTFUL and did not in grades[mined.qid]:
                yield Doubt(mined.qid, did, rank, score, tuple(mined.positives.values()), why)


def _page(plan: Plan, found: dict[str, list[Doubt]], root: Path, out: Path) -> str:
    asked = {query.item.id: query for query, _ in plan.queries}

    def shown(item: Item | None) -> str:
        if item is None:
            return "not in the pools"
        where = [thumbnail(root, image)[0] or "" for image in item.images]
        pictures = "".join(f'<img src="{one}" height="96" alt="">' for one in where)
        return f"{html.escape(item.id)}<br>{pictures} {html.escape(item.text or '')}"

    rows = [
        f"<tr><td>{name}<td>{shown(asked[one.qid].item)}"
        f"<td>{'<hr>'.join(shown(plan.find(did)) for did in asked[one.qid].positives[:2])}"
        f"<td>{shown(plan.find(one.did))}<td>{one.rank}<td>{one.score:.2f}"
        f"<td>{', '.join(f'{score:.2f}' for score in one.positives)}<td>{one.why}"
        for name, own in found.items() for one in own
    ]  # fmt: skip
    head = ("task", "query", "positive", "may be one, too", "rank", "score", "positives'", "why")
    return (
        "<!doctype html><meta charset=utf-8><title>Judgements to review</title>"
        f"<table border=1><tr><th>{'<th>'.join(head)}{''.join(rows)}</table>\n"
    )
