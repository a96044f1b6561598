"""Mining against a plain loop over all candidates, and its command from end to end."""

import json

import pytest
import torch
from pyarrow import parquet
from torch.nn import functional

from augment.errors import DataError
from augment.records import Item, Query
from retrievers.cli import main
from retrievers.search.mining import KEPT, MiningConfig, Pool, Tally, mine
from tests.retrievers.models.test_retriever import make_config, make_root
from tests.retrievers.test_cli_retrievers import options, plain_options


def make_world(seed, candidates=40, queries=7, dim=5):
    random = torch.Generator().manual_seed(seed)
    vectors, asked = (
        functional.normalize(torch.randn(n, dim, generator=random), dim=1)
        for n in (candidates, queries)
    )
    vectors[3] = vectors[2]  # a duplicate
    ids = [f"1:{n}" for n in range(candidates)]
    pool = Pool(ids, vectors, {did: row for row, did in enumerate(ids)}.get)
    wanted = []
    for n in range(queries):
        best = (vectors @ asked[n]).argsort(descending=True)
        positives = (ids[int(best[4])], ids[int(best[9])], "1:999")[: 1 + n % 3]
        wanted.append(Query(Item(f"1:{n}", "q", (), "text"), 1, positives))
    wanted.append(Query(Item("1:8", "q", (), "text"), 1, ("1:2",)))
    return wanted, torch.cat([asked, vectors[2:3]]), pool


def loop(query, vector, pool, config):
    """Every candidate, judged one at a time in the order of its score."""
    scores = {did: float(v @ vector) for did, v in zip(pool.ids, pool.vectors, strict=True)}
    ranked = sorted(scores, key=lambda did: -scores[did])[: config.last]
    positives = [did for did in query.positives if did in scores]
    values = [scores[did] for did in positives]
    reference = {"min": min, "max": max, "mean": lambda v: sum(v) / len(v)}[config.positive_score]
    verdicts, kept = {}, 0
    for rank, did in enumerate(ranked, start=1):
        own = pool.vectors[pool.row(did)]
        twin = max(float(own @ pool.vectors[pool.row(p)]) for p in positives)
        level = reference(values)
        if did in query.positives:
            verdicts[did] = "known positive"
        elif config.duplicate is not None and twin >= config.duplicate:
            verdicts[did] = "near duplicate of a positive"
        elif rank < config.first:
            verdicts[did] = "above the rank range"
        elif (
            config.relative_margin is not None
            and scores[did] > level - abs(level) * config.relative_margin
        ):
            verdicts[did] = "relative margin"
        elif config.absolute_margin is not None and scores[did] > level - config.absolute_margin:
            verdicts[did] = "absolute margin"
        elif config.min_score is not None and scores[did] < config.min_score:
            verdicts[did] = "below the least score"
        elif kept == config.per_query:
            verdicts[did] = "not needed"
        else:
            verdicts[did], kept = KEPT, kept + 1
    return verdicts


@pytest.mark.parametrize(
    "config",
    [
        MiningConfig(per_query=3, last=12),
        MiningConfig(per_query=2, first=4, last=20, relative_margin=None, absolute_margin=0.15),
        MiningConfig(per_query=40, last=40, positive_score="min", min_score=-0.2),
        MiningConfig(per_query=5, last=99, positive_score="max", duplicate=None),
    ],
)
def test_mining_equals_the_loop(config):
    queries, vectors, pool = make_world(0)
    found = list(mine(queries, vectors, pool, pool, config, block=3))
    assert [m.qid for m in found] == [q.item.id for q in queries]
    for query, vector, mined in zip(queries, vectors, found, strict=True):
        want = loop(query, vector, pool, config)
        assert dict(zip(mined.dids, mined.verdicts, strict=True)) == want
        assert list(mined.negatives) == [did for did, v in want.items() if v == KEPT]
        assert not set(mined.negatives) & set(query.positives)
        own = {did: float(pool.vectors[pool.row(did)] @ vector) for did in mined.positives}
        assert mined.positives == pytest.approx(own, abs=1e-6)
    if config.duplicate is not None:
        assert "1:3" not in found[-1].negatives


def test_random_picks_are_seeded_and_from_those_that_may_be_kept():
    queries, vectors, pool = make_world(1)
    top = MiningConfig(per_query=40, last=40)
    may = [set(m.negatives) for m in mine(queries, vectors, pool, pool, top)]
    drawn = MiningConfig(per_query=2, last=40, pick="random", seed=3)
    first, again = ([list(m.negatives) for m in mine(queries, vectors, pool, pool, drawn)]
                    for _ in range(2))  # fmt: skip
    assert first == again
    assert all(set(some) <= all_ for some, all_ in zip(first, may, strict=True))


def test_a_query_without_an_embedded_positive_keeps_nothing():
    _, vectors, pool = make_world(2)
    query = Query(Item("1:1", "q", (), "text"), 1, ("1:777",))
    (mined,) = mine([query], vectors[:1], pool, pool, MiningConfig(last=5))
    assert set(mined.verdicts) == {"query without an embedded positive"}
    tally = Tally()
    tally.add(mined, 8)
    assert "1 of them with none" in tally.table()


def test_ranges_that_hold_nothing_are_refused():
    with pytest.raises(DataError, match="5 to 4"):
        MiningConfig(first=5, last=4)
    with pytest.raises(DataError, match="per_query must be at least 1"):
        MiningConfig(per_query=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    return make_root(folder / "root"), make_config(folder), folder


def test_the_command_mines_and_training_reads_it(world, tmp_path, capsys):
    # Vectors of a random model lie close together.
    near = ["--mining.relative_margin=null", "--mining.duplicate=null"]
    wanted = ["--mining.per_query=3", "--mining.last=8", *near]
    untrained = ["--model=ClipScoreFusion", f"--model.model_name={world[1]}"]
    arguments = [*plain_options(world, tmp_path / "mined"), *untrained, *wanted]
    assert main(["mine", *arguments]) == 0
    told = capsys.readouterr().out
    assert "known positive" in told
    assert f"{tmp_path}/mined/negatives.parquet" in told
    summary = json.loads((tmp_path / "mined" / "mining.json").read_text())
    assert (summary["queries"], summary["none"], summary["without_a_vector"]) == (40, 0, 0)
    kept = parquet.read_table(tmp_path / "mined" / "negatives.parquet").to_pylist()
    seen = parquet.read_table(tmp_path / "mined" / "candidates.parquet").to_pylist()
    assert len(kept) == 40
    assert len(seen) == 40 * 8 == sum(summary["verdicts"].values())
    assert {len(row["negative_ids"]) for row in kept} == {3}
    for row in kept:  # task 0 asks for pictures, 7:1 to 7:20; task 3 for texts
        number = int(row["qid"][2:])
        assert row["positive_ids"] == [row["qid"]]
        assert {int(did[2:]) <= 20 for did in row["negative_ids"]} == {number <= 20}
        assert row["qid"] not in row["negative_ids"]
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
    by_verdict = {row["verdict"] for row in seen}
    assert {KEPT, "not needed"} <= by_verdict
    assert parquet.read_schema(tmp_path / "mined" / "negatives.parquet").metadata[b"made"]

    more = [f"--data.negatives.path={tmp_path / 'mined'}", "--data.negatives.per_query=2"]
    more += ["--model.objective.distillation.kind=margin_mse", "--trainer.max_steps=2"]
    more += ["--trainer.log_every_n_steps=1"]
    assert main(["fit", *options(world, tmp_path / "fit"), *more]) == 0
    assert (tmp_path / "mined" / "embeddings" / "corpus" / "manifest.json").is_file()
    header = next((tmp_path / "fit").glob("logs/*/metrics.csv")).read_text().splitlines()[0]
    assert "train/distillation" in header
