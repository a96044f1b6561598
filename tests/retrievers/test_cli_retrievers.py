"""``python -m retrievers`` end to end, in this process, on a tiny root with a random CLIP."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from augment.errors import DataError
from retrievers.cli import USER_ERROR, main
from retrievers.data.named import expand
from retrievers.export.folder import save
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.load import load
from retrievers.vectors.store import EmbeddingStore
from tests.retrievers.models.test_retriever import checkpoint_of, make_config, make_root
from tests.retrievers.test_help import CONFIGS

REAL = Path(__file__).parents[3] / "shared" / "data" / "mbeir_real"


def options(world, out, *more):
    root, config, _ = world
    return [
        "--config=flagland",
        f"--data.root={root}",
        f"--model.encoder.model_name={config}",
        f"--out={out}",
        "--data.batch_size=10",
        "--trainer.max_steps=8",
        "--trainer.val_check_interval=4",
        "--trainer.log_every_n_steps=4",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *more,
    ]


def plain_options(world, out, *more):
    """Of the verbs that have no trainer."""
    root, _, _ = world
    return ["--config=flagland", f"--data.root={root}", f"--out={out}", *more]


@pytest.fixture(scope="module")
def fitted(world):
    out = world[2] / "fitted"
    assert main(["fit", *options(world, out)]) == 0
    return out


def test_fit_leaves_checkpoints_settings_and_logs(fitted):
    checkpoint = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert checkpoint["retriever"]["text"]["corpus"].startswith("raw:")
    assert checkpoint["retriever"]["training"]["objective"]["symmetric"] is True
    assert "hyper_parameters" not in checkpoint
    assert (fitted / "checkpoints" / "best.ckpt").is_file()
    settings = yaml.safe_load((fitted / "fit.yaml").read_text())
    assert settings["out"] == str(fitted)
    # Settings are usable again elsewhere: nothing but ``out`` names this folder.
    assert (fitted / "fit.yaml").read_text().count(str(fitted)) == 1
    header = next(fitted.glob("logs/*/metrics.csv")).read_text().splitlines()[0]
    assert {"val/recall@5", "val/success@1", "train/loss"} <= set(header.split(","))


def test_the_same_seed_gives_the_same_weights(world, fitted, tmp_path):
    assert main(["fit", *options(world, tmp_path)]) == 0
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (fitted, tmp_path)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_test_is_deterministic_and_prints_a_table(world, fitted, tmp_path, capsys):
    saved = []
    for name in ("a", "b"):
        given = [f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"]
        assert main(["test", *options(world, tmp_path / name), *given]) == 0
        saved.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    assert "success@5" in capsys.readouterr().out
    assert saved[0]["rows"] == saved[1]["rows"]
    for run in (tmp_path / "a").glob("*.trec"):
        assert run.read_text() == (tmp_path / "b" / run.name).read_text()
    assert len(list((tmp_path / "a").glob("*.trec"))) == 4
    assert saved[0]["settings"]["trained_on"]["rule"] == "plain"


def test_settings_of_a_fit_are_known_to_verbs_with_its_folder_in_them(tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    for root, said in ((tmp_path / "none", "none: no such folder"), ("${oc.env:HOME}", "oc.env")):
        told = {"out": str(tmp_path), "data": {"root": str(root).replace(str(tmp_path), "${out}")}}
        config.write_text(yaml.safe_dump(told))
        assert main(["embed", f"--config={config}", "--model=none", f"--out={tmp_path / 'x'}"]) == 2
        assert said in capsys.readouterr().err


def test_saved_settings_work_with_another_folder(fitted, tmp_path, capsys):
    before = sorted(path.stat().st_mtime_ns for path in fitted.rglob("*"))
    given = [f"--config={fitted / 'fit.yaml'}", f"--out={tmp_path}"]
    checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"
    assert main(["validate", *given, checkpoint]) == 0
    assert main(["fit", *given, "--trainer.max_steps=4"]) == 0
    told = capsys.readouterr()
    (best,) = re.findall(r"^best: (.*) \(val/recall@5 0\.\d+\)$", told.out, re.MULTILINE)
    assert Path(best).is_file()
    said = f"next: python -m retrievers test --config={tmp_path / 'fit.yaml'} --ckpt_path=best"
    assert said in told.out
    assert not re.search("litlogger|weights_only", told.err + told.out)
    assert main(["fit", *given, f"--out={tmp_path / 'no'}", "--ckpt_path=last"]) == 2
    assert f"{tmp_path / 'no'}/checkpoints/last.ckpt: no such" in capsys.readouterr().err
    with FileLock(tmp_path / "checkpoints" / ".lock"):
        assert main(["fit", *given, "--trainer.max_steps=1"]) == 2
    assert "another fit writes here" in capsys.readouterr().err
    assert main(["fit", *given, "--trainer.max_steps=1"]) == 0
    told = capsys.readouterr().out
    assert "latest.ckpt will be written over" in told
    assert "--ckpt_path=last" in told, "the best is of the fit before"
    assert before == sorted(path.stat().st_mtime_ns for path in fitted.rglob("*"))


def test_another_recipe_is_refused_unless_allowed(world, fitted, tmp_path, capsys):
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    shifted = [*options(world, tmp_path), "--data.text_rule=uniir"]
    assert main(["test", *shifted, f"--ckpt_path={checkpoint}"]) == USER_ERROR
    message = capsys.readouterr().err
    assert "rule: trained on plain, data shows uniir" in message
    assert "allow_mismatch=true" in message
    assert main(["validate", *shifted, f"--ckpt_path={checkpoint}"]) == USER_ERROR
    assert (
        main(["fit", *shifted, f"--ckpt_path={checkpoint}", "--trainer.max_steps=9"]) == USER_ERROR
    )
    assert main(["test", *shifted, f"--model.init_from={checkpoint}"]) == USER_ERROR
    allowed = [f"--ckpt_path={checkpoint}", "--model.allow_mismatch=true"]
    assert main(["test", *shifted, *allowed]) == 0


def test_initial_weights_come_without_settings_or_step(world, fitted, tmp_path):
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    more = [
        f"--model.init_from={checkpoint}",
        "--data.text_rule=uniir",
        "--model.objective.symmetric=false",
    ]
    still = ["--trainer.max_steps=1", "--model.optimizer.lr=0", "--trainer.val_check_interval=1"]
    assert main(["fit", *options(world, tmp_path, *more, *still)]) == 0
    before = torch.load(checkpoint, weights_only=True)
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == 1
    assert after["retriever"]["text"]["rule"] == "uniir"
    assert after["retriever"]["training"]["objective"]["symmetric"] is False
    for name, value in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], value)


def test_printed_config_follows_overrides(world, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *options(world, "elsewhere"), "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["out"] == "elsewhere"
    text = json.dumps(printed)
    assert "runs/flagland" not in text
    # Interpolation is either still there, to be resolved by the run, or follows the override.
    assert "elsewhere/checkpoints" in text or "}/checkpoints" in text


def test_names_of_packaged_configs():
    path = expand(["fit", "--config", "flagland"])[2]
    assert Path(path).is_file()
    assert expand(["fit", "--config=flagland"])[1] == f"--config={path}"
    assert expand(["search", "~/a.jpg", "--root=~/b", "2 ~ 3"]) == [
        "search", str(Path.home() / "a.jpg"), f"--root={Path.home()}/b", "2 ~ 3",
    ]  # fmt: skip
    untouched = ["fit", "-c", "mine.yaml", "--x=flagland"]
    assert expand(untouched) == untouched


@pytest.mark.parametrize("name", CONFIGS)
def test_packaged_configs_parse(name, world, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", name, f"--data.root={world[0]}", "--print_config"])
    assert stopped.value.code == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data of ../shared is not there")
def test_real_data_goes_through(world, tmp_path):
    more = [f"--data.root={REAL}", "--data.tasks=[7]", "--data.test.union=false"]
    few = ["--data.validation.queries=4", "--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    assert main(["fit", *options(world, tmp_path, *more, *few)]) == 0
    given = [f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"]
    assert main(["test", *options(world, tmp_path, *more), *given]) == 0
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {row["dataset"] for row in rows} == {"flags", "luma"}


def test_embeddings_are_kept_resumed_and_used_by_test(tmp_path, capsys, monkeypatch):
    root, config = make_root(tmp_path / "root"), make_config(tmp_path)
    world = root, config, tmp_path
    out = tmp_path / "out"
    small = ["--data.loader.eval_batch_size=8", "--data.embeddings.shard_rows=8"]
    given = [*options(world, out, *small), f"--embeddings={out / 'kept'}"]
    torch.save(checkpoint_of(ClipScoreFusion(config)), tmp_path / "w.ckpt")
    embedding = [
        *plain_options(world, out, *small), f"--embeddings={out / 'kept'}",
        f"--model={tmp_path / 'w.ckpt'}",
    ]  # fmt: skip
    given += [f"--model.init_from={tmp_path / 'w.ckpt'}", "--model.encoder.normalize_towers=false"]
    encoded = []
    whole = ClipScoreFusion.whole

    def watched(self, batch, side):
        if len(encoded) == 2 and dying:
            raise KeyboardInterrupt  # killed in the third batch
        encoded.append(batch.size)
        return whole(self, batch, side)

    monkeypatch.setattr(ClipScoreFusion, "whole", watched)
    dying = True
    with pytest.raises(KeyboardInterrupt):
        main(["embed", *embedding])
    assert sum(encoded) == 16
    dying = False
    assert main(["embed", *embedding]) == 0
    assert sum(encoded) == 40 + 16  # 40 candidates, 16 queries, none twice
    told = capsys.readouterr().out
    assert "corpus: 40 vectors, 0 of them" in told
    assert "query: 16 vectors" in told
    encoded.clear()
    assert main(["test", *given]) == 0
    assert encoded == []
    kept = json.loads((out / "metrics.json").read_text())["rows"]
    # One candidate's picture and one text change: those two alone are embedded again.
    (root / "mbeir_images" / "squares_images" / "5.png").write_bytes(
        (root / "mbeir_images" / "squares_images" / "6.png").read_bytes()
    )
    pool = root / "cand_pool" / "local" / "mbeir_squares_task3_cand_pool.jsonl"
    pool.write_text(pool.read_text().replace("number 3", "number 33"))
    assert main(["test", *given]) == 0
    assert sum(encoded) == 3  # candidate 5, query 5 that shows the same picture, text 3
    fresh = [*options(world, tmp_path / "fresh", *small), *given[-2:]]
    assert main(["test", *fresh]) == 0
    rows = [json.loads((f / "metrics.json").read_text())["rows"] for f in (out, tmp_path / "fresh")]
    assert rows[0] == rows[1]
    assert [row["candidates"] for row in kept] == [row["candidates"] for row in rows[0]]
    # Other text, other vectors: never in one folder.
    assert main(["test", *given, "--data.text_rule=uniir"]) == USER_ERROR
    assert "text.rule: plain, now uniir" in capsys.readouterr().err
    approximate = ["--data.test.index=IVF4,Flat", "--data.test.index_parameters=nprobe=4"]
    assert main(["test", *given, *approximate]) == 0
    assert "true recall@" in capsys.readouterr().err
    told = json.loads((out / "metrics.json").read_text())
    pools = {row["pool"] for row in told["rows"]}
    assert len(told["recall"]) > 1
    assert pools == {"local", "union"}
    assert "union" in told["recall"]
    for measured in told["recall"].values():
        assert measured[0]["name"] == "IVF4,Flat nprobe=4"
        assert 0 < measured[0]["worst"] <= measured[0]["mean"] <= 1
    assert json.loads((tmp_path / "fresh" / "metrics.json").read_text())["recall"] == {}


def test_pools_alone_can_be_embedded(world, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(world[0] / "cand_pool", root / "cand_pool")
    shutil.copytree(world[0] / "mbeir_images", root / "mbeir_images")
    given = plain_options(world, tmp_path / "out", "--data.instructions=false")
    assert main(["embed", *given, f"--data.root={root}"]) == 0
    assert "corpus: 40 vectors" in capsys.readouterr().out
    assert len(EmbeddingStore.open(tmp_path / "out" / "embeddings" / "corpus")) == 40


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The name of a class whose module, when it is imported, leaves a file."""
    (tmp_path / "canary_bird.py").write_text("open('imported', 'w').close()\nclass Bird: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield "canary_bird.Bird"
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_checkpoint_brings_no_class(world, fitted, tmp_path, verb, canary, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    given = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    told = {
        "_class_path": canary,
        "encoder": {"class_path": canary},
        "init_from": "${oc.env:SECRET}",
    }
    given["hyper_parameters"] = told
    torch.save(given, tmp_path / "evil.ckpt")
    out = options(world, tmp_path / "out", f"--ckpt_path={tmp_path / 'evil.ckpt'}")
    assert main([verb, *out]) == 0  # they are not looked at
    assert "hush" not in "".join(capsys.readouterr())


def test_home_is_known_in_configs(world, tmp_path, capsys, monkeypatch):
    model, home = world[1], tmp_path / "home"
    root = make_root(home / "root")
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "a.yaml").write_text("data: {root: ~/root}\nout: ~/x\n")
    given = [*options(world, "x", f"--config={tmp_path / 'a.yaml'}", "--print_config")]
    with pytest.raises(SystemExit):
        main(["fit", *(one for one in given if not one.startswith(("--data.root", "--out")))])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["data"]["root"], printed["out"]) == (str(root), f"{home}/x")
    settings = {"model": {"class_path": "ClipScoreFusion", "init_args": {"model_name": str(model)}}}
    for verb, more in (("bm25", {"root": "~/root"}), ("audit", {"data": {"root": "~/root"}})):
        told = {**more, "out": f"~/{verb}", **(settings if verb == "audit" else {})}
        (tmp_path / f"{verb}.yaml").write_text(json.dumps(told))
        assert main([verb, f"--config={tmp_path / verb}.yaml"]) == 0
        assert any((home / verb).iterdir())


def test_a_config_reads_no_environment(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    (tmp_path / "c.yaml").write_text("data: {root: '${oc.env:SECRET}'}")
    given = [*options(world, tmp_path)[:1], f"--config={tmp_path / 'c.yaml'}"]
    assert main(["fit", *given]) == USER_ERROR
    error = capsys.readouterr().err
    assert "oc.env" in error
    assert "hush" not in error


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
def test_settings_that_come_with_weights_are_data(fitted, tmp_path, kind, canary, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    evil = {"text": {"class_path": canary}, "model_name": "${oc.env:SECRET}", "class_path": canary}
    if kind == "checkpoint":
        given = torch.load(checkpoint, weights_only=True)
        path = tmp_path / "evil.ckpt"
        for change in ({"class": canary}, {"settings": {**given["retriever"]["settings"], **evil}}):
            torch.save({**given, "retriever": {**given["retriever"], **change}}, path)
            with pytest.raises(DataError, match=r"known encoders|cannot be built"):
                load(path)
        return
    path = save(load(checkpoint), tmp_path / "model")
    (path / "SHA256SUMS").unlink()
    told = json.loads((path / "retriever.json").read_text())
    for change in (
        {"class": canary},
        {"settings": {**told["settings"], **evil, "max_logit": canary}},
    ):
        (path / "retriever.json").write_text(json.dumps({**told, **change}))
        if "class" in change:
            with pytest.raises(DataError, match="known encoders"):
                load(path)
        else:
            assert load(path).settings()["model_name"] == "${oc.env:SECRET}"  # as it is written
