import random

import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from augment.errors import DataError
from augment.records import Hit, Qrel
from retrievers.evaluation.metrics import (
    grades_of,
    means,
    mrr,
    ndcg_at_k,
    per_query,
    ranked,
    recall_at_k,
    success_at_k,
)
from retrievers.evaluation.run import read_run, write_run


def test_hand_computed_values():
    ranking = ["d3", "d1", "d7", "d2"]
    relevant = {"d1", "d2", "d9"}
    assert success_at_k(ranking, relevant, 1) == 0
    assert success_at_k(ranking, relevant, 2) == 1
    assert recall_at_k(ranking, relevant, 2) == pytest.approx(1 / 3)
    assert recall_at_k(ranking, relevant, 10) == pytest.approx(2 / 3)
    assert mrr(ranking, relevant) == 0.5
    assert mrr(ranking, relevant, 1) == 0
    # gains 0, 2, 0, 1 at ranks 1..4 against the ideal 3, 2, 1
    dcg = 2 / 1.5849625007211562 + 1 / 2.321928094887362
    ideal = 3 + 2 / 1.5849625007211562 + 1 / 2
    assert ndcg_at_k(ranking, {"d1": 2, "d2": 1, "d9": 3}, 4) == pytest.approx(dcg / ideal)


def test_nothing_relevant_or_found_is_zero():
    assert recall_at_k(["d1"], set(), 5) == 0
    assert ndcg_at_k([], {"d1": 1}, 5) == 0
    assert means({"success@1": {}}) == {"success@1": 0.0}


def test_ties_go_by_id_descending_like_trec_eval():
    assert ranked([Hit("a", 1.0), Hit("c", 1.0), Hit("b", 2.0)]) == ["b", "c", "a"]


def _random_case(seed):
    rng = random.Random(seed)
    documents = [f"{rng.randint(0, 3)}:{n}" for n in range(30)]
    grades = {
        f"q{n}": {d: rng.choice([-1, 0, 1, 2]) for d in rng.sample(documents, 8)} for n in range(12)
    }
    run = {
        qid: [Hit(d, rng.randint(0, 6) / 4) for d in rng.sample(documents, rng.randint(1, 25))]
        for qid in grades
        if rng.random() > 0.2
    }
    return grades, run


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pytrec_eval_with_ties_grades_and_missing_queries(seed):
    grades, run = _random_case(seed)
    ours = per_query(run, grades, ks=(1, 5, 10))
    oracle = pytrec_eval.RelevanceEvaluator(
        grades, {"success.1,5,10", "recall.1,5,10", "ndcg_cut.10"}
    ).evaluate({qid: {hit.did: hit.score for hit in hits} for qid, hits in run.items()})
    judged = [qid for qid, judged in grades.items() if max(judged.values()) > 0]
    for qid in judged:
        for k in (1, 5, 10):
            want = oracle.get(qid, {f"success_{k}": 0.0, f"recall_{k}": 0.0})
            assert ours[f"success@{k}"][qid] == want[f"success_{k}"]
            assert ours[f"recall@{k}"][qid] == pytest.approx(want[f"recall_{k}"])
        assert ours["ndcg@10"][qid] == pytest.approx(
            oracle.get(qid, {"ndcg_cut_10": 0})["ndcg_cut_10"]
        )
    assert set(ours["mrr@10"]) == set(judged)


@pytest.mark.parametrize("seed", range(4))
def test_mrr_equals_pytrec_eval(seed):
    grades, run = _random_case(seed)
    ours = per_query(run, grades, ks=(30,))["mrr@30"]
    oracle = pytrec_eval.RelevanceEvaluator(grades, {"recip_rank"}).evaluate(
        {qid: {hit.did: hit.score for hit in hits} for qid, hits in run.items()}
    )
    for qid in ours:
        assert ours[qid] == pytest.approx(oracle.get(qid, {"recip_rank": 0.0})["recip_rank"])


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.sets(st.sampled_from("abcdef")))
def test_more_depth_never_hurts(ranking, relevant):
    for metric in (success_at_k, recall_at_k, mrr):
        values = [metric(ranking, relevant, k) for k in range(1, 7)]
        assert values == sorted(values)


def test_grades_group_by_query():
    assert grades_of([Qrel("q", "a"), Qrel("p", "a", 2), Qrel("q", "b", 0)]) == {
        "q": {"a": 1, "b": 0},
        "p": {"a": 2},
    }


def test_run_file_round_trip_and_ties(tmp_path):
    path = tmp_path / "x" / "a.trec"
    write_run(
        path, {"9:1": [Hit("9:2", 0.5), Hit("9:10", 0.75), Hit("9:3", 0.5)], "9:2": []}, "tag"
    )
    assert path.read_text().splitlines()[0] == "9:1 Q0 9:10 1 0.750000 tag"
    assert read_run(path) == {"9:1": [Hit("9:10", 0.75), Hit("9:3", 0.5), Hit("9:2", 0.5)]}
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", "5 columns"),
        ("q Q0 d 1 high t", "'high' is not a number"),
        ("q Q0 d 1 nan t", "not finite"),
        ("q Q0 c 1 0.5 t", "stands twice"),
    ],
)
def test_bad_run_lines_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.trec"
    path.write_text(f"q Q0 c 1 0.5 t\n{line}\n")
    with pytest.raises(DataError, match=message) as error:
        read_run(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_tag_must_be_one_word(tmp_path):
    with pytest.raises(ValueError, match="one word"):
        write_run(tmp_path / "a.trec", {}, "two words")
