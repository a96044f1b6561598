"""One pass over the texts of a side: counts, distributions, and which samples to show."""

from __future__ import annotations

import heapq
import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np

from augment.checks import DEFAULT_LIMITS, Limits
from augment.records import Enrichment
from augment.store.charts import quantile

#: Check -> the limit of its score in :class:`augment.checks.Limits`, where a larger score is worse;
#: the other scores say how much, not how bad.
_LIMIT_OF: Mapping[str, str] = {
    "truncation": "truncation",
    "repetition": "repetition",
    "compression": "compression",
    "language": "foreign",
    "filler": "filler",
    "length": "slack",
}

#: An accepted text whose score is above this share of its limit may be shown among the worst.
NEAR = 0.6


def limits_of(found: Limits) -> dict[str, float]:
    """Check -> limit of its score."""
    return {check: float(getattr(found, name)) for check, name in _LIMIT_OF.items()}


class Sample(NamedTuple):
    """A text to show.

    Attributes:
        item_id: of the item.
        text: its text; None if it has none.
        why: what is wrong or may be; empty for a random one.
        image: path of its picture, where the root does not tell.
    """

    item_id: str
    text: Enrichment | None
    why: str = ""
    image: str | None = None


@dataclass
class Group:
    """Items of one prompt or one dataset."""

    texts: int = 0
    refused: int = 0
    words: Counter[float] = field(default_factory=Counter)


@final
class _Worst:
    """The worst texts by one measure; at most ``size`` of them are kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, str, Sample]] = []  # badness, text
        self._known: set[str] = set()

    def offer(self, badness: float, text: str, sample: Sample) -> None:
        full = len(self._heap) == self._size
        # The same words need to be shown once, whoever shares them.
        if text in self._known or (full and badness <= self._heap[0][0]):
            return
        if full:
            self._known.discard(heapq.heappop(self._heap)[1])
        heapq.heappush(self._heap, (badness, text, sample))
        self._known.add(text)

    def ranked(self, above: float) -> list[Sample]:
        """Those whose badness is larger than ``above``, the worst first."""
        ranked = sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))
        return [sample for badness, _, sample in ranked if badness > above]


@final
class Tally:
    """Counts of one side's texts, filled by one pass.

    Args:
        samples: how many random, and how many worst texts to keep.
        seed: of the random choice.
        limits: what was refused.

    Attributes:
        limits: check -> limit of its score.
        texts: items with a text, refused ones included.
        refused: class of reason -> items whose text a check refused.
        refused_samples: class of reason -> a few of them.
        finish: how generation ended -> items.
        words: words of a text -> items.
        scores: check -> score -> items.
        prompts: prompt id -> its items.
        datasets: dataset id -> its items.
        models: (model, revision) -> items.
    """

    def __init__(self, samples: int, seed: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits_of(limits)
        self.texts = 0
        self.refused: Counter[str] = Counter()
        self.refused_samples: dict[str, list[Sample]] = defaultdict(list)
        self.finish: Counter[str] = Counter()
        self.words: Counter[float] = Counter()
        self.scores: dict[str, Counter[float]] = defaultdict(Counter)
        self.prompts: dict[str, Group] = defaultdict(Group)
        self.datasets: dict[str, Group] = defaultdict(Group)
        self.models: Counter[tuple[str, str]] = Counter()
        self._size = samples
        self._dice = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._random: list[Sample] = []
        self._worst: dict[str, _Worst] = {}
        # Eight bytes for what millions of texts must be told apart by.
        self._keys, self._contents = array("q"), array("q")
        self._read, self._written = array("q"), array("q")

    def add(self, item_id: str, text: Enrichment) -> None:
        """Count one item's text."""
        self.texts += 1
        number = len(text.text.split())
        self.words[number] += 1
        self.finish[text.finish] += 1
        self.models[text.model, text.revision] += 1
        for group in (self.prompts[text.prompt], self.datasets[item_id.partition(":")[0]]):
            group.texts += 1
            group.refused += bool(text.rejected)
            group.words[number] += 1
        for check, score in text.checks.items():
            self.scores[check][round(score, 2)] += 1
        self._keys.append(hash(text.key))
        self._contents.append(hash(text.text))
        self._read.append(text.prompt_tokens)
        self._written.append(text.output_tokens)
        self._sample(Sample(item_id, text), text, number)

    def _sample(self, sample: Sample, text: Enrichment, number: int) -> None:
        if len(self._random) < self._size:
            self._random.append(sample)
        elif (place := self._dice.randrange(self.texts)) < self._size:
            self._random[place] = sample
        if text.rejected:
            reason = reason_class(text.rejected)
            self.refused[reason] += 1
            if len(self.refused_samples[reason]) < self._size:
                self.refused_samples[reason].append(sample._replace(why=text.rejected))
            return
        self._offer("short", -number, text.text, sample._replace(why=f"short: {number} words"))
        for check, limit in self.limits.items():
            share = text.checks.get(check, 0.0) / limit if limit > 0 else 0.0
            if share > NEAR:
                why = f"{check} {text.checks[check]:.2g}, refused above {limit:g}"
                self._offer(check, share, text.text, sample._replace(why=why))

    def _offer(self, measure: str, badness: float, text: str, sample: Sample) -> None:
        if self._size:
            self._worst.setdefault(measure, _Worst(self._size)).offer(badness, text, sample)

    @property
    def accepted(self) -> int:
        """Items with a text that no check refused."""
        return self.texts - self.refused.total()

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens read and written, each generation counted once however many items share it."""
        _, first = np.unique(np.asarray(self._keys), return_index=True)
        read, written = np.asarray(self._read), np.asarray(self._written)
        return int(read[first].sum()), int(written[first].sum())

    @property
    def generations(self) -> int:
        """Texts that a model wrote; items that send the very same share one."""
        return len(np.unique(np.asarray(self._keys)))

    def output_tokens(self) -> Counter[float]:
        """Tokens written -> generations."""
        _, first = np.unique(np.asarray(self._keys), return_index=True)
        values, counts = np.unique(np.asarray(self._written)[first], return_counts=True)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def repeated(self) -> Mapping[int, int]:
        """Hash of a text -> generations that gave the very same words, where there are several."""
        _, first = np.unique(np.asarray(self._keys), return_index=True)
        values, counts = np.unique(np.asarray(self._contents)[first], return_counts=True)
        several = counts > 1
        return dict(zip(values[several].tolist(), counts[several].tolist(), strict=True))

    def random(self) -> list[Sample]:
        """A uniform sample of the items with a text, in order of appearance or replaced."""
        return list(self._random)

    def worst(self, *others: Sequence[Sample]) -> list[Sample]:
        """The worst accepted texts, each measure in turn, none twice.

        Args:
            *others: by measures that are not taken here, the worst first.
        """
        # Short is what has less than half of the usual words.
        least = -quantile(self.words, 0.5) / 2 if self.texts else 0.0
        measures: list[Sequence[Sample]] = list(others)
        for measure, worst in self._worst.items():
            measures.append(worst.ranked(above=least if measure == "short" else NEAR))
        chosen: dict[str, Sample] = {}
        for sample in _in_turn(measures):
            if sample.item_id not in chosen:
                chosen[sample.item_id] = sample
            if len(chosen) == self._size:
                break
        return list(chosen.values())


def _in_turn(lists: Sequence[Sequence[Sample]]) -> Iterator[Sample]:
    for rank in range(max((len(one) for one in lists), default=0)):
        yield from (one[rank] for one in lists if rank < len(one))


def reason_class(reason: str) -> str:
    """The short class that a reason starts with."""
    return reason.partition(":")[0]
