"""UniIR's own numbers, from its published definition written anew, slowly and separately.

UniIR (TIGER-AI-Lab/UniIR, ``mbeir_retriever.py``): keep judgements above 0; for each query that was
searched, 1 if any judged candidate is among the first k, else 0; mean over the queries of each task
code; round to four digits.
"""

import random
from collections import defaultdict

import pytest

from augment.data import grades_of, read_qrels
from augment.records import Hit
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import read_table


def uniir(run_lines, qrels_lines, k):
    """Task code -> mean hit rate, read from text alone."""
    positives, task_of = defaultdict(list), {}
    for line in qrels_lines:
        qid, _, did, relevance, task = line.split()
        if int(relevance) > 0:
            positives[qid].append(did)
            task_of.setdefault(qid, task)
    retrieved = defaultdict(list)
    for line in run_lines:
        qid, _, did, *_ = line.split()
        retrieved[qid].append(did)
    by_task = defaultdict(list)
    for qid, dids in retrieved.items():
        hit = 0.0
        for did in dids[:k]:
            if did in positives[qid]:
                hit = 1.0
        by_task[int(task_of[qid])].append(hit)
    return {task: round(sum(hits) / len(hits), 4) for task, hits in by_task.items()}


def adversarial(seed, queries=60):
    """Several positives, judged zeros, ties, positives no pool holds, two tasks in one file."""
    rng = random.Random(seed)
    pool = [f"{n % 3}:{n}" for n in range(40)]
    qrels, run, tasks = [], {}, {}
    for n in range(queries):
        qid, task = f"5:{n + 1}", rng.choice([6, 8])
        tasks[qid] = task
        own = [*rng.sample(pool, rng.randint(1, 4)), f"6:{rng.randint(100, 120)}"]
        qrels += [f"{qid} 0 {did} 1 {task}" for did in own]
        qrels += [f"{qid} 0 {did} 0 {task}" for did in pool if did not in own][:3]
        found = rng.sample(pool, rng.randint(1, 12))
        run[qid] = [Hit(did, rng.choice([0.25, 0.5, 0.75])) for did in found]
    return qrels, run, tasks


def write_uniir_run(path, run, tasks, tag):
    """A run as UniIR writes it, with the task code in a seventh column."""
    ranked = RunTable.from_run(run).to_run().items()
    path.write_text("".join(
        f"{qid} Q0 {hit.did} {rank} {hit.score:.6f} {tag} {tasks[qid]}\n"
        for qid, hits in ranked for rank, hit in enumerate(hits, start=1)
    ))  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 5, 10])
def test_equal_to_uniir_on_adversarial_cases(tmp_path, seed, k):
    qrels, run, tasks = adversarial(seed)
    (tmp_path / "qrels.txt").write_text("\n".join(qrels))
    write_uniir_run(tmp_path / "run.txt", run, tasks, "mbeir_x_union_pool_test_k10")
    want = uniir((tmp_path / "run.txt").read_text().splitlines(), qrels, k)
    scores = score_run(
        read_table(tmp_path / "run.txt"),
        grades_of(read_qrels(tmp_path / "qrels.txt")),
        [f"success@{k}"],
    ).of(f"success@{k}")
    for task in (6, 8):
        mine = [value for qid, value in scores.items() if tasks[qid] == task]
        assert round(sum(mine) / len(mine), 4) == want[task]
