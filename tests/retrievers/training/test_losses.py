import math
from functools import partial

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from retrievers.data.examples import NO_ID, Groups, Labels, hash_id, pad_ids
from retrievers.training.gather import join, known_pairs
from retrievers.training.gradcache import encode_in_chunks
from retrievers.training.losses import info_nce, listwise, margin_mse, siglip
from retrievers.training.objective import Distillation, Objective
from tests.references import OBJECTIVES, loop_objective, make_batch, make_groups
from tests.retrievers.training.test_gradcache import Towers, make_inputs, make_towers


def gradients(loss, queries, candidates, labels, groups):
    """The loss, and what it changes of vectors, of the scale and of the bias."""
    given = [v.clone().requires_grad_() for v in (queries, candidates)]
    given += [labels, groups]
    given += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (9.0, -2.0)]
    value = loss(*given)
    value.backward()
    return value.detach(), *(given[n].grad for n in (0, 1, 4, 5))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_value_and_gradient_equal_the_loop(objective):
    for seed, extra in ((0, 0), (1, 3), (2, 3)):
        given = *make_batch(seed, extra=extra), make_groups(seed, 6, extra)
        ours = gradients(lambda *given: objective(*given)["loss"], *given)
        theirs = gradients(partial(loop_objective, objective), *given)
        assert (ours[-1] is not None) == (objective.kind == "siglip")
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def plain_labels(queries, candidates, positives=None):
    ids = torch.tensor(candidates)
    mine = ids[: len(queries), None] if positives is None else torch.tensor(positives)
    return Labels(torch.tensor(queries), ids, mine)


@pytest.mark.parametrize(
    ("queries", "candidates", "positives"),
    [
        ([1, 2], [1, 2], [[2], [1]]),  # each other's positives by id
        ([1, 2], [1, 1], [[1], [1]]),  # the same candidate twice
        ([1, 1], [1, 2], [[1], [2]]),  # the same query twice
    ],
)
def test_known_positives_leave_the_denominator(queries, candidates, positives):
    joint = join(torch.eye(2), torch.eye(2), plain_labels(queries, candidates, positives))
    assert info_nce(joint, torch.tensor(3.0), symmetric=True).item() == 0.0


def test_closed_forms():
    joint = join(torch.eye(2), torch.eye(2), plain_labels([1, 2], [1, 2]))
    scale = torch.tensor(3.0)
    assert info_nce(joint, scale).item() == pytest.approx(math.log(math.exp(3) + 1) - 3)
    want = math.log1p(math.exp(-3)) + math.log(2)  # one yes at 3, one no at 0
    assert siglip(joint, scale, torch.tensor(0.0)).item() == pytest.approx(want)
    hard = join(torch.eye(2), torch.cat([torch.eye(2), torch.eye(2)[:1]]),
                plain_labels([1, 2], [1, 2, 3]))  # fmt: skip
    want = (math.log(2 * math.exp(3) + 1) - 3 + math.log(math.exp(3) + 2) - 3) / 2
    assert info_nce(hard, scale).item() == pytest.approx(want)
    # The copy of the first positive under another id is a false negative by cosine, not by id.
    rotated = torch.tensor([[0.8, 0.6], [0.6, -0.8], [1.0, 0.0]])
    joint = join(torch.eye(2), rotated, plain_labels([1, 2], [1, 2, 3]))
    inside, outside = (info_nce(joint, scale, margin=m).item() for m in (0.3, 0.1))
    assert inside > outside


@pytest.mark.parametrize(
    ("theirs", "ours", "more"),
    [(open_clip.loss.SigLipLoss(), siglip, (torch.tensor(-5.0),)),
     (open_clip.loss.ClipLoss(), partial(info_nce, symmetric=True), ())],
)  # fmt: skip
def test_plain_losses_equal_open_clips(theirs, ours, more):
    queries, candidates, _ = make_batch(4, batch=8, extra=0)
    joint = join(queries, candidates, plain_labels(list(range(8)), list(range(8))))
    scale = torch.tensor(12.0)
    torch.testing.assert_close(ours(joint, scale, *more), theirs(queries, candidates, scale, *more))


def test_distillation_is_zero_for_the_teacher_itself():
    queries, candidates, _ = make_batch(5)
    rows = torch.arange(6)[:, None] + torch.tensor([0, 1, 2])
    scores = torch.einsum("bd,bwd->bw", queries, candidates[rows])
    groups = Groups(rows, scores)
    scale = torch.tensor(1 / 0.05)
    assert listwise(scale * scores, groups, 0.05).item() == pytest.approx(0)
    assert margin_mse(scores, groups).item() == pytest.approx(0)
    nothing = Groups(rows, torch.full((6, 3), float("nan")))
    assert listwise(scale * scores, nothing).item() == 0
    assert margin_mse(scores, nothing).item() == 0


def test_half_precision_vectors_make_single_precision_logits():
    queries, candidates, labels = make_batch(6)
    groups = make_groups(6, 6, 3)
    half = [v.bfloat16() for v in (queries, candidates)]
    single = [v.float() for v in half]
    scale = torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = Objective(symmetric=True)(*half, labels, groups, scale)["loss"]
    torch.testing.assert_close(
        ours, Objective(symmetric=True)(*single, labels, groups, scale)["loss"], rtol=0, atol=0
    )


def test_no_negative_makes_no_nan():
    vectors = torch.nn.Parameter(functional.normalize(torch.ones(2, 3), dim=1))
    for objective in OBJECTIVES:
        if objective.kind == "info_nce" and not objective.matryoshka:
            parts = objective(
                vectors, vectors, plain_labels([1, 1], [1, 1]),
                Groups(torch.tensor([[0], [1]]), torch.full((2, 1), float("nan"))),
                torch.tensor(10.0),
            )  # fmt: skip
            (grad,) = torch.autograd.grad(parts["loss"], vectors)
            assert torch.isfinite(grad).all()


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
    labels = Labels(torch.zeros(2), torch.zeros(candidates), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="as many candidates"):
        join(torch.eye(2), torch.eye(2)[:candidates], labels)


def test_what_cannot_be_meant_is_refused():
    queries, candidates, labels = make_batch(0)
    groups, scale = make_groups(0, 6, 3), torch.tensor(1.0)
    with pytest.raises(ValueError, match="prefix 6 of vectors with 6"):
        Objective(matryoshka=(6,))(queries, candidates, labels, groups, scale)
    with pytest.raises(ValueError, match="needs a logit bias"):
        Objective("siglip")(queries, candidates, labels, groups, scale)
    with pytest.raises(ValueError, match="temperature must be positive"):
        Distillation("kl", temperature=0)


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


def two_processes(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    queries, candidates, labels, groups, rows, mine = share(rank)
    saved = [
        gradients(lambda *given, own=own: own(*given)["loss"], queries, candidates, labels, groups)
        for own in OBJECTIVES
    ]
    model = DistributedDataParallel(Model(2))
    inputs = make_inputs(1, BATCH).rows(int(rows[0]), int(rows[-1]) + 1)
    docs = make_inputs(2, BATCH).rows(int(rows[0]), int(rows[-1]) + 1)
    only = Labels(labels.queries, labels.candidates[: len(rows)], labels.positives)
    model(inputs, docs, only, Groups(groups.rows[:, :1], groups.scores[:, :1])).backward()
    grads = [p.grad for p in model.parameters()]
    torch.save((saved, grads, mine), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(two_processes, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    queries, candidates, labels = make_batch(3, batch=BATCH, extra=EXTRA)
    labels.positives[5:, 1] = -1  # what the second process's narrower table left out
    for number, objective in enumerate(OBJECTIVES):
        value, q, c, scale, _ = gradients(
            partial(loop_objective, objective), queries, candidates, labels, joint_groups()
        )
        first, second = (part[0][number] for part in parts)
        # DDP takes the mean over processes of parameters' gradients; vectors carry the sum.
        placed = torch.zeros_like(c)
        for part in parts:
            placed[part[2]] += part[0][number][2]
        for ours, want in (
            ((first[0] + second[0]) / 2, value),
            ((first[3] + second[3]) / 2, scale),
            (torch.cat([first[1], second[1]]) / 2, q),
            (placed / 2, c),
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
