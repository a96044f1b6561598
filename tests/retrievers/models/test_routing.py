"""Nothing unneeded is computed and nothing changes: trimmed text, processes without text."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retrievers.data.examples import Candidate, Example, PairCollator, PairExample
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.models.towers import encode_text, length_groups, load_clip, text_tower
from retrievers.training.module import Contrastive
from retrievers.training.objective import Objective
from tests.retrievers.models.test_feature_fusion import SIGLIP, SPLIT
from tests.retrievers.models.test_retriever import make_config


@pytest.mark.parametrize(("config", "lengths"), [(SPLIT, [3, 5, 16]), (SIGLIP, [16, 16, 16])])
def test_text_is_cut_only_where_that_is_exact(config, lengths, tmp_path):
    torch.manual_seed(0)
    clip, processor = load_clip(make_config(tmp_path, config, "routing"))
    tokens = processor.tokenize(["a", "a red square", "word " * 40])
    seen = []
    clip.text.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    for rows in (tokens[:1], tokens[:2], tokens):
        torch.testing.assert_close(encode_text(clip, rows), clip.encode_text(rows))
    assert seen[::2] == lengths  # cut to the longest text of the batch, or given all its padding
    assert seen[1::2] == [16, 16, 16]


def test_short_texts_go_through_apart_from_long_ones(tmp_path):
    clip, processor = load_clip(make_config(tmp_path))
    random = torch.Generator().manual_seed(0)
    sizes = [2, 30, 1, 2, 30, 3, 1, 30, 2, 30]
    tokens = processor.tokenize([" ".join(["red"] * size) for size in sizes])
    tower, seen = text_tower(clip), []
    tower.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2]))
    weights = torch.randn(len(sizes), 16, generator=random)
    found = []
    for encode in (lambda: encode_text(clip, tokens), lambda: clip.encode_text(tokens)):
        clip.zero_grad()
        vectors = encode()
        (vectors * weights).sum().backward()
        gradients = {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}
        found.append((vectors.detach(), gradients))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert seen == [(6, 5), (4, 16), (10, 16)]


def test_groups_are_the_best_two_or_none():
    assert length_groups([]) == [[]]
    assert length_groups([5, 1, 9]) == [[0, 1, 2]]
    assert length_groups([9] * 20) == [list(range(20))]
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        ends = torch.randint(0, 77, (12,), generator=random).tolist()
        groups = length_groups(ends)
        padded = sum(len(rows) * (max(ends[row] for row in rows) + 1) for rows in groups)
        assert sorted(row for rows in groups for row in rows) == list(range(12))
        order = sorted(ends)
        best = min(at * (order[at - 1] + 1) + (12 - at) * (order[-1] + 1) for at in range(4, 9))
        whole = 12 * (order[-1] + 1)
        assert padded == (best if best <= 0.85 * whole else whole)


class Step(nn.Module):
    """A training step as DDP sees it."""

    def __init__(self, kind, config):
        super().__init__()
        torch.manual_seed(0)
        settings = {"fusion": FusionLayers(1, 2, 8, 16, 0.0)} if kind is ClipFeatureFusion else {}
        self.retriever = kind(config, **settings)
        self.training = Contrastive(self.retriever, Objective(symmetric=True), chunk=2)

    def forward(self, batch):
        return self.training.loss(batch)["loss"]


def pairs_of(processor, kinds):
    """Pairs number ``n`` of one kind each: t or i on both sides."""
    random = torch.Generator().manual_seed(0)
    pictures = torch.randn(20, 3, 16, 16, generator=random)
    pairs = []
    for n, kind in kinds:
        query, positive = (
            Example(
                place,
                f"{word} number {n}" if "t" in kind else None,
                pictures[place] if "i" in kind else None,
                id=f"{place}",
            )
            for place, word in ((n, "query"), (n + 10, "candidate"))
        )
        candidate = Candidate(positive, f"7:{n}")
        pairs.append(PairExample(query, candidate, (f"7:{n}",)))
    return PairCollator(processor)(pairs)


SHARES = ([(0, "t"), (1, "t"), (2, "t")], [(3, "i"), (4, "i"), (5, "i")])
KINDS = (ClipScoreFusion, ClipFeatureFusion)


def two_processes(rank, config, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    grads = {}
    for kind in KINDS:
        step = Step(kind, config)
        parallel = DistributedDataParallel(step)
        for _ in range(2):  # the second step waits for ever if the first left a parameter out
            step.zero_grad()
            parallel(pairs_of(step.retriever.collator(), SHARES[rank])).backward()
        grads[kind.__name__] = {name: p.grad for name, p in step.named_parameters()}
    torch.save(grads, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_that_lack_a_modality_equal_one(tmp_path):
    config = make_config(tmp_path)
    multiprocessing.spawn(two_processes, (config, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for kind in KINDS:
        step = Step(kind, config)
        step(pairs_of(step.retriever.collator(), SHARES[0] + SHARES[1])).backward()
        for name, parameter in step.named_parameters():
            first, second = (part[kind.__name__][name] for part in parts)
            assert torch.equal(first, second), name
            torch.testing.assert_close(first, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
