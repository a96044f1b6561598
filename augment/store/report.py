"""One static page about the texts of a store.

It answers whether the texts are good enough: headline numbers, what failed and why, the worst and
a random sample of texts beside their pictures, distributions, and how the texts were made. The page
is a single file that works from ``file://`` and asks the network for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from augment.checks import DEFAULT_LIMITS, Limits
from augment.checks.drift import Drift
from augment.data import DataRoot
from augment.data.items import SPLITS, RootItems
from augment.data.pools import open_queries
from augment.errors import DataError, StoreError
from augment.prompts import Prompt, load_prompt
from augment.records import Enrichment, Side
from augment.store.charts import Plot, histogram, quantile
from augment.store.page import compare, thumbnail, write_page
from augment.store.runs import SIDES, Prices, RunRecord, checks_in_force, load_runs, recipe_ids
from augment.store.schema import reason_class
from augment.store.scores import DOUBTFUL, SCORES, load_scores, text_tables
from augment.store.store import Store
from augment.store.upkeep import duration

if TYPE_CHECKING:
    import pandas as pd

#: Samples shown of every reason of failure or refusal, and most of other kinds: a page of 5 MB.
EACH_REASON = 6
MOST_SAMPLES = 200

#: Rows of a table that grows with the data.
ROWS = 40

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

#: Texts whose drift is looked at.
MOST_DRIFT = 2000

#: Item id -> what is wrong with its text or may be, or why it has none; empty for a random one.
Whys = Mapping[str, str]

#: Check -> its scores, by item.
Checks = Mapping[str, "pd.Series[float]"]

#: What the templates show, by the names that they use.
Facts = dict[str, Any]


def report(
    store: Path,
    root: Path,
    out: Path,
    samples: int = 24,
    seed: int = 0,
    corpus_recipe: str | None = None,
    query_recipe: str | None = None,
    price_read: float | None = None,
    price_written: float | None = None,
    price_gpu_hour: float | None = None,
) -> Path:
    """Write one static HTML page about the texts of a store.

    Args:
        store: Generated texts.
        root: Folder in M-BEIR's layout that they were made from.
        out: Folder of report.html; made if absent.
        samples: Random and worst texts to show of each side, at most 200.
        seed: Of the random choice.
        corpus_recipe: Id; null: the recipe that the store means.
        query_recipe: Id; null: the recipe that the store means.
        price_read: Of a million tokens read, for the costs.
        price_written: Of a million tokens written, for the costs.
        price_gpu_hour: Of one device for an hour, for the costs.

    Returns:
        The path of the page.

    Raises:
        DataError: if the root cannot be read or the page cannot be written.
        StoreError: if there is no such store, or nothing is in it.
    """
    if not store.is_dir():
        raise StoreError(f"{store}: no such store")
    opened = Store(store)
    chosen: dict[Side, str | None] = {"corpus": corpus_recipe, "query": query_recipe}
    prices = Prices(price_read, price_written, price_gpu_hour)
    sides = [side for side in SIDES if recipe_ids(store, side)]
    if not sides:
        opened.recipe("corpus")  # says what to do
    most = min(samples, MOST_SAMPLES)
    found = [collect(opened, root, side, chosen[side], samples=most, seed=seed) for side in sides]
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
        bills={one["side"]: _bill(one, ran, prices) for one in found},
        duration=duration,
        damaged=opened.damaged,
    )
    return out / "report.html"


def _bill(one: Facts, ran: Sequence[RunRecord], prices: Prices) -> Facts:
    """What a side took, and its price: a run is taken to occupy one device."""
    mine = [run for run in ran if run.recipe == one["recipe"].id]
    seconds = sum(run.ended - run.started for run in mine if run.ended is not None)
    costs = (prices.tokens(one["read"], one["written"]), prices.hours(seconds / 3600))
    known = [cost for cost in costs if cost is not None]
    return {"runs": len(mine), "seconds": seconds, "cost": sum(known) if known else None}


def _tone(one: Facts) -> str:
    """What a reader must know first: ``good``, ``warn`` or ``bad``."""
    if not one["accepted"]:
        return "bad"
    lost = 1 - one["accepted"] / one["asked"]
    clip = one["faithful"]
    doubted = clip["doubtful"] / max(clip["scored"], 1) if clip else 0.0
    told = one["repeats"]["told"] or one["drift"]
    good = lost < 0.02 and not told and doubted <= DOUBTED
    return "good" if good else "warn" if lost < 0.2 else "bad"


def collect(
    store: Store,
    root: Path,
    side: Side,
    recipe: str | None = None,
    *,
    samples: int = 24,
    seed: int = 0,
) -> Facts:
    """Gather what the page shows of one side under one recipe."""
    import pandas as pd

    how = store.recipe(side, recipe)
    texts, failures = store.texts(side, how.id), store.failures(side, how.id)
    items, used = RootItems(root, side), _limits_used(store, side, how.id)
    limits = {check: float(getattr(used["limits"], name)) for check, name in _LIMIT_OF.items()}
    facts, table = text_tables(texts)
    checks = {name: table[name].round(2) for name in sorted(map(str, table))}
    first = facts.drop_duplicates("key")
    again = _repeats(first, items, samples)
    faithful = _faithful(store.folder, side, how.id, facts, samples)
    doubted = faithful["worst"] if faithful else {}
    worst = _worst(facts, checks, limits, samples, again["samples"], doubted)
    random = facts.sample(min(samples, len(facts)), random_state=seed).index
    chosen = dict.fromkeys(facts.index[facts.index.isin(random)], "")
    refusals = facts["rejected"][facts["rejected"] != ""]
    failed = _by_reason(pd.Series({i: one.reason for i, one in failures.items()}, dtype=object))
    refused = _by_reason(refusals)
    shown = [worst, chosen, *(whys for _, _, whys in (*failed, *refused))]
    ids = [item_id for whys in shown for item_id in whys]
    asked = _asked_for(root, ids) if side == "corpus" else {}

    def cards(whys: Whys, failed: bool = False) -> list[Facts]:
        return [card(item_id, why, failed) for item_id, why in whys.items()]

    def card(item_id: str, why: str, failed: bool) -> Facts:
        item, text = items.find(item_id), None if failed else texts[item_id]
        image = item.image if item else failures[item_id].image if failed else None
        picture, missing = None, "no picture" if item else "not in this root"
        if image is not None:
            picture, missing = thumbnail(root, image, text.picture if text else "")
        before, after = compare(item.text if item else None, text.text if text else "")
        return {
            "item_id": item_id,
            "image": image or "",
            "picture": picture,
            "no_picture": missing,
            "published": before,
            "generated": after,
            "asked": asked.get(item_id, ""),
            "why": why,
            "text": text,
        }

    found: Facts = {
        "side": side,
        "recipe": how,
        "prompts": list(packaged(how.prompts)),
        "with_picture": items.with_picture(),
        "texts": len(facts),
        "failures": len(failures),
        "accepted": len(facts) - len(refusals),
        "asked": len(facts) + len(failures),
        "refused_items": len(refusals),
        "generations": len(first),
        "read": int(first["prompt_tokens"].sum()),
        "written": int(first["output_tokens"].sum()),
        "median": quantile(facts["words"], 0.5) if len(facts) else 0.0,
        "models": {str(name): n for name, n in facts["model"].value_counts().items()},
        "used": used,
        "repeats": again,
        "drift": _drift(texts, items, side),
        "faithful": faithful,
        "failed": [(name, number, cards(whys, failed=True)) for name, number, whys in failed],
        "refused": [(name, number, cards(whys)) for name, number, whys in refused],
        "plots": [*_plots(facts, first, checks, limits), *(faithful["plots"] if faithful else [])],
        "scores": list(_scores(checks, limits)),
        "groups": {
            "prompt": _groups(facts, "prompt"),
            "dataset": _groups(facts, "dataset").rename(index=items.name),
        },
        "worst": cards(worst),
        "random": cards(chosen),
        "unknown": sum(items.find(item_id) is None for item_id in ids),
    }
    return {**found, "tone": _tone(found)}


def _drift(texts: Mapping[str, Enrichment], items: RootItems, side: Side) -> list[str]:
    """What the first :data:`MOST_DRIFT` accepted texts say together; of rewrites, the requests."""
    drift = Drift()
    for item_id, text in islice(texts.items(), MOST_DRIFT):
        if not text.rejected:
            item = items.find(item_id) if side == "query" else None
            drift.add(text.text, item.text if item else None)
    return drift.warnings


# Numbers


def _plots(
    facts: pd.DataFrame, first: pd.DataFrame, checks: Checks, limits: Mapping[str, float]
) -> Iterator[Plot]:
    """Lengths, tokens, and the checks whose scores differ."""
    if facts.empty:
        return
    yield histogram("Words per text", facts["words"], unit="words")
    if first["output_tokens"].any():
        yield histogram("Tokens written per text", first["output_tokens"], unit="tokens")
    for check, column in checks.items():
        scores = column.dropna()
        if scores.nunique() > 2 and check != "words":
            whole = bool((scores % 1 == 0).all())
            title = f"Score: {check.replace('_', ' ')}"
            yield histogram(title, scores, whole=whole, limit=limits.get(check))


def _scores(checks: Checks, limits: Mapping[str, float]) -> Iterator[Mapping[str, Any]]:
    for check, scores in checks.items():
        limit = limits.get(check)
        yield {
            "name": check.replace("_", " "),
            "mean": scores.mean(),
            "most": scores.max(),
            "limit": limit,
            "above": (scores > (limit or 0.0)).sum(),
        }


def _groups(facts: pd.DataFrame, column: str) -> pd.DataFrame:
    """Texts, refused ones and the median of words, the largest groups first."""
    found = facts.groupby(column).agg(
        texts=("words", "size"),
        refused=("rejected", lambda why: (why != "").sum()),
        median=("words", lambda words: quantile(words, 0.5)),
    )
    largest: pd.DataFrame = found.sort_values("texts", ascending=False, kind="stable").head(ROWS)
    return largest


def _limits_used(store: Store, side: Side, recipe: str) -> Facts:
    """The limits of the latest run of a recipe that tells, else the default ones.

    With them the limits by name, each prompt's limits of length among them, and how many items have
    a verdict that is from other limits.
    """
    kept = next(filter(None, checks_in_force(store.folder, side, recipe)), None)
    if kept is None:
        return {"limits": DEFAULT_LIMITS, "known": False, "named": {}, "others": 0}
    made, prompts = kept["limits"], kept["prompts"]
    limits = Limits(**{one.name: made[one.name] for one in fields(Limits) if one.name in made})
    marks = {one["mark"] for one in prompts.values()}
    others = sum(row["judged"] not in marks for row in store.rows("link", recipe).scan("judged"))
    caps = {name: _cap(one) for name, one in prompts.items()}
    named = {**limits.settings, **caps}
    return {"limits": limits, "known": True, "named": named, "others": others}


def _cap(one: Mapping[str, Any]) -> str:
    added, tokens = one.get("max_added_words"), one.get("max_tokens")
    more = f", of which at most {added} new" if added is not None else ""
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


def _repeats(first: pd.DataFrame, items: RootItems, most: int) -> Facts:
    """Accepted texts that were written for several different contents; ``most`` is of samples.

    A content is an item's picture, or its text where it has none. Items that send the very same
    share one generation and count once; so does a picture that is asked about in several requests.
    """
    often = first[first.duplicated("text", keep=False) & (first["rejected"] == "")]
    found = [items.find(item_id) for item_id in often.index]
    pictures = all(item is None or item.image is not None for item in found)
    noun = "pictures" if pictures else "pictures or requests"
    contents = [
        (item.image or item.text or "") if item else item_id
        for item_id, item in zip(often.index, found, strict=True)
    ]
    groups = often.assign(item=often.index, content=contents).groupby("text", sort=False)
    numbers = groups.agg(item=("item", "first"), contents=("content", "nunique"))
    numbers = numbers[numbers["contents"] > 1].sort_values(
        "contents", ascending=False, kind="stable"
    )
    samples = {
        row.item: f"the very same words for {row.contents:,} different {noun}"
        for row in numbers.head(most).itertuples()
    }
    shared = numbers["contents"].tolist()
    return {
        "contents": sum(shared),
        "told": sum(shared) > REPEATED * len(first),
        "texts": len(shared),
        "most": max(shared, default=0),
        "noun": noun,
        "samples": samples,
    }


def _worst(
    facts: pd.DataFrame,
    checks: Checks,
    limits: Mapping[str, float],
    size: int,
    *others: Whys,
) -> Whys:
    """The worst accepted texts, each measure in turn, none twice; ``others`` are measures, too."""
    # The same words need to be shown once, whoever shares them.
    accepted = facts[facts["rejected"] == ""].drop_duplicates("text")
    measures = list(others)
    if len(accepted):
        # Short is what has less than half of the usual words.
        short = accepted["words"][accepted["words"] < quantile(facts["words"], 0.5) / 2]
        short = short.sort_values(kind="stable").head(size)
        measures.append({item: f"short: {number} words" for item, number in short.items()})
    for check, limit in limits.items():
        if limit > 0 and check in checks:
            scores = checks[check].loc[accepted.index]
            near = scores[scores / limit > NEAR].sort_values(ascending=False, kind="stable")
            why = f"{check} {{:.2g}}, refused above {limit:g}"
            measures.append({item: why.format(score) for item, score in near.head(size).items()})
    chosen: dict[str, str] = {}
    for rank in zip_longest(*(measure.items() for measure in measures)):
        for item, why in filter(None, rank):
            chosen.setdefault(item, why)
    return dict(islice(chosen.items(), size))


def _faithful(store: Path, side: Side, recipe: str, facts: pd.DataFrame, size: int) -> Facts | None:
    """What a CLIP model found, as ``python -m augment scores`` left it; None if it did not."""
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
    doubted = pd.DataFrame({n: scores[n] < most for n, most in DOUBTFUL.items() if n in scores})
    accepted = set(facts.index[facts["rejected"] == ""])
    worst: dict[str, str] = {}
    for name in reversed(doubted.columns):  # of the reasons of a text, a word says most
        for item, row in scores[doubted[name]].nsmallest(size, name).iterrows():
            why = SCORES[name][1]
            if name == "clip_word" and row.get("clip_doubted"):
                why = f"CLIP doubts “{row['clip_doubted']}”"
            if item in accepted:
                worst.setdefault(str(item), f"{why} ({row[name]:.2g})")
    return {
        "model": model,
        "scored": len(scores),
        "doubtful": int(doubted.any(axis=1).sum()),
        "plots": plots,
        "worst": worst,
    }


def _by_reason(reasons: pd.Series[str]) -> list[tuple[str, int, Whys]]:
    """Reason, items and a few of them, the most frequent first."""
    groups = reasons.groupby(reasons.map(reason_class), sort=False)
    found = [(str(name), len(group), group.head(EACH_REASON).to_dict()) for name, group in groups]
    return sorted(found, key=lambda reason: -reason[1])


def _asked_for(root: Path, candidates: Collection[str]) -> Mapping[str, str]:
    """Candidate id -> text of a query without a picture that this candidate answers."""
    data = DataRoot(root)
    wanted = pa.array(sorted(set(candidates)), pa.string())
    found: dict[str, str] = {}
    for file in (file for split in reversed(SPLITS) for file in data.query_files(split)):
        queries = open_queries(file.path)
        positives = queries.column("positives")
        dids, rows = pc.list_flatten(positives), pc.list_parent_indices(positives)
        hits = pc.is_in(dids, wanted)
        for row, did in zip(rows.filter(hits).to_pylist(), dids.filter(hits), strict=True):
            query = queries[row].item
            if query.image is None and query.text:
                found.setdefault(did.as_py(), query.text)
    return found
