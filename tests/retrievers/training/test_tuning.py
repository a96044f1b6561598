"""Frozen towers and low-rank updates: what moves, what is saved; merging changes nothing."""

import json

import pytest
import torch

from augment.errors import DataError, MismatchError
from retrievers.cli import main
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.models.load import load, load_weights
from retrievers.models.tuning import Tuning, merge
from retrievers.training.module import Contrastive
from tests.retrievers.models.test_retriever import batch_of
from tests.retrievers.test_cli_retrievers import options
from tests.retrievers.training.test_training import fit, make_training

LORA = Tuning(lora_rank=2, lora_alpha=4)


@pytest.mark.parametrize(
    ("tuning", "moves"),
    [
        (Tuning("image"), lambda name: not name.startswith("clip.visual.")),
        (Tuning("text"), lambda name: name.startswith(("clip.visual.", "clip.logit"))),
        (Tuning("both"), lambda name: name == "clip.logit_scale"),
        (
            Tuning("both", unlock_image=1, unlock_text=2),
            lambda name: name.startswith(
                ("clip.visual.proj", "clip.logit", "clip.text_proj", "clip.ln_final",
                 "clip.transformer.resblocks.0.")
            ),
        ),
        (LORA, lambda name: ".lora_" in name or name == "clip.logit_scale"),
        (
            Tuning("text", lora_rank=2),
            lambda name: name == "clip.logit_scale" or (".lora_" in name and ".visual." in name),
        ),
    ],
)  # fmt: skip
def test_what_is_frozen_does_not_move_and_the_rest_does(config, root, tuning, moves):
    training = make_training(config, tuning=tuning, chunk=3)
    retriever = training.encoder
    start = {name: value.clone() for name, value in retriever.state_dict().items()}
    fit(training, root, steps=3)
    for name, parameter in retriever.named_parameters():
        assert parameter.requires_grad == moves(name), name
        assert torch.equal(start[name], parameter) != moves(name), name
        assert (parameter.grad is not None) <= moves(name), name


def weights_by_hand(lora, plain):
    state, own = dict(plain.state_dict()), lora.state_dict()
    updates = [name.removesuffix(".0.lora_a") for name in own if name.endswith("lora_a")]
    assert len(updates) == 8  # four matrices in the one block of each tower
    for name in updates:
        product = own[f"{name}.0.lora_b"] @ own[f"{name}.0.lora_a"]
        key = name.replace(".parametrizations", "")
        state[key] = state[key] + 4 / 2 * product
    return state


def test_updates_start_at_nothing_and_merge_to_the_same_vectors(config):
    for kind in (ClipScoreFusion, ClipFeatureFusion):
        torch.manual_seed(0)
        more = {"fusion": FusionLayers(1, 2, 8, 16)} if kind is ClipFeatureFusion else {}
        plain = kind(config, **more).eval()
        lora = Contrastive(kind(config, **more), tuning=LORA).encoder.eval()
        lora.load_state_dict(plain.state_dict())  # of a plain model into one with updates
        _, inputs = batch_of(plain, ["t", "i", "it"])
        with torch.no_grad():
            torch.testing.assert_close(
                lora.encode(inputs, "query").vectors, plain.encode(inputs, "query").vectors
            )
            for name, parameter in lora.named_parameters():
                if name.endswith("lora_b"):
                    parameter.normal_()
            by_hand = weights_by_hand(lora, plain)
            moved = lora.encode(inputs, "query").vectors
            assert not torch.allclose(moved, plain.encode(inputs, "query").vectors, atol=1e-3)
            merge(lora)
            torch.testing.assert_close(lora.encode(inputs, "query").vectors, moved)
            assert set(lora.state_dict()) == set(plain.state_dict())
            plain.load_state_dict(by_hand)  # W + alpha / rank * B A
            torch.testing.assert_close(plain.encode(inputs, "query").vectors, moved)


def test_checkpoints_are_small_resume_and_load(root, tmp_path, capsys):
    world = root, "flagland-clip", tmp_path
    lora = ["--model.tuning.lora_rank=2", "--trainer.val_check_interval=2", "--data.limit=10"]

    def run(command, out, *more):
        return main([command, *options(world, tmp_path / out), *lora, *more])

    assert run("fit", "whole", "--trainer.max_steps=4") == 0
    assert run("fit", "half", "--trainer.max_steps=2") == 0
    last = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    middle = tmp_path / "half" / "checkpoints" / "last.ckpt"
    assert run("fit", "half", "--trainer.max_steps=4", f"--ckpt_path={middle}") == 0
    saved = torch.load(last, weights_only=True)
    assert all(".lora_" in name or "logit" in name for name in saved["state_dict"])
    whole = sum(p.numel() for p in ClipScoreFusion().parameters())
    assert sum(value.numel() for value in saved["state_dict"].values()) < whole / 20
    assert last.stat().st_size < 4 * whole / 4
    assert run("test", "whole", f"--ckpt_path={last}") == 0
    retriever = load(last)
    frozen, own = ClipScoreFusion().state_dict(), retriever.state_dict()
    name = "clip.visual.transformer.resblocks.0.attn"
    state, update = saved["state_dict"], f"encoder.{name}.parametrizations.in_proj_weight.0.lora_"
    added = 16 / 2 * state[f"{update}b"] @ state[f"{update}a"]  # alpha / rank
    torch.testing.assert_close(
        own[f"{name}.in_proj_weight"], frozen[f"{name}.in_proj_weight"] + added
    )
    assert torch.equal(own[f"{name}.in_proj_bias"], frozen[f"{name}.in_proj_bias"])
    assert torch.equal(own["clip.logit_scale"], state["encoder.clip.logit_scale"])
    tested = json.loads((tmp_path / "whole" / "metrics.json").read_text())["made_by"]
    assert tested == retriever.fingerprint(retriever.trained_on)
    # Exported, it is an ordinary model of open_clip with the updates in its weights.
    assert main(["export", f"--checkpoint={last}", f"--out={tmp_path / 'exported'}"]) == 0
    exported = load(f"local-dir:{tmp_path / 'exported'}")
    weight = exported.clip.visual.transformer.resblocks[0].attn.in_proj_weight
    assert torch.equal(weight, retriever.clip.visual.transformer.resblocks[0].attn.in_proj_weight)
    assert not torch.equal(weight, frozen[f"{name}.in_proj_weight"])
    capsys.readouterr()
    with pytest.raises(MismatchError, match="this model is frozen otherwise"):
        load_weights(ClipScoreFusion(random_init=True), last)


def test_settings_that_make_no_sense_are_told():
    with pytest.raises(DataError, match=r"tuning\.freeze=image or both"):
        Tuning(unlock_image=1)
    with pytest.raises(DataError, match="leaves none"):
        Tuning("both", lora_rank=4)
    with pytest.raises(DataError, match="must not be negative"):
        Tuning(lora_rank=-1)
