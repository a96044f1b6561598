"""What tokens buy: quality of a cascade over the candidates that it reads, from what it has kept.

TTE-v2 (2602.23369) plots scores against the input tokens of a query. A reranked folder has the
scores of all its candidates, the tokens that each took and, where they were rewritten, those of
their texts: the points of smaller depths follow, and nothing is scored or asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from augment.data import grades_of, read_qrels
from augment.errors import DataError
from augment.files import markdown, read_json, write_json, write_text
from augment.records import Enrichment, Hit
from augment.store import Store, pair_id
from retrievers.evaluation.compare import Interval, compare_scores, files_of, tasks_of
from retrievers.evaluation.evaluate import CASCADE
from retrievers.evaluation.fusion import kept_weights, weighted_fusion
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_table
from retrievers.search.cascade import ScoreLog
from retrievers.search.rewriting import store_of

DEPTHS = (0, 5, 10, 20, 50, 100)


class BudgetPoint(NamedTuple):
    """A cascade that reads the best candidates of each query, means over tasks.

    Attributes:
        name: of the cascade.
        depth: candidates read.
        cold: tokens read and written behind the first stage, per query, nothing known before.
        warm: the same with all rewritten texts in the store.
        quality: mean of the metric.
        gain: over the first stage, paired, 95 %.
        cap: recall of the first stage at this depth (of success, whether there is any hit), which
            no order can exceed; at 0 its own score.
    """

    name: str
    depth: int
    cold: float
    warm: float
    quality: float
    gain: Interval
    cap: float


@dataclass(frozen=True)
class Budget:
    """Points of some cascades over one first stage.

    Attributes:
        metric: what quality is.
        points: by cascade, then depth.
    """

    metric: str
    points: Sequence[BudgetPoint]

    def __str__(self) -> str:
        rows = [
            [p.name, str(p.depth), f"{p.cold:.0f}", f"{p.warm:.0f}", f"{100 * p.quality:.1f}",
             p.gain, f"{100 * p.cap:.1f}"]
            for p in self.points
        ]  # fmt: skip
        head = ["cascade", "n", "tokens a query, cold", "warm", self.metric, "gain", "recall@n"]
        return markdown(head, rows)


def budget(
    first: Path,
    reranked: Sequence[Path],
    out: Path,
    *,
    depths: Sequence[int] = DEPTHS,
    weights: Sequence[Path] = (),
    names: Sequence[str] = (),
    metric: str = "success@1",
    pool: str = "local",
) -> Budget:
    """Quality of cascades against the tokens that they read, over the candidates of each query.

    Beyond the best n, candidates stand as in the first stage. Tokens are those behind the first
    stage: what a query costs it is the same at every point. Writes ``budget.json``, a table and a
    plot; nothing is scored or asked.

    Args:
        first: Folder of the first stage.
        reranked: Folders that ``rerank`` wrote from it, such as with and without rewriting.
        out: Folder of the results.
        depths: Candidates of each query; those beyond a folder's own depth are left out.
        weights: fusion.json of each reranked folder, tuned on dev; none takes their order alone.
        names: Of the reranked folders, in tables; none takes the folders' own.
        metric: Of quality.
        pool: local or union.

    Raises:
        DataError: if folders do not belong together, or weights were not tuned for them.
    """
    for told, given in (("weights", weights), ("names", names)):
        if given and len(given) != len(reranked):
            raise DataError(f"{len(given)} {told} for {len(reranked)} reranked folders")
    shares: list[Sequence[float] | None] = [None] * len(reranked)
    for place, path in enumerate(weights):
        shares[place] = kept_weights(path, [first, reranked[place]])
    points = []
    called = names or [folder.name for folder in reranked]
    for name, folder, share in zip(called, reranked, shares, strict=True):
        told = read_json(folder / CASCADE)
        deepest = max(run["depth"] for run in told["runs"].values())
        known = [n for n in sorted(set(depths)) if n <= deepest]
        if told.get("joint"):  # scores depend on the list that was read
            known = [n for n in known if n in (0, deepest)]
        spent = _Spent(folder, told)
        points += [_point(name, first, folder, n, share, spent, metric, pool) for n in known]
    found = Budget(metric, points)
    write_json(out / "budget.json", asdict(found), DataError)
    write_text(out / "budget.md", f"{found}\n")
    _plot(found, out / "budget.png")
    return found


class _Spent:
    """Tokens of pairs, as a reranked folder has them."""

    def __init__(self, folder: Path, told: Mapping[str, Any]) -> None:
        self._scored = ScoreLog(folder / "scores").tokens
        rewrite = told.get("rewrite")
        self._depth = rewrite["depth"] if rewrite else 0
        self._texts: Mapping[str, Enrichment] = {}
        if rewrite:
            self._texts = Store(store_of(folder, rewrite)).texts("corpus", rewrite["recipe"])

    def tokens(self, task: str, run: RunTable) -> tuple[int, int]:
        """Of rewriting and of scoring all candidates of a run; a text that is shared once."""
        written: dict[str, int] = {}
        scored = 0
        for qid, hits in run.to_run().items():
            scored += sum(self._scored.get((qid, hit.did), 0) for hit in hits)
            for hit in hits[: self._depth]:
                text = self._texts.get(pair_id(f"{task}/{qid}", hit.did))
                if text is not None:
                    written[text.key] = text.prompt_tokens + text.output_tokens
        return sum(written.values()), scored


def _point(
    name: str, first: Path, folder: Path, depth: int, share: Sequence[float] | None, spent: _Spent,
    metric: str, pool: str,
) -> BudgetPoint:  # fmt: skip
    pairs, caps, costs = {}, [], []
    for task in tasks_of(folder, pool):
        path, qrels = files_of(first, task, pool)
        run, judged = read_table(path, empty=True), Judgements(grades_of(read_qrels(qrels)))
        head = run.cut(depth) if depth else None
        read = read_table(files_of(folder, task, pool)[0], empty=True)
        after = run if head is None else ordered(run, head, read, share)
        before, behind = (score_run(one, judged, [metric]).of(metric) for one in (run, after))
        pairs[task] = before, behind
        any_hit = metric.partition("@")[0] in ("success", "mrr")
        cap = metric if head is None else f"{'success' if any_hit else 'recall'}@{depth}"
        caps.append(score_run(run if head is None else head, judged, [cap]).means()[cap])
        both = (0, 0) if head is None else spent.tokens(task, head)
        costs.append(np.array(both) / max(len(run), len(judged.qids), 1))
    row = compare_scores(pairs, metric=metric, pool=pool).rows[-1]
    written, scored = np.mean(costs, axis=0)
    return BudgetPoint(
        name, depth, float(written + scored), float(scored), row.second,
        row.difference, float(np.mean(caps)),
    )  # fmt: skip


def ordered(
    run: RunTable, head: RunTable, judged: RunTable, share: Sequence[float] | None
) -> RunTable:
    """The best of a run by a judge's scores, and behind them the rest as it stands.

    Args:
        run: the first stage.
        head: its best.
        judged: scores of these, and maybe of more.
        share: weights of the first stage and the judge; None takes the judge's order.
    """
    best = {qid: [hit.did for hit in hits] for qid, hits in head.to_run().items()}
    own = judged.only(best)
    top = (own if share is None else weighted_fusion([head, own], share)).to_run()
    return RunTable.from_run({
        qid: [Hit(did, -float(place)) for place, did in enumerate(
            dict.fromkeys([*(hit.did for hit in top.get(qid, ())), *(hit.did for hit in hits)]))]
        for qid, hits in run.to_run().items()
    })  # fmt: skip


def _plot(found: Budget, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in dict.fromkeys(point.name for point in found.points):
        own = [point for point in found.points if point.name == name]
        quality = [100 * point.quality for point in own]
        (line,) = axes.plot([p.cold for p in own], quality, marker="o", label=f"{name}, cold")
        axes.plot([p.warm for p in own], quality, marker=".", ls="--", color=line.get_color(),
                  label=f"{name}, warm")  # fmt: skip
    axes.plot([p.cold for p in own], [100 * p.cap for p in own], color="#8a939c", label="recall@n")
    axes.set_xlabel("tokens a query behind the first stage")
    axes.set_ylabel(f"{found.metric}, %")
    axes.set_xscale("symlog", linthresh=100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
