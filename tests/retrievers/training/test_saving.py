"""What a fit leaves behind when it is killed in a validation, or got worse at its end."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from augment.errors import DataError
from retrievers.cli import USER_ERROR, main
from retrievers.models.load import read_checkpoint
from retrievers.training.callbacks import CheckpointFiles, LatestCheckpoint
from tests.retrievers.test_cli_retrievers import options

pytestmark = pytest.mark.usefixtures("one_thread")


class KillInValidation(lightning.Callback):
    """Dies as a machine does, when the validation after a step begins."""

    def on_validation_start(self, trainer, *args):
        if trainer.global_step == int(os.environ["KILL_AT"]) and not trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(world):
    out = world[2] / "whole"
    assert run_fit(world, out) == 0
    return out


def run_fit(world, out, *more):
    return main(["fit", *arguments(world, out), *more])


def arguments(world, out):
    return options(
        world, out, "--trainer.max_steps=6", "--trainer.val_check_interval=2",
        "--trainer.callbacks.every_n_train_steps=2",
    )  # fmt: skip


def state(path):
    saved = torch.load(path, weights_only=True)
    return saved["global_step"], saved["state_dict"]


@pytest.mark.parametrize(("killed_at", "latest"), [(4, 4), (6, 4)])
def test_killed_in_a_validation_and_resumed(world, whole, tmp_path, killed_at, latest):
    more = "--trainer.callbacks+=tests.retrievers.training.test_saving.KillInValidation"
    last_option = arguments(world, tmp_path)
    command = [sys.executable, "-m", "retrievers", "fit", *last_option, more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "KILL_AT": str(killed_at)}
    killed = subprocess.run(command, capture_output=True, check=False, env=env)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "checkpoints"
    assert state(folder / "latest.ckpt")[0] == latest
    assert state(folder / "last.ckpt")[0] == killed_at - 2
    assert run_fit(world, tmp_path, f"--ckpt_path={folder / 'latest.ckpt'}") == 0
    for name in ("last", "latest", "best"):
        step, weights = state(folder / f"{name}.ckpt")
        expected_step, expected = state(whole / "checkpoints" / f"{name}.ckpt")
        assert step == expected_step
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-6, msg=key)


class GettingWorse(BoringModel):
    """The first validation is the best."""

    def on_validation_epoch_end(self):
        self.log("score", -float(self.global_step))


def fit(folder, model, **settings):
    best = ModelCheckpoint(
        folder, "best", monitor="score", mode="max", enable_version_counter=False
    )
    trainer = lightning.Trainer(
        accelerator="cpu", callbacks=[best, LatestCheckpoint(str(folder), 2)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(model)
    return {path.stem: state(path)[0] for path in folder.glob("*.ckpt")}


def test_the_end_is_kept_when_it_is_not_the_best(tmp_path):
    found = fit(tmp_path, GettingWorse(), max_steps=6, val_check_interval=3)
    assert found == {"best": 3, "last": 6, "latest": 6}


def test_the_end_is_kept_without_validation(tmp_path):
    found = fit(tmp_path, GettingWorse(), max_steps=5, limit_val_batches=0)
    assert found == {"last": 5, "latest": 5}


def test_an_accumulated_step_is_written_once_when_it_is_whole(tmp_path):
    saved = []

    class Watched(GettingWorse):
        def on_save_checkpoint(self, checkpoint):
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            saved.append((checkpoint["global_step"], loop["current"]["processed"]))

    fit(tmp_path, Watched(), max_steps=5, limit_val_batches=0, accumulate_grad_batches=3)
    assert saved == [(2, 6), (4, 12), (5, 15), (5, 15)]


def test_nothing_is_written_in_a_dry_run(tmp_path):
    assert fit(tmp_path, GettingWorse(), fast_dev_run=True) == {}


def weights(value):
    return {"state_dict": {"w": torch.full((100_000,), value)}, "global_step": int(value)}


@pytest.fixture
def small_files():
    """A file grows to 100 KB and no further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, small_files):
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint(weights(1), path)
    small_files()
    with pytest.raises(DataError, match=r"last\.ckpt: cannot be written: File too large"):
        files.save_checkpoint(weights(2), path)
    assert files.load_checkpoint(path)["global_step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_fit_on_a_full_disk_is_told_and_goes_on(world, whole, tmp_path, capsys, monkeypatch):
    save, seen = torch.save, []

    def full(checkpoint, stream):
        # Beside the final name: renaming never copies.
        assert Path(stream.name).parent == tmp_path / "checkpoints"
        seen.append(checkpoint["global_step"])
        if seen[-1] == 4:
            stream.write(b"PK torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, stream)

    monkeypatch.setattr(torch, "save", full)
    assert run_fit(world, tmp_path) == USER_ERROR
    error = capsys.readouterr().err
    assert "ckpt: cannot be written: No space left on device" in error
    monkeypatch.undo()
    folder = tmp_path / "checkpoints"
    # Nothing torn, nothing left over.
    assert {state(path)[0] for path in folder.glob("*.ckpt")} == {2}
    (folder / ".0123abcd.last.ckpt").write_bytes(b"of a kill")
    assert run_fit(world, tmp_path, f"--ckpt_path={folder / 'latest.ckpt'}") == 0
    assert {path.stem for path in folder.glob("*.ckpt")} == {"last", "latest", "best"}
    for key, value in state(whole / "checkpoints" / "last.ckpt")[1].items():
        torch.testing.assert_close(state(folder / "last.ckpt")[1][key], value, rtol=0, atol=1e-6)


def test_a_flipped_bit_is_noticed_wherever_it_is(whole, tmp_path):
    given = (whole / "checkpoints" / "last.ckpt").read_bytes()
    expected = read_checkpoint(whole / "checkpoints" / "last.ckpt")["state_dict"]
    path, noticed = tmp_path / "flipped.ckpt", 0
    places = np.random.default_rng(0).integers(0, len(given), 60)
    for place in [5, *places.tolist(), len(given) - 3]:
        damaged = bytearray(given)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)["state_dict"]
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 - or nothing of it was hit
            noticed += 1
        else:
            assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert noticed > 50
    middle = bytearray(given)
    middle[len(given) // 2] ^= 1
    path.write_bytes(middle)
    with pytest.raises(DataError, match="damaged"):
        CheckpointFiles().load_checkpoint(path)
