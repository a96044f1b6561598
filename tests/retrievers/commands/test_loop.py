"""The loop of feedback: equal when run again, whole after a kill, and what a judgement does."""

import base64
import io
import json
import re
import shutil

import pytest
from PIL import Image
from pyarrow import parquet

from augment.errors import DataError
from retrievers.cli import main
from retrievers.commands import loop as looping
from retrievers.data.module import MBeirData
from retrievers.data.negatives import NegativesConfig
from retrievers.export.folder import save
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.mllm.layout import CrossLayout, Layout
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import keep_apart, make_config, make_root


@pytest.fixture(scope="module")
def given(folders, tmp_path_factory):
    """Arguments of a loop but for its folder; the root's training and val queries are apart."""
    folder = tmp_path_factory.mktemp("loop")
    root = keep_apart(make_root(folder / "root", items=14))
    layout = Layout(cross=CrossLayout(yes="a", no="e"))
    judge = save(make(folders["qwen3"], layout=layout), folder / "judge")
    plain = [
        "--config=flagland", f"--model.encoder.model_name={make_config(folder)}",
        f"--data.root={root}", "--data.batch_size=4", "--data.validation.queries=0",
        "--trainer.max_steps=2", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    assert main(["fit", *plain, f"--out={folder}"]) == 0
    return [
        f"--config={folder / 'fit.yaml'}", *plain[1:],
        f"--loop.judge={judge}", "--loop.rounds=1", "--loop.depth=5",
        "--loop.distillation.kind=kl", "--loop.mining.absolute_margin=0.01",
        "--loop.mining.per_query=3",
    ]  # fmt: skip


def rounds(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("round-*/round.json"))]


def test_a_loop_is_the_same_again_and_goes_on_after_a_kill(given, tmp_path, monkeypatch, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["loop", *given, f"--out={one}"]) == 0, capsys.readouterr().err
    assert "round 1: success@1" in capsys.readouterr().out
    plain = looping.mine_negatives

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(looping, "mine_negatives", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["loop", *given, f"--out={two}"])
    weights = (two / "round-0/checkpoints/last.ckpt").stat().st_mtime_ns
    monkeypatch.setattr(looping, "mine_negatives", plain)
    assert main(["loop", *given, f"--out={two}"]) == 0
    assert (two / "round-0/checkpoints/last.ckpt").stat().st_mtime_ns == weights, "not trained anew"
    assert json.loads((two / "round-0/judged/cascade.json").read_text())["scored"] == 0
    assert rounds(one) == rounds(two)
    assert len(rounds(one)) == 2
    tables = [parquet.read_table(f / "round-0/mined/negatives.parquet") for f in (one, two)]
    assert tables[0].equals(tables[1])
    rows = tables[0].to_pylist()
    assert len(rows) == 12, "training queries, and no val query"
    assert all(row["positive_scores"] for row in rows), "positives are judged, found or not"
    assert rounds(one)[0]["verdicts"]["kept"] > 0
    seen = parquet.read_table(one / "round-0/mined/candidates.parquet").to_pylist()
    for row in seen:
        above = row["score"] > row["positive_score"] - 0.01
        assert (row["verdict"] == "absolute margin") == (
            above and row["verdict"] != "known positive"
        )
    shutil.rmtree(two / "round-1")  # settings are held to in the middle, too
    for other in ("loop.depth=4", "trainer.max_steps=3", "model.optimizer.lr=1", "data.seed=9"):
        assert main(["loop", *given, f"--out={two}", f"--{other}"]) == 2
        assert "other settings" in capsys.readouterr().err


def test_a_root_without_val_queries_or_with_shared_ones_is_refused(given, tmp_path, capsys):
    root = next(a.partition("=")[2] for a in given if a.startswith("--data.root"))
    for name, message in (("none", "no val queries"), ("shared", "a val query and a training")):
        other = tmp_path / name
        shutil.copytree(root, other)
        if name == "none":
            shutil.rmtree(other / "query/val")
        else:
            train = other / "query/train/mbeir_squares_train.jsonl"
            val = (other / "query/val/mbeir_squares_task0_val.jsonl").read_text()
            train.write_text(train.read_text() + val)
        assert main(["loop", *given, f"--data.root={other}", f"--out={tmp_path / 'o'}{name}"]) == 2
        assert message in capsys.readouterr().err


def test_what_is_doubtful_is_no_negative_and_weak_pairs_are_left_out(tmp_path):
    root = make_root(tmp_path / "root", items=6)
    run, judge = tmp_path / "run.trec", tmp_path / "judge.trec"
    run.write_text("".join(
        f"7:{q} Q0 7:{d} 1 {10 - n}.0 r\n"
        for q in range(1, 7) for n, d in enumerate(range(1, 7))
    ))  # fmt: skip
    # The judge finds 7:5 as good as each positive, and the positive of 7:3 bad.
    said = {(q, d): 5.0 if d in (q, 5) else 0.1 * d for q in range(1, 7) for d in range(1, 7)}
    said[3, 3] = -4.0
    judge.write_text("".join(f"7:{q} Q0 7:{d} 1 {s} j\n" for (q, d), s in said.items()))
    settings = ["--config=flagland", f"--data.root={root}", f"--out={tmp_path / 'm'}",
                f"--run={run}", f"--judge={judge}", "--mining.relative_margin=null",
                "--mining.absolute_margin=0.5", "--mining.min_positive=0",
                "--mining.per_query=2"]  # fmt: skip
    assert main(["mine", *settings]) == 0
    rows = {row["qid"]: row for row in
            parquet.read_table(tmp_path / "m/negatives.parquet").to_pylist()}  # fmt: skip
    assert {q: row["doubtful_ids"] for q, row in rows.items()} == {
        f"7:{q}": [] if q in (3, 5) else ["7:5"] for q in range(1, 7)
    }
    assert [q for q, row in rows.items() if row["weak"]] == ["7:3"]
    assert rows["7:6"]["negative_ids"] == ["7:1", "7:2"], "hard by the run, not by the judge"

    def pairs(doubtful):
        table = NegativesConfig(str(tmp_path / "m"), doubtful=doubtful)
        data = MBeirData(str(root), negatives=table, tasks=[0])
        found, _ = data.training(ClipScoreFusion(make_config(tmp_path)).collator())
        return {pair.query.id: pair for epoch in range(4) for pair in
                (found[epoch * len(found) + n] for n in range(len(found)))}  # fmt: skip

    assert "7:3" not in pairs("mask")
    assert pairs("keep")["7:1"].positives == ("7:1",)
    assert pairs("mask")["7:1"].positives == ("7:1", "7:5"), "left out of the loss"
    assert {one.id for one in pairs("mask")["7:1"].others} <= {"7:2", "7:3"}
    drawn = {pair.positive.id for pair in pairs("positive").values()}
    assert drawn <= {f"7:{n}" for n in range(1, 7)}
    (tmp_path / "old").mkdir()
    old = parquet.read_table(tmp_path / "m/negatives.parquet").drop_columns(["weak"])
    parquet.write_table(old, tmp_path / "old/negatives.parquet")
    NegativesConfig(str(tmp_path / "old")).open()
    with pytest.raises(DataError, match="does not say what is doubtful"):
        NegativesConfig(str(tmp_path / "old"), doubtful="mask").open()


def test_judgements_that_are_missing_are_found_and_exported(tmp_path, capsys):
    """Twins of positives are planted behind them; the judge scores both alike."""
    root = make_root(tmp_path / "root", items=8)
    run, judge = tmp_path / "run", tmp_path / "judge"
    planted = {}
    for folder in (run, judge):
        folder.mkdir()
    for task, shift in ((0, 0), (3, 8)):
        qrels = (root / f"qrels/test/mbeir_squares_task{task}_test_qrels.txt").read_text()
        (run / f"squares_task{task}.qrels").write_text(qrels)
        lines = {run: [], judge: []}
        for n in range(1, 9):
            qid, twin = f"7:{n + shift}", f"7:{n % 8 + 1 + shift}"
            planted[task, qid] = twin if n % 3 == 0 else None
            for rank in range(8):
                did = f"7:{rank + 1 + shift}"
                good = did in (qid, planted[task, qid])
                lines[run].append(f"{qid} Q0 {did} 1 {9 - rank} r\n")
                lines[judge].append(f"{qid} Q0 {did} 1 {3.0 if good else -3.0} j\n")
        for folder, own in lines.items():
            (folder / f"squares_task{task}.local.trec").write_text("".join(own))
    given = ["--config=flagland", f"--data.root={root}", f"--run={run}", f"--judge={judge}",
             f"--out={tmp_path / 'o'}", "--mining.absolute_margin=1",
             "--mining.relative_margin=null"]  # fmt: skip
    assert main(["doubts", *given, f"--out={run}"]) == 2, "its judgements stay"
    assert main(["doubts", *given]) == 0
    assert "squares_task0 2, squares_task3 2" in capsys.readouterr().out
    for task in (0, 3):
        told = (tmp_path / f"o/squares_task{task}.qrels").read_text().split("\n")[:-1]
        pairs = {tuple(line.split()[:3:2]) for line in told}
        assert pairs == {(q, d) for (t, q), d in planted.items() if t == task and d}
    page = (tmp_path / "o/doubts.html").read_text()
    assert page.count("absolute margin") == 4
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in shown]
    assert sizes, "pictures are part of the page"
    assert max(map(max, sizes)) <= 192
