"""The ablation: what is shared and cached, effects by hand, texts changed at known rates."""

import json
import math
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml

from augment.errors import DataError
from augment.records import Item
from augment.store import Store
from benchmarks.experiments import graph, noise, routers, spec
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.build import Builder, Setup, digest_root
from benchmarks.experiments.effects import CELLS, CONTRASTS, crossing, effect
from benchmarks.experiments.graph import Step
from benchmarks.experiments.parts import make_part
from benchmarks.experiments.texts import Enriching, derived, made_anew, read_source
from benchmarks.flagland import language
from benchmarks.flagland.world import WorldConfig, write_world
from tests.retrievers.models.test_retriever import make_config, make_root

# -- steps --------------------------------------------------------------------------------------


def counted(name, needs=(), fail=False):
    calls = []

    def work(folder, given):
        calls.append((folder, given))
        if fail:
            raise DataError("cannot")
        (folder / "made").write_text(name)

    return Step("train", name, {"name": name}, needs, work), calls


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
    planned = graph.plan([mended], tmp_path)
    assert [one.done for one in planned] == [True] * 3
    assert "3 steps, 3 of them cached" in graph.told(planned)


def test_a_fingerprint_moves_with_settings_and_needs():
    def make(settings, needs=()):
        return Step("train", "any title", settings, needs, lambda folder, given: None)

    base = make({"seed": 0})
    assert make({"seed": 0}).fingerprint == base.fingerprint
    assert make({"seed": 1}).fingerprint != base.fingerprint
    assert make({}, (base,)).fingerprint != make({}, (make({"seed": 1}),)).fingerprint


def test_estimates_come_from_what_was_measured(tmp_path):
    done, _ = counted("done")
    graph.run([done], tmp_path)
    path = done.folder(tmp_path) / "done.json"
    record = {**json.loads(path.read_text()), "seconds": 30.0, "size": 10.0}
    path.write_text(json.dumps(record))
    new = Step("train", "new", {}, (), lambda folder, given: None, size=5.0)
    assert graph.plan([new], tmp_path)[0].seconds == pytest.approx(15.0)


# -- experiments --------------------------------------------------------------------------------


def test_every_packaged_experiment_states_a_question_and_a_prediction():
    for name in spec.names():
        found = spec.load(name)
        assert found.name == name
        assert found.question.strip().endswith("?")
        assert len(found.prediction.split()) > 15
        assert found.compare
        shown = [arm for arm in found.arms.values() if arm.show == spec._presets()["raw"]]
        assert shown, "every experiment has an arm on raw text"
        assert "oracle" in found.arms, "and the ceiling"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"a": {"show": "nowhere"}}}, "shows 'nowhere'"),
        ({"arms": {"a": {"show": {"query": "raw", "corpus": "raw", "x": 1}}}}, "does not know x"),
        ({"arms": {"a": {"show": {"query": "vlm append size=3", "corpus": "raw"}}}}, "size"),
        ({"arms": {"a": {"kind": "fusion", "of": ["b", "c"]}}}, "fuses ['b', 'c']"),
        ({"texts": {"t": {"kind": "noise", "of": "later"}}}, "texts before it are vlm, oracle"),
        ({"texts": {"t": {"kind": "noise", "of": "vlm", "rate": 1}}}, "does not know rate"),
        ({"compare": [["a", "b"]]}, "names the arm 'a'"),
        ({"curves": {"c": {"x": [1], "arms": ["a"]}}}, "lacks base, find, full"),
        ({"promise": 1}, "does not know promise"),
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
    setup = Setup(Enriching(root, digest_root(root)), steps=2, seeds=(0, 1))
    builder = Builder(spec.load("alignment"), setup)
    steps = [builder.arm(arm, seed) for seed in (0, 1)
             for name, arm in builder.experiment.arms.items() if name != "oracle"]  # fmt: skip
    kinds = [step.kind for step in graph.in_order(steps)]
    # Three arms and eight cells, of which three are the same: two trainings and eight tests a seed.
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"texts": 1, "train": 4, "test": 16}


def test_other_data_is_asked_about_with_the_same_trainings(tmp_path, capsys):
    home = Enriching(root := make_root(tmp_path / "root"), digest_root(root), tolerate=True)
    other = Enriching(away := make_root(tmp_path / "away", 12), digest_root(away))
    plans = {}
    for asked in (None, other):
        builder = Builder(spec.load("alignment"), Setup(home, steps=2, asked=asked))
        steps = [builder.arm(arm, 0) for name, arm in builder.experiment.arms.items()
                 if name != "oracle"]  # fmt: skip
        plans[asked] = {kind: {one.fingerprint for one in graph.in_order(steps) if one.kind == kind}
                        for kind in ("texts", "train", "test")}  # fmt: skip
    assert plans[other]["train"] == plans[None]["train"]
    assert plans[other]["texts"] > plans[None]["texts"], "those of both"
    assert not plans[other]["test"] & plans[None]["test"]
    given = ["--root", str(root), "--model", "scripted:", "--steps", "2", "--seeds", "0",
             "--out", str(tmp_path / "out"), "--test-root", str(away), "--dry-run"]  # fmt: skip
    assert main([*given, "--test-datasets", "squares"]) == 0
    assert "asked about squares-test" in capsys.readouterr().out
    assert main([*given, "--test-datasets", "circles"]) == 2
    assert "no test queries of 'circles'; there are squares" in capsys.readouterr().err


def test_a_part_of_a_root_has_its_lists_and_pictures(tmp_path):
    root = make_root(tmp_path / "root")
    lists = root / "cand_pool" / "local"
    (lists / "mbeir_circles_task0_cand_pool.jsonl").write_text('{"did": "8:1"}\n')
    make_part(root, ["squares"], "test", tmp_path / "part")
    part = tmp_path / "part"
    kept, whole = ({path.relative_to(one) for path in one.rglob("*.*") if path.is_file()
                    and ".cache" not in path.parts} for one in (part, root))  # fmt: skip
    assert {path.parts[:2] for path in whole - kept} == {
        ("cand_pool", "local"), ("query", "train"), ("query", "val"), ("qrels", "val"),
    }  # fmt: skip
    assert kept < whole
    assert all((part / path).read_bytes() == (root / path).read_bytes() for path in kept)


def test_a_root_is_known_by_its_contents(tmp_path):
    root = make_root(tmp_path / "root")
    before = digest_root(root)
    assert digest_root(make_root(tmp_path / "other")) == before
    file = next((root / "query" / "test").glob("*task0*.jsonl"))
    file.write_text(file.read_text().replace("number", "Number"))
    assert digest_root(root) != before


@pytest.mark.slow
def test_the_grid_on_any_root_store_and_config_and_again_from_the_cache(tmp_path, capsys):
    root = make_root(tmp_path / "root")
    tiny = yaml.safe_load(Path("retrievers/configs/flagland.yaml").read_text())
    tiny["model"]["init_args"]["model_name"] = make_config(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny))
    out = tmp_path / "out"
    given = ["--root", str(root), "--model", "scripted:", "--config", str(config), "--steps", "2",
             "--batch-size", "8", "--seeds", "0", "--out", str(out)]  # fmt: skip
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


def cells(value):
    return {cell: {"0: a": {"q1": value(*cell), "q2": value(*cell)}} for cell in CELLS}


def named(name):
    return next(one for one in CONTRASTS if one.name == name)


def test_effects_of_an_additive_world_are_its_coefficients():
    found = cells(lambda t, q, c: 0.1 + 0.05 * t + 0.2 * q + 0.1 * c)
    assert effect(named("query effect"), found)["mean"].mean == pytest.approx(0.2)
    assert effect(named("corpus effect"), found)["mean"].mean == pytest.approx(0.1)
    assert effect(named("total"), found)["mean"].mean == pytest.approx(0.35)
    assert effect(named("query x corpus"), found)["mean"].mean == pytest.approx(0)
    assert effect(named("alignment effect"), found)["mean"].mean == pytest.approx(0)


def test_alignment_is_what_matching_text_is_worth():
    found = cells(lambda t, q, c: 0.5 + 0.1 * (t == q == c))
    assert effect(named("alignment effect"), found)["mean"].mean == pytest.approx(0.1)
    assert effect(named("query effect"), found)["mean"].mean == pytest.approx(0)


def test_an_effects_interval_is_that_of_a_plain_resampling():
    rng = np.random.default_rng(0)
    scores = {cell: {"0: a": dict(enumerate(map(str, range(80))))} for cell in CELLS}
    scores = {cell: {"0: a": {str(n): float(rng.random() < 0.5) for n in range(80)}}
              for cell in CELLS}  # fmt: skip
    found = effect(named("corpus effect"), scores)["mean"]
    values = np.zeros(80)
    for cell in CELLS:
        sign = 0.25 if cell[2] else -0.25
        values += sign * np.array(list(scores[cell]["0: a"].values()))
    draws = [values[rng.integers(0, 80, 80)].mean() for _ in range(20_000)]
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.01)


def test_a_curve_crosses_where_it_is_drawn_to():
    def arm(value):
        return {"0: a": {f"q{n}": value for n in range(20)}}

    falling = [arm(0.9), arm(0.7), arm(0.3)]
    at = crossing([0, 0.5, 1], falling, arm(0.5), arm(0.9), 0.0)
    assert at == pytest.approx((0.75, 0.75, 0.75))
    rising = [arm(0.5), arm(0.8), arm(0.9)]
    assert crossing([0, 0.5, 1], rising, arm(0.5), arm(0.9), 0.95).at == pytest.approx(0.9)
    assert math.isinf(crossing([0, 0.5, 1], falling, arm(0.1), arm(0.9), 0.0).at)


# -- texts --------------------------------------------------------------------------------------

TEXT = (
    "A flag with horizontal bands of red, light blue and red, the middle one wide, a green triangle"
    " at the hoist, one large yellow star in the centre, three white rings at the fly."
)


def test_noise_at_rate_nothing_and_everything():
    same = noise.corrupt(TEXT, Random(0), 0.0, 0.0)
    assert (same.text, same.wrong, same.gone) == (TEXT, 0, 0)
    # horizontal, red, light blue, red, green, triangle, at the hoist, large, yellow, star, in the
    # centre, three, white, rings, at the fly
    assert same.facts == 15
    wrong = noise.corrupt(TEXT, Random(0), 1.0, 0.0)
    assert (wrong.facts, wrong.wrong) == (15, 15)
    unchanged = {("proportion", "middle wide"), ("charge count", "0:1")}
    assert not language.parse(wrong.text) & language.parse(TEXT) - unchanged
    gone = noise.corrupt(TEXT, Random(0), 0.0, 1.0)
    assert gone.gone == 15
    assert "  " not in gone.text
    with pytest.raises(ValueError, match="sum at most 1"):
        noise.corrupt(TEXT, Random(0), 0.8, 0.3)


def test_noise_comes_at_its_rates():
    found = [noise.corrupt(TEXT, Random(n), 0.25, 0.1) for n in range(400)]
    facts = sum(one.facts for one in found)
    assert sum(one.wrong for one in found) / facts == pytest.approx(0.25, abs=0.02)
    assert sum(one.gone for one in found) / facts == pytest.approx(0.1, abs=0.02)


def test_filler_has_its_length_and_no_fact():
    text = noise.filler(90, 7)
    assert len(text.split()) == 90
    assert noise.corrupt(text, Random(0), 1.0, 0.0, noise.FLAGLAND).facts == 0
    assert noise.corrupt(text, Random(0), 1.0, 0.0, noise.GENERAL).facts == 0


def test_routers_put_items_in_order(tmp_path):
    items = {f"1:{n}": Item(f"1:{n}", "word " * n or None, "a.jpg", "image,text")
             for n in range(4)}  # fmt: skip
    assert routers.chosen(items, "corpus", 0.5, "thin") == {"1:0", "1:1"}
    half = routers.chosen(items, "corpus", 0.5, "random", 1)
    assert half == routers.chosen(dict(reversed(items.items())), "corpus", 0.5, "random", 1)
    assert len(half) == 2
    run = ["q1 Q0 1:3 1 0.9 x", "q1 Q0 1:2 2 0.5 x", "q2 Q0 1:0 1 0.8 x", "q2 Q0 1:2 2 0.7 x"]
    (tmp_path / "x_task0.local.trec").write_text("\n".join(run) + "\n")
    assert routers.margins(tmp_path) == pytest.approx({"q1": 0.4, "q2": 0.1}, abs=1e-6)
    near = routers.closeness(tmp_path)
    assert near == pytest.approx({"1:3": 0.4, "1:2": 0.1, "1:0": 0.1}, abs=1e-6)
    kept = routers.chosen(items, "corpus", 0.5, "contested", 0, tmp_path)
    assert kept == {"1:0", "1:2"}
    with pytest.raises(DataError, match="asks a retriever"):
        routers.chosen(items, "corpus", 0.5, "contested")
    with pytest.raises(DataError, match="unknown router"):
        routers.chosen(items, "corpus", 0.5, "best")


@pytest.fixture(scope="module")
def flagland(tmp_path_factory):
    """A small Flagland and the step of the oracle's texts, done."""
    base = tmp_path_factory.mktemp("flagland")
    write_world(base / "root", WorldConfig(200, 5, width=48))
    using = Enriching(base / "root", digest_root(base / "root"))
    oracle = made_anew(spec.Text("oracle", "oracle"), using)
    graph.run([oracle], base / "out")
    return base, using, oracle


def made_of(flagland, kind, **settings):
    base, using, oracle = flagland
    step = derived(spec.Text("t", kind, "oracle", settings), oracle, using)
    graph.run([step], base / "out")
    folder = step.folder(base / "out")
    return json.loads((folder / "texts.json").read_text()), read_source(folder)


def texts_of(source, side):
    return Store(source.store).texts(side, source.recipes[side])


def test_the_oracle_states_every_fact_and_nothing_else(flagland):
    base, _, oracle = flagland
    about = json.loads((oracle.folder(base / "out") / "texts.json").read_text())["sides"]
    for side in ("query", "corpus"):
        assert about[side]["facts"]["all"]["precision"] == 1
        assert about[side]["facts"]["all"]["recall"] == 1


def test_noisy_texts_are_as_wrong_as_was_asked_for(flagland):
    about, source = made_of(flagland, "noise", hallucination=0.3, seed=1)
    for side in ("query", "corpus"):
        changed = about["sides"][side]["changed"]
        assert changed["wrong"] / changed["facts"] == pytest.approx(0.3, abs=0.02)
        # One wrong word may spoil more than one fact (of a charge, of a list), not less.
        assert about["sides"][side]["facts"]["all"]["precision"] < 0.78
    recipe = texts_of(source, "corpus").recipe
    assert recipe.settings["changed"]["hallucination"] == 0.3


def test_filler_is_as_long_as_the_enrichment(flagland):
    base, _, oracle = flagland
    _, source = made_of(flagland, "filler")
    whole = texts_of(read_source(oracle.folder(base / "out")), "corpus")
    for item_id, text in list(texts_of(source, "corpus").items())[:20]:
        assert len(text.text.split()) == len(whole[item_id].text.split())
        assert not language.parse(text.text)


def test_permuted_texts_are_others_own(flagland):
    base, _, oracle = flagland
    _, source = made_of(flagland, "permuted")
    whole = texts_of(read_source(oracle.folder(base / "out")), "corpus")
    found = texts_of(source, "corpus")
    assert sorted(text.text for text in found.values()) == sorted(
        text.text for text in whole.values()
    )
    differing = sum(found[item_id].text != text.text for item_id, text in whole.items())
    assert differing > 0.9 * len(whole)


def test_a_share_is_a_share_of_every_split(flagland):
    base, _, oracle = flagland
    _, source = made_of(flagland, "select", share=0.25, router="random")
    whole = read_source(oracle.folder(base / "out"))
    for side in ("query", "corpus"):
        kept = texts_of(source, side)
        assert len(kept) == pytest.approx(0.25 * len(texts_of(whole, side)), abs=3)
