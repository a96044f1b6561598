import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn import functional

from retrievers.losses import NO_ID, hash_id, info_nce, known_pairs, pad_ids


def loop_loss(queries, candidates, ids, positives, scale, symmetric):
    """InfoNCE from its definition, one term at a time."""
    batch = len(queries)
    known = [{int(p) for p in positives[i] if p != NO_ID} | {int(ids[i])} for i in range(batch)]
    total = 0.0
    for i in range(batch):
        scores = [
            scale * (queries[i] @ candidates[j])
            for j in range(len(candidates))
            if j == i or int(ids[j]) not in known[i]
        ]
        total = total + torch.stack(scores).logsumexp(0) - scale * (queries[i] @ candidates[i])
    forward = total / batch
    if not symmetric:
        return forward
    total = 0.0
    for j in range(batch):
        scores = [
            scale * (queries[i] @ candidates[j])
            for i in range(batch)
            if j == i or int(ids[j]) not in known[i]
        ]
        total = total + torch.stack(scores).logsumexp(0) - scale * (queries[j] @ candidates[j])
    return (forward + total / batch) / 2


def make_batch(seed, batch=7, extra=3, distinct=5):
    random = torch.Generator().manual_seed(seed)
    queries = functional.normalize(
        torch.randn(batch, 4, generator=random, dtype=torch.float64), dim=1
    )
    candidates = functional.normalize(
        torch.randn(batch + extra, 4, generator=random, dtype=torch.float64), dim=1
    )
    ids = torch.randint(0, distinct, (batch + extra,), generator=random)
    positives = torch.randint(-1, distinct + 4, (batch, 2), generator=random)
    return queries, candidates, ids, positives


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_loop(seed, extra, symmetric):
    queries, candidates, ids, positives = make_batch(seed, extra=extra)
    grads = []
    for loss in (loop_loss, info_nce):
        q, c = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
        scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        value = loss(q, c, ids, positives, scale, symmetric)
        value.backward()
        grads.append((value.detach(), q.grad, c.grad, scale.grad))
    for ours, reference in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=2e-5, atol=2e-6)


def test_known_positives_leave_the_denominator():
    queries = torch.eye(2)
    candidates = torch.eye(2)
    alone = info_nce(
        queries, candidates, torch.tensor([1, 2]), torch.tensor([[2], [1]]), torch.tensor(3.0)
    )
    assert alone.item() == 0.0
    plain = info_nce(
        queries, candidates, torch.tensor([1, 2]), torch.tensor([[1], [2]]), torch.tensor(3.0)
    )
    assert plain.item() == pytest.approx(math.log(math.exp(3) + 1) - 3)
    same = info_nce(
        queries, candidates, torch.tensor([1, 1]), torch.tensor([[1], [1]]), torch.tensor(3.0)
    )
    assert same.item() == 0.0


def test_known_pairs_by_id():
    table = known_pairs(torch.tensor([[5, NO_ID], [9, 7]]), torch.tensor([7, 5, 5, 1]))
    assert table.tolist() == [[False, True, True, False], [True, False, False, False]]


def test_hashes_do_not_alias_where_unirs_do():
    # UniIR reads both as 1:1
    assert hash_id("0:10000001") != hash_id("1:1")
    assert 0 <= hash_id("9:1") < 2**63


def test_ragged_ids_are_padded():
    assert pad_ids([[1], [2, 3], []]).tolist() == [[1, NO_ID], [2, 3], [NO_ID, NO_ID]]


@pytest.mark.parametrize("candidates", [0, 1])
def test_too_few_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match="as many candidates"):
        info_nce(
            torch.eye(2),
            torch.eye(2)[:candidates],
            torch.zeros(candidates),
            torch.zeros(2, 1),
            torch.tensor(1.0),
        )


def _two_processes(rank, port, folder):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    queries, candidates, ids, positives = make_batch(3, batch=8, extra=0)
    mine = slice(4 * rank, 4 * rank + 4)
    width = 2 - rank  # tables of different widths must still gather
    q = queries[mine].float().requires_grad_()
    c = candidates[mine].float().requires_grad_()
    scale = torch.tensor(9.0, requires_grad=True)
    table = positives[mine].clone()
    if width == 1:
        table = table[:, :1]
    value = info_nce(q, c, ids[mine], table, scale, symmetric=True)
    value.backward()
    torch.save((value.detach(), q.grad, c.grad, scale.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_two_processes, (port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    queries, candidates, ids, positives = make_batch(3, batch=8, extra=0)
    positives[4:, 1] = NO_ID  # what the second process left out
    q, c = queries.requires_grad_(), candidates.requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    value = loop_loss(q, c, ids, positives, scale, True)
    value.backward()
    mean = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(mean[0].double(), value.detach(), **close)
    torch.testing.assert_close(mean[3].double(), scale.grad, **close)
    # The mean over processes is taken by DDP on parameters: features carry the sum.
    torch.testing.assert_close(torch.cat([p[1] for p in parts]).double() / 2, q.grad, **close)
    torch.testing.assert_close(torch.cat([p[2] for p in parts]).double() / 2, c.grad, **close)
