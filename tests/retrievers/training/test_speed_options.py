"""Options that are there for speed train like the plain ones; the Slurm script resumes."""

import os
import subprocess
from pathlib import Path

import torch

from retrievers.training.optim import AdamWCosine

SLURM = Path(__file__).parents[3] / "docs" / "slurm.sh"


def test_the_fused_optimiser_takes_the_same_steps():
    # On given gradients: in training, AdamW makes steps of full size out of gradients near zero.
    ends = []
    for fused in (False, True):
        random = torch.Generator().manual_seed(0)
        named = [(str(n), torch.nn.Parameter(torch.ones(3, 4))) for n in range(3)]
        named.append(("bias", torch.nn.Parameter(torch.ones(4))))
        optimizer, schedule = AdamWCosine(lr=1e-2, fused=fused).build(named, 8)
        for _ in range(8):
            for _, parameter in named:
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()
            schedule.step()
        ends.append([parameter.detach() for _, parameter in named])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert (one - 1).abs().max() > 1e-2


def test_the_slurm_script_resumes(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "8",
    }  # fmt: skip

    def arguments():
        command = ["bash", str(SLURM), "DATA", str(tmp_path / "out"), "--data.batch_size=52"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.splitlines()

    first = arguments()
    assert first[:6] == ["python", "-m", "retrievers", "fit", "--config", "clip_sf_large"]
    assert {"--trainer.num_nodes=2", "--trainer.devices=8", "--data.batch_size=52"} <= set(first)
    latest = tmp_path / "out" / "checkpoints" / "latest.ckpt"
    latest.parent.mkdir(parents=True)
    latest.touch()
    assert set(arguments()) - set(first) == {f"--ckpt_path={latest}"}
