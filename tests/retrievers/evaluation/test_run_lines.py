"""Run files of any ids, scores and tags against lines that are formatted one by one."""

from random import Random

import numpy as np
import pytest

from retrievers.evaluation import run_lines
from retrievers.evaluation.run import RunTable, write_run, write_uniir_run

SCORES = {
    "whole float": lambda dice: dice.random(),
    "six decimals": lambda dice: round(dice.random(), 6),
    "below zero": lambda dice: -round(dice.random(), 3),
    "hundreds": lambda dice: round(dice.uniform(-900, 900), 2),
    "far apart": lambda dice: dice.choice([1e20, -3e-9, 1, 5]),
    "round": lambda dice: dice.choice([0, 1, 9, 10, 999.5]),
}


def word(dice):
    # Fields are moved in words of eight bytes: lengths around its multiples are the hard ones.
    length = dice.choice([1, 2, 3, 6, 7, 8, 9, 12, 15, 16, 17, 24, 30])
    return "".join(dice.choice("abcd0123é€") for _ in range(length))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", SCORES)
def test_lines_are_those_of_plain_formatting(kind, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lines, "_THREADS", threads)
    monkeypatch.setattr(run_lines, "_BLOCK", 8)
    dice = Random(f"{kind}-{threads}")
    path = tmp_path / "run.trec"
    for _ in range(60):
        qids, dids = (list({word(dice) for _ in range(dice.randint(1, 12))}) for _ in range(2))
        depth, same = dice.randint(1, len(dids)), dice.random() < 0.5
        hits = [
            (query, row, np.float32(SCORES[kind](dice)))
            for query in range(len(qids))
            for row in dice.sample(range(len(dids)), depth if same else dice.randint(0, len(dids)))
        ]
        table = RunTable(qids, dids, *(list(column) for column in zip(*hits, strict=True))) \
            if hits else RunTable(qids, dids, [], [], [])  # fmt: skip
        tag = word(dice)
        tasks = {qid: dice.randint(0, 123_456) for qid in qids}
        seven = dice.random() < 0.4
        if seven:
            write_uniir_run(path, table, tasks, tag)
        else:
            write_run(path, table, tag)
        written = path.read_text(encoding="utf-8")
        lines = written.splitlines()
        assert len(lines) == len(hits)
        assert not lines or written.endswith("\n")
        for n, line in enumerate(lines):
            qid, did = (
                table.qids[int(table.query[n])].as_py(),
                table.ids[int(table.rows[n])].as_py(),
            )
            head, score, tail = line.split(" ", 4)[:4], *line.split(" ", 5)[4:]
            assert head == [qid, "Q0", did, str(table.rank[n])]
            assert np.float32(score) == table.scores[n]
            assert tail == (f"{tag} {tasks[qid]}" if seven else tag)
