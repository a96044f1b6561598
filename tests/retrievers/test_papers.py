"""Each paper's function from a root to its result, with untrained models and scripted texts."""

import json
from functools import partial
from pathlib import Path

import pytest

from augment import queries
from augment.engines.scripted import ScriptedEngine
from retrievers.export.folder import save
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.mllm.layout import CrossLayout, Layout
from retrievers.models.mllm.reasoning import Reasoning
from retrievers.papers.rar import rar
from retrievers.papers.rge import rge
from retrievers.papers.trace import trace
from retrievers.papers.tte import tte
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import keep_apart, make_config, make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("papers") / "root", 10)


def vlm(root, answer="A square of one colour, number {}."):
    return ScriptedEngine(lambda request: answer.format(request.item_id), root=root)


small = partial(dict, max_steps=2, batch_size=4)


def test_rar_is_trained_and_tested_on_what_it_is_shown(root, tmp_path):
    encoder = ClipScoreFusion(str(make_config(tmp_path)))
    found = rar(root, tmp_path / "store", vlm(root), encoder, tmp_path / "out", **small())
    assert found.candidates.generated == 10
    assert found.queries.generated > 0
    assert found.model.trained_on["query"].startswith("replace")
    assert "success@1" in found.results.mean["local"]
    engine = vlm(root)
    again = rar(root, tmp_path / "store", engine, encoder, tmp_path / "out", **small())
    assert not engine.calls, "texts are in the store"
    assert again.results.mean == found.results.mean


def test_trace_writes_where_it_was_taught_to(root, folders, tmp_path):
    encoder = make(folders["qwen3"], reasoning=Reasoning("adaptive", max_tokens=4))
    prompts = {"image": "rar/image_query", "question": None, "modification": None, "text": None}
    found = trace(root, tmp_path / "store", vlm(root), encoder, tmp_path / "out",
                  prompts=prompts, **small())  # fmt: skip
    assert found.chains.generated == 10
    assert found.chains.skipped.total() == 10
    wrote = [json.loads(line) for path in (tmp_path / "out").rglob("written.jsonl")
             for line in path.read_text().splitlines()]  # fmt: skip
    assert {row["qid"] for row in wrote}
    assert "tokens" in json.dumps(found.results.to_json()["writing"])


def test_rge_is_taught_one_text_and_contrasts_another(root, folders, tmp_path):
    store = tmp_path / "store"
    queries.run(Path(root), store, image_prompt="rar/image_query", engine=vlm(root))
    layout = Layout(pooling="at", mark="<|emb|>")
    encoder = make(folders["qwen3"], layout=layout, reasoning=Reasoning("always", max_tokens=4))
    found = rge(root, store, encoder, tmp_path / "out", written_tokens=4, lora_rank=2, **small())
    assert (tmp_path / "out" / "rationales-0.jsonl").read_text().count("\n") == 8
    assert json.loads((tmp_path / "out" / "leaks.json").read_text())["rows"]
    assert [row.split for row in found.audit.rows] == ["train", "test"]
    assert "success@1" in found.results.mean["local"]


def test_tte_thinks_trains_and_feeds_back(folders, tmp_path):
    root = keep_apart(make_root(tmp_path / "root", 14))
    judge = save(make(folders["qwen3"], layout=Layout(cross=CrossLayout(yes="a", no="e"))),
                 tmp_path / "judge")  # fmt: skip
    thought = "<think>It is a square of one colour.</think> Square number {}."
    found = tte(
        root, tmp_path / "store", vlm(root, thought), str(judge), tmp_path / "out",
        settings=(
            f"--model.encoder.model_name={make_config(tmp_path)}", "--data.batch_size=4",
            "--data.validation.queries=0", "--trainer.max_steps=2", "--loop.rounds=1",
            "--loop.depth=5", "--loop.mining.per_query=3", "--trainer.enable_model_summary=false",
        ),
    )  # fmt: skip
    assert [row["round"] for row in found] == [0, 1]
