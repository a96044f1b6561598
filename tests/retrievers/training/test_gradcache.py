"""Chunked encoding gives the gradients of the whole batch, and keeps little."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from retrievers.models.inputs import Inputs
from retrievers.training.gradcache import encode_in_chunks
from retrievers.training.objective import Objective
from tests.references import make_batch, make_groups


class Towers(nn.Module):
    """A text and an image tower with dropout, summed as score fusion does."""

    def __init__(self, dropout, depth=2, dim=6):
        super().__init__()
        self.text = nn.Embedding(11, dim)
        self.image = nn.Linear(12, dim)
        self.deep = nn.Sequential(
            *(nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout))
              for _ in range(depth))
        )  # fmt: skip
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def encode(self, batch, side):
        rows = torch.zeros(batch.size, self.text.embedding_dim, dtype=self.image.weight.dtype)
        rows = rows.index_add(0, batch.text_rows, self.text(batch.texts).mean(1))
        rows = rows.index_add(0, batch.image_rows, self.image(batch.images.flatten(1)))
        return functional.normalize(rows + self.deep(rows), dim=1)


def make_inputs(seed, size):
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randint(1, 4, (size,), generator=random)  # 1 text, 2 image, 3 both
    text_rows, image_rows = (torch.nonzero(kinds & bit).flatten() for bit in (1, 2))
    return Inputs(
        size,
        torch.randint(0, 11, (len(text_rows), 5), generator=random),
        text_rows,
        torch.randn(len(image_rows), 3, 2, 2, generator=random, dtype=torch.float64),
        image_rows,
    )


def make_towers(dropout, depth=2):
    torch.manual_seed(0)
    return Towers(dropout, depth).double()


def step(towers, encode):
    """Loss and gradients of one batch of 7 queries and 10 candidates."""
    _, _, labels = make_batch(3, batch=7, extra=3)
    torch.manual_seed(5)
    queries = encode(towers, make_inputs(1, 7), "query")
    candidates = encode(towers, make_inputs(2, 10), "corpus")
    objective = Objective(symmetric=True)
    loss = objective(queries, candidates, labels, make_groups(3, 7, 3), towers.log_scale.exp())
    towers.zero_grad()
    loss["loss"].backward()
    return [loss["loss"].detach(), *(p.grad.clone() for p in towers.parameters())]


def whole(towers, batch, side):
    return towers.encode(batch, side)


def in_chunks(size, keep=0):
    return lambda towers, batch, side: encode_in_chunks(towers.encode, batch, side, size, keep)


def one_after_another(size):
    """The same chunks with ordinary activations, so that dropout draws the same numbers."""

    def encode(towers, batch, side):
        starts = range(0, batch.size, size)
        return torch.cat([towers.encode(batch.rows(start, start + size), side) for start in starts])

    return encode


@pytest.mark.parametrize(("size", "keep"), [(1, 0), (3, 0), (3, 2), (7, 0), (100, 0), (None, 0)])
def test_gradients_equal_the_whole_batch(size, keep):
    towers = make_towers(dropout=0.0)
    for ours, reference in zip(
        step(towers, in_chunks(size, keep)), step(towers, whole), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "keep"), [(1, 0), (3, 0), (3, 1)])
def test_dropout_is_replayed(size, keep):
    towers = make_towers(dropout=0.3)
    reference = step(towers, one_after_another(size))
    for ours, want in zip(step(towers, in_chunks(size, keep)), reference, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-12)
    other = step(towers, one_after_another(size + 1))  # draws otherwise: the check can fail
    assert not torch.allclose(other[0], reference[0])


def test_chunks_keep_no_activations():
    def saved(depth, encode):
        kept = []
        towers = make_towers(0.0, depth)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        ):
            queries = encode(towers, make_inputs(1, 40), "query")
        assert queries.requires_grad
        return sum(kept)

    assert saved(15, whole) > 2 * saved(3, whole)
    # What remains does not grow with the model.
    assert saved(15, in_chunks(4)) == saved(3, in_chunks(4)) < saved(3, whole)


def test_no_graph_no_chunks_and_no_empty_chunks():
    towers = make_towers(0.0)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_in_chunks(towers.encode, make_inputs(1, 9), "query", 2),
            towers.encode(make_inputs(1, 9), "query"),
        )
    with pytest.raises(ValueError, match="at least 1"):
        encode_in_chunks(towers.encode, make_inputs(1, 9), "query", 0)
    with pytest.raises(ValueError, match=r"set model\.chunk"):
        encode_in_chunks(towers.encode, make_inputs(1, 9), "query", None, tokens=9)


def test_slices_hold_their_rows_and_nothing_else():
    batch = make_inputs(4, 11)
    parts = [batch.rows(start, start + 4) for start in range(0, 11, 4)]
    assert [part.size for part in parts] == [4, 4, 3]
    for name in ("texts", "images"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(batch, name))
    for name in ("text_rows", "image_rows"):
        shifted = [getattr(part, name) + 4 * n for n, part in enumerate(parts)]
        assert torch.equal(torch.cat(shifted), getattr(batch, name))
