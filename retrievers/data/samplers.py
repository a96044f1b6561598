"""Which training pairs stand together in a batch: seeded, dealt out to processes, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from augment.errors import DataError, MismatchError

#: What forms a group: nothing, the M-BEIR task, data set and task, or the candidates' modality.
GroupBy = Literal["none", "task", "dataset", "modality"]

#: An epoch repeats rows of small groups; the draw of a repetition is that of another epoch.
_EPOCHS = 2**20


@dataclass(frozen=True)
class SamplingConfig:
    """How batches are composed. The default is a plain shuffle.

    Args:
        group_by: task, dataset (data set and task) or modality (of the wanted candidate).
        homogeneous: every batch, over all processes, holds one group only, so that all its
            negatives are of the right kind; what is left of each group fills mixed batches.
        sub_batch: every batch, over all processes, is made of parts of so many pairs of one group
            each; what is left of each group fills mixed parts. 0 mixes pair by pair.
        exponent: a group's share of an epoch is proportional to its size to this power: 1 keeps
            the data's shares, 0 gives all groups the same. An epoch has as many pairs as the data
            in any case; rows of groups that grow are repeated, of groups that shrink left out.
        together: pairs about one item (its picture is wanted, or is asked with) stand side by side
            in a batch, whatever their modalities, so that each has the others' as wrong-modality
            negatives; what a batch's end cuts off goes to the next.
    """

    group_by: GroupBy = "none"
    homogeneous: bool = False
    exponent: float = 1.0
    together: bool = False
    sub_batch: int = 0

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.homogeneous and self.together:
            raise DataError(
                "sampling.homogeneous wants one kind of pair in a batch, sampling.together all "
                "kinds; choose one"
            )
        if self.sub_batch < 0 or (self.sub_batch and (self.homogeneous or self.together)):
            raise DataError(
                f"sampling.sub_batch={self.sub_batch} is a number of pairs of one kind within a "
                "mixed batch; it goes with neither sampling.homogeneous nor together"
            )


@final
class PairBatches(Sampler[list[int]]):
    """Batches of the keys that :class:`~retrievers.data.datasets.PairDataset` takes.

    The order is a function of seed and epoch alone; each process takes its part of it.

    What does not fill a batch of all processes is left out of the epoch. Rows of one of ``items``
    stand together.

    Raises:
        DataError: if a batch over all processes is not made of whole sub-batches.
    """

    def __init__(
        self,
        groups: Int64[np.ndarray, " size"],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        config: SamplingConfig = SamplingConfig(),
        items: Int64[np.ndarray, " size"] | None = None,
    ) -> None:
        if config.sub_batch and batch_size * world % config.sub_batch:
            raise DataError(
                f"batches of {batch_size * world} pairs over all processes are not made of whole "
                f"sub-batches of {config.sub_batch}; choose sampling.sub_batch to divide "
                "data.batch_size"
            )
        self._groups = groups
        self._items = None if items is None else torch.from_numpy(items)
        self.batch_size, self.world = batch_size, world
        self._seed, self._rank = seed, rank
        #: Pairs that are drawn of one group at a time; 0 draws each by itself.
        self._unit = batch_size * world if config.homogeneous else config.sub_batch
        self._exponent = config.exponent
        self.epoch = 0
        #: Batches to leave out at the start of the next pass.
        self.skip = 0

    @property
    def sampler(self) -> PairBatches:
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._groups) // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        for batch in self._joint()[skip:]:
            yield batch[self._rank :: self.world].tolist()

    def _joint(self) -> Tensor:
        """All batches of the epoch over all processes, [batches, world * batch_size]."""
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        size, joint = len(self._groups), self.batch_size * self.world
        unit = self._unit
        if not unit and self._exponent == 1:
            keys = torch.randperm(size, generator=random) + self.epoch * size
            return self._beside(keys, random)[: len(self) * joint].view(-1, joint)
        drawn = [self._draw(*share, random) for share in self._shares()]
        if unit:
            full = [keys[: len(keys) // unit * unit] for keys in drawn]
            rest = torch.cat([keys[len(keys) // unit * unit :] for keys in drawn])
            rest = rest[torch.randperm(len(rest), generator=random)]
            parts = torch.cat([*full, rest[: len(rest) // unit * unit]]).view(-1, unit)
            parts = parts[torch.randperm(len(parts), generator=random)]
            return parts.flatten()[: len(self) * joint].view(-1, joint)
        keys = torch.cat(drawn)
        keys = keys[torch.randperm(size, generator=random)]
        return self._beside(keys, random)[: len(self) * joint].view(-1, joint)

    def _beside(self, keys: Tensor, random: torch.Generator) -> Tensor:
        """The same keys, with those of one item side by side, items in a drawn order."""
        if self._items is None:
            return keys
        places = torch.randperm(int(self._items.max()) + 1, generator=random)
        return keys[torch.argsort(places[self._items[keys % len(self._items)]], stable=True)]

    def _shares(self) -> Iterator[tuple[Tensor, int]]:
        """Rows of each group and how many of them an epoch takes; the sum is the data's size."""
        size = len(self._groups)
        _, inverse, counts = np.unique(self._groups, return_inverse=True, return_counts=True)
        weights = counts.astype(np.float64) ** self._exponent
        exact = size * weights / weights.sum()
        takes = np.floor(exact).astype(np.int64)
        # The largest remainders take what rounding left over.
        takes[np.argsort(takes - exact, kind="stable")[: size - takes.sum()]] += 1
        for group, take in enumerate(takes.tolist()):
            yield torch.from_numpy(np.flatnonzero(inverse == group)), take

    def _draw(self, rows: Tensor, take: int, random: torch.Generator) -> Tensor:
        passes = [
            rows[torch.randperm(len(rows), generator=random)]
            + (turn * _EPOCHS + self.epoch) * len(self._groups)
            for turn in range(-(-take // len(rows)))
        ]
        return torch.cat(passes)[:take] if passes else rows[:0]


@final
class PairLoader(DataLoader[Any]):
    """A loader whose place in the epoch is saved in checkpoints and found again.

    The place is counted in pairs of all processes, so that a run may go on with another number of
    processes; with another batch over all of them only if it is asked for.
    """

    def __init__(self, dataset: Any, batches: PairBatches, **given: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **given)
        self._batches = batches
        self._given = 0
        self._resume: tuple[int, int] | None = None

    def __iter__(self) -> Any:
        # A generator starts at its first batch, when Lightning has set the epoch.
        self._given = 0
        if self._resume is not None:
            epoch, pairs = self._resume
            self._resume = None
            if epoch == self._batches.epoch:
                self._given = pairs // self._joint
        self._batches.skip = self._given
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and the pairs of it that have been given out."""
        if self._given >= len(self):
            return {"epoch": self._batches.epoch + 1, "pairs": 0, "joint": self._joint}
        pairs = self._given * self._joint
        return {"epoch": self._batches.epoch, "pairs": pairs, "joint": self._joint}

    def check_place(self, state: Mapping[str, int]) -> None:
        """Refuse to go on with other batches than those of :meth:`state_dict`.

        Raises:
            MismatchError: if a batch over all processes has another number of pairs.
        """
        before = int(state.get("joint", self._joint))
        if before != self._joint:
            raise MismatchError(
                f"the checkpoint was trained on {before} pairs per batch over all processes, now "
                f"it would be {self._joint}, which changes loss and schedule in the middle; choose "
                f"data.batch_size x processes = {before} (model.chunk saves memory), or pass "
                "--model.allow_mismatch=true to go on all the same"
            )

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken; called by Lightning before the first batch."""
        self._resume = (int(state["epoch"]), int(state["pairs"]))

    @property
    def _joint(self) -> int:
        return self._batches.batch_size * self._batches.world
