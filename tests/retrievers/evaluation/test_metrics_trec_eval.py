"""Equal to trec_eval: on its own test files, and to pytrec_eval on random runs."""

from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.data import grades_of, read_qrels
from augment.records import Hit
from retrievers.evaluation.judgements import Judgements
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_run, read_table, write_run
from tests.references import (
    average_precision,
    mrr,
    ndcg_at_k,
    precision_at_k,
    ranked,
    recall_at_k,
    success_at_k,
)

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "trec_eval"
needs_files = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")
CUTS = (5, 10, 15, 20, 30, 100, 200, 500, 1000)
#: our name -> trec_eval's.
NAMES = {
    "mrr": "recip_rank",
    "map": "map",
    "ndcg": "ndcg",
    **{f"success@{k}": f"success_{k}" for k in (1, 5, 10)},
    **{f"recall@{k}": f"recall_{k}" for k in CUTS},
    **{f"precision@{k}": f"P_{k}" for k in CUTS},
    **{f"ndcg@{k}": f"ndcg_cut_{k}" for k in CUTS},
    **{f"map@{k}": f"map_cut_{k}" for k in CUTS},
}


def expected(name):
    """trec_eval's output: metric -> query or "all" -> value."""
    values = {}
    for line in (FOLDER / name).read_text().splitlines():
        metric, qid, value = line.split("\t")
        values.setdefault(metric.strip(), {})[qid] = value
    return values


@needs_files
@pytest.mark.parametrize(
    ("qrels", "run", "output", "level", "depth"),
    [
        ("qrels.test", "results.test", "out.test.aq", 1, None),
        ("qrels.test.with-comments", "results.test", "out.test.aq", 1, None),
        ("qrels.rel_level", "results.test", "out.test.aql", 2, None),
        ("qrels.test", "results.trunc", "out.test.aqcM", 1, 100),
    ],
)
def test_equal_to_trec_eval_on_its_own_files(tmp_path, qrels, run, output, level, depth):
    # Comments are no part of the formats that we read.
    lines = (FOLDER / qrels).read_text().splitlines()
    (tmp_path / "qrels").write_text("\n".join(line for line in lines if line[0] != "#"))
    table = read_table(FOLDER / run)
    table = table if depth is None else table.cut(depth)
    grades = grades_of(read_qrels(tmp_path / "qrels"))
    scores = score_run(table, Judgements(grades, level, empty="zero"), NAMES)
    want = expected(output)
    for ours, theirs in NAMES.items():
        for qid, value in scores.of(ours).items():
            # With -c, trec_eval prints no line for a missing query but counts it.
            text = want[theirs].get(qid, "0.0000")
            assert f"{value:.4f}" == text or abs(value - float(text)) < 5.1e-5, (ours, qid)
        assert scores.means()[ours] == pytest.approx(float(want[theirs]["all"]), abs=5.1e-5), ours
    assert want["num_rel"]["all"] == str(
        sum(grade >= level for judged in grades.values() for grade in judged.values())
    )


dids = st.sampled_from([f"{n % 4}:{n}" for n in range(14)])
grades = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]),
    st.dictionaries(dids, st.sampled_from([-7, -2, -1, 0, 1, 2, 3]), min_size=1),
    min_size=1,
)
runs = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4", "q5"]),
    st.dictionaries(
        dids,
        st.sampled_from([0.0, -0.5, 0.5, 0.25, 1.0, 1.0 + 1e-9, 7.25, 1e-8, 31.000001, 31.000002]),
        min_size=1,
    ),
    min_size=1,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(runs, grades)
def test_equal_to_pytrec_eval_and_to_the_definitions(run, judged):
    hits = {qid: [Hit(*pair) for pair in found.items()] for qid, found in run.items()}
    ours = score_run(hits, Judgements(judged, empty="zero"), NAMES)
    assert list(ours.missing) == [qid for qid in judged if qid not in run]
    assert sorted(ours.unjudged) == sorted(run.keys() - judged.keys())
    positive = [qid for qid, own in judged.items() if max(own.values()) > 0]
    assert score_run(hits, judged, ["mrr"]).qids == positive
    slow(hits, judged, ours)
    # trec_eval (form_res_rels.c) makes its table of grades `highest grade + 1` long. Where all
    # grades of a query are below -1 that is negative, and clearing it runs over the heap: a crash,
    # or a process that never returns. Where they are all -1 the count of the query before stays.
    # {"p": {"a": 1}, "q": {"a": -2}} with the run {"p": {"a": 1}, "q": {"a": 1}} is enough. Other
    # negative grades are safe: judged, not relevant, without gain.
    safe = {qid: own for qid, own in judged.items() if max(own.values()) >= 0}
    both = {qid: found for qid, found in run.items() if qid in safe}
    if not both:
        return
    theirs = pytrec_eval.RelevanceEvaluator(
        safe, {"map", "ndcg", "recip_rank", "success", "recall", "P", "ndcg_cut", "map_cut"}
    ).evaluate(both)
    for name, other in NAMES.items():
        for qid, value in ours.of(name).items():
            want = theirs[qid][other] if qid in theirs else 0.0
            assert value == pytest.approx(want, abs=1e-9), (name, qid)


def slow(hits, judged, ours):
    for qid in judged:
        ranking = ranked(hits.get(qid, ()))
        relevant = {did for did, grade in judged[qid].items() if grade > 0}
        for k in (1, 5, 10):
            assert ours.of(f"success@{k}")[qid] == success_at_k(ranking, relevant, k)
        for k in (5, 10):
            assert ours.of(f"recall@{k}")[qid] == pytest.approx(recall_at_k(ranking, relevant, k))
            assert ours.of(f"precision@{k}")[qid] == precision_at_k(ranking, relevant, k)
            assert ours.of(f"ndcg@{k}")[qid] == pytest.approx(ndcg_at_k(ranking, judged[qid], k))
            assert ours.of(f"map@{k}")[qid] == pytest.approx(
                average_precision(ranking, relevant, k)
            )
        assert ours.of("mrr")[qid] == pytest.approx(mrr(ranking, relevant))
        assert ours.of("map")[qid] == pytest.approx(average_precision(ranking, relevant))
        assert ours.of("ndcg")[qid] == pytest.approx(ndcg_at_k(ranking, judged[qid]))


@settings(max_examples=60, deadline=None)
@given(runs)
def test_a_file_ranks_as_the_run_it_was_written_from(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("run") / "a.trec"
    hits = {qid: [Hit(*pair) for pair in found.items()] for qid, found in run.items()}
    write_run(path, hits)
    back = read_run(path)
    for qid, found in hits.items():
        assert [hit.did for hit in back[qid]] == ranked(found)
        wanted = {hit.did: np.float32(hit.score) for hit in found}
        assert {hit.did: np.float32(hit.score) for hit in back[qid]} == wanted


def test_a_search_result_in_order_is_not_sorted_again_and_one_out_of_order_is():
    rows, scores = np.array([[2, 0], [1, 2]]), np.array([[0.9, 0.9], [0.5, 0.7]])
    table = RunTable.from_search(["p", "q"], ["1:1", "1:2", "1:3"], rows, scores)
    assert {q: [h.did for h in hits] for q, hits in table.to_run().items()} == {
        "p": ["1:3", "1:1"],
        "q": ["1:3", "1:2"],
    }


ids = st.text('ab:-_.1é中",;', min_size=1, max_size=12)
scores = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.5, 0.123456, 9.999999, 10.0, 123.456789, 1e-7, 1e9, -3e20]),
    st.floats(-2, 2, width=32),
    st.integers(-(10**7), 10**7).map(lambda n: n / 1e6),
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(ids, st.dictionaries(ids, scores, max_size=12), max_size=8),
    st.sampled_from([1, 3, 1000]),
)
def test_the_lines_are_those_of_a_plain_loop(tmp_path_factory, run, block):
    hits = {qid: [Hit(*pair) for pair in found.items()] for qid, found in run.items()}
    path = tmp_path_factory.mktemp("run") / "a.trec"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrievers.evaluation.run_files._BLOCK", block)
        write_run(path, hits, "tag")
    assert path.read_text() == shown(hits)


def shown(hits):
    """Six decimals where a score reads back from them, else nine digits."""
    lines = []
    for qid, found in hits.items():
        score = {hit.did: np.float32(hit.score) for hit in found}
        for rank, did in enumerate(ranked(found), start=1):
            value = f"{score[did] + 0:.6f}".replace("-0.000000", "0.000000")
            if abs(score[did]) >= 1000 or np.float32(float(value)) != score[did]:
                value = f"{score[did]:.9g}"
            lines.append(f"{qid} Q0 {did} {rank} {value} tag\n")
    return "".join(lines)


def test_ids_of_very_uneven_length_and_results_that_found_fewer(tmp_path):
    dids = ["x" * 300, "y", "z" * 40, "unused"]
    rows = np.array([[0, 1, -1], [2, -1, -1]])
    found = np.array([[0.5, 0.25, -np.inf], [0.125, -np.inf, -np.inf]])
    table = RunTable.from_search(["p", "q"], dids, rows, found)
    write_run(tmp_path / "a", table, "t")
    assert (tmp_path / "a").read_text() == (
        f"p Q0 {'x' * 300} 1 0.500000 t\np Q0 y 2 0.250000 t\nq Q0 {'z' * 40} 1 0.125000 t\n"
    )
    assert len(RunTable.from_search(["p"], [*dids, *"abcdef"], rows[:1], found[:1]).ids) == 2
