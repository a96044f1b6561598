"""From a store and a root to the values that the page shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from augment.data.images import open_image
from augment.enrichment.card import packaged
from augment.errors import ImageError
from augment.prompts import Prompt
from augment.records import Enrichment, Side
from augment.store import Failure, Store
from augment.store.charts import Histogram, histogram, quantile
from augment.store.keys import Recipe
from augment.store.page import DataUri, thumbnail
from augment.store.reporting.faithful import Faithful, load_faithful
from augment.store.reporting.items import Items, asked_for
from augment.store.reporting.limits import Used, used
from augment.store.reporting.repeats import Repeats, repeats
from augment.store.reporting.tally import Group, Sample, Tally, reason_class
from augment.store.reporting.wording import Piece, compare

_SIDES: tuple[Side, Side] = ("corpus", "query")

#: Samples shown of every reason of failure or refusal.
EACH_REASON = 6

#: Rows of a table that grows with the data.
ROWS = 40


@final
@dataclass(frozen=True)
class Card:
    """One item with its picture, the published and the generated text.

    Attributes:
        item_id: the item.
        image: path as published, empty if there is none.
        picture: its thumbnail; empty if there is none or it cannot be opened.
        no_picture: why there is no thumbnail.
        published: the published text in pieces; words that are gone are marked.
        generated: the generated text in pieces; new words are marked. Empty for a failure.
        asked: a query that a candidate answers, in words; empty if there is none.
        why: what is wrong, or may be.
        text: the generated text with its provenance; None for a failure.
    """

    item_id: str
    image: str
    picture: DataUri | None
    no_picture: str
    published: Sequence[Piece]
    generated: Sequence[Piece]
    asked: str
    why: str
    text: Enrichment | None


@final
@dataclass(frozen=True)
class Reason:
    """Items that failed, or whose text was refused, for one reason."""

    name: str
    items: int
    cards: Sequence[Card]


@final
@dataclass(frozen=True)
class Row:
    """A line of the table of prompts and datasets."""

    name: str
    texts: int
    refused: int
    median: float


@final
@dataclass(frozen=True)
class Score:
    """A check's scores in numbers: ``above`` counts those over the limit."""

    name: str
    mean: float
    most: float
    limit: float | None
    above: int


@final
@dataclass(frozen=True)
class SideReport:
    """All that the page says of one side.

    Attributes:
        side: query or corpus.
        recipe: how the texts were made.
        prompts: the packaged prompts of the recipe, where they are still what was sent.
        with_picture: items of the root that have a picture.
        tally: the counts.
        used: the limits of the checks.
        repeats: texts that stand for several pictures.
        faithful: scores by a CLIP model, where they were made.
        failed: items without a text, by reason.
        refused: items whose text was refused, by reason.
        plots: distributions.
        scores: checks in numbers.
        groups: by prompt and by dataset.
        worst: accepted texts that look worst.
        random: a uniform sample.
        unknown: samples whose item is not in this root.
    """

    side: Side
    recipe: Recipe
    prompts: Sequence[Prompt]
    with_picture: int
    tally: Tally
    used: Used
    repeats: Repeats
    faithful: Faithful | None
    failed: Sequence[Reason]
    refused: Sequence[Reason]
    plots: Sequence[Histogram]
    scores: Sequence[Score]
    groups: Mapping[str, Sequence[Row]]
    worst: Sequence[Card]
    random: Sequence[Card]
    unknown: int

    @property
    def failures(self) -> int:
        """Items without a text."""
        return sum(reason.items for reason in self.failed)


def sides(store: Store) -> list[Side]:
    """The sides that have texts in a store.

    Raises:
        StoreError: if neither has.
    """
    found: list[Side] = [side for side in _SIDES if any(store.folder.glob(f"recipes/{side}-*"))]
    if not found:
        store.recipe("corpus")  # says what to do
    return found


def collect(
    store: Store,
    root: Path,
    side: Side,
    recipe: str | None = None,
    *,
    samples: int = 24,
    seed: int = 0,
) -> SideReport:
    """Gather what the page shows of one side under one recipe.

    Args:
        store: where the texts are.
        root: folder in M-BEIR's layout, for the published texts and the pictures.
        side: query or corpus.
        recipe: id of a recipe; None as in ``Store.recipe``.
        samples: how many random and how many worst texts to show.
        seed: of the random choice.

    Raises:
        DataError: if the root cannot be read.
        StoreError: if the store cannot be read, or nothing ran on this side.
    """
    how = store.recipe(side, recipe)
    texts = store.texts(side, how.id)
    limits = used(store, how.id, store.runs())
    tally = Tally(samples, seed, limits.limits)
    for item_id, text in texts.items():
        tally.add(item_id, text)
    items = Items(root, side)
    failed = _failed(store.failures(side, how.id))
    again = repeats(texts, tally.repeated(), items.find, samples)
    faithful = load_faithful(store.folder, side, how.id, texts, samples)
    unlike = faithful.worst if faithful else ()
    worst, chance = tally.worst(again.samples, unlike), tally.random()
    refused = [
        (name, number, tally.refused_samples[name][:EACH_REASON])
        for name, number in tally.refused.most_common()
    ]
    shown = [worst, chance, *(found for _, _, found in (*failed, *refused))]
    ids = {sample.item_id for found in shown for sample in found}
    make = Cards(items, root, asked_for(root, ids) if side == "corpus" else {})
    return SideReport(
        side=side,
        recipe=how,
        prompts=list(packaged(how.prompts)),
        with_picture=items.with_picture(),
        tally=tally,
        used=limits,
        repeats=again,
        faithful=faithful,
        failed=[Reason(name, number, make.cards(found)) for name, number, found in failed],
        refused=[Reason(name, number, make.cards(found)) for name, number, found in refused],
        plots=[*_plots(tally), *(faithful.plots if faithful else ())] if tally.texts else [],
        scores=_scores(tally),
        groups={
            "prompt": _rows(tally.prompts, str),
            "dataset": _rows(tally.datasets, items.name),
        },
        worst=make.cards(worst),
        random=make.cards(chance),
        unknown=make.unknown,  # counted by all cards above
    )


@final
class Cards:
    """Makes cards.

    Args:
        items: where items are found by id.
        root: folder of the pictures.
        asked: candidate id -> a query that it answers.

    Attributes:
        unknown: samples whose item the root does not have.
    """

    def __init__(self, items: Items, root: Path, asked: Mapping[str, str]) -> None:
        self.unknown = 0
        self._items = items
        self._root = root
        self._asked = asked

    def cards(self, samples: Sequence[Sample]) -> list[Card]:
        """One card for each sample."""
        return [self._card(sample) for sample in samples]

    def _card(self, sample: Sample) -> Card:
        item_id, text, why, image = sample
        item = self._items.find(item_id)
        self.unknown += item is None
        image = item.image if item is not None else image
        picture, no_picture = self._picture(image, known=item is not None)
        published, generated = compare(item.text if item else None, text.text if text else "")
        return Card(
            item_id=item_id,
            image=image or "",
            picture=picture,
            no_picture=no_picture,
            published=published,
            generated=generated,
            asked=self._asked.get(item_id, ""),
            why=why,
            text=text,
        )

    def _picture(self, image: str | None, known: bool) -> tuple[DataUri | None, str]:
        if image is None:
            return None, "no picture" if known else "not in this root"
        try:
            return thumbnail(open_image(self._root, image)), ""
        except ImageError as error:
            return None, f"picture {error.reason}"


def _failed(failures: Mapping[str, Failure]) -> list[tuple[str, int, list[Sample]]]:
    """Reason, items and a few of them."""
    counts: Counter[str] = Counter()
    shown: dict[str, list[Sample]] = defaultdict(list)
    for failure in failures.values():
        name = reason_class(failure.reason)
        counts[name] += 1
        if len(shown[name]) < EACH_REASON:
            shown[name].append(Sample(failure.item_id, None, failure.reason, failure.image))
    return [(name, number, shown[name]) for name, number in counts.most_common()]


def _plots(tally: Tally) -> list[Histogram]:
    """Lengths, tokens, and the checks whose scores differ."""
    plots = [histogram("Words per text", tally.words, unit="words")]
    written = tally.output_tokens()
    if any(written):
        plots.append(histogram("Tokens written per text", written, unit="tokens"))
    for check, counts in sorted(tally.scores.items()):
        if len(counts) > 2 and check != "words":
            whole = all(float(value).is_integer() for value in counts)
            title = f"Score: {check.replace('_', ' ')}"
            plots.append(histogram(title, counts, whole=whole, limit=tally.limits.get(check)))
    return plots


def _scores(tally: Tally) -> list[Score]:
    rows = []
    for check, counts in sorted(tally.scores.items()):
        limit = tally.limits.get(check)
        mean = sum(value * number for value, number in counts.items()) / counts.total()
        over = 0.0 if limit is None else limit
        above = sum(number for value, number in counts.items() if value > over)
        rows.append(Score(check.replace("_", " "), mean, max(counts), limit, above))
    return rows


def _rows(groups: Mapping[str, Group], name: Callable[[str], str]) -> list[Row]:
    ranked = sorted(groups.items(), key=lambda pair: (-pair[1].texts, pair[0]))
    return [
        Row(name(key), group.texts, group.refused, quantile(group.words, 0.5))
        for key, group in ranked[:ROWS]
    ]
