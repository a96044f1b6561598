"""A fit that is killed in the middle of an epoch and resumed ends with the same weights."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

from augment import corpus
from augment.enrichment.pipeline import Options
from benchmarks.flagland.world import WorldConfig, write_world
from retrievers.cli import USER_ERROR, main
from tests.retrievers.models.test_retriever import CONFIG, make_root
from tests.retrievers.test_cli_retrievers import options


class KillAt(lightning.Callback):
    """Dies as a machine does, after the sixth step."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    # Dropout of patches: what is drawn must be drawn again.
    config = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "patch_dropout": 0.5}}
    (folder / "drop-clip.json").write_text(json.dumps(config))
    root = make_root(folder / "root")
    corpus.run(root, folder / "store", options=Options(model="scripted:"))
    return root, str(folder / "drop-clip.json"), folder


def arguments(world, out):
    saving = "lightning.pytorch.callbacks.ModelCheckpoint"
    return options(
        world, out,
        "--data.batch_size=6",  # six batches per epoch
        "--data.loader.workers=1",
        "--data.corpus.view=append", f"--data.corpus.store={world[2] / 'store'}",
        "--data.corpus.mix={dense: 2, short: 1}", "--data.corpus.dropout=0.3",
        "--data.corpus.sentences.share=0.5",
        "--data.sampling.group_by=task", "--data.sampling.homogeneous=true",
        "--trainer.max_steps=9", "--trainer.val_check_interval=100",
        f"--trainer.callbacks+={saving}", "--trainer.callbacks.every_n_train_steps=4",
        f"--trainer.callbacks.dirpath={out}/steps",
    )  # fmt: skip


@pytest.mark.usefixtures("one_thread")
def test_killed_and_resumed_equals_undisturbed(world, tmp_path):
    assert main(["fit", *arguments(world, tmp_path / "whole")]) == 0
    half = arguments(world, tmp_path / "half")
    killer = "--trainer.callbacks+=tests.retrievers.training.test_resume.KillAt"
    command = [sys.executable, "-m", "retrievers", "fit", *half, killer]
    killed = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert killed.returncode == -signal.SIGKILL
    (latest,) = (tmp_path / "half" / "steps").glob("*.ckpt")
    saved = torch.load(latest, weights_only=True)
    assert saved["global_step"] == 4  # in the middle of an epoch of six
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [
        {"epoch": 0, "pairs": 24, "joint": 6}
    ]
    assert main(["fit", *half, f"--ckpt_path={latest}"]) == 0
    states = []
    for run in ("whole", "half"):
        (path,) = (tmp_path / run / "steps").glob("*step=8*.ckpt")
        states.append(torch.load(path, weights_only=True))
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert states[0]["global_step"] == states[1]["global_step"] == 8


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("ended", [4, 6])  # in the middle of an epoch of six steps, and at its end
def test_a_fit_that_ended_and_goes_on_equals_undisturbed(world, tmp_path, ended):
    # The cosine is of the whole fit: another number of steps is another schedule.
    flat = ["--model.optimizer.floor=1", "--trainer.limit_val_batches=0"]
    assert main(["fit", *arguments(world, tmp_path / "whole"), *flat]) == 0
    half = [*arguments(world, tmp_path / "half"), *flat]
    assert main(["fit", *half, f"--trainer.max_steps={ended}"]) == 0
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    assert main(["fit", *half, f"--ckpt_path={last}"]) == 0
    whole, gone_on = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in ("whole", "half")
    )
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, gone_on["state_dict"][name]), name
    for name in ("state_dict", "epoch_progress", "epoch_loop.batch_progress"):
        assert whole["loops"]["fit_loop"][name] == gone_on["loops"]["fit_loop"][name]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("optimizer.lr=0.1", "optimizer.lr: trained with 0.0005, now 0.1"),
        ("optimizer.weight_decay=0", "optimizer.weight_decay: trained with 0.1, now 0.0"),
        ("optimizer.betas=[0.5,0.9]", "optimizer.betas: trained with [0.9, 0.98], now [0.5, 0.9]"),
        ("objective.symmetric=false", "objective.symmetric: trained with True, now False"),
    ],
)
def test_other_settings_of_training_are_refused_on_resume(world, tmp_path, capsys, given, told):
    given = [*arguments(world, tmp_path), f"--model.{given}", "--trainer.max_steps=9"]
    assert main(["fit", *given, f"--ckpt_path={fitted(world)}"]) == USER_ERROR
    error = capsys.readouterr().err
    assert told in error
    assert "--model.init_from" in error
    fresh = [*given, f"--model.init_from={fitted(world)}", "--trainer.max_steps=1"]
    assert main(["fit", *fresh]) == 0


def fitted(world):
    """The checkpoint of a fit of one step."""
    folder = world[2] / "fitted"
    if not folder.exists():
        assert main(["fit", *arguments(world, folder), "--trainer.max_steps=1"]) == 0
    return folder / "checkpoints" / "last.ckpt"


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "losses.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "world"
    write_world(folder, WorldConfig(countries=200, seed=3))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "config"), [("ClipScoreFusion", "flagland"),
    ("ClipFeatureFusion", "flagland_ff"), ("Mllm", "flagland_mllm")])  # fmt: skip
def test_losses_are_those_of_before(root, tmp_path, name, config):
    given = [
        f"--config={config}", f"--data.root={root}", f"--out={tmp_path}", "--data.batch_size=16",
        "--trainer.max_steps=20", "--trainer.val_check_interval=20",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    assert main(["fit", *given]) == 0
    (log,) = tmp_path.glob("logs/*/metrics.csv")
    rows = list(csv.DictReader(log.open()))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    # To the digit on one machine; processors differ in how they add.
    assert losses == pytest.approx(GOLDEN[name]["loss"], rel=2e-3)
    assert losses[:3] == pytest.approx(GOLDEN[name]["loss"][:3], rel=1e-5)
