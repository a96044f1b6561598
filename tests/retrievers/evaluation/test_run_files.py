"""Run files of any ids, scores and tags against lines that are formatted one by one; bad ones."""

from random import Random

import numpy as np
import pytest

from augment.errors import DataError
from augment.records import Hit
from retrievers.evaluation import run_files
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import (
    read_run,
    read_table,
    write_run,
    write_uniir_run,
    writing_run,
)

SCORES = {
    "whole float": lambda dice: dice.random(),
    "six decimals": lambda dice: round(dice.random(), 6),
    "below zero": lambda dice: -round(dice.random(), 3),
    "hundreds": lambda dice: round(dice.uniform(-900, 900), 2),
    "far apart": lambda dice: dice.choice([1e20, -3e-9, 1, 5]),
    "round": lambda dice: dice.choice([0, 1, 9, 10, 999.5]),
}


def word(dice):
    length = dice.choice([1, 2, 3, 6, 7, 8, 9, 12, 15, 16, 17, 24, 30])
    return "".join(dice.choice('abcd0123é€",;') for _ in range(length))


@pytest.mark.parametrize("kind", SCORES)
def test_lines_are_those_of_plain_formatting(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "_BLOCK", 8)
    dice = Random(kind)
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


def _table(tag="5:"):
    return RunTable(["1:1", "1:2"], [f"{tag}1", f"{tag}2"], [0, 0, 1], [0, 1, 1], [0.5, 0.25, 1.0])


def test_the_file_is_there_afterwards_and_the_same(tmp_path):
    write_run(tmp_path / "plain.trec", _table(), "tag")
    with writing_run(tmp_path / "meanwhile.trec", _table(), "tag"):
        pass
    assert (tmp_path / "meanwhile.trec").read_bytes() == (tmp_path / "plain.trec").read_bytes()
    assert read_table(tmp_path / "meanwhile.trec").to_run() == _table().to_run()


def test_what_cannot_be_written_is_told_when_the_block_ends(tmp_path):
    reached = []
    with (
        pytest.raises(DataError, match="white space"),
        writing_run(tmp_path / "r.trec", _table("a b")),
    ):
        reached.append(True)
    assert reached
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_block_is_told_and_no_half_file_stays(tmp_path):
    with pytest.raises(KeyError), writing_run(tmp_path / "r.trec", _table()):
        raise KeyError("scoring")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["r.trec"])


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
