"""What was written before vectors: kept, summed up, bounded by a budget."""

import json
import math
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from augment.errors import DataError
from augment.files import sha256
from retrievers.cli import USER_ERROR, main
from retrievers.data.module import MBeirData
from retrievers.data.writings import (
    Writing,
    append_writings,
    auc,
    read_writings,
    spent,
    threshold,
    write_writings,
)
from retrievers.models.mllm.layout import Layout
from retrievers.models.mllm.reasoning import Reasoning
from retrievers.vectors.search import test
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import make_root


def wrote(mark, tokens, ending="mark"):
    return Writing("x" * tokens, tokens, ending, mark)


def test_a_budget_lets_those_write_whose_mark_is_least_likely():
    random = Random(0)
    for budget in (0.0, 1.0, 7.5, 20.0, 40.0):
        found = [wrote(random.choice((random.random(), 0.5)), random.randint(1, 40))
                 for _ in range(200)]  # fmt: skip
        at = threshold(found, budget)
        writes = [one for one in found if one.mark < at]
        assert sum(one.tokens for one in writes) <= budget * len(found)
        # The next one, with all of its probability, would be too much.
        more = sorted({one.mark for one in found if one.mark >= at})
        if more:
            larger = [one for one in found if one.mark <= more[0]]
            assert sum(one.tokens for one in larger) > budget * len(found)
    with pytest.raises(DataError, match=r"reasoning\.when=always"):
        threshold([wrote(0.1, 3), wrote(0.9, 0, "direct")], 5)


def test_the_command_keeps_a_threshold_with_what_it_was_chosen_on(tmp_path, capsys):
    found = [(f"1:{n}", wrote(1 - (10 - n) / 1e9, 10)) for n in range(10)]
    write_writings(tmp_path / "written.jsonl", found)
    assert main(["calibrate", f"--run={tmp_path}", "--tokens=4"]) == 0
    chosen = json.loads((tmp_path / "calibration.json").read_text())
    assert (chosen["threshold"], chosen["tokens"], chosen["wrote"]) == (1 - 6e-9, 4.0, 0.4)
    assert chosen["digest"] == sha256(tmp_path / "written.jsonl")
    assert f"reasoning.threshold={1 - 6e-9!r}\n" in capsys.readouterr().out
    assert main(["calibrate", f"--run={tmp_path / 'none'}", "--tokens=4"]) == USER_ERROR


def test_means_and_ranks_are_their_definitions():
    found = [
        wrote(0.1, 4),
        wrote(0.2, 8, "length"),
        wrote(0.9, 0, "direct"),
        wrote(0.8, 0, "direct"),
    ]
    assert spent(found) == {"queries": 4, "wrote": 0.5, "tokens": 3.0, "p50": 2.0,
                            "p95": pytest.approx(7.4), "forced": 0.25}  # fmt: skip
    assert auc(found[:2], found[2:]) == 1.0
    assert auc(found[2:], found[:2]) == 0.0
    assert auc([wrote(0.5, 1), wrote(0.1, 1)], [wrote(0.5, 1)]) == 0.75
    assert math.isnan(auc([], found))


def test_files_say_what_was_written_and_survive_a_kill(tmp_path):
    path = tmp_path / "written.jsonl"
    write_writings(path, [("1:1", wrote(0.25, 2)), ("1:2", Writing('say "é"\n', 3, "length", 0.5))])
    with path.open("a") as file:
        file.write('{"qid": "1:3", "text": "ha')
    append_writings(path, [("1:1", wrote(0.75, 1))])
    with pytest.raises(DataError, match=r"written\.jsonl:3"):
        read_writings(path)
    found = read_writings(path, torn=True)
    assert found == {"1:1": wrote(0.75, 1), "1:2": Writing('say "é"\n', 3, "length", 0.5)}


@pytest.mark.parametrize("kept", [False, True])
def test_a_test_keeps_what_each_query_wrote_and_its_direct_vector(folders, tmp_path, kept):
    data = MBeirData(str(make_root(tmp_path / "root")), seed=0)
    if kept:
        data.keep_embeddings(tmp_path / "vectors", tmp_path)
    layout = Layout(pooling="before", mark="<|emb|>")
    plain = make(folders["qwen3"], layout=layout)
    writing = make(folders["qwen3"], layout=layout, reasoning=Reasoning("always", max_tokens=3))
    out = tmp_path / "run"
    results = test(writing, data, out, device="cpu")
    written = read_writings(out / "written.jsonl")
    plan = data.test_plan()
    names = [query.item.id for query, _ in plan.queries]
    assert set(written) == set(names)
    assert all(one.tokens == 3 and one.ending == "length" for one in written.values())
    told = json.loads((out / "metrics.json").read_text())["writing"]
    assert {row["tokens"] for row in told.values()} == {3.0}
    assert sum(row["queries"] for row in told.values()) == len(names)
    assert "100.0 %" in str(results)
    direct = load_file(out / "direct.safetensors")["vectors"].float()
    again = test(plain, MBeirData(str(data.root.path), seed=0), out, device="cpu")
    assert not again.writing
    assert not [*out.glob("written.*"), *out.glob("direct.*")], "of the test before"
    assert direct.shape[0] == len(names)
    torch.testing.assert_close(direct.norm(dim=1), torch.ones(len(names)), atol=1e-3, rtol=0)
    if kept:  # a second run makes no vector and tells the same
        second = test(writing, data, tmp_path / "again", device="cpu")
        assert second.cost["items"] == 0
        assert second.writing == results.writing
        assert read_writings(tmp_path / "again" / "written.jsonl") == written
