"""``fit`` in two processes (DDP, gloo), killed and resumed, ends with the weights of one process.

The world has texts that ask for texts and pictures that ask for pictures, so that in many steps
one process's batch has no text and the other's no picture.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

from augment.data import write_queries
from augment.records import Item, Query
from retrievers.cli import main
from retrievers.models.tuning import Tuning
from retrievers.training.module import Contrastive
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import make_config, make_root
from tests.retrievers.test_cli_retrievers import options

#: float32 sums in another order, carried through eight steps of AdamW; 4e-7 was seen.
TOLERANCE = 5e-6
STEPS, SAVED, KILLED = 9, 4, 6


class Watch(lightning.Callback):
    """Writes which modalities this process's batches have, and their losses, into a folder."""

    def on_train_batch_end(self, trainer, module, outputs, batch, *args):
        loss = float(outputs["loss"])
        seen = [batch.queries, batch.candidates]
        kinds = [sum(len(side.text_rows) for side in seen), sum(len(s.image_rows) for s in seen)]
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"seen-{trainer.global_rank}.jsonl").open("a") as stream:
            stream.write(json.dumps([trainer.global_step, loss, *kinds]) + "\n")


class KillAt(lightning.Callback):
    """The first process dies as a machine does; the other finds out at the next exchange."""

    def __init__(self, at: int = KILLED) -> None:
        self.at = at

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.at and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    root = make_root(folder / "root")
    texts = [f"7:{n}" for n in range(21, 41)]
    queries = [
        Query(Item(f"7:{n + 1}", f"number {n}", (), "text"), 1, (did,), (texts[n - 1],))
        for n, did in enumerate(texts)
    ]
    queries += [
        Query(
            Item(f"7:{n + 21}", None, (f"mbeir_images/squares_images/{n}.png",), "image"),
            4,
            (f"7:{n + 1}",),
            (f"7:{n or 20}",),
        )
        for n in range(20)
    ]
    write_queries(root / "query" / "train" / "mbeir_squares_train.jsonl", queries)
    return root, make_config(folder), folder


def arguments(world, out, processes, *more):
    saving = "lightning.pytorch.callbacks.ModelCheckpoint"
    return options(
        world, out,
        f"--data.batch_size={4 // processes}", "--data.instructions=false",
        f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=100",
        f"--trainer.callbacks+={saving}", f"--trainer.callbacks.every_n_train_steps={SAVED}",
        f"--trainer.callbacks.dirpath={out}/steps", "--trainer.callbacks.save_last=true",
        "--trainer.callbacks+=tests.retrievers.training.test_fit_two_processes.Watch",
        # AdamW makes whole steps out of gradients that are nothing but rounding, unless eps is
        # above them.
        "--model.optimizer.eps=1.0e-3", "--model.optimizer.warmup_steps=0", *more,
    )  # fmt: skip


def run(arguments):
    return subprocess.run(
        [sys.executable, "-m", "retrievers", "fit", *arguments],
        capture_output=True, text=True, check=False, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", ["flagland_mllm", "flagland_reranker"])
def test_two_processes_train_a_language_model_as_one_does(world, folders, tmp_path, config):
    """Some batches of a process have no picture, and what reads pictures is trained; a kill."""
    plain = ["--trainer.val_check_interval=100", "--model.encoder.features_mib=0"]
    more = ["--data.negatives.published=true", "--data.negatives.per_query=1",
            "--model.encoder.layout.cross.yes=a", "--model.encoder.layout.cross.no=e"]  # fmt: skip

    def given(out, processes):
        return [
            f"--config={config}", f"--data.root={world[0]}", f"--out={tmp_path / out}",
            f"--model.encoder.model_name={folders['qwen3']}", "--model.optimizer.eps=1.0e-3",
            "--model.tuning.lora_rank=2", "--model.tuning.projector=true", "--model.chunk=1",
            "--model.optimizer.warmup_steps=0", f"--data.batch_size={4 // processes}",
            "--data.instructions=false", "--trainer.max_steps=3", "--trainer.strategy=ddp",
            "--trainer.enable_progress_bar=false", f"--trainer.devices={processes}",
            *(plain if config == "flagland_mllm" else more),
        ]  # fmt: skip

    encodes, resumed = config == "flagland_mllm", []
    if not encodes:
        killed = run([
            *given("two", 2), "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
            f"--trainer.callbacks.dirpath={tmp_path}/kept",
            "--trainer.callbacks.every_n_train_steps=1",
            "--trainer.callbacks+=tests.retrievers.training.test_fit_two_processes.KillAt",
            "--trainer.callbacks.at=2",
        ])  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        (middle,) = (tmp_path / "kept").glob("*step=1*.ckpt")
        resumed = [f"--ckpt_path={middle}"]
    parallel = run([*given("two", 2), *resumed])
    assert parallel.returncode == 0, parallel.stderr[-2000:]
    alone = run(given("one", 1))
    assert alone.returncode == 0, alone.stderr[-2000:]
    name = "last.ckpt" if encodes else "latest.ckpt"
    one, two = (
        torch.load(tmp_path / out / "checkpoints" / name, weights_only=True)
        for out in ("one", "two")
    )
    start = Contrastive(make(folders["qwen3"]), tuning=Tuning("image", lora_rank=2, projector=True))
    moves = {f"encoder.{n}" for n, p in start.encoder.named_parameters() if p.requires_grad}
    assert {n for n in moves if encodes or "token_adapter" not in n} <= set(one["state_dict"])
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=TOLERANCE, msg=name)
    ups = [value for name, value in one["state_dict"].items() if "lora_B" in name]
    assert max(float(value.abs().max()) for value in ups) > 50 * TOLERANCE, "nothing was learned"


def seen(out, rank):
    rows = [json.loads(line) for line in (out / f"seen-{rank}.jsonl").read_text().splitlines()]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
def test_two_processes_killed_and_resumed_equal_one(world, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    parallel = [
        "--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp",
    ]  # fmt: skip
    killer = "--trainer.callbacks+=tests.retrievers.training.test_fit_two_processes.KillAt"
    killed = run(arguments(world, two, 2, *parallel, killer))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    (middle,) = (two / "steps").glob(f"*step={SAVED}*.ckpt")
    resumed = run(arguments(world, two, 2, *parallel, f"--ckpt_path={middle}"))
    assert resumed.returncode == 0, resumed.stderr[-2000:]

    assert main(["fit", *arguments(world, one, 1)]) == 0
    ends = [next((out / "steps").glob("*step=8*.ckpt")) for out in (one, two)]
    want, found = (torch.load(end, weights_only=True) for end in ends)
    start = torch.load(middle, weights_only=True)
    assert want["global_step"] == found["global_step"] == 8
    moved = 0.0
    for name, value in want["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=0, atol=TOLERANCE)
        moved = max(moved, (start["state_dict"][name] - value).abs().max().item())
    assert moved > 50 * TOLERANCE  # the comparison can fail

    alone, first, second = seen(one, 0), seen(two, 0), seen(two, 1)
    assert set(first) == set(second) == set(alone) == set(range(1, STEPS + 1))
    for step, (loss, *_) in alone.items():
        mean = (first[step][0] + second[step][0]) / 2
        assert mean == pytest.approx(loss, abs=1e-4)
    lacking = [
        step for step in first if 0 in first[step][1:] and first[step][1:] != second[step][1:]
    ]
    assert lacking, "no step in which a process lacked a modality that the other had"

    # The place in the epoch is counted in pairs: one process goes on where two stood.
    third = tmp_path / "third"
    assert main(["fit", *arguments(world, third, 1), f"--ckpt_path={middle}"]) == 0
    last = torch.load(next((third / "steps").glob("*step=8*.ckpt")), weights_only=True)
    for name, value in want["state_dict"].items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=0, atol=TOLERANCE)
