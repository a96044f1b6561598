"""Pictures seen once, and compiled layers: the same vectors and gradients as without."""

import pytest
import torch
from torch import nn

from augment.errors import DataError
from retrievers.models.mllm.conversations import Conversations
from retrievers.models.mllm.reasoning import Reasoning, reason
from tests.retrievers.mllms import FAMILIES, make, mixed, picture, vectors


def frozen(folder, **settings):
    encoder = make(folder, **settings)
    encoder.vlm.model.visual.requires_grad_(False)
    return encoder


def learned(encoder, batch):
    encoder.zero_grad()
    found = encoder.encode(batch, "query").vectors
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    parameters = encoder.named_parameters()
    return found.detach(), {n: p.grad for n, p in parameters if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_seen_once_give_the_same_vectors_and_gradients(folders, family):
    plain, fast = frozen(folders[family]), frozen(folders[family], features_mib=8)
    patches = []
    fast.vlm.model.visual.patch_embed.register_forward_hook(
        lambda _module, given, _output: patches.append(len(given[0]))
    )
    collator = plain.collator()
    batch = collator(mixed(collator), "query")
    one = collator(mixed(collator)[:1], "query")
    vectors(fast, mixed(collator)[:1])  # kept from a pass without gradients
    assert sum(patches) == len(one.patches)
    wanted, slopes = learned(plain, batch)
    for _ in range(2):
        found, own = learned(fast, batch)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        assert own.keys() == slopes.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(own[name], slope, atol=1e-5, rtol=1e-4, msg=name)
    sizes = batch.grids.prod(-1).tolist()  # the second and the last picture are one, as others are
    different = {part.numpy().tobytes(): len(part) for part in batch.patches.split(sizes)}
    assert sum(patches) == sum(different.values()), "each picture once"
    other = [mixed(collator)[0]._replace(image=picture(collator, 96, 64, seed=9))]
    torch.testing.assert_close(vectors(fast, other), vectors(plain, other), atol=1e-5, rtol=0)
    with torch.no_grad():
        for encoder in (plain, fast):
            next(encoder.vlm.model.visual.merger.parameters()).mul_(-2)
    moved = vectors(fast, mixed(collator))
    torch.testing.assert_close(moved, vectors(plain, mixed(collator)), atol=1e-5, rtol=0)
    assert (moved - wanted).norm() > 1e-3, "the projector counts"


def test_features_are_kept_within_their_room_and_of_frozen_towers_alone(folders):
    encoder = frozen(folders["qwen3"], features_mib=1)
    seen = encoder.vlm.model.visual.forward
    batch = encoder.collator()(mixed(encoder.collator()), "query")
    wanted = encoder.encode(batch, "query").vectors
    assert len(seen._kept) == 4
    seen._kept.clear()
    seen._left = 0
    torch.testing.assert_close(encoder.encode(batch, "query").vectors, wanted)
    assert not seen._kept
    encoder.vlm.model.visual.merger.requires_grad_(True)
    with pytest.raises(DataError, match=r"features_mib keeps.*merger.*is trained.*freeze=image"):
        encoder.encode(batch, "query")
    with torch.no_grad():  # nothing learns here
        torch.testing.assert_close(encoder.encode(batch, "query").vectors, wanted)


def test_compiled_layers_train_and_decoding_goes_without(folders, monkeypatch):
    runs, compile_module = [], nn.Module.compile

    def backend(graph, _inputs):
        return lambda *given: (runs.append(1), graph(*given))[1]

    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile_module(self, backend=backend, **how)
    )
    plain, fast = frozen(folders["qwen3"]), frozen(folders["qwen3"], compile=True)
    assert list(fast.state_dict()) == list(plain.state_dict())
    batch: Conversations = plain.collator()(mixed(plain.collator()), "query")
    for mine, wanted in zip(learned(fast, batch), learned(plain, batch), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)
    assert len(runs) >= len(fast.vlm.model.language_model.layers)
    runs.clear()
    reason(fast, batch, Reasoning("always", max_tokens=3))
    assert not runs
