"""What a fit does beside its loss: parameters stay in their range, chunks are kept as asked for."""

import math

import pytest
import torch

from retrievers.data.module import MBeirData
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.training.module import Contrastive
from retrievers.training.optim import AdamWCosine
from tests.retrievers.models.test_blip import BlipFeatureFusion, BlipScoreFusion, folder  # noqa: F401
from tests.retrievers.models.test_retriever import loader_for
from tests.retrievers.training.test_training import fit


@pytest.mark.parametrize("kind", ["score", "feature"])
def test_the_logit_scale_is_held(config, root, kind):
    torch.manual_seed(0)
    made = {"max_logit_scale": 20.0, "random_init": True}
    encoder = (
        ClipScoreFusion(config, **made) if kind == "score"
        else ClipFeatureFusion(config, FusionLayers(1, 2, 8, 16), **made)
    )  # fmt: skip
    training = Contrastive(encoder, optimizer=AdamWCosine(lr=1e-3))
    with torch.no_grad():
        encoder.clip.logit_scale.fill_(5.0)  # exp(5) = 148
    fit(training, root, steps=1)
    assert encoder.clip.logit_scale.item() == pytest.approx(math.log(20.0))
    with torch.no_grad():
        encoder.clip.logit_scale.fill_(1.0)
    fit(training, root, steps=1)
    assert 0.9 < encoder.clip.logit_scale.item() < 1.1  # below the limit it is free


@pytest.mark.parametrize("kind", [BlipScoreFusion, BlipFeatureFusion])
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.5), (0.0005, 0.001), (0.1, None)])
def test_blips_temperature_is_held(folder, root, kind, start, end):  # noqa: F811
    torch.manual_seed(0)
    encoder = kind(str(folder))
    with torch.no_grad():
        encoder.temp.fill_(start)
    fit(Contrastive(encoder, optimizer=AdamWCosine(lr=1e-5)), root, steps=1)
    assert encoder.temp.item() == pytest.approx(start if end is None else end, abs=2e-5)


@pytest.mark.parametrize(("chunk", "keep", "again"), [(3, 0, 6), (3, 1, 4), (3, 2, 2), (3, 9, 0)])
def test_only_chunks_that_are_not_kept_are_encoded_again(
    config, root, monkeypatch, chunk, keep, again
):
    torch.manual_seed(0)
    encoder = ClipScoreFusion(config, random_init=True)
    batch = next(iter(loader_for(encoder, MBeirData(str(root), batch_size=8))))
    whole, seen = type(encoder).whole, []

    def watched(self, inputs, side):
        seen.append(inputs.size)
        return whole(self, inputs, side)

    monkeypatch.setattr(type(encoder), "whole", watched)
    plain = Contrastive(encoder).loss(batch)["loss"]
    assert seen == [8, 8]
    seen.clear()
    loss = Contrastive(encoder, chunk=chunk, keep_chunks=keep).loss(batch)["loss"]
    assert seen == [3, 3, 2, 3, 3, 2]
    loss.backward()
    assert len(seen) - 6 == again  # three chunks a side, but for the last ``keep``
    torch.testing.assert_close(loss, plain)
