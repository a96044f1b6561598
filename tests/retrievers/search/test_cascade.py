"""A cascade against slow loops: order, ties, the cap, killed and resumed, and by the command."""

import json
import shutil
from functools import partialmethod
from itertools import pairwise

import numpy as np
import pytest
import torch

from augment.data import grades_of, read_qrels
from augment.data.pools import open_queries
from augment.engines.scripted import ScriptedEngine
from augment.errors import DataError, EngineError
from retrievers import Searcher
from retrievers.cli import main
from retrievers.data.module import MBeirData, SearchConfig
from retrievers.evaluation.evaluate import evaluate
from retrievers.evaluation.fusion import fuse
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_run, read_table, write_run
from retrievers.export.folder import save
from retrievers.models.load import load
from retrievers.models.mllm.layout import CrossLayout, Layout
from retrievers.models.reranker import Listwise, Pointwise
from retrievers.search.cascade import ScoreLog, in_order, rerank
from retrievers.search.page import Question, render_page
from retrievers.search.rewriting import PairRewriting
from retrievers.search.second_stage import Reranking
from retrievers.vectors.bm25 import bm25
from retrievers.vectors.search import test as search
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import make_root

WORDS = Layout(cross=CrossLayout(yes="a", no="e"))


@pytest.fixture(scope="module")
def world(folders, tmp_path_factory):
    """A root, its data, and the runs of an untrained first stage."""
    root = make_root(tmp_path_factory.mktemp("cascade") / "root", items=8)
    data = MBeirData(str(root), test=SearchConfig(depth=6))
    search(make(folders["qwen3"]), data, root / "first")
    return root, data


def test_the_best_are_in_the_order_of_scores_made_one_by_one(world, folders, tmp_path):
    root, data = world
    model = make(folders["qwen3"], layout=WORDS)
    found = rerank(Pointwise(model), data, root / "first", tmp_path, depth=4, batch=3)
    plan, reader = data.test_plan(), data.reader(model.collator())
    for task in plan.tasks:
        queries = {q.item.id: (q, t) for q, t in plan.queries}
        first, after = (read_run(f / f"{task.name}.local.trec") for f in (root / "first", tmp_path))
        for qid, hits in first.items():
            asked = reader.query(*queries[qid])
            singles = {
                h.did: float(Pointwise(model).score(asked, [reader.candidate(plan.find(h.did))]))
                for h in hits[:4]
            }
            assert [h.did for h in after[qid]] == sorted(singles, key=lambda d: -singles[d])
            assert {h.did: pytest.approx(h.score, abs=1e-5) for h in after[qid]} == singles
        judged = grades_of(read_qrels(tmp_path / f"{task.name}.qrels"))
        recall = [
            sum(h.did in judged[qid] for h in first[qid][:4]) / len(judged[qid]) for qid in judged
        ]
        row = next(r for r in found.rows if (r["task"], r["pool"]) == (task.task, "local"))
        assert row["cap"]["recall@4"] == pytest.approx(np.mean(recall))
        assert row["metrics"]["recall@5"] <= row["cap"]["recall@4"], "it is the cap"
        assert f"{100 * np.mean(recall):.2f} @4" in found.table()


def test_the_querys_own_picture_is_left_out_of_a_run_that_has_it(world, folders, tmp_path):
    root, _ = world
    data = MBeirData(str(root), test=SearchConfig(depth=6, own_picture="file"))
    own = data.test_plan().tasks[1].own
    name, first = "squares_task3.union.trec", tmp_path / "first"
    kept = read_run(root / "first" / name)
    lines = [f"{qid} Q0 {did} 1 9 t\n" for qid, dids in own.items() for did in dids]
    lines += [f"{q} Q0 {h.did} 2 {h.score} t\n" for q, hits in kept.items() for h in hits]
    first.mkdir()
    (first / name).write_text("".join(lines))
    shutil.copy(root / "first" / "squares_task3.qrels", first)
    shutil.copytree(root / "first", tmp_path / "x")
    rerank(Pointwise(make(folders["qwen3"], layout=WORDS)), data, first, tmp_path / "x", depth=4)
    assert [path.name for path in (tmp_path / "x").glob("*.trec")] == [name], "none of an earlier"
    after = read_run(tmp_path / "x" / name)
    assert len(own) == len(after) == 8
    for qid, hits in after.items():
        assert {h.did for h in hits} == {h.did for h in kept[qid][:4]}


def test_a_killed_rerank_goes_on_and_scores_nothing_twice(world, folders, tmp_path, monkeypatch):
    root, data = world
    judge = Pointwise(make(folders["qwen3"], layout=WORDS))
    rerank(judge, data, root / "first", tmp_path / "whole", depth=4, batch=2)
    scored, plain = [], Pointwise._scores

    def counting(self, query, candidates, most):
        if len(scored) >= most:
            raise KeyboardInterrupt
        scored.extend((query.text, query.id, c.id) for c in candidates)
        return plain(self, query, candidates)

    out = tmp_path / "killed"
    for most in (7, 30, 10_000):
        monkeypatch.setattr(Pointwise, "_scores", partialmethod(counting, most=most))
        try:
            rerank(judge, data, root / "first", out, depth=4, batch=2)
        except KeyboardInterrupt:
            log = max(out.glob("scores/*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
            log.write_bytes(log.read_bytes() + b'{"key":"torn')  # what a crash may leave
    assert len(scored) == len(set(scored)), "once each, over all three, in both pools"
    for path in (tmp_path / "whole").glob("*.trec"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    before = len(scored)
    rerank(judge, data, root / "first", out, depth=4)
    assert len(scored) == before, "nothing is left to score"
    rerank(judge, data, root / "first", out, depth=5)
    assert 0 < len(scored) - before == len(set(scored)) - before, "only what is deeper"
    torch.nn.init.normal_(judge.model.vlm.lm_head.weight)
    rerank(judge, data, root / "first", out, depth=4)
    assert len(scored) - before > before, "other weights score anew"


def test_orders_of_lists_are_kept_by_list(world, folders, tmp_path, monkeypatch):
    root, data = world
    layout = Layout(cross=CrossLayout(ask="?", yes="", no=""))
    judge = Listwise(make(folders["qwen3"], layout=layout))
    monkeypatch.setattr(Listwise, "_written", lambda self, query, given: (f"{len(given)}", 7))
    rerank(judge, data, root / "first", tmp_path, depth=3)
    for name in ("squares_task0.local.trec", "squares_task3.union.trec"):
        first, after = read_run(root / "first" / name), read_run(tmp_path / name)
        for qid, hits in first.items():
            assert [h.did for h in after[qid]] == [hits[n].did for n in (2, 0, 1)]
    made = json.loads((tmp_path / "cascade.json").read_text())["scored"]
    rerank(judge, data, root / "first", tmp_path, depth=3)
    assert json.loads((tmp_path / "cascade.json").read_text())["scored"] == 0 < made


@pytest.mark.parametrize("seed", range(5))
def test_ties_stay_as_in_the_first_stage_and_are_counted(seed, tmp_path):
    """Of equal scores, and of scores one step apart; also after writing and reading."""
    random = np.random.default_rng(seed)
    qids, ids = [f"1:{n}" for n in range(4)], [f"2:{n}" for n in range(30)]
    rows = np.concatenate([random.permutation(30)[:9] for _ in qids])
    first = RunTable(qids, ids, np.repeat(np.arange(4), 9), rows, random.random(36))
    step = np.nextafter(np.float32(0.5), np.float32(1))
    scores = random.choice(np.array([0.5, step, 0, -3.25], np.float32), 36)
    found = in_order(first, scores)
    write_run(tmp_path / "run.trec", found.run)
    again, ties = read_table(tmp_path / "run.trec").to_run(), 0
    of = {(q, ids[r]): s for q, r, s in zip(np.repeat(qids, 9), first.rows, scores, strict=True)}
    for qid, hits in first.to_run().items():
        before = [hit.did for hit in hits]
        want = sorted(before, key=lambda did: (-of[qid, did], before.index(did)))
        assert [hit.did for hit in again[qid]] == want
        ties += sum(of[qid, a] == of[qid, b] for a, b in pairwise(want))
        for hit in again[qid]:
            assert hit.score == pytest.approx(of[qid, hit.did], abs=1e-6)
    assert found.ties == ties > 0


def test_runs_of_other_data_are_refused(world, folders, tmp_path):
    root, data = world
    judge = Pointwise(make(folders["qwen3"], layout=WORDS))
    with pytest.raises(DataError, match="holds no run of test queries"):
        rerank(judge, data, tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="another one with --out"):
        rerank(judge, data, root / "first", root / "first")
    with pytest.raises(DataError, match="at least 1, got 0"):
        rerank(judge, data, root / "first", tmp_path / "out", depth=0)
    name = "squares_task0.local.trec"
    for qid, did, message in (
        ("7:1", "7:77", "candidate 7:77: is in the run and in no pool"),
        ("7:78", "7:1", "query 7:78: is in the run and not in the data"),
    ):
        (tmp_path / name).write_text(f"{qid} Q0 {did} 1 1.0 x\n")
        with pytest.raises(DataError, match=message):
            rerank(judge, data, tmp_path, tmp_path / "out")


def test_the_command_reranks_fuses_and_tells_the_cap(world, folders, tmp_path, capsys):
    root, _ = world
    folder = save(make(folders["qwen3"], layout=WORDS), tmp_path / "model")
    given = [f"--data.root={root}", f"--run={root / 'first'}", f"--out={tmp_path / 'out'}"]
    assert main(["rerank", f"--model={folder}", "--depth=3", *given]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "first stage's recall@n" in told
    assert "scores tied and stand as in the first stage" in told
    plain = save(make(folders["qwen3"]), tmp_path / "plain")
    assert main(["rerank", f"--model={plain}", *given]) == 2
    assert "not that of a pointwise reranker" in capsys.readouterr().err
    assert main(["embed", f"--model={folder}", given[0], f"--out={tmp_path}"]) == 2
    assert "it scores a query and a candidate together" in capsys.readouterr().err


def test_weights_of_dev_queries_are_kept_for_their_systems_alone(world, folders, tmp_path):
    root, data = world
    rerank(Pointwise(make(folders["qwen3"], layout=WORDS)), data, root / "first", tmp_path / "r", 4)
    runs, dev = [root / "first", tmp_path / "r"], [tmp_path / "dev1", tmp_path / "dev2"]
    for folder, own in zip(runs, dev, strict=True):
        own.mkdir()
        for path in [*folder.glob("*.trec"), *folder.glob("*.qrels")]:
            lines = [f"9{line}" for line in path.read_text().splitlines(keepends=True)]
            (own / path.name).write_text("".join(lines))
    tuned = fuse(runs, tmp_path / "one", dev=dev)
    kept = tmp_path / "one" / "fusion.json"
    fuse(runs, tmp_path / "two", weights_from=kept)
    for path in (tmp_path / "one").glob("*.trec"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert "@4" not in evaluate(tmp_path / "two", short=True).table(), "deeper hits: no cap"
    with pytest.raises(DataError, match="its weights were chosen for"):
        fuse(runs[::-1], tmp_path / "three", weights_from=kept)
    with pytest.raises(DataError, match="systems in another order"):
        fuse(runs, tmp_path / "three", dev=dev[::-1])
    kept.write_text(kept.read_text().replace(f'"metric": "{tuned.metric}"', '"metric": "map"'))
    with pytest.raises(DataError, match="holds no weights as --dev chose them"):
        fuse(runs, tmp_path / "three", weights_from=kept)


def test_candidates_are_rewritten_once_in_sight_of_each_query_and_read_so(
    world, folders, tmp_path, monkeypatch
):
    root, data = world
    judge = Pointwise(make(folders["qwen3"], layout=WORDS))
    seen, plain = {}, Pointwise._scores

    def watching(self, query, candidates):
        seen.update({(query.text, query.id, one.id): one.text for one in candidates})
        return plain(self, query, candidates)

    monkeypatch.setattr(Pointwise, "_scores", watching)
    engine = ScriptedEngine(lambda r: f"It is {len(r.text)} in sight of it.", root=root)
    monkeypatch.setattr("augment.enrichment.pipeline.load_engine", lambda *_, **__: engine)
    rewriting = PairRewriting(depth=2, model="scripted:")
    out = tmp_path / "out"
    rerank(judge, data, root / "first", out, depth=4, rewrite=rewriting)
    asked = len(engine.calls)
    for task in data.test_plan().tasks:
        for qid, hits in read_run(root / "first" / f"{task.name}.local.trec").items():
            best = {h.did for h in hits[:2]}
            texts = [t for (_, q, d), t in seen.items() if q == qid and d in best]
            assert texts, qid
            assert all(text.startswith("It is") for text in texts)
    assert any(text is None or not text.startswith("It is") for text in seen.values()), "deeper"
    told = json.loads((out / "cascade.json").read_text())
    assert told["rewrite"]["asked"] >= asked > 0
    tokens = ScoreLog(out / "scores").tokens
    assert len(tokens) == len({key[1:] for key in seen})
    assert min(tokens.values()) > 5
    seen.clear()
    rerank(judge, data, root / "first", out, depth=4, rewrite=rewriting)
    assert (len(engine.calls), seen) == (asked, {}), "a warm run asks and scores nothing"
    rerank(judge, data, root / "first", out, depth=4)
    assert seen, "without rewriting other texts are read"
    seen.clear()
    other = PairRewriting(depth=2, model="scripted:", prompt="tte/qar_shown")
    rerank(judge, data, root / "first", out, depth=4, rewrite=other)
    assert len(engine.calls) > asked, "another prompt, other keys"


def test_a_killed_rewriting_goes_on(world, folders, tmp_path, monkeypatch):
    root, data = world
    judge = Pointwise(make(folders["qwen3"], layout=WORDS))
    rewriting, asked = PairRewriting(depth=3, model="scripted:", batch_size=4), []
    for die_after in (9, None):
        engine = ScriptedEngine(root=root, die_after=die_after, batch_size=4)
        monkeypatch.setattr(
            "augment.enrichment.pipeline.load_engine", lambda *_, engine=engine, **__: engine
        )
        try:
            rerank(judge, data, root / "first", tmp_path, depth=3, rewrite=rewriting)
        except EngineError as error:
            assert "same command" in str(error)  # noqa: PT017 - and how to go on
        asked.append([request.text for request in engine.calls])
    kept = set(asked[0][:8])  # whole batches are saved
    assert len(kept) == 8
    assert not kept & set(asked[1])


def test_rewritings_that_cannot_be_meant_are_refused():
    with pytest.raises(DataError, match=r"rewrite\.depth -1"):
        PairRewriting(depth=-1)


@pytest.mark.parametrize("weights", [None, (0.3, 0.7)])
def test_a_live_search_orders_as_the_commands_do(world, folders, tmp_path, weights):
    """Every query of a task, typed, words first: a search of one query is that of a whole run."""
    root, _ = world
    data = MBeirData(str(root), instructions=False)
    judge = save(make(folders["qwen3"], layout=WORDS), tmp_path / "model")
    bm25(root, tmp_path / "first")
    rerank(Pointwise(load(judge)), data, tmp_path / "first", tmp_path / "last", depth=4)
    folder = tmp_path / "last"
    if weights:
        folder = tmp_path / "fused"
        fuse([tmp_path / "first", tmp_path / "last"], folder, weights=weights)
    run, first = (read_run(f / "squares_task0.union.trec") for f in (folder, tmp_path / "first"))
    searcher = Searcher.open("bm25", root)
    searcher.rerank_with(Reranking(str(judge), depth=4, weights=weights))
    moved = 0
    for query in open_queries(root / "query" / "test" / "mbeir_squares_task0_test.jsonl"):
        answer = searcher.search(query.item.text or "", k=100)
        wanted = run.get(query.item.id, [])
        assert [one.id for one in answer] == [hit.did for hit in wanted]
        assert [one.score for one in answer] == pytest.approx([h.score for h in wanted], abs=1e-4)
        before = [hit.did for hit in first.get(query.item.id, [])]
        for one in answer:
            assert before[one.cascade.rank - 1] == one.id
            assert (one.cascade.second is None) == (one.cascade.rank > 4)
            moved += one.cascade.rank != one.rank
    assert moved, "the reranker changed nothing"


def test_the_command_and_the_page_show_a_cascade(world, folders, tmp_path, capsys):
    root, _ = world
    judge = save(make(folders["qwen3"], layout=WORDS), tmp_path / "model")
    more = ["--reranker", str(judge), "--rewriter=scripted:", "--rewritten=2"]
    assert main(["search", "number", "--root", str(root), "--checkpoint=bm25", *more]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("(was ") == 8
    assert printed.out.count("rewritten") == 2
    assert "the best 50 were read again by" in printed.err
    searcher = Searcher.open("bm25", root)
    rewrite = PairRewriting(2, "scripted:")
    searcher.rerank_with(Reranking(str(judge), weights=(1, 1), rewrite=rewrite))
    answer = searcher.search("number", k=3)
    page = render_page({"words": searcher}, Question("number"), {"words": answer}, "", 1)
    assert page.count("was ") >= 3
    assert f"reranker {answer[0].cascade.second:.3f}" in page
    plain = save(make(folders["qwen3"]), tmp_path / "plain")
    for given, told in (
        (["--preset=x"], "name --reranker"),
        (["--reranker", str(plain)], "not that of a pointwise"),
        (["--reranker=flagland-clip"], "no reranker"),
        ([*more[:2], "--depth=101"], "1 to 100"),
    ):  # fmt: skip
        assert main(["search", "x", "--root", str(root), "--checkpoint=bm25", *given]) == 2
        assert told in capsys.readouterr().err
