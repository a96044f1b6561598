import random

import pytest

from augment.errors import DataError
from augment.records import Hit
from retrievers.evaluation.fusion import reciprocal_rank_fusion, tune_weights, weighted_fusion
from retrievers.evaluation.run import RunTable
from tests.references import ranked


def make(seed, queries=6):
    rng = random.Random(seed)
    return {
        f"1:{n}": [
            Hit(f"1:{d}", rng.choice([0.5, 1.25, -2.0, 3.5]))
            for d in rng.sample(range(20), rng.randint(1, 9))
        ]
        for n in range(queries)
        if rng.random() < 0.8
    }


def slow_rrf(runs, k):
    scores = {}
    for run in runs:
        for qid, hits in run.items():
            for rank, did in enumerate(ranked(hits), start=1):
                own = scores.setdefault(qid, {})
                own[did] = own.get(did, 0) + 1000 / (k + rank)
    return scores


def slow_weighted(runs, weights):
    scores = {}
    for run, weight in zip(runs, weights, strict=True):
        for qid, hits in run.items():
            low, high = (f(hit.score for hit in hits) for f in (min, max))
            for hit in hits:
                own = scores.setdefault(qid, {})
                part = (hit.score - low) / (high - low) if high > low else 1.0
                own[hit.did] = own.get(hit.did, 0) + weight * part
    return scores


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_definitions(seed):
    runs = [make(seed), make(seed + 100), make(seed + 200)]
    tables = [RunTable.from_run(run) for run in runs]
    for table, want in (
        (reciprocal_rank_fusion(tables, 60), slow_rrf(runs, 60)),
        (weighted_fusion(tables, (2, 1, 1)), slow_weighted(runs, (0.5, 0.25, 0.25))),
    ):
        found = table.to_run()
        assert found.keys() == want.keys()
        for qid, hits in found.items():
            rounded = {did: round(score, 6) for did, score in want[qid].items()}
            assert {hit.did: pytest.approx(hit.score, abs=2e-6) for hit in hits} == rounded
            assert [hit.did for hit in hits] == ranked(hits)


def test_depth_cuts_and_late_ranks_stay_apart():
    run = RunTable.from_run({"q": [Hit(f"1:{n:04d}", -n) for n in range(1200)]})
    fused = reciprocal_rank_fusion([run, run])
    assert [hit.did for hit in fused.to_run()["q"]] == [f"1:{n:04d}" for n in range(1200)]
    assert reciprocal_rank_fusion([run, run], depth=3).depth == 3


def test_tuned_weights_are_the_best_of_the_grid():
    right = {"q": [Hit("a", 0.9), Hit("b", 0.1)], "p": [Hit("a", 0.1), Hit("b", 0.9)]}
    wrong = {"q": [Hit("b", 5.0), Hit("a", 1.0)], "p": [Hit("a", 5.0), Hit("b", 1.0)]}
    dev = [([RunTable.from_run(run) for run in (right, wrong)], {"q": {"a": 1}, "p": {"b": 1}})]
    tuned = tune_weights(dev, "mrr")
    assert tuned.score == 1.0
    assert tuned.alone == (1.0, 0.5)
    # Above one half the right run wins; the least lopsided such weights are taken.
    assert tuned.weights == (0.6, 0.4)
    assert tuned.queries == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: weighted_fusion([a, b], [1, -1]), "none negative"),
        (lambda a, b: weighted_fusion([a, b], [0, 0]), "all weights are 0"),
        (lambda a, b: reciprocal_rank_fusion([a]), "at least two"),
        (lambda a, b: reciprocal_rank_fusion([a, b]), "share no query"),
        (lambda a, b: tune_weights([]), "no dev task"),
        (lambda a, b: tune_weights([([a, a], {"x": {"y": 0}})]), "no judged query"),
    ],
)
def test_runs_that_cannot_be_fused_are_refused(call, message):
    a = RunTable.from_run({"q": [Hit("a", 1.0)]})
    b = RunTable.from_run({"other": [Hit("a", 1.0)]})
    with pytest.raises(DataError, match=message):
        call(a, b)
