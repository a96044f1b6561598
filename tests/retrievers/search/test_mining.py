"""Mining against a plain loop over all candidates, and its command from end to end."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch.nn import functional

from augment.data import DataRoot, write_candidates
from augment.errors import DataError
from augment.records import Item, Query
from retrievers.cli import main
from retrievers.data.module import MBeirData, ValidationConfig
from retrievers.data.negatives import HardNegatives
from retrievers.data.plan import EvalTask, Plan
from retrievers.evaluation.run import RunTable
from retrievers.search import mining
from retrievers.search.mining import (
    KEPT,
    MiningConfig,
    Ranked,
    Tally,
    beside,
    by_run,
    by_vectors,
    mine,
    mine_negatives,
    plan_mining,
    twins_of,
    write_mined,
)
from retrievers.vectors.rows import Embeddings
from tests.retrievers.test_cli_retrievers import options, plain_options


class World:
    """A pool of vectors and queries with positives in it, as a plan and as plain values."""

    def __init__(self, folder, seed, candidates=40, queries=7, dim=5):
        random = torch.Generator().manual_seed(seed)
        self.vectors, asked = (
            functional.normalize(torch.randn(n, dim, generator=random), dim=1)
            for n in (candidates, queries)
        )
        self.vectors[3] = self.vectors[2]  # a duplicate
        self.ids = [f"1:{n}" for n in range(candidates)]
        self.queries = []
        for n in range(queries):
            best = (self.vectors @ asked[n]).argsort(descending=True)
            positives = (self.ids[int(best[4])], self.ids[int(best[9])], "1:999")[: 1 + n % 3]
            self.queries.append(Query(Item(f"1:{n}", "q", (), "text"), 1, positives))
        self.queries.append(Query(Item("1:8", "q", (), "text"), 1, ("1:2",)))
        self.asked = torch.cat([asked, self.vectors[2:3]])
        path = folder / "pool.jsonl"
        write_candidates(path, [Item(did, did, (), "text") for did in self.ids])
        self.plan = Plan()
        self.plan.add_pool("pool", path)
        self.plan.tasks = [
            EvalTask("one", 1, self.queries[:3], {}, "pool"),
            EvalTask("two", 1, self.queries[3:], {}, "pool"),
        ]

    def ranked(self, config, without=()):
        """The ranking of all queries, but for those whose numbers are given."""
        rooms = []
        for vectors, left_out in ((self.vectors, ()), (self.asked, without)):
            rows = torch.tensor([n for n in range(len(vectors)) if n not in left_out])
            room = Embeddings(len(vectors))
            room.put(rows, vectors[rows])
            rooms.append(room)
        return by_vectors(self.plan, *rooms, config.last)


@pytest.fixture(params=[0, 1])
def small(request, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "_SEARCHED", 3)
    return World(tmp_path, request.param)


def loop(query, vector, world, config):
    """Every candidate, judged one at a time in the order of its score; ties by id."""
    own = dict(zip(world.ids, world.vectors, strict=True))
    scores = {did: round(float(v @ vector), 6) for did, v in own.items()}
    ranked = sorted(sorted(scores, reverse=True), key=lambda did: -scores[did])[: config.last]
    positives = [did for did in query.positives if did in scores]
    values = [scores[did] for did in positives]
    level = {"min": min, "max": max, "mean": lambda v: sum(v) / len(v)}[config.positive_score](
        values
    )
    verdicts, kept = {}, 0
    for rank, did in enumerate(ranked, start=1):
        twin = max(float(own[did] @ own[p]) for p in positives)
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
def test_mining_equals_the_loop(small, config):
    found = list(mine(small.ranked(config), config))
    assert [m.qid for m in found] == [q.item.id for q in small.queries]
    for query, vector, mined in zip(small.queries, small.asked, found, strict=True):
        want = loop(query, vector, small, config)
        assert dict(zip(mined.dids, mined.verdicts, strict=True)) == want
        assert list(mined.negatives) == [did for did, v in want.items() if v == KEPT]
        assert not set(mined.negatives) & set(query.positives)
        own = {
            did: float(small.vectors[small.ids.index(did)] @ vector)
            for did in query.positives
            if did in small.ids
        }
        assert mined.positives == pytest.approx(own, abs=1e-6)
    if config.duplicate is not None:
        assert "1:3" not in found[-1].negatives


def test_the_own_picture_of_a_query_is_no_negative(small):
    config = MiningConfig(per_query=40, last=40, relative_margin=None, duplicate=None)
    before = next(mine(small.ranked(config), config))
    own = next(iter(before.negatives))
    small.plan.tasks[0].own = {"1:0": [own, *before.positives]}
    after = next(mine(small.ranked(config), config))
    assert own in before.negatives
    assert list(after.negatives) == [did for did in before.negatives if did != own]
    assert after.verdicts[after.dids.index(own)] == "the query's own picture"
    assert set(after.positives) == set(before.positives)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_wrong_modality_negatives_equal_the_loop(tmp_path, share):
    """Twins first (same picture or text as the query or its positive), then the nearest."""
    pool = {}
    for n in range(36):
        kind = ("text", "image", "image,text")[n % 3]
        dataset = 1 + n // 24
        text = f"words {n % 7}" if "text" in kind else None
        images = (f"{n % 5}.jpg",) if "image" in kind else ()
        pool[f"{dataset}:{n}"] = Item(f"{dataset}:{n}", text, images, kind)
    write_candidates(tmp_path / "cand_pool/global/mbeir_union_train_cand_pool.jsonl", pool.values())
    texts, images = ([did for did, one in pool.items() if one.modality == kind and did < "2"]
                     for kind in ("text", "image"))  # fmt: skip
    queries = [
        Query(Item(f"1:{n}", None, (f"{n}.jpg",), "image"), 3, (texts[n],)) for n in range(4)
    ]
    queries += [
        Query(Item(f"1:{n}", f"words {n}", (), "text"), 0, (images[n],)) for n in range(4, 7)
    ]
    values = torch.randn(len(pool) + len(queries), 4, generator=torch.Generator().manual_seed(1))
    vectors = functional.normalize(values, dim=1)
    settings = {"last": 12, "per_query": 4, "relative_margin": None, "duplicate": None}
    config = MiningConfig(**settings, other_modality=share)
    plan = plan_mining(DataRoot(tmp_path), queries, pool.get, config)
    rooms = [Embeddings(len(pool)), Embeddings(len(queries))]
    for room, own in zip(rooms, vectors.split([len(pool), len(queries)]), strict=True):
        room.put(torch.arange(len(own)), own)
    same, others = (by_vectors(plan, *rooms, 12, "cpu", lambda task, name=name: getattr(task, name))
                    for name in ("pool", "union"))  # fmt: skip
    found = list(mine(beside(same, others, twins_of(plan)), config))
    assert [mined.qid for mined in found] == [query.item.id for query in queries]
    for n, (query, mined) in enumerate(zip(queries, found, strict=True)):
        target = "text" if query.task == 3 else "image"
        scores = {did: round(float(vectors[row] @ vectors[len(pool) + n]), 6)
                  for row, did in enumerate(pool)}  # fmt: skip
        content = [query.item, pool[query.positives[0]]]
        words, shown = {one.text for one in content}, {i for one in content for i in one.images}
        wrong = [did for did in pool if pool[did].modality != target]
        twins = [did for did in wrong
                 if pool[did].text in words - {None} or set(pool[did].images) & shown]  # fmt: skip
        near = sorted(wrong, key=lambda did: -scores[did])[:12]
        ranked = [*twins, *(did for did in near if did not in twins)]
        kept = ranked[: round(4 * share)]
        right = [did for did in pool if pool[did].modality == target and did < "2"]
        right = sorted(set(right) - set(query.positives), key=lambda did: -scores[did])
        assert set(mined.negatives) == {*kept, *right[: 4 - len(kept)]}
        assert mined.dids[-len(ranked) :] == ranked
        assert all(mined.negatives[did] == pytest.approx(scores[did], abs=1e-6)
                   for did in mined.negatives if did in near or did in right)  # fmt: skip


def test_queries_without_a_vector_are_passed_over(small):
    found = [m.qid for m in mine(small.ranked(MiningConfig(), without=(1, 5)), MiningConfig())]
    assert found == ["1:0", "1:2", "1:3", "1:4", "1:6", "1:8"]


def test_random_picks_are_seeded_and_from_those_that_may_be_kept(small):
    def drawn(**settings):
        config = MiningConfig(last=40, **settings)
        return {m.qid: list(m.negatives) for m in mine(small.ranked(config), config)}

    may = drawn(per_query=40)
    first = drawn(per_query=2, pick="random", seed=3)
    assert first == drawn(per_query=2, pick="random", seed=3)
    assert all(set(some) <= set(may[qid]) for qid, some in first.items())
    assert first != drawn(per_query=2, pick="random", seed=4)
    # Each query's draw is its own: the first places are not drawn for all of them.
    places = {tuple(may[qid].index(did) for did in some) for qid, some in first.items()}
    assert len(places) > 1


def test_any_run_is_mined_from_by_its_own_scores():
    # A reranker's scores: d1 is a positive, d2 is within the margin of it, q2's was not found.
    run = RunTable(
        ["q1", "q2"],
        [f"d{n}" for n in range(6)],
        [0, 0, 0, 0, 0, 1, 1],
        [0, 1, 2, 3, 4, 0, 5],
        [0.99, 0.8, 0.78, 0.7, 0.1, 0.5, 0.4],
    )
    config = MiningConfig(per_query=1, last=4, relative_margin=0.05)
    first, second = mine(by_run(run, {"q1": ["d1", "d9"], "q2": ["d1"]}), config)
    assert first.positives == pytest.approx({"d1": 0.8})
    assert first.verdicts == ["relative margin", "known positive", "relative margin", KEPT]
    assert set(second.verdicts) == {"query without a positive that has a score"}
    tally = Tally()
    tally.add(second, 8)
    assert "1 of them with none" in tally.table()
    with pytest.raises(DataError, match="q1: is no query that has positives"):
        list(by_run(run, {"q2": ["d1"]}))


def test_a_flipped_bit_of_a_table_is_noticed(tmp_path):
    dids, scores = [f"d{n}" for n in range(9)], np.linspace(0.5, 0.1, 9, dtype=np.float32)
    ranked = [Ranked(f"q{n}", ["p"], (), dids, scores, {"p": 0.9}, None) for n in range(50)]
    write_mined(ranked, MiningConfig(), tmp_path, {})
    table = tmp_path / "negatives.parquet"
    whole = table.read_bytes()
    alone = tmp_path / "alone" / "negatives.parquet"  # no mining.json: its pages have checksums
    alone.parent.mkdir()
    queries = [Query(Item(f"q{n}", "", (), "text"), 1) for n in range(50)]
    right = [HardNegatives(table, 1).of(query) for query in queries]
    assert all(found.negatives for found in right)
    for place in range(0, len(whole), 41):
        for path in (table, alone):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"is not the table that mining\.json tells of; mine"):
            HardNegatives(table, 1)
        with contextlib.suppress(DataError):
            assert [HardNegatives(alone, 1).of(query) for query in queries] == right


def test_ranges_that_hold_nothing_are_refused():
    with pytest.raises(DataError, match="5 to 4"):
        MiningConfig(first=5, last=4)
    with pytest.raises(DataError, match="per_query must be at least 1"):
        MiningConfig(per_query=0)
    with pytest.raises(DataError, match=r"a share, 0 to 1; got 1\.5"):
        MiningConfig(other_modality=1.5)
    with pytest.raises(DataError, match="leave that true"):
        MiningConfig(other_modality=0.5, same_modality=False)


def test_queries_held_out_for_validation_are_never_mined(world, tmp_path):
    """A run of the train split has them, where a root has no val split."""
    root = tmp_path / "root"
    shutil.copytree(world[0], root)
    shutil.rmtree(root / "query" / "val", ignore_errors=True)
    data = MBeirData(str(root), validation=ValidationConfig(holdout=0.3))
    held = []
    _, trained = data.training_queries(held)
    run = tmp_path / "train.trec"
    run.write_text("".join(f"{q.item.id} Q0 {did} 1 {score} r\n" for q in (*trained, *held)
                           for did, score in ((q.item.id, 0.9), ("7:1", 0.5), ("7:30", 0.5))
                           if did != q.item.id or score == 0.9))  # fmt: skip
    mine_negatives(run, data, tmp_path / "mined", MiningConfig(per_query=1, relative_margin=None))
    found = parquet.read_table(tmp_path / "mined" / "candidates.parquet").column("qid").to_pylist()
    assert set(found) == {query.item.id for query in trained}
    assert len(held) > 3


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

    # A run of the same queries, in place of a model's ranking.
    run = tmp_path / "reranked.trec"
    run.write_text("".join(
        f"{row['qid']} Q0 {did} 1 {score} r\n"
        for row in kept
        for did, score in [
            (row["qid"], 0.9), *((did, 0.5) for did in row["negative_ids"][:2]),
            # The picture that a query of task 3 shows.
            *((f"7:{int(row['qid'][2:]) - 20}", 0.6) for _ in "1" if int(row["qid"][2:]) > 20),
        ]
    ))  # fmt: skip
    again = [f"--run={run}", "--mining.per_query=1", "--mining.own_picture=content"]
    assert main(["mine", *plain_options(world, tmp_path / "again"), *again]) == 0
    second = parquet.read_table(tmp_path / "again" / "negatives.parquet").to_pylist()
    assert {row["qid"]: max(row["negative_ids"]) for row in second} == {
        row["qid"]: max(row["negative_ids"][:2]) for row in kept
    }
    assert all(row["positive_scores"] == pytest.approx([0.9]) for row in second)

    # A share of other modalities: what has the query's text or picture needs no place in the run.
    apart = [f"--run={run}", "--mining.per_query=2", "--mining.other_modality=0.5"]
    assert main(["mine", *plain_options(world, tmp_path / "apart"), *apart]) == 0
    for row in parquet.read_table(tmp_path / "apart" / "negatives.parquet").to_pylist():
        twin = (int(row["qid"][2:]) + 19) % 40 + 1
        assert (twin <= 20) == (int(row["qid"][2:]) > 20)
        assert f"7:{twin}" in row["negative_ids"]
        right = [did for did in row["negative_ids"] if did != f"7:{twin}"]
        assert {int(did[2:]) <= 20 for did in right} == {twin > 20}

    more = [f"--data.negatives.path={tmp_path / 'mined'}", "--data.negatives.per_query=2"]
    more += ["--model.objective.distillation.kind=margin_mse", "--trainer.max_steps=2"]
    more += ["--trainer.log_every_n_steps=1"]
    assert main(["fit", *options(world, tmp_path / "fit"), *more]) == 0
    assert (tmp_path / "mined" / "embeddings" / "corpus" / "manifest.json").is_file()
    header = next((tmp_path / "fit").glob("logs/*/metrics.csv")).read_text().splitlines()[0]
    assert "train/distillation" in header
