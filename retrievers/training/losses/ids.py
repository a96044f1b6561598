"""Ids as integers on the device: who is a known positive of whom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

#: Fills the rows of a table of known positives; no id hashes to it.
NO_ID = -1


def hash_id(text: str) -> int:
    """A 63-bit non-negative integer for an id, the same in every process.

    Not UniIR's ``dataset * 10_000_000 + n``, which aliases above its bound.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pad_ids(rows: Iterable[Iterable[int]]) -> Int[Tensor, "batch most"]:
    """Ragged id lists as one table, filled up with :data:`NO_ID`."""
    lists = [torch.tensor(list(row), dtype=torch.int64) for row in rows]
    if not lists:
        return torch.zeros(0, 1, dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=NO_ID)


def known_pairs(
    positives: Int[Tensor, "batch most"], candidate_ids: Int[Tensor, " n"]
) -> Bool[Tensor, "batch n"]:
    """Which candidates are known positives of which query, by id.

    Args:
        positives: hashed ids of all known positives of each query, padded with :data:`NO_ID`.
        candidate_ids: hashed id of each candidate.
    """
    distinct, inverse = torch.unique(candidate_ids, return_inverse=True)
    slot = torch.searchsorted(distinct, positives).clamp(max=len(distinct) - 1)
    found = distinct[slot] == positives
    table = torch.zeros(len(positives), len(distinct), dtype=torch.bool, device=positives.device)
    row = torch.arange(len(positives), device=positives.device)[:, None].expand_as(positives)
    table[row[found], slot[found]] = True
    return table[:, inverse]
