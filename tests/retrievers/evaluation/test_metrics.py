"""Metrics by hand, and what must hold of any ranking."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.data import grades_of
from augment.records import Hit, Qrel
from retrievers.evaluation.metrics import score_run
from tests.references import (
    average_precision,
    average_precision_capped,
    mrr,
    ndcg_at_k,
    recall_at_k,
    success_at_k,
)


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


def test_nothing_found_is_zero():
    assert score_run({}, {}, ["success@1"]).means() == {"success@1": 0.0}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_reciprocal_ranks_may_be_cut(k):
    run = {"p": [Hit(did, -n) for n, did in enumerate("abc")], "q": [Hit("x", 1.0)]}
    grades = {"p": {"b": 1, "c": 2}, "q": {"y": 1}}
    want = {"p": mrr("abc", {"b", "c"}, k), "q": 0.0}
    assert score_run(run, grades, [f"mrr@{k}"]).of(f"mrr@{k}") == want


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1),
    st.sets(st.sampled_from("abcdefgh"), min_size=1),
    st.integers(1, 9),
)
def test_both_mean_average_precisions(ranking, relevant, k):
    run = {"q": [Hit(did, -n) for n, did in enumerate(ranking)]}
    found = score_run(run, {"q": dict.fromkeys(relevant, 1)}, [f"map@{k}", f"map_capped@{k}"])
    assert found.of(f"map@{k}")["q"] == pytest.approx(average_precision(ranking, relevant, k))
    assert found.of(f"map_capped@{k}")["q"] == pytest.approx(
        average_precision_capped(ranking, relevant, k)
    )


@pytest.mark.parametrize(("positives", "plain"), [(3, 1), (5, 1), (8, 5 / 8)])
def test_a_perfect_run_has_a_capped_map_of_one(positives, plain):
    names = [f"d{n}" for n in range(positives)]
    run = {"q": [Hit(did, -n) for n, did in enumerate(names)]}
    found = score_run(run, {"q": dict.fromkeys(names, 1)}, ["map@5", "map_capped@5"])
    assert found.means() == {"map@5": plain, "map_capped@5": pytest.approx(1)}


def test_grades_group_by_query():
    found = grades_of([Qrel("q", "a"), Qrel("p", "a", 2), Qrel("q", "b", 0)])
    assert found == {"q": {"a": 1, "b": 0}, "p": {"a": 2}}
