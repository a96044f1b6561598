"""One static page about the texts of a store.

It answers whether the texts are good enough: headline numbers, what failed and why, the worst and
a random sample of texts beside their pictures, distributions, and how the texts were made. The page
is a single file that works from ``file://`` and asks the network for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from itertools import islice, zip_longest
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import pyarrow as pa
import pyarrow.compute as pc

from augment.checks import DEFAULT_LIMITS, Limits
from augment.data import DataRoot
from augment.data.images import open_image
from augment.data.pools import CandidateTable, QueryTable, open_candidates, open_queries
from augment.data.root import DataFile
from augment.errors import DataError, ImageError, StoreError
from augment.prompts import Prompt, load_prompt
from augment.records import Enrichment, Item, Side
from augment.store.charts import Plot, histogram, quantile
from augment.store.keys import Recipe
from augment.store.page import DataUri, Piece, compare, percent, thumbnail, write_page
from augment.store.runs import SIDES, Prices, RunRecord, load_runs, recipe_ids
from augment.store.schema import reason_class
from augment.store.scores import DOUBTFUL, SCORES, load_scores
from augment.store.store import Store
from augment.store.upkeep import duration

if TYPE_CHECKING:
    import pandas as pd

#: Samples shown of every reason of failure or refusal, and most of other kinds: a page of 5 MB.
EACH_REASON = 6
MOST_SAMPLES = 200

#: Rows of a table that grows with the data, and of texts that become columns at once.
ROWS, CHUNK = 40, 16_384

#: Share of the generations that may share their words with another picture's, before it is said.
REPEATED = 0.05

#: Share of the scored texts that a CLIP model may doubt before the page warns; of true ones it
#: doubts about 5 % (see :data:`augment.store.scores.DOUBTFUL`).
DOUBTED = 0.2

#: An accepted text whose score is above this share of its limit may be shown among the worst.
NEAR = 0.6

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
_TITLES = {"corpus": "Candidates", "query": "Queries"}
_SPLITS = ("train", "val", "test", "union_train", "union_val")


class Sample(NamedTuple):
    """An item to show.

    Attributes:
        item_id: the item.
        why: what is wrong with its text or may be, or why it has none; empty for a random one.
        failed: whether it has none.
        image: path of its picture, where the root does not tell.
    """

    item_id: str
    why: str = ""
    failed: bool = False
    image: str | None = None


class ItemCard(NamedTuple):
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


class Reason(NamedTuple):
    """Items that failed, or whose text was refused, for one reason."""

    name: str
    items: int
    cards: Sequence[ItemCard]


class Repeats(NamedTuple):
    """Accepted texts that were written for several different contents.

    A content is an item's picture, or its text where it has none. Items that send the very same
    share one generation and count once; so does a picture that is asked about in several requests.

    Attributes:
        contents: all different ones that have an accepted text among the repeated.
        texts: how many texts stand for several.
        most: for how many the most repeated one stands.
        noun: what the contents are.
        samples: one item for each of the most repeated texts.
    """

    contents: int = 0
    texts: int = 0
    most: int = 0
    noun: str = "pictures"
    samples: tuple[Sample, ...] = ()


class Doubts(NamedTuple):
    """What a CLIP model found of a recipe's texts, as ``python -m augment scores`` left it.

    Attributes:
        model: that judged.
        scored: texts.
        doubtful: of these, how many it doubts; see :data:`augment.store.scores.DOUBTFUL`.
        plots: distributions.
        worst: a few of those that it doubts, the worst first.
    """

    model: str
    scored: int
    doubtful: int
    plots: Sequence[Plot]
    worst: Sequence[Sample]


@final
@dataclass(frozen=True)
class Used:
    """The limits of the latest run that tells.

    Attributes:
        limits: the limits; the default ones where no run tells.
        known: whether a run tells.
        caps: prompt -> its limits of length, in words.
        others: items whose verdict is from other limits.
    """

    limits: Limits = DEFAULT_LIMITS
    known: bool = False
    caps: Mapping[str, str] = field(default_factory=dict)
    others: int = 0

    def rows(self) -> Iterator[tuple[str, object]]:
        """Names and values for people, the caps of prompts last."""
        for one in fields(Limits):
            yield one.name, getattr(self.limits, one.name)
        yield from self.caps.items()


@final
@dataclass(frozen=True)
class SideReport:
    """All that the page says of one side.

    Attributes:
        side: query or corpus.
        recipe: how the texts were made.
        prompts: the packaged prompts of the recipe, where they are still what was sent.
        with_picture: items of the root that have a picture.
        texts: items with a text, refused ones included.
        refused_items: of these, how many are refused.
        generations: texts that a model wrote; items that send the very same share one.
        read: tokens, each generation counted once.
        written: tokens likewise.
        median: words of a text; 0 where there is none.
        models: who wrote -> items.
        used: the limits of the checks.
        repeats: texts that stand for several pictures.
        faithful: scores by a CLIP model, where they were made.
        failed: items without a text, by reason.
        refused: items whose text was refused, by reason.
        plots: distributions.
        scores: a row for each check: its name, mean, maximum, limit, and how many are above.
        groups: a table by prompt and one by dataset: name, texts, refused, median of words.
        worst: accepted texts that look worst.
        random: a uniform sample.
        unknown: samples whose item is not in this root.
    """

    side: Side
    recipe: Recipe
    prompts: Sequence[Prompt]
    with_picture: int
    texts: int
    refused_items: int
    generations: int
    read: int
    written: int
    median: float
    models: Mapping[str, int]
    used: Used
    repeats: Repeats
    faithful: Doubts | None
    failed: Sequence[Reason]
    refused: Sequence[Reason]
    plots: Sequence[Plot]
    scores: Sequence[Mapping[str, Any]]
    groups: Mapping[str, Sequence[Mapping[str, Any]]]
    worst: Sequence[ItemCard]
    random: Sequence[ItemCard]
    unknown: int

    @property
    def failures(self) -> int:
        """Items without a text."""
        return sum(reason.items for reason in self.failed)

    @property
    def accepted(self) -> int:
        """Items with a text that no check refused."""
        return self.texts - self.refused_items


def report(
    store: Path,
    root: Path,
    out: Path,
    *,
    recipes: Mapping[Side, str | None] | None = None,
    samples: int = 24,
    seed: int = 0,
    prices: Prices | None = None,
) -> Path:
    """Write ``report.html`` about a store.

    Args:
        store: folder of the generated texts.
        root: folder in M-BEIR's layout that they were made from.
        out: folder of the page; made if absent.
        recipes: side -> id of the recipe; None or absent as in ``Store.recipe``.
        samples: how many random and how many worst texts of each side to show, at most 200.
        seed: of the random choice.
        prices: of tokens and devices, for the cost.

    Returns:
        The path of the page.

    Raises:
        DataError: if the root cannot be read or the page cannot be written.
        StoreError: if there is no such store, or nothing is in it.
    """
    if not store.is_dir():
        raise StoreError(f"{store}: no such store")
    opened = Store(store)
    chosen = recipes or {}
    sides = [side for side in SIDES if recipe_ids(store, side)]
    if not sides:
        opened.recipe("corpus")  # says what to do
    most = min(samples, MOST_SAMPLES)
    found = [
        collect(opened, root, side, chosen.get(side), samples=most, seed=seed) for side in sides
    ]
    ran = load_runs(store)
    write_page(
        out / "report.html",
        "report.html",
        name=store.resolve().name,
        store=str(store),
        root=str(root),
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        sides=found,
        titles=_TITLES,
        verdicts={one.side: verdict(one) for one in found},
        bills={one.side: _bill(one, ran, prices or Prices()) for one in found},
        duration=duration,
        damaged=opened.damaged,
    )
    return out / "report.html"


def _bill(one: SideReport, ran: Sequence[RunRecord], prices: Prices) -> Mapping[str, Any]:
    """What a side took, and its price: a run is taken to occupy one device."""
    mine = [run for run in ran if run.recipe == one.recipe.id]
    seconds = sum(run.ended - run.started for run in mine if run.ended is not None)
    costs = (prices.tokens(one.read, one.written), prices.hours(seconds / 3600))
    known = [cost for cost in costs if cost is not None]
    return {"runs": len(mine), "seconds": seconds, "cost": sum(known) if known else None}


def verdict(one: SideReport) -> tuple[str, str]:
    """What a reader must know first: ``good``, ``warn`` or ``bad``, and a few sentences."""
    asked = one.texts + one.failures
    if one.accepted == 0:
        return "bad", f"None of {asked:,} items has an accepted text."
    share = "All" if one.accepted == asked else f"{percent(one.accepted, asked)} of"
    parts = [f"{share} {asked:,} items have an accepted text"]
    if one.failures:
        parts.append(f"{one.failures:,} failed")
    if one.refused:
        first = one.refused[0]
        reason = f"most often for {first.name} ({first.items:,})"
        parts.append(f"{one.refused_items:,} were refused, {reason}")
    text = "; ".join(parts) + "."
    again = one.repeats
    same = again.contents / one.generations
    if same > REPEATED:
        text += (
            f" {again.contents:,} different {again.noun} share {again.texts:,} texts, the most"
            f" frequent one stands for {again.most:,} of them: search cannot tell these apart by"
            " their text. Read the first of the worst texts below: if they are too general, change"
            " the prompt or the model."
        )
    if one.used.others:
        text += (
            f" {one.used.others:,} verdicts are not from the limits of the latest run; run the"
            " command again over all items, which judges them and generates nothing."
        )
    doubted = 0.0
    if one.faithful and one.faithful.doubtful:
        doubted = one.faithful.doubtful / one.faithful.scored
        text += (
            f" The CLIP model doubts a word or a sentence of {one.faithful.doubtful:,} of the"
            f" {one.faithful.scored:,} that it scored."
        )
    lost = 1 - one.accepted / asked
    good = lost < 0.02 and same <= REPEATED and doubted <= DOUBTED
    return "good" if good else "warn" if lost < 0.2 else "bad", text


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
    used = limits_used(store, how.id)
    frame = table(texts)
    first = frame.drop_duplicates("key")
    items = RootItems(root, side)
    again = repeats(frame, items, samples)
    faithful = _faithful(store.folder, side, how.id, frame, samples)
    failures = store.failures(side, how.id).values()
    worst = _worst(
        frame, used.limits, samples, [*again.samples], faithful.worst if faithful else []
    )
    chance = frame.sample(min(samples, len(frame)), random_state=seed).sort_index()
    failed = _by_reason(
        (reason_class(f.reason), Sample(f.item_id, f.reason, True, f.image)) for f in failures
    )
    refusals = frame[frame["rejected"] != ""]
    refused = _by_reason(
        (reason_class(why), Sample(item, why))
        for item, why in zip(refusals["item"], refusals["rejected"], strict=True)
    )
    random = [Sample(item) for item in chance["item"]]
    shown = [worst, random, *(found for _, _, found in (*failed, *refused))]
    ids = [sample.item_id for found in shown for sample in found]
    asked = _asked_for(root, ids) if side == "corpus" else {}

    def cards(chosen: Sequence[Sample]) -> list[ItemCard]:
        return [_card(sample, items, root, texts, asked) for sample in chosen]

    return SideReport(
        side=side,
        recipe=how,
        prompts=list(packaged(how.prompts)),
        with_picture=items.with_picture(),
        texts=len(frame),
        refused_items=len(refusals),
        generations=len(first),
        read=int(first["read"].sum()),
        written=int(first["written"].sum()),
        median=quantile(frame["words"], 0.5) if len(frame) else 0.0,
        models={str(name): int(number) for name, number in frame["model"].value_counts().items()},
        used=used,
        repeats=again,
        faithful=faithful,
        failed=[Reason(name, number, cards(found)) for name, number, found in failed],
        refused=[Reason(name, number, cards(found)) for name, number, found in refused],
        plots=[*_plots(frame, first, used.limits), *(faithful.plots if faithful else [])],
        scores=list(_scores(frame, used.limits)),
        groups={"prompt": _groups(frame, "prompt"), "dataset": _groups(frame, "dataset", items)},
        worst=cards(worst),
        random=cards(random),
        unknown=sum(items.find(name) is None for name in ids),
    )


# Columns


def table(texts: Mapping[str, Enrichment]) -> pd.DataFrame:
    """A row for each item with a text, in their order; scores in columns ``check:name``."""
    import pandas as pd

    rows, parts = iter(texts.items()), [pd.DataFrame([], columns=list(_row("", _NONE)))]
    while chunk := [_row(*one) for one in islice(rows, CHUNK)]:
        parts.append(pd.DataFrame(chunk))
    frame: pd.DataFrame = pd.concat(parts[1:] or parts, ignore_index=True)
    return frame


_NONE = Enrichment("", "", "", "", "", "")


def _row(item_id: str, text: Enrichment) -> dict[str, Any]:
    return {
        "item": item_id,
        # Eight bytes for what millions of texts must be told apart by.
        "key": hash(text.key),
        "text": hash(text.text),
        "words": len(text.text.split()),
        "read": text.prompt_tokens,
        "written": text.output_tokens,
        "rejected": intern(text.rejected),
        "prompt": intern(text.prompt),
        "model": intern(f"{text.model} {text.revision[:12]}"),
        "dataset": intern(item_id.partition(":")[0]),
        **{f"check:{name}": round(score, 2) for name, score in text.checks.items()},
    }


def _checks(frame: pd.DataFrame) -> Iterator[tuple[str, pd.Series[float]]]:
    """The scores of each check, by its name."""
    for column in sorted(name for name in frame.columns if name.startswith("check:")):
        yield column.removeprefix("check:"), frame[column].dropna()


def _limit(check: str, limits: Limits) -> float | None:
    return float(getattr(limits, _LIMIT_OF[check])) if check in _LIMIT_OF else None


def _plots(frame: pd.DataFrame, first: pd.DataFrame, limits: Limits) -> Iterator[Plot]:
    """Lengths, tokens, and the checks whose scores differ."""
    if frame.empty:
        return
    yield histogram("Words per text", frame["words"], unit="words")
    if first["written"].any():
        yield histogram("Tokens written per text", first["written"], unit="tokens")
    for check, scores in _checks(frame):
        if scores.nunique() > 2 and check != "words":
            whole = bool((scores % 1 == 0).all())
            title = f"Score: {check.replace('_', ' ')}"
            yield histogram(title, scores, whole=whole, limit=_limit(check, limits))


def _scores(frame: pd.DataFrame, limits: Limits) -> Iterator[Mapping[str, Any]]:
    for check, scores in _checks(frame):
        limit = _limit(check, limits)
        yield {
            "name": check.replace("_", " "),
            "mean": scores.mean(),
            "most": scores.max(),
            "limit": limit,
            "above": int((scores > (limit or 0.0)).sum()),
        }


def _groups(
    frame: pd.DataFrame, column: str, items: RootItems | None = None
) -> Sequence[Mapping[str, Any]]:
    """Texts, refused ones and the median of words, the largest groups first."""
    rows = [
        {
            "name": items.name(str(name)) if items else str(name),
            "texts": len(group),
            "refused": int((group["rejected"] != "").sum()),
            "median": quantile(group["words"], 0.5),
        }
        for name, group in frame.groupby(column)
    ]
    return sorted(rows, key=lambda row: -cast("int", row["texts"]))[:ROWS]


def limits_used(store: Store, recipe: str) -> Used:
    """The limits of the latest run of a recipe that tells.

    Args:
        store: has the runs and the verdicts.
        recipe: id.
    """
    ran = [run.scope.checks for run in load_runs(store.folder) if run.recipe == recipe]
    kept = [checks for checks in ran if checks]
    if not kept:
        return Used()
    checks: Mapping[str, Any] = kept[-1]
    known = {one.name for one in fields(Limits)}
    limits = Limits(**{name: v for name, v in checks["limits"].items() if name in known})
    marks = {one["mark"] for one in checks["prompts"].values()}
    links = store.rows("link", recipe).scan("judged")
    others = sum(row.get("judged") not in marks for row in links)
    return Used(limits, True, {n: _cap(one) for n, one in checks["prompts"].items()}, others)


def _cap(one: Mapping[str, Any]) -> str:
    added = one.get("max_added_words")
    more = f", of which at most {added} new" if added is not None else ""
    tokens = one.get("max_tokens")
    length = f"{one['max_words']} words" if tokens is None else f"{tokens} tokens"
    return f"at most {length}{more}"


def packaged(prompts: Mapping[str, str]) -> Iterator[Prompt]:
    """The packaged prompts among those of a recipe; one that has changed since is left out."""
    for name, identity in sorted(prompts.items()):
        try:
            prompt = load_prompt(name)
        except DataError:
            continue  # a file of the user's own
        if prompt.id == identity:
            yield prompt


# Samples


def repeats(frame: pd.DataFrame, items: RootItems, most: int) -> Repeats:
    """Count the contents of texts that came more than once.

    Args:
        frame: as :func:`table` makes it.
        items: where the contents are found.
        most: how many samples.
    """
    first = frame.drop_duplicates("key")
    often = first[first.duplicated("text", keep=False) & (first["rejected"] == "")]
    contents: dict[int, set[object]] = {}
    example: dict[int, str] = {}
    pictures = True
    for item_id, text in zip(often["item"], often["text"], strict=True):
        item = items.find(item_id)
        pictures &= item is None or item.image is not None
        contents.setdefault(text, set()).add((item.image or item.text) if item else item_id)
        example.setdefault(text, item_id)
    numbers = Counter({text: len(found) for text, found in contents.items() if len(found) > 1})
    if not numbers:
        return Repeats()
    noun = "pictures" if pictures else "pictures or requests"
    samples = tuple(
        Sample(example[text], f"the very same words for {number:,} different {noun}")
        for text, number in numbers.most_common(most)
    )
    return Repeats(numbers.total(), len(numbers), max(numbers.values()), noun, samples)


def _worst(
    frame: pd.DataFrame, limits: Limits, size: int, *others: Sequence[Sample]
) -> list[Sample]:
    """The worst accepted texts, each measure in turn, none twice.

    Args:
        frame: as :func:`table` makes it.
        limits: what was refused.
        size: how many.
        *others: by measures that are not taken here, the worst first.
    """
    # The same words need to be shown once, whoever shares them.
    accepted = frame[frame["rejected"] == ""].drop_duplicates("text")
    measures = list(others)
    if len(accepted):
        # Short is what has less than half of the usual words.
        short = accepted[accepted["words"] < quantile(frame["words"], 0.5) / 2]
        short = short.sort_values("words", kind="stable")[:size]
        pairs = zip(short["item"], short["words"], strict=True)
        measures.append([Sample(item, f"short: {number} words") for item, number in pairs])
    for check in _LIMIT_OF:
        limit = _limit(check, limits) or 0.0
        if limit > 0 and f"check:{check}" in accepted.columns:
            scores = accepted.set_index("item")[f"check:{check}"]
            near = scores[scores / limit > NEAR].sort_values(ascending=False, kind="stable")[:size]
            why = f"{check} {{:.2g}}, refused above {limit:g}"
            measures.append([Sample(str(item), why.format(score)) for item, score in near.items()])
    ranked = (one for rank in zip_longest(*measures) for one in rank if one is not None)
    chosen: dict[str, Sample] = {}
    for sample in ranked:
        chosen.setdefault(sample.item_id, sample)
    return list(chosen.values())[:size]


def _faithful(
    store: Path, side: Side, recipe: str, frame: pd.DataFrame, size: int
) -> Doubts | None:
    """What a CLIP model found, None if it was not asked."""
    import pandas as pd

    loaded = load_scores(store, side, recipe)
    if loaded is None:
        return None
    model, scores = loaded
    plots = [
        histogram(SCORES[name][0], values, whole=False)
        for name in SCORES
        if name in scores and (values := scores[name].round(2).dropna()).nunique() > 2
    ]
    judged = [name for name in DOUBTFUL if name in scores]
    doubted = {name: scores[name] < DOUBTFUL[name] for name in judged}
    accepted = set(frame.loc[frame["rejected"] == "", "item"])
    worst: dict[str, Sample] = {}
    for name in reversed(judged):  # of the reasons of a text, a word says most
        for item, row in scores[doubted[name]].nsmallest(size, name).iterrows():
            why = SCORES[name][1]
            if name == "clip_word" and row.get("clip_doubted"):
                why = f"CLIP doubts “{row['clip_doubted']}”"
            if item in accepted:
                worst.setdefault(str(item), Sample(str(item), f"{why} ({row[name]:.2g})"))
    doubtful = int(pd.DataFrame(doubted).any(axis=1).sum())
    return Doubts(model, len(scores), doubtful, plots, list(worst.values()))


def _by_reason(found: Iterator[tuple[str, Sample]]) -> list[tuple[str, int, list[Sample]]]:
    """Reason, items and a few of them, the most frequent first."""
    counts: Counter[str] = Counter()
    shown: dict[str, list[Sample]] = {}
    for reason, sample in found:
        counts[reason] += 1
        if counts[reason] <= EACH_REASON:
            shown.setdefault(reason, []).append(sample)
    return [(name, number, shown[name]) for name, number in counts.most_common()]


def _card(
    sample: Sample,
    items: RootItems,
    root: Path,
    texts: Mapping[str, Enrichment],
    asked: Mapping[str, str],
) -> ItemCard:
    item = items.find(sample.item_id)
    text = None if sample.failed else texts.get(sample.item_id)
    image = sample.image if item is None else item.image
    picture, no_picture = None, "not in this root" if item is None else "no picture"
    if image is not None:
        try:
            expected = text.picture if text else ""
            picture, no_picture = thumbnail(open_image(root, image, expected=expected)), ""
        except ImageError as error:
            no_picture = f"picture {error.reason}"
    published, generated = compare(item.text if item else None, text.text if text else "")
    return ItemCard(
        sample.item_id,
        image or "",
        picture,
        no_picture,
        published,
        generated,
        asked.get(sample.item_id, ""),
        sample.why,
        text,
    )


# The root


@final
class RootItems:
    """Candidates or queries of a root, found by id without reading whole files.

    Args:
        root: folder in M-BEIR's layout.
        side: which of them.

    Raises:
        DataError: if the root or one of its files cannot be read.
    """

    def __init__(self, root: Path, side: Side) -> None:
        data = DataRoot(root)
        self._tables: Sequence[CandidateTable | QueryTable]
        files: list[DataFile]
        if side == "corpus":
            # Union pools repeat the local ones.
            files = data.pools() or data.union_pools()
            self._tables = [open_candidates(file.path) for file in files]
        else:
            splits = [data.query_files(split) for split in _SPLITS]
            files = [file for split in splits[:3] for file in split]
            files = files or [file for split in splits for file in split]
            self._tables = [open_queries(file.path) for file in files]
        self._names: dict[str, str] = {}
        for file, rows in zip(files, self._tables, strict=True):
            if len(rows):
                self._names.setdefault(_item(rows, 0).dataset, file.dataset)

    def find(self, item_id: str) -> Item | None:
        """The item with this id, or None."""
        for rows in self._tables:
            row = rows.find(item_id)
            if row is not None:
                return _item(rows, row)
        return None

    def name(self, dataset: str) -> str:
        """Name of a dataset by its id, or the id itself."""
        return self._names.get(dataset, dataset)

    def with_picture(self) -> int:
        """Items that have a picture, those in several files counted once."""
        shown = [t.ids.filter(t.column("image").is_valid()).chunks for t in self._tables]
        ids = pa.chunked_array([chunk for chunks in shown for chunk in chunks], pa.string())
        return cast("int", pc.count_distinct(ids).as_py())


def _item(rows: CandidateTable | QueryTable, row: int) -> Item:
    found = rows[row]
    return found if isinstance(found, Item) else found.item


def _asked_for(root: Path, candidates: Collection[str]) -> Mapping[str, str]:
    """Candidate id -> text of a query without a picture that this candidate answers."""
    data = DataRoot(root)
    wanted = pa.array(sorted(set(candidates)), pa.string())
    found: dict[str, str] = {}
    for split in reversed(_SPLITS[:3]):
        for file in data.query_files(split):
            queries = open_queries(file.path)
            start = 0
            for positives in queries.column("positives").chunks:
                hits = pc.is_in(positives.flatten(), wanted)
                rows = positives.value_parent_indices().filter(hits).to_pylist()
                dids = positives.flatten().filter(hits).to_pylist()
                for row, did in zip(rows, dids, strict=True):
                    query = queries[start + row].item
                    if query.image is None and query.text:
                        found.setdefault(did, query.text)
                start += len(positives)
    return found
