"""Two processes (gloo) equal one: every loss, uneven batches, and chunked encoding under DDP."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from retrievers.data.examples import Groups, Labels
from retrievers.training.gradcache import encode_in_chunks
from tests.references import OBJECTIVES, loop_objective, make_batch, make_groups
from tests.retrievers.training.test_gradcache import Towers, make_inputs, make_towers

#: Queries and further candidates of each process.
SIZES = ((5, 2), (3, 1))
BATCH, EXTRA = 8, 3


def share(rank):
    """This process's part of the joint batch, and where it stands there."""
    queries, candidates, labels = make_batch(3, batch=BATCH, extra=EXTRA)
    batch, extra = SIZES[rank]
    start, first = (sum(sizes[n] for sizes in SIZES[:rank]) for n in (0, 1))
    rows = torch.arange(start, start + batch)
    others = torch.arange(BATCH + first, BATCH + first + extra)
    mine = torch.cat([rows, others])
    width = 2 - rank  # tables of different widths must still gather
    cut = Labels(labels.queries[rows], labels.candidates[mine], labels.positives[rows, :width])
    groups = local_groups(rank)
    return queries[rows], candidates[mine], cut, groups, rows, mine


def local_groups(rank):
    return make_groups(rank, *SIZES[rank])


def joint_groups():
    """The processes' groups with rows of the joint batch."""
    parts = []
    for rank in (0, 1):
        *_, mine = share(rank)
        groups = local_groups(rank)
        rows = torch.where(groups.rows < 0, -1, mine[groups.rows.clamp(min=0)])
        parts.append(Groups(rows, groups.scores))
    return Groups(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class Model(torch.nn.Module):
    """Towers and loss behind one forward, as DDP sees a training step."""

    def __init__(self, size):
        super().__init__()
        self.towers, self.size = make_towers(0.0), size

    def forward(self, queries, candidates, labels, groups):
        q = encode_in_chunks(self.towers.encode, queries, "query", self.size)
        c = encode_in_chunks(self.towers.encode, candidates, "corpus", self.size, keep=1)
        return OBJECTIVES[-3](q, c, labels, groups, self.towers.log_scale.exp())["loss"]


def two_processes(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    queries, candidates, labels, groups, rows, mine = share(rank)
    saved = []
    for objective in OBJECTIVES:
        q, c = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
        scale, bias = (
            torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (9.0, -2.0)
        )
        value = objective(q, c, labels, groups, scale, bias)["loss"]
        value.backward()
        saved.append((value.detach(), scale.grad, q.grad, c.grad))
    model = DistributedDataParallel(Model(2))
    inputs = make_inputs(1, BATCH).rows(int(rows[0]), int(rows[-1]) + 1)
    docs = make_inputs(2, BATCH).rows(int(rows[0]), int(rows[-1]) + 1)
    only = Labels(labels.queries, labels.candidates[: len(rows)], labels.positives)
    model(inputs, docs, only, Groups(groups.rows[:, :1], groups.scores[:, :1])).backward()
    grads = [p.grad for p in model.parameters()]
    torch.save((saved, grads, mine), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(two_processes, (port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    queries, candidates, labels = make_batch(3, batch=BATCH, extra=EXTRA)
    labels.positives[5:, 1] = -1  # what the second process's narrower table left out
    for number, objective in enumerate(OBJECTIVES):
        q, c = queries.clone().requires_grad_(), candidates.clone().requires_grad_()
        scale, bias = (
            torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (9.0, -2.0)
        )
        value = loop_objective(objective, q, c, labels, joint_groups(), scale, bias)
        value.backward()
        first, second = (part[0][number] for part in parts)
        # DDP takes the mean over processes of parameters' gradients; vectors carry the sum.
        placed = torch.zeros_like(c.grad)
        for part in parts:
            placed[part[2]] += part[0][number][3]
        for ours, want in (
            ((first[0] + second[0]) / 2, value.detach()),
            ((first[1] + second[1]) / 2, scale.grad),
            (torch.cat([first[2], second[2]]) / 2, q.grad),
            (placed / 2, c.grad),
        ):
            torch.testing.assert_close(ours, want, rtol=1e-9, atol=1e-10, msg=str(objective))
    check_chunks_under_ddp([part[1] for part in parts], labels)


def check_chunks_under_ddp(grads, labels):
    model = Model(None)
    assert isinstance(model.towers, Towers)
    only = Labels(labels.queries, labels.candidates[:BATCH], labels.positives)
    groups = Groups(torch.arange(BATCH)[:, None], torch.full((BATCH, 1), float("nan")))
    model(make_inputs(1, BATCH), make_inputs(2, BATCH), only, groups).backward()
    for one, other, want in zip(*grads, [p.grad for p in model.parameters()], strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, want, rtol=1e-9, atol=1e-10)
