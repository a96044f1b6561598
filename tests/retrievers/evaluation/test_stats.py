import itertools

import numpy as np
import pytest

from augment.records import Hit
from retrievers.evaluation.run import write_run
from retrievers.evaluation.stats import (
    holm,
    macro_bootstrap,
    macro_randomisation,
    paired,
    paired_bootstrap,
    randomisation_test,
    scores_from_run,
)


def test_bootstrap_agrees_with_the_normal_interval():
    random = np.random.default_rng(1)
    a, b = random.normal(0, 1, 400), random.normal(0.3, 1, 400)
    interval = paired_bootstrap(a, b, seed=3)
    error = (b - a).std(ddof=0) / 20
    assert interval.mean == pytest.approx((b - a).mean())
    assert interval.low == pytest.approx((b - a).mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx((b - a).mean() + 1.96 * error, abs=0.1 * error)


def test_randomisation_agrees_with_all_sign_flips():
    a = np.zeros(9)
    b = np.array([0.3, 0.1, -0.2, 0.4, 0.2, 0.0, 0.1, 0.5, -0.1])
    sums = [abs(np.dot(signs, b)) for signs in itertools.product((-1, 1), repeat=9)]
    exact = np.mean([value >= abs(b.sum()) - 1e-9 for value in sums])
    assert randomisation_test(a, b, n=40_000) == pytest.approx(exact, abs=0.006)


def test_no_difference_gives_no_evidence():
    same = [1.0, 0.0, 1.0]
    assert paired_bootstrap(same, same) == (0.0, 0.0, 0.0)
    assert randomisation_test(same, same) == 1.0


def test_seeds_decide():
    a, b = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.5]
    assert paired_bootstrap(a, b, seed=1, n=500) == paired_bootstrap(a, b, seed=1, n=500)
    assert randomisation_test(a, b, seed=1) == randomisation_test(a, b, seed=1)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0])])
def test_unusable_scores_are_refused(a, b):
    with pytest.raises(ValueError, match="scores"):
        paired_bootstrap(a, b)


def test_scores_of_a_run_count_missing_queries(tmp_path):
    write_run(tmp_path / "a.trec", {"9:1": [Hit("9:5", 0.9), Hit("9:6", 0.8)]})
    (tmp_path / "a.qrels").write_text("9:1 0 9:6 1\n9:2 0 9:6 1\n")
    files = tmp_path / "a.trec", tmp_path / "a.qrels"
    assert scores_from_run(*files, "success@2") == {"9:1": 1.0, "9:2": 0.0}
    assert scores_from_run(*files, "success@1") == {"9:1": 0.0, "9:2": 0.0}
    assert scores_from_run(*files, "mrr@5") == {"9:1": 0.5, "9:2": 0.0}
    with pytest.raises(ValueError, match="metric"):
        scores_from_run(*files, "accuracy@1")


def test_pairs_must_be_about_the_same_queries():
    assert paired({"a": 1.0, "b": 0.0}, {"b": 0.5, "a": 0.0}) == ([1.0, 0.0], [0.0, 0.5])
    with pytest.raises(ValueError, match="different queries"):
        paired({"a": 1.0}, {"b": 1.0})


def test_counts_are_drawn_as_queries_would_be():
    """The interval of many queries with few distinct differences, against resampled queries."""
    random = np.random.default_rng(5)
    a, b = random.integers(0, 2, 300).astype(float), random.integers(0, 2, 300).astype(float)
    slow = (b - a)[random.integers(0, 300, (10_000, 300))].mean(axis=1)
    interval = paired_bootstrap(a, b, seed=1)
    assert interval.low == pytest.approx(np.quantile(slow, 0.025), abs=0.008)
    assert interval.high == pytest.approx(np.quantile(slow, 0.975), abs=0.008)


def test_tasks_weigh_alike_and_are_resampled_apart():
    random = np.random.default_rng(2)
    tasks = [
        (random.normal(0, 1, size), random.normal(gain, 1, size))
        for size, gain in ((400, 0.1), (50, 0.5))
    ]
    interval = macro_bootstrap(tasks, seed=3)
    differences = [b - a for a, b in tasks]
    assert interval.mean == pytest.approx(np.mean([d.mean() for d in differences]))
    error = np.sqrt(sum(d.var() / len(d) for d in differences)) / 2
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    exact = [(np.zeros(3), np.array([0.3, 0.1, -0.2])), (np.zeros(2), np.array([0.5, 0.25]))]
    means = [
        np.mean([np.mean(np.array(s[:3]) * exact[0][1]), np.mean(np.array(s[3:]) * exact[1][1])])
        for s in itertools.product((-1, 1), repeat=5)
    ]
    observed = np.mean([np.mean(b) for _, b in exact])
    want = np.mean([abs(mean) >= observed - 1e-12 for mean in means])
    assert macro_randomisation(exact, n=40_000) == pytest.approx(want, abs=0.006)


def test_holm_by_hand():
    """Holm 1979: the smallest times m, the next times m - 1, and never falling."""
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])
