"""Batches: every row once, dealt out, in the shares asked for, and found again after a stop."""

from collections import Counter

import numpy as np
import pytest
import torch

from augment.errors import DataError
from retrievers.data.samplers import PairBatches, PairLoader, SamplingConfig

GROUPS = np.array([0] * 50 + [1] * 30 + [2] * 7)


def batches_of(rank=0, world=1, epoch=0, groups=GROUPS, size=4, seed=1, items=None, **settings):
    batches = PairBatches(groups, size, seed, rank, world, SamplingConfig(**settings), items)
    batches.set_epoch(epoch)
    return batches


@pytest.mark.parametrize("settings", [{}, {"homogeneous": True}, {"sub_batch": 2}])
@pytest.mark.parametrize("world", [1, 3])
def test_every_row_is_dealt_at_most_once_and_few_are_left_out(world, settings):
    parts = [batches_of(rank, world, 2, **settings) for rank in range(world)]
    dealt = [list(part) for part in parts]
    assert {len(own) for own in dealt} == {len(parts[0])} == {87 // (4 * world)}
    keys = [key for own in dealt for batch in own for key in batch]
    assert len(set(keys)) == len(keys) == len(parts[0]) * 4 * world
    assert all(key // 87 == 2 for key in keys)
    assert dealt == [list(part) for part in parts]  # and again the same
    other = batches_of(0, world, 3, **settings)
    assert [key % 87 for batch in other for key in batch] != [k % 87 for b in dealt[0] for k in b]


@pytest.mark.parametrize("settings", [{}, {"homogeneous": True}, {"exponent": 0.5}])
def test_the_seed_decides_the_order(settings):
    orders = [list(batches_of(seed=seed, **settings)) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len({str(order) for order in orders}) == 3


def test_two_processes_share_the_batches_of_one():
    one = [sorted(batch) for batch in batches_of(size=8, homogeneous=True)]
    two = [list(batches_of(rank, 2, homogeneous=True)) for rank in (0, 1)]
    assert one == [sorted(a + b) for a, b in zip(*two, strict=True)]


def test_homogeneous_batches_hold_one_group_over_all_processes():
    dealt = [list(batches_of(rank, 2, homogeneous=True)) for rank in (0, 1)]
    kinds = [
        {int(GROUPS[key % 87]) for key in a + b} for a, b in zip(*dealt, strict=True)
    ]  # fmt: skip
    single = Counter(kind.pop() for kind in map(set, kinds) if len(kind) == 1)
    assert single[0] >= 6
    assert single[1] >= 3
    assert sum(len(kind) > 1 for kind in kinds) <= 1  # the one that takes what is left
    order = [min(kind) for kind in kinds]
    assert order != sorted(order)


def test_batches_are_made_of_parts_of_one_group():
    dealt = [list(batches_of(rank, 2, size=10, sub_batch=5)) for rank in (0, 1)]
    joint = [[key % 87 for both in zip(a, b, strict=True) for key in both]
             for a, b in zip(*dealt, strict=True)]  # fmt: skip
    kinds = [GROUPS[batch].reshape(-1, 5) for batch in joint]
    mixed = sum(len(set(part)) > 1 for batch in kinds for part in batch.tolist())
    assert mixed <= 1  # 50, 30 and 5 of the 7 are parts, the last two and others are left out
    assert any(len(set(batch[:, 0])) > 1 for batch in kinds), "parts of several groups"
    with pytest.raises(DataError, match="not made of whole sub-batches of 3"):
        batches_of(size=4, sub_batch=3)


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize(
    ("exponent", "want"), [(1.0, [50, 30, 7]), (0.0, [29, 29, 29]), (0.5, [42, 33, 16])]
)
def test_shares_follow_the_exponent(exponent, want, homogeneous):
    dealt = batches_of(size=1, exponent=exponent, homogeneous=homogeneous)
    keys = [key for batch in dealt for key in batch]
    counts = np.bincount(GROUPS[np.array(keys) % 87])
    weights = np.array([50, 30, 7]) ** exponent
    assert np.abs(counts - 87 * weights / weights.sum()).max() < 1
    assert np.abs(counts - want).max() <= 6
    assert len(set(keys)) == 87  # repetitions are other draws of their rows
    repeats = Counter(key % 87 for key in keys)
    for group in range(3):
        seen = [repeats[row] for row in np.flatnonzero(group == GROUPS)]
        assert max(seen) - min(seen) <= 1


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("epoch", [0, 3])
def test_pairs_of_an_item_stand_side_by_side_in_a_drawn_order(exponent, epoch):
    items = np.random.default_rng(0).integers(0, 30, len(GROUPS))
    plain = [key for batch in batches_of(epoch=epoch, size=1, exponent=exponent) for key in batch]
    settings = {"epoch": epoch, "size": 1, "exponent": exponent, "items": items}
    keys = [key for batch in batches_of(**settings) for key in batch]
    assert sorted(keys) == sorted(plain)
    order = [items[key % 87] for key in keys]
    seen = [item for n, item in enumerate(order) if n == 0 or order[n - 1] != item]
    assert len(seen) == len(set(seen)) == len(set(order))
    assert seen != sorted(seen)
    for item in seen:  # within an item, as without the order
        own = [key for key in plain if items[key % 87] == item]
        assert [key for key in keys if items[key % 87] == item] == own
    with pytest.raises(DataError, match="choose one"):
        SamplingConfig(homogeneous=True, together=True)
    with pytest.raises(DataError, match=r"sampling\.sub_batch=4 .* neither"):
        SamplingConfig(homogeneous=True, sub_batch=4)


def loader_of(batch_size=4, world=1, rank=0, workers=0):
    batches = PairBatches(GROUPS, batch_size, 1, rank, world)
    # The keys themselves stand for the pairs.
    keys = range(10 * len(GROUPS))
    return PairLoader(keys, batches, collate_fn=list, num_workers=workers), batches


def take(loader, batches, epoch, count=None):
    batches.set_epoch(epoch)
    taken = []
    for batch in loader:
        taken.append(batch)
        if len(taken) == count:
            break
    return taken


def test_a_loader_goes_on_in_the_middle_of_an_epoch():
    whole, batches = loader_of()
    want = [take(whole, batches, epoch) for epoch in range(3)]
    first, batches = loader_of()
    take(first, batches, 0)
    take(first, batches, 1, count=5)
    state = first.state_dict()
    assert state == {"epoch": 1, "pairs": 20, "joint": 4}
    second, batches = loader_of()
    second.load_state_dict(state)
    assert take(second, batches, 1) == want[1][5:]
    assert second.state_dict() == {"epoch": 2, "pairs": 0, "joint": 4}
    assert take(second, batches, 2) == want[2]
    assert len(second) == len(want[0])


def test_other_numbers_of_processes_go_on_too():
    first, batches = loader_of(batch_size=4)
    take(first, batches, 0, count=6)
    second, batches = loader_of(batch_size=2, world=2)
    second.load_state_dict(first.state_dict())
    whole, all_batches = loader_of(batch_size=4)
    rest = [b[::2] for b in take(whole, all_batches, 0)[6:]]
    assert take(second, batches, 0) == rest


def test_a_state_of_another_epoch_skips_nothing():
    loader, batches = loader_of()
    loader.load_state_dict({"epoch": 1, "pairs": 0})
    assert len(take(loader, batches, 2)) == len(loader)
    assert torch.utils.data.DataLoader in type(loader).__mro__
