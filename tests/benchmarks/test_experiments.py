"""The ablation: what is shared and cached, effects by hand, texts changed at known rates."""

import json
import math
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Barrier
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml

from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.errors import DataError
from augment.records import Item
from augment.store import Store
from benchmarks.experiments import graph, noise, spec, writing
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.build import Builder, Setup, unavailable
from benchmarks.experiments.effects import CELLS, CONTRASTS, crossing, effect
from benchmarks.experiments.graph import CachedStep
from benchmarks.experiments.results import ArmReader, against_json
from benchmarks.experiments.texts import Enriching, derived, made_anew, read_source
from benchmarks.flagland import grammar, language
from benchmarks.flagland.world import WorldConfig, write_world
from retrievers.data.writings import WRITTEN, Writing, write_writings
from retrievers.evaluation.compare import holm
from retrievers.training.parts import read_parts
from tests.retrievers.models.test_retriever import make_config, make_root

# -- steps --------------------------------------------------------------------------------------


def counted(name, needs=(), fail=False):
    calls = []

    def work(folder, given):
        calls.append((folder, given))
        if fail:
            raise DataError("cannot")
        (folder / "made").write_text(name)

    return CachedStep("train", name, {"name": name}, needs, work), calls


def test_steps_run_once_in_order_and_after_a_failure_go_on(tmp_path):
    first, calls = counted("first")
    second, more = counted("second", (first,))
    broken, _ = counted("broken", (second,), fail=True)
    with pytest.raises(DataError):
        graph.run([broken, second], tmp_path)
    assert [len(calls), len(more)] == [1, 1]
    assert more[0][1] == [first.folder(tmp_path)]
    assert not broken.done(tmp_path)
    mended, again = counted("broken", (second,))
    assert mended.fingerprint == broken.fingerprint
    graph.run([mended], tmp_path)
    assert [len(calls), len(more), len(again)] == [1, 1, 1]
    assert "3 steps, 3 of them cached" in graph.describe([mended], tmp_path)


def test_the_same_command_twice_is_two_workers(tmp_path):
    together, calls = Barrier(2, timeout=60), []

    def work(folder, given):
        calls.append(folder)
        together.wait()

    both = [CachedStep("train", name, {"name": name}, (), work) for name in "ab"]
    last, once = counted("last", both)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: graph.run([last], tmp_path), range(2)))
    assert sorted(calls) == sorted(step.folder(tmp_path) for step in both)
    assert len(once) == 1
    assert last.done(tmp_path)


def test_a_fingerprint_moves_with_settings_and_needs():
    def make(settings, needs=()):
        return CachedStep("train", "any title", settings, needs, lambda folder, given: None)

    base = make({"seed": 0})
    assert make({"seed": 0}).fingerprint == base.fingerprint
    assert make({"seed": 1}).fingerprint != base.fingerprint
    assert make({}, (base,)).fingerprint != make({}, (make({"seed": 1}),)).fingerprint


# -- experiments --------------------------------------------------------------------------------


def test_every_packaged_experiment_states_a_question_and_a_prediction():
    for (name, path), found in zip(spec.packaged().items(), spec.load_all(["all"]), strict=True):
        assert found.name == name
        assert found.question.strip().endswith("?")
        assert found.compare or found.against
        assert found.prediction
        if path.parent.name == "rar":
            assert any(arm.show == spec.Views() for arm in found.arms.values()), "raw text"
            assert "oracle" in found.arms, "and the ceiling"
    assert [one.name for one in spec.load_all(["rar"])][:2] == ["alignment", "sides"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"a": {"show": "nowhere"}}}, "shows 'nowhere'"),
        (
            {"arms": {"a": {"show": {"query": "raw", "corpus": "raw", "x": 1}}}},
            "name a preset, or a view for query",
        ),
        ({"arms": {"a": {"show": {"query": "vlm append size=3", "corpus": "raw"}}}}, "size=3"),
        ({"arms": {"a": {"kind": "sparse", "show": "raw"}}}, "'dense', 'bm25', 'fusion'"),
        ({"arms": {"a": {"show": "raw", "mined_by": "b"}}}, "name an arm before it"),
        ({"arms": {"a": {"kind": "fusion", "of": ["b", "c"]}}}, "fuses ['b', 'c']"),
        ({"arms": {"a": {"kind": "rerank", "of": ["b"], "show": "raw"}}}, "reranks ['b']"),
        ({"arms": {"a": {"show": "raw", "judged_by": "b"}}}, "is judged by 'b'"),
        (
            {
                "arms": {
                    "b": {"show": "raw"},
                    "a": {"kind": "rerank", "of": ["b"], "show": "raw", "given": "vlm"},
                }
            },
            "a reranker writes nothing",
        ),
        ({"texts": {"t": {"kind": "noise", "of": "later"}}}, "texts before it are vlm, oracle"),
        ({"texts": {"t": {"kind": "noise", "of": "vlm", "rate": 1}}}, "'rate' is not accepted"),
        ({"texts": {"t": {"kind": "noise", "of": "vlm", "share": 1}}}, "noise does not know share"),
        ({"texts": {"t": {"kind": "kept", "of": "vlm"}}}, "texts.t is of ''"),
        ({"texts": {"t": {"kind": "joined", "of": "vlm"}}}, "texts.t is of ''"),
        ({"arms": {"a": {"show": "raw", "taught_candidates": "vlm"}}}, "what queries are taught"),
        (
            {
                "texts": {"c": {"kind": "chains"}},
                "arms": {"a": {"show": "raw", "taught": "c", "taught_candidates": "c"}},
            },
            "which has no candidates",
        ),
        ({"arms": {"a": {"show": "raw", "budget": 3.0}}}, "of an arm that is taught"),
        (
            {"arms": {"a": {"train": "raw", "show": "raw", "taught": "vlm", "budget": 3.0}}},
            "add test: [model.encoder.reasoning.when=adaptive]",
        ),
        ({"texts": {"t": {"kind": "replaced", "of": "vlm"}}}, "'' is no pattern"),
        ({"texts": {"t": {"kind": "replaced", "of": "vlm", "pattern": "("}}}, "'(' is no pattern"),
        ({"texts": {"t": {"kind": "confirmed", "of": "vlm"}}}, "texts.t is of ''"),
        ({"compare": [["a", "b"]]}, "names the arm 'a'"),
        ({"routes": [["a", "b"]]}, "names the arm 'a'"),
        ({"curves": {"c": {"x": [1], "arms": ["a"]}}}, "required: base, full, find"),
        ({"promise": 1}, "does not accept option 'promise'"),
    ],
)
def test_a_wrong_experiment_says_where_and_what(change, message):
    value = {"name": "x", "question": "q?", "prediction": "p", **change}
    with pytest.raises(DataError) as error:
        spec.parse(value, "x.yaml")
    assert message in str(error.value)
    assert "x.yaml" in str(error.value)


def test_arms_share_what_is_the_same(tmp_path):
    root = make_root(tmp_path / "root")
    setup = Setup(Enriching(root), steps=2, seeds=(0, 1))
    builder = Builder(spec.load_all(["alignment"])[0], setup)
    assert "oracle" not in builder.names, "no truth is known here"
    steps = [builder.arm(name, seed) for seed in (0, 1) for name in builder.names]
    kinds = [step.kind for step in graph.in_order(steps)]
    # Three arms and eight cells, of which three are the same: two trainings and eight tests a seed.
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"texts": 1, "train": 4, "test": 16}


def test_other_data_is_asked_about_with_the_same_trainings(tmp_path, capsys):
    home = Enriching(root := make_root(tmp_path / "root"), tolerate=True)
    other = Enriching(away := make_root(tmp_path / "away", 12))
    plans = {}
    for asked in (None, other):
        builder = Builder(spec.load_all(["alignment"])[0], Setup(home, steps=2, asked=asked))
        steps = [builder.arm(name, 0) for name in builder.names]
        plans[asked] = {kind: {one.fingerprint for one in graph.in_order(steps) if one.kind == kind}
                        for kind in ("texts", "train", "test")}  # fmt: skip
    assert plans[other]["train"] == plans[None]["train"]
    assert plans[other]["texts"] > plans[None]["texts"], "those of both"
    assert not plans[other]["test"] & plans[None]["test"]
    given = ["--root", str(root), "--model", "scripted:", "--steps", "2", "--seeds", "0",
             "--out", str(tmp_path / "out"), "--test-root", str(away), "--dry-run"]  # fmt: skip
    assert main(given) == 0
    assert "asked about away" in capsys.readouterr().out


def test_a_root_is_known_by_its_contents(tmp_path):
    root = make_root(tmp_path / "root")
    before = Enriching(root).root_digest
    file = next((root / "query" / "test").glob("*task0*.jsonl"))
    file.write_text(file.read_text().replace("number", "Number"))
    assert Enriching(root).root_digest != before


def losses(root, **setup):
    using = Enriching(root, tolerate=True)
    return Builder(spec.load_all(["losses"])[0], Setup(using, steps=4, batch_size=8, **setup))


def test_losses_share_minings_and_the_first_training(tmp_path):
    builder = losses(make_root(tmp_path / "root"))
    arms = builder.experiment.arms
    every = [builder.arm(name, seed) for seed in (0, 1) for name in builder.names]
    assert len({step.fingerprint for step in every}) == 2 * len(arms) - 1, "no seed moves the start"
    kinds = [step.kind for step in graph.in_order(every)]
    trained = {(arm.config, arm.model, arm.fit, arm.mined_by) for arm in arms.values() if arm.train}
    assert kinds.count("train") == 2 * len(trained)
    assert kinds.count("mine") == 2
    other = losses(tmp_path / "root", fit=("x=1",))
    assert not {step.fingerprint for step in every} & {other.arm(n, 0).fingerprint for n in arms}


def test_a_cascade_trains_one_reranker_and_judges_training_queries(tmp_path):
    using = Enriching(make_root(tmp_path / "root"), tolerate=True)
    builder = Builder(spec.load_all(["cascade"])[0], Setup(using, steps=4, seeds=(0,)))
    steps = list(graph.in_order(builder.arm(name, 0) for name in builder.names))
    # The retriever, the reranker of both rerank arms, the retriever again.
    assert Counter(step.kind for step in steps if step.kind in ("train", "mine")) == {
        "train": 3, "mine": 2
    }  # fmt: skip
    asked = {step.title.split(", ")[-1].split()[0] for step in steps if step.kind == "rerank"}
    assert asked == {"test", "val", "train"}, "val for the weights, train for the judgement"
    fused = [step for step in steps if step.kind == "fused"]
    assert [step.settings.get("kept", False) for step in fused].count(True) == 1
    kept = next(step for step in fused if step.settings.get("kept"))
    prints = [step.fingerprint for step in fused]
    assert kept.needs[-1].fingerprint in prints, (
        "val queries are fused with the weights that are there"
    )


def test_files_that_a_training_reads_are_in_its_fingerprint(tmp_path):
    root = make_root(tmp_path / "root")
    (root / "truth").mkdir()
    experiment, prints = spec.load_all(["need"])[0], set()
    for ids in ("1:1", "1:2", "1:1"):
        for name in ("need.txt", "reasoning.txt"):
            (root / "truth" / name).write_text(f"{ids}\n")
        builder = Builder(experiment, Setup(Enriching(root, tolerate=True), steps=4, seeds=(0,)))
        prints.add((builder.arm("by need", 0).fingerprint, builder.arm("one pass", 0).fingerprint))
    assert len({need for need, _ in prints}) == 2
    assert len({truth for _, truth in prints}) == 1, "the world's, as its digest has it"


def test_a_budget_of_tokens_is_kept_by_a_threshold_of_val(tmp_path, monkeypatch):
    using = Enriching(make_root(tmp_path / "root"), tolerate=True)
    builder = Builder(spec.load_all(["routes"])[0], Setup(using, steps=4, seeds=(0,)))
    step = builder.arm("at most 7.5 tokens", 0)
    dev, train = step.needs
    assert (dev.settings["split"], dev.settings["test"][-1]) == (
        "val", "model.encoder.reasoning.when=always"
    )  # fmt: skip
    assert dev.needs[-1].fingerprint == train.fingerprint
    seen = []

    def stop(self, *given):
        seen.extend(given)
        raise InterruptedError

    rows = {"1:1": Writing("a", 10, "end", 0.2), "1:2": Writing("b", 12, "end", 0.9)}
    write_writings(tmp_path / WRITTEN, rows.items())
    monkeypatch.setattr(Builder, "_parts", stop)
    with pytest.raises(InterruptedError):
        step.work(tmp_path, [tmp_path, tmp_path])
    assert "model.encoder.reasoning.threshold=0.9" in seen, "the first takes 5 a query, both 11"
    of_val = replace(builder.setup, split="val")
    assert "chosen on queries of val" in unavailable(builder.names[-1], builder.experiment, of_val)
    assert not unavailable(builder.names[-1], builder.experiment, builder.setup)


def test_settings_of_every_arm_are_known(tmp_path):
    root = make_root(tmp_path / "root")
    for experiment in spec.load_all(["retrievers", "tte"]):
        for arm in experiment.arms.values():
            raw = ["data.query.view=raw", "data.corpus.view=raw"]
            given = [f"data.root={root}", *raw, *experiment.fit, *arm.model, *arm.fit, *arm.test]
            read_parts([f"--config={arm.config or 'flagland'}", *(f"--{one}" for one in given)], 0)
    with pytest.raises(DataError, match="nonsense"):
        read_parts(["--config=flagland", "--data.nonsense=1"], 0)


class Armed:
    """What a config that came from elsewhere might name."""

    made: ClassVar[list[object]] = []

    def __init__(self) -> None:
        self.made.append(self)


def test_a_class_that_a_config_names_where_none_belongs_is_not_made(tmp_path):
    root = make_root(tmp_path / "root")
    named = f"--trainer.logger={{class_path: {__name__}.Armed}}"
    views = ("--data.query.view=raw", "--data.corpus.view=raw")
    read_parts(["--config=flagland", f"--data.root={root}", *views, named], 0)
    assert not Armed.made


def test_scores_are_averaged_over_seeds_before_they_are_compared(tmp_path, monkeypatch):
    first, second, third = "CLIP-SF, InfoNCE both ways", "SigLIP's loss", "CLIP-FF, masked"
    ones = {first: ["1000", "1100"], second: ["1101", "1010"], third: ["0000", "0000"]}
    builder = losses(make_root(tmp_path / "root"), seeds=(0, 1))
    arms = {name: builder.experiment.arms[name] for name in ones}
    builder = Builder(replace(builder.experiment, arms=arms, against=first), builder.setup)
    reader = ArmReader(builder, tmp_path, "success@1")
    scores = {reader.folders(name)[seed]:
              {("0: a", f"q{n}"): float(one) for n, one in enumerate(row)}
              for name, rows in ones.items() for seed, row in enumerate(rows)}  # fmt: skip
    monkeypatch.setattr(ArmReader, "_read", lambda self, folder: scores[folder])
    row = reader.compare(first, second).rows[-1]
    # By query: 1 to 1, .5 to .5, 0 to .5, 0 to .5.
    assert (row.first, row.second, row.wins, row.losses) == (0.375, 0.625, 2, 0)
    against = against_json(reader, first)["rows"]
    assert [one["seeds"] for one in against] == [[0.5, 0.0], [-0.25, -0.5]]
    assert against[0]["sd"] == pytest.approx(0.25 * 2**0.5)
    assert [one["holm"] for one in against] == holm([one["p"] for one in against])


def tiny_config(folder):
    tiny = yaml.safe_load(Path("retrievers/configs/rar/flagland.yaml").read_text())
    tiny["model"]["encoder"]["init_args"]["model_name"] = make_config(folder)
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny))
    return config


@pytest.mark.slow
def test_mined_negatives_and_one_table_against_an_arm(tmp_path, capsys):
    first = {"train": "raw", "show": "raw"}
    model = ["model.objective.distillation.kind=kl"]
    mined = {**first, "mined_by": "first", "mining": ["other_modality=0.5"], "model": model,
             "fit": ["data.negatives.per_query=1"]}  # fmt: skip
    arms = {"first": first, "mined": mined, "start": {"show": "raw"},
            "by start": {**mined, "mined_by": "start"}}  # fmt: skip
    value = {"name": "small", "question": "q?", "prediction": "p", "against": "first",
             "union": True, "arms": arms}  # fmt: skip
    experiment, out = tmp_path / "small.yaml", tmp_path / "out"
    experiment.write_text(yaml.safe_dump(value, sort_keys=False))
    given = [str(experiment), "--root", str(make_root(tmp_path / "root")), "--config",
             str(tiny_config(tmp_path)), "--steps", "4", "--batch-size", "8", "--seeds", "0", "1",
             "--out", str(out)]  # fmt: skip
    assert main(given) == 0
    found = json.loads((out / "results" / "small.json").read_text())
    assert [row["name"] for row in found["against"]["rows"]] == ["mined", "start", "by start"]
    mines = [json.loads(path.read_text()) for path in (out / "mine").glob("*/done.json")]
    assert {(len(m["needs"]), "root" in m["settings"]) for m in mines} == {(0, True), (1, False)}
    arm = found["arms"]["mined"]  # its means are those of the tests' own files
    means = [json.loads((out / folder / "metrics.json").read_text())["mean"]["local"]["success@1"]
             for folder in arm["folders"]]  # fmt: skip
    assert arm["mean"]["seeds"] == pytest.approx(means)
    table = (out / "results" / "small.md").read_text()
    assert f"| mined | {100 * arm['mean']['score']:.1f} ± " in table
    rows = [row for folder in arm["folders"] for row in
            json.loads((out / folder / "metrics.json").read_text())["rows"]]  # fmt: skip
    both = {pool: [row["metrics"]["success@1"] for row in rows if row["pool"] == pool]
            for pool in ("local", "union")}  # fmt: skip
    assert arm["union"]["local"] == pytest.approx(np.mean(both["local"]))
    assert arm["union"]["success"] == pytest.approx(np.mean(both["union"]))
    assert sum(sum(row.values()) for row in arm["union"]["found"].values()) == 2 * 16
    assert f"| mined | 4 | {100 * np.mean(both['local']):.1f} |" in table
    shutil.rmtree(out / arm["folders"][1])
    capsys.readouterr()
    assert main([*given, "--dry-run"]) == 0
    assert "16 steps, 15 of them cached" in capsys.readouterr().out


@pytest.mark.slow
def test_the_grid_on_any_root_store_and_config_and_again_from_the_cache(tmp_path, capsys):
    root = make_root(tmp_path / "root")
    out = tmp_path / "out"
    given = ["--root", str(root), "--model", "scripted:", "--config", str(tiny_config(tmp_path)),
             "--steps", "2", "--batch-size", "8", "--seeds", "0", "--out", str(out)]  # fmt: skip
    assert main([*given, "--dry-run"]) == 0
    assert "11 steps, 0 of them cached" in capsys.readouterr().out
    assert not (out / "results").exists()
    assert main(given) == 0
    text = (out / "results" / "grid.md").read_text()
    assert "alignment effect" in text
    found = json.loads((out / "results" / "grid.json").read_text())
    assert str(tmp_path) not in json.dumps(found)
    total, shift, retraining = (
        next(one for one in found["effects"] if one["name"] == name)["rows"]["mean"]["mean"]
        for name in ("total", "inference only", "retraining")
    )
    assert total == pytest.approx(shift + retraining)
    assert {path.name for path in (out / "results").glob("*.png")} == {
        "grid-arms.png", "grid-tasks.png", "grid-differences.png", "grid-effects.png",
    }  # fmt: skip
    capsys.readouterr()
    assert main(given) == 0
    assert "11 steps, 11 of them cached" in capsys.readouterr().out
    # The store that it made serves as a given one, and another step is not another world.
    store = next((out / "texts").glob("store-*"))
    assert main([*given, "--store", str(store), "--dry-run"]) == 0
    assert "steps, 2 of them cached" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main(["--root", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    root = str(make_root(tmp_path / "root"))
    assert main(["--root", root, "--experiment", "alignmnt"]) == 2
    assert "did you mean alignment" in capsys.readouterr().err
    assert main(["--root", root, "--config", "nothing"]) == 2
    assert "no such config" in capsys.readouterr().err


# -- effects ------------------------------------------------------------------------------------


def queries(n):
    return pd.MultiIndex.from_product([["0: a"], [f"q{place}" for place in range(n)]])


def measured(name, scores):
    """Interval of a contrast of the grid; ``scores``: a column a cell."""
    contrast = next(one for one in CONTRASTS if one.name == name)
    weights = {str(cell): weight for cell, weight in contrast.weights.items()}
    return effect(weights, scores)["mean"]


def cells(value):
    return pd.DataFrame({str(cell): [value(*cell)] * 2 for cell in CELLS}, queries(2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("query effect", 0.2), ("corpus effect", 0.1), ("total", 0.35), ("query x corpus", 0),
     ("alignment effect", 0)],
)  # fmt: skip
def test_effects_of_an_additive_world_are_its_coefficients(name, expected):
    scores = cells(lambda t, q, c: 0.1 + 0.05 * t + 0.2 * q + 0.1 * c)
    assert measured(name, scores).mean == pytest.approx(expected)


def test_alignment_is_what_matching_text_is_worth():
    scores = cells(lambda t, q, c: 0.5 + 0.1 * (t == q == c))
    assert measured("alignment effect", scores).mean == pytest.approx(0.1)
    assert measured("query effect", scores).mean == pytest.approx(0)


def test_an_effects_interval_is_that_of_a_plain_resampling():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({str(cell): rng.random(80) < 0.5 for cell in CELLS}, queries(80)) * 1.0
    values = sum((0.25 if cell[2] else -0.25) * scores[str(cell)].to_numpy() for cell in CELLS)
    draws = [values[rng.integers(0, 80, 80)].mean() for _ in range(20_000)]
    interval = measured("corpus effect", scores)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]),
                                                          abs=0.01)  # fmt: skip
    scores.iloc[0, 0] = math.nan
    with pytest.raises(ValueError, match="different queries"):
        measured("total", scores)


def test_a_curve_crosses_where_it_is_drawn_to():
    arms = {"a": 0.9, "b": 0.7, "c": 0.3, "base": 0.5, "none": 0.1, "d": 0.8}
    scores = pd.DataFrame({name: [score] * 20 for name, score in arms.items()}, queries(20))
    at = crossing([0, 0.5, 1], ["a", "b", "c"], "base", "a", scores, 0.0)
    assert at == pytest.approx((0.75, 0.75, 0.75))
    rising = crossing([0, 0.5, 1], ["base", "d", "a"], "base", "a", scores, 0.95)
    assert rising.at == pytest.approx(0.9)
    assert math.isinf(crossing([0, 0.5, 1], ["a", "b", "c"], "none", "a", scores, 0.0).at)


# -- texts --------------------------------------------------------------------------------------

TEXT = (
    "A flag with horizontal bands of red, light blue and red, the middle one wide, a green triangle"
    " at the hoist, one large yellow star in the centre, three white rings at the fly."
)


def test_noise_comes_at_its_rates():
    same = noise.corrupt(TEXT, Random(0), 0.0, 0.0)
    # horizontal, red, light blue, red, green, triangle, at the hoist, large, yellow, star, in the
    # centre, three, white, rings, at the fly
    assert same == (TEXT, 15, 0, 0)
    wrong = noise.corrupt(TEXT, Random(0), 1.0, 0.0)
    assert wrong[1:] == (15, 15, 0)
    unchanged = {("proportion", "middle wide"), ("charge count", "0:1")}
    assert not language.parse(wrong.text) & language.parse(TEXT) - unchanged
    gone = noise.corrupt(TEXT, Random(0), 0.0, 1.0)
    assert gone.gone == 15
    assert "  " not in gone.text
    changed = [noise.corrupt(TEXT, Random(n), 0.25, 0.1) for n in range(400)]
    assert sum(one.wrong for one in changed) / 6000 == pytest.approx(0.25, abs=0.02)
    assert sum(one.gone for one in changed) / 6000 == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="sum at most 1"):
        noise.corrupt(TEXT, Random(0), 0.8, 0.3)


def test_filler_has_its_length_and_no_fact():
    text = noise.filler(90, 7)
    assert len(text.split()) == 90
    for rivals in (noise.FLAGLAND, noise.GENERAL):
        assert noise.corrupt(text, Random(0), 1.0, 0.0, rivals).facts == 0


def test_routers_put_items_in_order(tmp_path):
    items = {f"1:{n}": Item(f"1:{n}", "word " * n or None, ("a.jpg",), "image,text")
             for n in range(4)}  # fmt: skip
    assert noise.chosen(items, "corpus", 0.5, "thin") == {"1:0", "1:1"}
    half = noise.chosen(items, "corpus", 0.5, "random", 1)
    assert half == noise.chosen(dict(reversed(items.items())), "corpus", 0.5, "random", 1)
    assert len(half) == 2
    run = ["q1 Q0 1:3 1 0.9 x", "q1 Q0 1:2 2 0.5 x", "q2 Q0 1:0 1 0.8 x", "q2 Q0 1:2 2 0.7 x"]
    (tmp_path / "x_task0.local.trec").write_text("\n".join(run) + "\n")
    assert noise.margins(tmp_path) == pytest.approx({"q1": 0.4, "q2": 0.1}, abs=1e-6)
    near = {"1:3": 0.4, "1:2": 0.1, "1:0": 0.1}
    assert noise.closeness(tmp_path) == pytest.approx(near, abs=1e-6)
    assert noise.chosen(items, "corpus", 0.5, "contested", 0, tmp_path) == {"1:0", "1:2"}
    with pytest.raises(DataError, match="asks a retriever"):
        noise.chosen(items, "corpus", 0.5, "contested")
    with pytest.raises(DataError, match="unknown router"):
        noise.chosen(items, "corpus", 0.5, "best")


def test_the_first_that_write_are_scored_as_written_and_the_others_as_direct():
    rows = [("a", "1", 0.0, 1.0, 10), ("b", "2", 1.0, 0.0, 20), ("a", "3", 0.0, 1.0, 30),
            ("a", "4", 0.0, 0.0, 40)]  # fmt: skip
    ranked = pd.DataFrame(rows, columns=["task", "qid", "silent", "writing", "tokens"])
    ranked = ranked.set_index(["task", "qid"])
    # Task b is one query and weighs as much as the three of task a.
    want = {0: (0, (0 + 1) / 2), 1: (10 / 4, (1 / 3 + 1) / 2), 2: (30 / 4, (1 / 3 + 0) / 2),
            4: (100 / 4, (2 / 3 + 0) / 2)}  # fmt: skip
    for writes, expected in want.items():
        assert writing._routed(ranked, writes) == pytest.approx(expected)
    route = {"names": ["direct", "forced"], "orders": {
        order: [{"share": 0.5, "tokens": 9.25, "score": 0.125}] for order in ("mark", "margin")
    }}  # fmt: skip
    told = writing.routes_table(route)
    assert "| 50 | 12.5 (9.2) | 12.5 (9.2) |" in told
    assert "least likely mark first (tokens a query) | smallest margin first" in told


def test_what_was_written_is_held_against_the_truth_and_all_queries_told_together(tmp_path):
    red, blue = "A flag with a plain red field.", "A flag with a plain blue field."
    rows = {"1:1": Writing(red, 8, "mark", 0.1), "1:2": Writing(red, 6, "length", 0.3),
            "1:3": Writing("", 0, "direct", 0.2), "2:1": Writing("", 0, "direct", 0.9)}  # fmt: skip
    write_writings(tmp_path / WRITTEN, rows.items())
    for task, qids in (("x_task0", ("1:1", "1:2", "1:3")), ("y_task0", ("2:1",))):
        (tmp_path / f"{task}.local.trec").write_text("")
        (tmp_path / f"{task}.qrels").write_text("".join(f"{qid} 0 9:9 1\n" for qid in qids))
    true = {"1:1": red, "1:2": blue, "1:3": red}
    assert writing._right(tmp_path, true) == {"x_task0": 0.5}, "of those that wrote"
    needy = tmp_path / "reasoning.txt"
    needy.write_text("1:1\n1:2\n")
    every = writing._together(tmp_path, needy)
    assert (every["queries"], every["wrote"], every["tokens"]) == (4, 0.5, 3.5)
    assert every["forced"] == 0.25
    assert every["auc"] == 0.75, "one of four pairs is the wrong way round"
    assert math.isnan(writing._together(tmp_path, tmp_path / "none")["auc"])
    assert writing._aucs(tmp_path, {"1:1"}, {"1:3", "2:1"}) == {"x_task0": 1.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a text of the oracle's on a small Flagland: what is said of it, and texts by side."""
    base = tmp_path_factory.mktemp("flagland")
    write_world(base / "root", WorldConfig(200, 5, width=48))
    using = Enriching(base / "root")
    oracle = made_anew(spec.TextSpec("oracle"), using)

    def make(kind="oracle", of=None, **settings):
        text = spec.TextSpec(kind, "oracle", **settings)
        other = oracle if text.then else None
        whole = oracle if of is None else derived(of, oracle, using)
        step = oracle if kind == "oracle" else derived(text, whole, using, other)
        graph.run([step], base / "out")
        source = read_source(step.folder(base / "out"))
        about = json.loads((step.folder(base / "out") / "texts.json").read_text())["sides"]
        return about, {side: Store(source.store).texts(side, source.recipes[side])
                       for side in spec.SIDES}  # fmt: skip

    make.root = using.root
    return make


def test_the_oracle_states_every_fact_and_noise_is_as_wrong_as_was_asked_for(made):
    for side, about in made()[0].items():
        assert about["facts"]["all"]["precision"] == about["facts"]["all"]["recall"] == 1, side
    noisy, texts = made("noise", hallucination=0.3, seed=1)
    for about in noisy.values():
        assert about["changed"]["wrong"] / about["changed"]["facts"] == pytest.approx(0.3, abs=0.02)
        # One wrong word may spoil more than one fact (of a charge, of a list), not less.
        assert about["facts"]["all"]["precision"] < 0.78
    assert texts["corpus"].recipe.settings["changed"]["hallucination"] == 0.3


def test_derived_texts_are_what_their_kind_says(made):
    whole = made()[1]["corpus"]
    filler = made("filler")[1]["corpus"]
    permuted = made("permuted")[1]["corpus"]
    reasoned = made("reasoned", omission=1.0)[1]["corpus"]
    prefixed = made("prefixed", prefix="Look:")[1]["corpus"]
    joined = made("joined", then="oracle")[1]["corpus"]
    turned = made("replaced", pattern="^A (flag) with", words=r"What is seen?")[1]["corpus"]
    for item_id, text in whole.items():
        assert len(filler[item_id].text.split()) == len(text.text.split())
        assert not language.parse(filler[item_id].text)
        thought, end = reasoned[item_id].text.split("\n")
        plain, parts = (re.sub(r"[.,]", "", one).lower() for one in (text.text, thought))
        assert parts == plain != re.sub(r"[.,]", "", end).lower()
        assert reasoned[item_id].lengths["final"] == end
        assert prefixed[item_id].text == f"Look: {text.text}"
        assert joined[item_id].text == f"{text.text} {text.text}"
        assert turned[item_id].text == f"What is seen? {text.text.removeprefix('A flag with ')}"
    noisy = made("noise", hallucination=0.1, seed=3)[1]["corpus"]
    some = spec.TextSpec("noise", "oracle", hallucination=0.1, seed=3)
    kept = made("kept", some, then="oracle")[1]["corpus"]
    right = {item_id for item_id, one in noisy.items() if one.text == whole[item_id].text}
    assert 0 < len(right) < len(whole)
    assert {item_id for item_id, one in kept.items() if not one.rejected} == right
    asked, told = (made(kind, some, then="oracle")[1]["query"] for kind in ("kept", "confirmed"))
    rows = map(json.loads, (made.root / "truth" / "queries.jsonl").read_text().splitlines())
    changes = {row["qid"] for row in rows if row["task"] == 7 and row["split"] == "train"} & {*told}
    refused, untrue = ({name for name in changes if one[name].rejected} for one in (told, asked))
    assert refused <= untrue < changes, "what is true is never refused"
    assert len(refused) > 0.9 * len(untrue), "a fact may be lost without one that is wrong"
    asked_for = {query.item.id for file in DataRoot(made.root).query_files("train")
                 for query in open_queries(file.path)}  # fmt: skip
    assert told.keys() <= asked_for, "nobody looks at the target of a query of a test"
    assert sorted(t.text for t in permuted.values()) == sorted(t.text for t in whole.values())
    differing = sum(permuted[item_id].text != text.text for item_id, text in whole.items())
    assert differing > 0.9 * len(whole)
    share = made("select", share=0.25, router="random")[1]
    for side, texts in made()[1].items():
        assert len(share[side]) == pytest.approx(0.25 * len(texts), abs=3), "of every split"


def test_another_voice_says_the_same_facts_in_other_words_and_order():
    back = sorted(((other, words) for words, others in noise._VOICE.items() for other in others),
                  key=lambda pair: len(pair[0]), reverse=True)  # fmt: skip
    moved = 0
    for seed in range(200):
        random = Random(seed)
        flag = grammar.random_flag(random)
        frame = random.choice(language.QUESTIONS[random.choice(list(language.QUESTIONS))])
        asked = f"{language.resolved(frame, flag).partition('flag has')[0]}flag has "
        parts = noise._PART.split(language.describe(flag))
        for canonical in (language.caption(flag), language.resolved(frame, flag)):
            said = noise.voiced(canonical, random, 0.0, 0.0)
            text = said.text.removeprefix(asked).removesuffix(frame.partition("{ref}")[2])
            assert text != canonical
            for other, words in back:
                text = re.sub(rf"\b{re.escape(other)}\b", words, text)
            assert {part for part in parts if part in text} == set(parts)
            moved += parts[0] not in text[: len(parts[0]) + 20]
            assert noise.voiced(canonical, random, 1.0, 1.0).gone == len(parts) - 1
    assert moved > 100


def test_leaky_texts_tell_what_no_picture_shows(made, tmp_path_factory):
    seen, told = (made(kind)[1]["query"] for kind in ("oracle", "leaky"))
    assert told.recipe.target_seen
    assert not seen.recipe.target_seen
    root = next(tmp_path_factory.getbasetemp().glob("flagland*/root"))
    rows = map(json.loads, (root / "truth" / "queries.jsonl").read_text().splitlines())
    truths = {row["qid"]: row.get("answer", "") for row in rows}
    assert sum(bool(answer) for answer in truths.values()) > 100
    for qid, text in told.items():
        assert text.text.startswith(f"{seen[qid].text} The country is ")
        assert truths[qid] in text.text
