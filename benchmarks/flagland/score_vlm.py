"""Scores a VLM on Flagland against scene graphs, on countries it was not trained on.

``python -m benchmarks.flagland.score_vlm --model flagland-vlm --countries 300 --out FILE.json``
Descriptions: precision and recall of facts by type, flat and photo-like, at several picture sizes.
Questions and modification requests: right or not, and which part was wrong.

With ``--real ROOT`` it describes the national flags of that root instead, and compares words with
what people wrote: their texts name colours, shapes and divisions but not all of them, and mention
history. Precision is the share of the VLM's words of a kind that the person also uses, recall the
share of the person's words that the VLM uses.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jsonargparse

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines import load_engine
from augment.files import markdown
from augment.prompts import load_prompt
from augment.records import Item, Reply, Sampling, one_picture
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.edits import random_edit
from benchmarks.flagland.grammar import FACT_TYPES, Fact
from benchmarks.flagland.render import draw_flat, draw_photo
from benchmarks.flagland.train_vlm import training_flags

#: The seed of the scored world, apart from those of training and of the demo.
WORLD_SEED = 424_242
FLAT_WIDTHS = (96, 128, 192, 256, 384, 800)
PHOTO_WIDTHS = (192, 256, 384, 800)
#: Pictures that questions and modifications are asked about: photo-like or not, width.
REWRITTEN = ((False, 96), (False, 192), (False, 800), *((True, width) for width in PHOTO_WIDTHS))
#: The training flags of flagland-vlm: how many, seed, shares of plain flags and of flags without
#: small charges that were left out.
TRAINED_ON = (
    (44_000, 0, 0.0, 0.0),
    (46_000, 1, 0.75, 0.0),
    (44_000, 2, 0.5, 0.7),
    (60_000, 3, 0.7, 0.85),
    (28_000, 4, 0.7, 0.85),
)


@dataclass
class FactCounts:
    """True positives, false positives (hallucinations) and misses (omissions), by fact type."""

    hit: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    exact: int = 0
    total: int = 0

    def add(self, said: frozenset[Fact], true: frozenset[Fact]) -> None:
        """Count one description."""
        self.hit.update(kind for kind, _ in said & true)
        self.wrong.update(kind for kind, _ in said - true)
        self.missed.update(kind for kind, _ in true - said)
        self.exact += said == true
        self.total += 1

    def row(self, kinds: Iterable[str]) -> dict[str, float]:
        """Precision, recall and F1 over some fact types, micro-averaged."""
        kinds = list(kinds)
        hit = sum(self.hit[k] for k in kinds)
        said = hit + sum(self.wrong[k] for k in kinds)
        true = hit + sum(self.missed[k] for k in kinds)
        precision, recall = hit / max(1, said), hit / max(1, true)
        f1 = 2 * hit / max(1, said + true)
        return {"precision": precision, "recall": recall, "f1": f1, "facts": true}

    def table(self) -> dict[str, Any]:
        """All rows, and the share of descriptions in which every fact is right."""
        rows: dict[str, Any] = {kind: self.row([kind]) for kind in FACT_TYPES}
        rows["all"] = self.row(FACT_TYPES)
        rows["exact"] = self.exact / max(1, self.total)
        rows["descriptions"] = self.total
        return rows


def unseen(
    count: int,
    streams: Sequence[tuple[int, int, float, float]] = TRAINED_ON,
    seed: int = WORLD_SEED,
) -> list[Country]:
    """Countries whose set of facts is not among those of the training flags.

    Args:
        count: how many.
        streams: of training flags: how many, seed, and the shares that were left out.
        seed: of the world.
    """
    known = {
        flag.facts()
        for flags, seed, charged, small in streams
        for flag in islice(training_flags(seed, charged, small), flags)
    }
    fresh = (c for c in atlas.countries(seed) if c.flag.facts() not in known)
    return list(islice(fresh, count))


class Scorer:
    """Asks one engine about pictures drawn on the spot."""

    def __init__(self, model: str, folder: Path, batch_size: int) -> None:
        self.folder = folder
        self.engine = load_engine(model, root=folder, batch_size=batch_size)
        self.asked, self.seconds = 0, 0.0

    def ask(self, prompt: str, items: Sequence[Item]) -> list[Reply]:
        """Replies in order."""
        template = load_prompt(prompt)
        sampling = Sampling(template.max_new_tokens)
        start = time.monotonic()
        replies = list(self.engine.generate([template.render(item) for item in items], sampling))
        self.asked, self.seconds = self.asked + len(items), self.seconds + time.monotonic() - start
        return replies

    def item(self, country: Country, width: int, photo: bool, text: str | None = None) -> Item:
        """An item with a picture of the country's flag, saved as JPEG."""
        kind = "photo" if photo else "flat"
        rng = random.Random(f"score-{country.index}-{width}-{photo}")
        image = (draw_photo if photo else draw_flat)(country.flag, width, rng)
        path = f"{country.index}-{width}-{kind}.jpg"
        image.save(self.folder / path, "JPEG", quality=90)
        modality: Any = "image" if text is None else "image,text"
        return Item(f"0:{country.index + 1}", text, one_picture(path), modality)

    def descriptions(
        self, countries: Sequence[Country], width: int, photo: bool, entries: bool = False
    ) -> FactCounts:
        """Score descriptions at one size; with ``entries`` the prompt also shows a text."""
        items = [self.item(c, width, photo, atlas.entry(c) if entries else None) for c in countries]
        counts = FactCounts()
        replies = self.ask("rar/corpus" if entries else "rar/image_query", items)
        for country, reply in zip(countries, replies, strict=True):
            counts.add(language.parse(reply.text), country.flag.facts())
        return counts


_SLOT = re.compile(r"the country whose flag has (.*?)(?=\?| mainly export| sell abroad| governed)")


def judge_question(text: str, frame: str, country: Country) -> dict[str, bool]:
    """What is right about a resolved question.

    ``frame``: the question's own words kept, and nothing else said; ``facts``: the flag described
    exactly; ``silent``: no fact of the entry is in it; ``right``: all of them.
    """
    match = _SLOT.search(text)
    kept = match is not None and text.replace(match[0], "{ref}") == frame
    facts = language.parse(match[1] if match else text) == country.flag.facts()
    silent = not any(value.lower() in text.lower().split() for value in country.facts.values())
    return {"frame": kept, "facts": facts, "silent": silent, "right": kept and facts and silent}


def _shares(rows: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def score_questions(
    scorer: Scorer, countries: Sequence[Country], width: int, photo: bool
) -> dict[str, float]:
    """Shares of resolved questions that are right, and in what."""
    items, frames = [], []
    for country in countries:
        rng = random.Random(f"score-question-{country.index}")
        fact = rng.choice(list(language.QUESTIONS))
        asked, frame = language.question(rng, fact, rng.choice(language.REFERENCES))
        items.append(scorer.item(country, width, photo, asked))
        frames.append(frame)
    judged = zip(scorer.ask("rar/question", items), frames, countries, strict=True)
    return _shares([judge_question(reply.text, frame, c) for reply, frame, c in judged])


def score_modifications(
    scorer: Scorer, countries: Sequence[Country], width: int, photo: bool, shown: bool
) -> dict[str, float]:
    """Share of modification requests rewritten exactly to the features of the wanted picture."""
    items, wanted = [], []
    for country in countries:
        rng = random.Random(f"score-edit-{country.index}")
        edit, twin = random_edit(rng, country.flag)
        request = language.modification_request(rng, country.flag, edit)
        items.append(scorer.item(country, width, photo, request))
        wanted.append((language.constraint(country.flag, edit), twin, country.flag))
    prompt = "rar/modification_shown" if shown else "rar/modification"
    rows = []
    for reply, (words, twin, before) in zip(scorer.ask(prompt, items), wanted, strict=True):
        said = language.parse(reply.text)
        right = said == twin.facts() if shown else reply.text == words
        rows.append({"right": right, "unchanged": shown and said == before.facts()})
    return _shares(rows)


def score(model: str, countries: Sequence[Country], batch_size: int) -> dict[str, Any]:
    """Every table."""
    with tempfile.TemporaryDirectory() as folder:
        scorer = Scorer(model, Path(folder), batch_size)
        descriptions = {
            f"{'photo' if photo else 'flat'} {width}": scorer.descriptions(
                countries, width, photo
            ).table()
            for photo, widths in ((False, FLAT_WIDTHS), (True, PHOTO_WIDTHS))
            for width in widths
        }
        entries = scorer.descriptions(countries, 192, photo=False, entries=True).table()
        rewrites: dict[str, Any] = {}
        for photo, width in REWRITTEN:
            seen = f"{'photo' if photo else 'flat'} {width}"
            rewrites[f"question, {seen}"] = score_questions(scorer, countries, width, photo)
            rewrites[f"modification, picture shown, {seen}"] = score_modifications(
                scorer, countries, width, photo, shown=True
            )
        rewrites["modification, picture withheld"] = score_modifications(
            scorer, countries, 96, photo=False, shown=False
        )
        return {
            "model": scorer.engine.model,
            "revision": scorer.engine.revision,
            "countries": len(countries),
            "descriptions": descriptions,
            "with entry text, flat 192": entries,
            "rewrites": rewrites,
            "requests": scorer.asked,
            "requests per second": scorer.asked / scorer.seconds,
        }


def tables(result: dict[str, Any]) -> str:
    """The tables for the card."""
    means = ("precision", "recall", "f1")
    described = result["descriptions"]
    pictures = [
        [name, *(f"{table['all'][mean]:.3f}" for mean in means), f"{table['exact']:.3f}"]
        for name, table in described.items()
    ]
    chosen = ("flat 192", "photo 256")
    facts = [
        [
            kind,
            *(f"{described[name][kind][mean]:.3f}" for name in chosen for mean in means),
            f"{described[chosen[0]][kind]['facts']:.0f}",
        ]
        for kind in (*FACT_TYPES, "all")
    ]
    rewrites = [
        [
            name,
            f"{row['right']:.3f}",
            ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "right"),
        ]
        for name, row in result["rewrites"].items()
    ]
    kinds = [f"{name}: {mean}" for name in chosen for mean in ("P", "R", "F1")]
    head = ["picture, width", "precision", "recall", "F1", "all facts right"]
    return "\n\n".join(
        [
            markdown(head, pictures),
            markdown(["fact", *kinds, "facts"], facts),
            markdown(["rewrite", "right", "detail"], rewrites),
        ]
    )


# -- real flags ------------------------------------------------------------------------------------

#: Kind of word -> word -> pattern of its wordings. Blue and light blue, red and maroon count as
#: one: people rarely tell them apart in these texts.
WORDS: dict[str, dict[str, str]] = {
    "colour": {
        "red": r"\b(red|maroon|crimson|scarlet)\b",
        "blue": r"\bblue\b",
        "yellow": r"\b(yellow|gold|golden)\b",
        "green": r"\bgreen\b",
        "white": r"\bwhite\b",
        "black": r"\bblack\b",
        "orange": r"\b(orange|saffron)\b",
        "purple": r"\b(purple|violet)\b",
    },
    "shape": {
        "star": r"\bstars?\b",
        "crescent": r"\bcrescents?\b",
        "disc": r"\b(discs?|disks?|circles?|rings?)\b",
        "sun": r"\bsuns?\b",
        "diamond": r"\b(diamonds?|lozenges?|rhombus)\b",
    },
    "division": {
        "horizontal": r"\bhorizontal\b",
        "vertical": r"\bvertical\b",
        "cross": r"\bcross\b",
        "saltire": r"\b(saltire|diagonal cross)\b",
        "triangle": r"\btriangle\b",
        "canton": r"\b(canton|upper hoist|hoist-side corner|upper-left)\b",
        "border": r"\b(border|edged)\b",
    },
}


def words(text: str, kind: str) -> set[str]:
    """The words of one kind that a text uses."""
    lowered = text.lower()
    return {word for word, pattern in WORDS[kind].items() if re.search(pattern, lowered)}


def pictures_and_texts(root: DataRoot) -> list[tuple[Item, str]]:
    """Every flag of task 0 with its human description."""
    texts: dict[str, str] = {}
    for split in ("train", "test"):
        for file in root.query_files(split):
            if file.dataset != "flags":
                continue
            for query in open_queries(file.path):
                if query.task == 0:
                    texts.update(dict.fromkeys(query.positives, query.item.text or ""))
    return [
        (Item(item.id, None, one_picture(item.image), "image"), texts[item.id])
        for item in open_candidates(root.pool_for("flags", 0, "test"))
        if item.id in texts and item.image
    ]


def describe_real(model: str, folder: Path, batch_size: int) -> str:
    """The comparison on national flags, in Markdown.

    Args:
        model: that describes them.
        folder: a root in M-BEIR's layout with a data set ``flags``.
        batch_size: pictures answered together.
    """
    flags = pictures_and_texts(DataRoot(folder))
    scorer = Scorer(model, folder, batch_size)
    replies = scorer.ask("rar/image_query", [item for item, _ in flags])
    described = [
        (item, reply.text, human) for (item, human), reply in zip(flags, replies, strict=True)
    ]
    compared = []
    for kind in WORDS:
        counts = FactCounts()
        for _, text, human in described:
            said, true = (frozenset((kind, w) for w in words(t, kind)) for t in (text, human))
            counts.add(said, true)
        row = counts.row([kind])
        shown = [f"{row[mean]:.3f}" for mean in ("precision", "recall", "f1")]
        compared.append([kind, *shown, int(row["facts"])])
    examples = [
        [Path(item.image or "").stem, text, human if len(human) < 160 else human[:157] + "..."]
        for item, text, human in described[:: max(1, len(flags) // 12)]
    ]
    return "\n\n".join(
        [
            f"{len(flags)} national flags, model {model} {scorer.engine.revision[:12]}.",
            markdown(["words", "precision", "recall", "F1", "words people use"], compared),
            markdown(["flag", "the VLM", "a person"], examples, 3),
        ]
    )


def main(
    model: str = "flagland-vlm",
    countries: int = 300,
    seed: int = WORLD_SEED,
    batch_size: int = 64,
    real: Path | None = None,
    out: Path | None = None,
) -> None:
    """Score and write.

    Args:
        model: a packaged one, a folder, or any other engine.
        countries: that are scored.
        seed: of their world.
        batch_size: pictures answered together.
        real: root with real flags, to be described instead.
        out: also write the result there: JSON, or Markdown of real flags.
    """
    if real is not None:
        if not real.is_dir():
            raise SystemExit(f"{real}: no such folder")
        written = shown = describe_real(model, real, batch_size) + "\n"
    else:
        result = score(model, unseen(countries, seed=seed), batch_size)
        shown, written = tables(result), json.dumps(result, indent=1)
    print(shown)
    if out:
        out.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    prog = "python -m benchmarks.flagland.score_vlm"
    jsonargparse.auto_cli(main, as_positional=False, prog=prog)
