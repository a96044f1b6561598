"""Writes a world as a complete M-BEIR root, with the truth of every picture beside it.

Layout: the published file names (``docs/formats.md``) under one data set ``flagland``, id 80, task
codes 0, 1, 2, 3, 4, 6, 7, 8; ``truth/scene_graphs.jsonl`` holds the scene graph of every picture
and ``truth/queries.jsonl`` what each query with a picture should be rewritten to;
``truth/reasoning.txt`` names the queries in which picture and words must be put together, or whose
flag must be recalled.

With ``recall`` there are two more data sets of task 0, ``onehop`` (id 81) and ``twohop`` (id 82),
over the same pictures: they ask for the flag of a country by its name, and by its capital. Neither
words nor pictures show the answer; a model that has read the facts can know it
(:mod:`benchmarks.flagland.recall`).
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from augment.data import (
    InstructionRow,
    write_candidates,
    write_instructions,
    write_qrels,
    write_queries,
)
from augment.files import write_text
from augment.records import TASKS, Item, Qrel, Query, one_picture
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.grammar import WORDS
from benchmarks.flagland.render import draw_flat, draw_photo

DATASET, DATASET_ID = "flagland", "80"
SPLITS = ("train", "val", "test")
WORLD_TASKS = (0, 1, 2, 3, 4, 6, 7, 8)
#: UniIR hashes a qid to ``dataset * 500_000 + n``: eight tasks of at most this many stay below.
QUERIES_PER_TASK = 60_000
#: And a did to ``dataset * 10_000_000 + n``: one block of numbers for each kind of candidate.
_BLOCK = 1_000_000
_KINDS = ("flat", "entry", "description", "geography", "economy", "flag-geography", "flag-economy")
_JPEG_QUALITY = 90
#: Data sets whose flags must be recalled, and their ids.
RECALL = {"onehop": "81", "twohop": "82"}
#: Data sets of task 7 that ask for so many changes at once, and their ids.
EDITS = {"edits2": (2, "83"), "edits3": (3, "84")}


INSTRUCTIONS: dict[int, list[str]] = WORDS["instructions"]


@dataclass(frozen=True)
class WorldConfig:
    """What makes a world; the same values give the same files.

    Attributes:
        countries: how many, 200 to 200,000.
        seed: of everything.
        twin_share: chance that a flag differs from the one before in a single fact.
        width: of the flat pictures in pixels; photo-like ones are a third wider.
        named: share of task 6's questions that name the country whose flag is shown beside them:
            the easy half of one task, under one instruction.
        recall: also ask for flags by the country's name, and by its capital.
        edits: also ask for up to so many changes of a flag at once, 1 to 3.
    """

    countries: int = 1000
    seed: int = 0
    twin_share: float = 0.5
    width: int = 192
    named: float = 0.0
    recall: bool = False
    edits: int = 1

    def __post_init__(self) -> None:
        if not 200 <= self.countries <= 200_000:
            raise ValueError(f"countries is {self.countries}; a world has 200 to 200,000")
        if not 1 <= self.edits <= 3:
            raise ValueError(f"edits is {self.edits}; a request asks for 1 to 3 changes")


def picture_path(index: int, photo: bool = False) -> str:
    """The flat or the photo-like picture of a country's flag, relative to the root."""
    kind = "photo" if photo else "flat"
    return f"mbeir_images/{DATASET}_images/{kind}/{index // 1000:03d}/{index:06d}.jpg"


def did(kind: str, index: int) -> str:
    """The id of a country's candidate of one kind."""
    return f"{DATASET_ID}:{_KINDS.index(kind) * _BLOCK + index + 1}"


def qid(task: int, index: int) -> str:
    """The id of the ``index``-th query of a task."""
    return f"{DATASET_ID}:{WORLD_TASKS.index(task) * QUERIES_PER_TASK + index + 1}"


def country_of(query_id: str) -> int:
    """Which country a query is about; of every data set."""
    return (int(query_id.partition(":")[2]) - 1) % QUERIES_PER_TASK


def _rng(config: WorldConfig, *parts: object) -> random.Random:
    return random.Random("-".join(map(str, ("world", config.seed, *parts))))


def build_countries(config: WorldConfig) -> list[Country]:
    """The countries of a world."""
    return list(islice(atlas.countries(config.seed, config.twin_share), config.countries))


def split_of(config: WorldConfig, country: Country) -> str:
    """Three tenths test, one validates; a family of near-twins is never divided."""
    roll = _rng(config, "split", country.family).random()
    return "test" if roll < 0.3 else "val" if roll < 0.4 else "train"


# -- candidates -------------------------------------------------------------------------------


def _passage(config: WorldConfig, country: Country, half: Callable[[Country], str]) -> str:
    rng = _rng(config, "passage", country.index, half.__name__)
    seen = language.human_description(rng, country.flag)
    return f"The flag of {country.name} shows {seen}. {half(country)}"


def candidate(config: WorldConfig, kind: str, country: Country) -> Item:
    """One candidate of a country.

    Args:
        config: of the world.
        kind: ``flat`` picture, ``entry`` (picture and encyclopaedia text), ``description`` in a
            human wording, ``geography`` / ``economy`` (half an entry) and the same two with a
            description of the flag in front.
        country: whose.
    """
    index = country.index
    if kind == "flat":
        return Item(did(kind, index), None, one_picture(picture_path(index)), "image")
    if kind == "entry":
        return Item(
            did(kind, index), atlas.entry(country), one_picture(picture_path(index)), "image,text"
        )
    if kind == "description":
        text = language.human_description(_rng(config, kind, index), country.flag)
        text = text[0].upper() + text[1:] + "."
    else:
        half = atlas.geography if kind.endswith("geography") else atlas.economy
        text = _passage(config, country, half) if kind.startswith("flag-") else half(country)
    return Item(did(kind, index), text, (), "text")


#: Task code -> the kinds of candidate in its pool.
POOLS: dict[int, tuple[str, ...]] = {
    0: ("flat",),
    1: ("geography", "economy"),
    2: ("entry",),
    3: ("description",),
    4: ("flat",),
    6: ("flag-geography", "flag-economy"),
    7: ("flat",),
    8: ("entry",),
}


# -- queries ----------------------------------------------------------------------------------


def _question(
    config: WorldConfig, task: int, country: Country, reference: str
) -> tuple[str, str, str]:
    rng = _rng(config, "question", task, country.index)
    fact = rng.choice(list(language.QUESTIONS))
    text, frame = language.question(rng, fact, reference)
    return fact, text, frame


def _half_kind(fact: str) -> str:
    return atlas.HALVES[fact].__name__


def _text_query(config: WorldConfig, task: int, country: Country) -> tuple[str, str]:
    """Text and positive of tasks 0, 1 and 2."""
    rng = _rng(config, "text", task, country.index)
    if task == 1:
        fact, text, _ = _question(config, task, country, country.name)
        return text, did(_half_kind(fact), country.index)
    seen = language.human_description(rng, country.flag)
    if task == 0:
        return rng.choice(WORDS["searches"]).format(seen=seen), did("flat", country.index)
    _, text, _ = _question(config, task, country, f"the country whose flag shows {seen}")
    return text, did("entry", country.index)


def _ask(
    config: WorldConfig, task: int, country: Country, before: Country | None
) -> tuple[Query, dict[str, Any] | None]:
    """A query, and what one with a picture should be rewritten to, ready for JSON."""
    index = country.index
    text: str | None = None
    image: str | None = None
    truth: dict[str, Any] | None = None
    if task <= 2:
        text, positive = _text_query(config, task, country)
    elif task in (3, 4):
        image = picture_path(index, photo=task == 4)
        positive = did("description" if task == 3 else "flat", index)
        truth = {"kind": "describe"}
    elif task == 7:
        if before is None or country.edit is None:
            raise ValueError(f"country {index} is no twin of the one before")
        rng = _rng(config, "modification", index)
        text = language.modification_request(rng, before.flag, country.edit)
        image, positive = picture_path(before.index), did("flat", index)
        constraint = language.constraint(before.flag, country.edit)
        truth = {"kind": "modification", "constraint": constraint, "before": before.index}
    else:
        rng = _rng(config, "reference", task, index)
        reference = rng.choice(language.REFERENCES)
        named = task == 6 and _rng(config, "named", index).random() < config.named
        reference = country.name if named else reference
        fact, text, frame = _question(config, task, country, reference)
        image = picture_path(index, photo=True)
        positive = did(f"flag-{_half_kind(fact)}" if task == 6 else "entry", index)
        truth = {"kind": "question", "frame": frame, "answer": country.facts[fact]}
        truth |= {"named": True} if named else {}
    source = json.dumps({"country": country.name})
    item = Item(
        qid(task, index % QUERIES_PER_TASK), text, one_picture(image), TASKS[task][0], source
    )
    if truth is not None:
        truth = {"qid": item.id, "task": task, "country": index, **truth}
    return Query(item, task, (positive,)), truth


def _asked(
    config: WorldConfig, countries: list[Country], task: int
) -> Iterator[tuple[str, Query, dict[str, Any] | None]]:
    """Split, query and truth, for every country that has one in this task."""
    for country in countries[:QUERIES_PER_TASK]:
        before = countries[country.index - 1] if country.edit is not None else None
        if task != 7 or before is not None:
            yield (split_of(config, country), *_ask(config, task, country, before))


def recalled(
    config: WorldConfig, countries: list[Country], dataset: str
) -> Iterator[tuple[str, Query, dict[str, Any]]]:
    """The same of a data set whose flags must be recalled; a capital of two countries asks none."""
    capitals = Counter(country.facts["capital"] for country in countries)
    for country in countries[:QUERIES_PER_TASK]:
        capital = country.facts["capital"]
        if dataset == "twohop" and capitals[capital] > 1:
            continue
        rng = _rng(config, dataset, country.index)
        text = rng.choice(WORDS["recall"][dataset]).format(name=country.name, capital=capital)
        source = json.dumps({"country": country.name})
        item = Item(f"{RECALL[dataset]}:{country.index + 1}", text, (), TASKS[0][0], source)
        truth = {"qid": item.id, "task": 0, "country": country.index, "kind": "recall",
                 "name": country.name}  # fmt: skip
        yield split_of(config, country), Query(item, 0, (did("flat", country.index),)), truth


def edited(
    config: WorldConfig, countries: list[Country], count: int, number: str
) -> Iterator[tuple[str, Query, dict[str, Any]]]:
    """The same of requests for ``count`` changes of different parts, in the data set ``number``."""
    for country in countries[count:QUERIES_PER_TASK]:
        steps = countries[country.index - count : country.index + 1]
        changes = [(one.flag, after.edit) for one, after in pairwise(steps) if after.edit]
        if len({edit.part for _, edit in changes}) < count:
            continue
        rng = _rng(config, "edits", count, country.index)
        asked = [language.modification_request(rng, *change).rstrip("?") for change in changes]
        constraint = " and ".join(language.constraint(*change) for change in changes)
        item = Item(f"{number}:{country.index + 1}", "; besides that, ".join(asked),
                    one_picture(picture_path(steps[0].index)), TASKS[7][0],
                    json.dumps({"country": country.name}))  # fmt: skip
        truth = {"qid": item.id, "task": 7, "country": country.index, "kind": "modification",
                 "constraint": constraint, "before": steps[0].index}  # fmt: skip
        yield split_of(config, country), Query(item, 7, (did("flat", country.index),)), truth


@dataclass(frozen=True)
class _Extra:
    """A further data set over the flat pictures: its name, id, task, instructions and queries."""

    name: str
    number: str
    task: int
    prompts: Sequence[str]
    asked: Iterable[tuple[str, Query, dict[str, Any]]]


def _extras(config: WorldConfig, countries: list[Country]) -> list[_Extra]:
    prompts = WORDS["recall"]["instructions"]
    sets = [_Extra(name, number, 0, prompts, recalled(config, countries, name))
            for name, number in RECALL.items() if config.recall]  # fmt: skip
    return sets + [
        _Extra(name, number, 7, INSTRUCTIONS[7], edited(config, countries, count, number))
        for name, (count, number) in EDITS.items() if config.edits >= count
    ]  # fmt: skip


# -- writing ----------------------------------------------------------------------------------


def draw(config: WorldConfig, country: Country, photo: bool) -> Image.Image:
    """One of a country's two pictures, before it is saved."""
    rng = _rng(config, "photo" if photo else "flat", country.index)
    if photo:
        return draw_photo(country.flag, config.width * 4 // 3, rng)
    return draw_flat(country.flag, config.width, rng)


def _write_pictures(config: WorldConfig, root: Path, country: Country) -> None:
    for photo in (False, True):
        file = root / picture_path(country.index, photo)
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(config, country, photo).save(file, "JPEG", quality=_JPEG_QUALITY)


def _draw_all(config: WorldConfig, root: Path, countries: list[Country], workers: int) -> None:
    work = partial(_write_pictures, config, root)
    # Spawned: a process that is forked beside torch's threads may wait for them for ever.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn) if workers > 1 else ThreadPoolExecutor(1) as pool:
        list(pool.map(work, countries, chunksize=100))


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _scene_graphs(countries: list[Country]) -> Iterator[dict[str, Any]]:
    for country in countries:
        for photo in (False, True):
            yield {
                "image": picture_path(country.index, photo),
                "photo": photo,
                "country": country.index,
                "flag": country.flag.to_dict(),
            }


def _write_pools(
    config: WorldConfig, root: Path, countries: list[Country], wanted: dict[str, set[str]],
    extras: Sequence[_Extra],
) -> None:  # fmt: skip
    local = root / "cand_pool" / "local"
    pools = [(DATASET, task, kinds) for task, kinds in POOLS.items()]
    pools += [(extra.name, extra.task, POOLS[extra.task]) for extra in extras]
    for dataset, task, kinds in pools:
        items = (candidate(config, kind, country) for country in countries for kind in kinds)
        write_candidates(local / f"mbeir_{dataset}_task{task}_cand_pool.jsonl", items)
    for split in SPLITS:
        # As published: the test pool is everything, the others hold what their queries refer to.
        items = (
            candidate(config, kind, country)
            for kind in _KINDS
            for country in countries
            if split == "test" or did(kind, country.index) in wanted[split]
        )
        path = root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl"
        write_candidates(path, items)


def _write_split(root: Path, split: str, asked: Mapping[tuple[str, int], list[Query]]) -> None:
    everything = [query for queries in asked.values() for query in queries]
    if split == "train":
        for dataset in dict.fromkeys(name for name, _ in asked):
            own = [query for (name, _), some in asked.items() if name == dataset for query in some]
            write_queries(root / "query" / split / f"mbeir_{dataset}_{split}.jsonl", own)
        union = root / "query" / "union_train" / "mbeir_union_up_train.jsonl"
        write_queries(union, everything)
    else:
        for (dataset, task), queries in asked.items():
            name = f"mbeir_{dataset}_task{task}_{split}.jsonl"
            write_queries(root / "query" / split / name, queries)
    if split == "val":
        write_queries(root / "query" / "union_val" / "mbeir_union_val.jsonl", everything)
    for (dataset, task), queries in asked.items():
        qrels = [Qrel(q.item.id, p, 1, task) for q in queries for p in q.positives]
        write_qrels(root / "qrels" / split / f"mbeir_{dataset}_task{task}_{split}_qrels.txt", qrels)


def write_world(root: Path, config: WorldConfig, workers: int = 1) -> list[Country]:
    """Write the whole root; returns the countries.

    The result does not depend on the number of ``workers``.

    Raises:
        ValueError: if ``root`` already holds something.
    """
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; name a new folder for the world")
    countries = build_countries(config)
    _draw_all(config, root, countries, workers)
    _write_jsonl(root / "truth" / "scene_graphs.jsonl", _scene_graphs(countries))
    sets: list[tuple[str, int, Iterable[tuple[str, Query, dict[str, Any] | None]]]]
    sets = [(DATASET, task, _asked(config, countries, task)) for task in WORLD_TASKS]
    extras = _extras(config, countries)
    sets += [(extra.name, extra.task, extra.asked) for extra in extras]
    by_split: dict[str, dict[tuple[str, int], list[Query]]] = {
        split: {(dataset, task): [] for dataset, task, _ in sets} for split in SPLITS
    }
    truths: list[dict[str, Any]] = []
    for dataset, task, asked in sets:
        for split, query, truth in asked:
            by_split[split][dataset, task].append(query)
            if truth is not None:
                truths.append({**truth, "split": split})
    _write_jsonl(root / "truth" / "queries.jsonl", truths)
    composed = [one["qid"] for one in truths if one["kind"] != "describe" and "named" not in one]
    write_text(root / "truth" / "reasoning.txt", "\n".join(composed) + "\n")
    wanted = {
        split: {positive for some in queries.values() for q in some for positive in q.positives}
        for split, queries in by_split.items()
    }
    _write_pools(config, root, countries, wanted, extras)
    for split in SPLITS:
        _write_split(root, split, by_split[split])
    rows = [
        InstructionRow(*TASKS[task], DATASET, DATASET_ID, tuple(prompts))
        for task, prompts in INSTRUCTIONS.items()
    ]
    rows += [
        InstructionRow(*TASKS[extra.task], extra.name, extra.number, tuple(extra.prompts))
        for extra in extras
    ]
    write_instructions(root / "instructions" / "query_instructions.tsv", rows)
    return countries
