"""Points of a budget curve against cascades of each depth, and its tokens against the records."""

import json

import numpy as np
import pytest

from augment.engines.scripted import ScriptedEngine
from augment.errors import DataError
from augment.store import Store
from retrievers.cli import main
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.evaluation.fusion import weighted_fusion
from retrievers.evaluation.run import RunTable
from retrievers.models.mllm.layout import CrossLayout, Layout
from retrievers.models.reranker import Pointwise
from retrievers.search.budget import budget, ordered
from retrievers.search.cascade import ScoreLog, rerank
from retrievers.search.rewriting import PairRewriting
from retrievers.vectors.search import test as search
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import make_root


def test_every_point_is_the_cascade_of_that_depth_and_costs_what_was_read(
    folders, tmp_path, monkeypatch, capsys
):
    root = make_root(tmp_path / "root", items=8)
    data = MBeirData(str(root), test=SearchConfig(depth=6))
    search(make(folders["qwen3"]), data, root / "first")
    judge = Pointwise(make(folders["qwen3"], layout=Layout(cross=CrossLayout(yes="a", no="e"))))
    engine = ScriptedEngine(root=root)
    monkeypatch.setattr("augment.enrichment.pipeline.load_engine", lambda *_, **__: engine)
    scored = {n: rerank(judge, data, root / "first", tmp_path / f"r{n}", n) for n in (2, 5)}
    rerank(judge, data, root / "first", tmp_path / "qar", 5,
           rewrite=PairRewriting(depth=3, model="scripted:"))  # fmt: skip
    made = [ScoreLog(tmp_path / name / "scores").made for name in ("r5", "qar")]
    given = [str(root / "first"), str(tmp_path / "r5"), str(tmp_path / "qar"),
             "--depths", "0", "2", "5", "50", "--out", str(tmp_path / "o")]  # fmt: skip
    assert main(["budget", *given]) == 0
    assert "recall@n" in capsys.readouterr().out
    assert (tmp_path / "o/budget.png").stat().st_size > 1000
    points = json.loads((tmp_path / "o/budget.json").read_text())["points"]
    by = {(p[0], p[1]): p for p in points}
    assert list(by) == [(name, n) for name in ("r5", "qar") for n in (0, 2, 5)], "50 is not known"
    for n, found in scored.items():
        local = [r for r in found.rows if r["pool"] == "local"]
        assert by["r5", n][4] == pytest.approx(np.mean([r["metrics"]["success@1"] for r in local]))
    assert by["r5", 0][2:4] == by["qar", 0][2:4] == [0, 0]
    for name in ("r5", "qar"):
        assert by[name, 2][3] < by[name, 5][3]
        assert all(p[4] <= p[6] + 1e-9 for p in points), "the cap"
    assert by["r5", 5][2] == by["r5", 5][3], "nothing was rewritten"
    log = ScoreLog(tmp_path / "r5" / "scores").tokens
    tasks = sorted({key[0] for key in log})
    per_query = [sum(t for (qid, _), t in log.items() if qid == one) for one in tasks]
    assert by["r5", 5][3] == pytest.approx(np.mean(per_query), rel=0.35)
    paid = sum(t.prompt_tokens + t.output_tokens for t in Store(tmp_path / "qar/rewritten"))
    assert 0 < by["qar", 5][2] - by["qar", 5][3] <= paid
    assert made == [0, 0], "nothing is scored by it"
    for path in (root / "first").glob("*.qrels"):  # now one query of each is asked, not judged
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    moved = (tmp_path / "qar").rename(tmp_path / "moved")
    again = budget(root / "first", [tmp_path / "r5", moved], tmp_path / "again", depths=[5]).points
    assert [p[2:4] for p in again] == [pytest.approx(by[n, 5][2:4]) for n in ("r5", "qar")]
    with pytest.raises(DataError, match="1 weights for 2"):
        budget(root / "first", [tmp_path / "r5"] * 2, tmp_path, weights=[tmp_path / "x.json"])


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_one_side_give_its_order_bit_for_bit(seed):
    """All weight on the first stage is the first stage, all on the judge is the judge's order."""
    random = np.random.default_rng(seed)
    qids, ids = ["1:1", "1:2"], [f"2:{n}" for n in range(20)]
    query, rows = np.repeat([0, 1], 9), np.concatenate([random.permutation(20)[:9] for _ in qids])
    run = RunTable(qids, ids, query, rows, random.random(18))
    head = run.cut(5)
    judged = RunTable(head.qids, head.ids, head.query, head.rows, random.random(10))

    def order(table):
        return {qid: [hit.did for hit in hits] for qid, hits in table.to_run().items()}

    first = order(run)
    assert order(ordered(run, head, judged, [1, 0])) == first
    best = order(weighted_fusion([judged, head], [1, 0]))
    want = {qid: [*best[qid], *first[qid][5:]] for qid in qids}
    for share in ([0, 1], None):
        assert order(ordered(run, head, judged, share)) == want
