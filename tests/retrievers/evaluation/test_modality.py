"""Modalities of results in a union pool, against plain loops over random runs."""

import random
from collections import Counter

import pytest

from augment.data import DataRoot, write_candidates, write_queries
from augment.records import Hit, Item, Query
from retrievers.cli import main
from retrievers.data.plan import plan_test
from retrievers.evaluation.evaluate import evaluate
from retrievers.evaluation.results import Lost, Results, score, write_results
from retrievers.evaluation.run import RunTable
from tests.references import success_at_k

KINDS = ("text", "image", "image,text")


@pytest.mark.parametrize("seed", range(5))
def test_what_was_asked_and_what_was_found(tmp_path, seed, capsys):
    rng = random.Random(seed)
    pool = {}
    for n in range(30):
        kind = rng.choice(KINDS)
        images = (f"e\u0301{n % 9}.jpg",) if "image" in kind else ()
        pool[f"9:{n}"] = Item(f"9:{n}", "words" if "text" in kind else None, images, kind)
    write_candidates(tmp_path / "cand_pool/local/mbeir_x_task3_cand_pool.jsonl", pool.values())
    texts = [did for did, item in pool.items() if item.modality == "text"]
    queries = [
        Query(Item(f"9:{n}", None, (f"./\u00e9{n % 9}.jpg",), "image"), 3, (rng.choice(texts),))
        for n in range(40)
    ]
    grades = {query.item.id: {query.positives[0]: 1} for query in queries}
    run = {
        query.item.id: [Hit(did, 2.0**-n) for n, did in enumerate(rng.sample(list(pool), 8))]
        for query in queries[:35]  # the others were not found anything
    }
    write_queries(tmp_path / "query/test/mbeir_x_task3_test.jsonl", queries)
    plan = plan_test(DataRoot(tmp_path), "test", True, None, None)
    runs = {("x_task3", name): RunTable.from_run(run) for name in ("local", "union")}
    results = score(plan, runs, Lost([], []), Lost([], []), "made")
    local, union = results.rows
    assert local.modality is None
    seen = union.modality
    ranked = {qid: [pool[hit.did] for hit in hits] for qid, hits in run.items()}
    fits = {qid: [item.modality == "text" for item in items] for qid, items in ranked.items()}
    assert seen.at_1 == pytest.approx(sum(own[0] for own in fits.values()) / 40)
    assert seen.at_5 == pytest.approx(sum(sum(own[:5]) / 5 for own in fits.values()) / 40)
    kept = {qid: [i.id for i in items if i.modality == "text"] for qid, items in ranked.items()}
    hits = [success_at_k(kept.get(qid, []), set(own), 1) for qid, own in grades.items()]
    assert seen.filtered == pytest.approx(sum(hits) / 40)
    fails = {"own": 0, "modality": 0, "item": 0}
    for query in queries[:35]:
        first = ranked[query.item.id][0]
        if first.id in query.positives:
            continue
        wrong = "item" if first.modality == "text" else "modality"
        fails["own" if (first.image or "")[-5:] == query.item.image[-5:] else wrong] += 1
    assert [seen.own_picture, seen.wrong_modality, seen.wrong_item] == [
        pytest.approx(count / 40) for count in fails.values()
    ]
    assert seen.found == {"text": dict(Counter(found[0].modality for found in ranked.values()))}
    lost = seen.own_picture + seen.wrong_modality + seen.wrong_item
    assert lost + union.metrics["success@1"] == pytest.approx(35 / 40)
    assert "asked, then found first" in results.notes()
    assert "asked, then found first" not in Results([local], "made").notes()
    assert seen.success == union.metrics["success@1"]

    # The same of the run's files, and what no pool holds is of no modality.
    folder = tmp_path / "run"
    write_results(folder, plan, results)
    rows = {row["pool"]: row for row in evaluate(folder, root=tmp_path).rows}
    assert rows["local"]["modality"] is None
    assert rows["union"]["modality"] == seen
    assert main(["compare", str(folder), str(folder), "--names", "a", "b", "--root", str(tmp_path),
                 "--pool", "union"]) == 0  # fmt: skip
    assert capsys.readouterr().out.count(f"{100 * seen.at_1:.1f}  ") >= 2
    (folder / "x.trec").write_text("9:0 Q0 9:999 1 0.5 x\n")
    (one,) = evaluate(folder / "x.trec", folder / "x_task3.qrels", root=tmp_path, short=True).rows
    assert one["modality"].found == {"text": {"unknown": 1}}
    assert one["modality"].wrong_modality == pytest.approx(1 / 40)
    assert results.to_json()["rows"][1]["modality"]["found"] == seen.found
