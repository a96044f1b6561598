"""Scores a VLM on Flagland against scene graphs, on countries it was not trained on.

``python -m benchmarks.flagland.score_vlm --model flagland-vlm --countries 300 --out FILE.json``
Descriptions: precision and recall of facts by type, flat and photo-like, at several picture sizes.
Questions and modification requests: right or not, and which part was wrong.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jsonargparse

from augment.engines import load_engine
from augment.files import homes, markdown, say, write_json
from augment.prompts import load_prompt
from augment.records import Item, Reply, Sampling, one_picture
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.edits import random_edit
from benchmarks.flagland.grammar import FACT_TYPES
from benchmarks.flagland.oracle import FactCounts
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


def unseen(count: int, seed: int = WORLD_SEED) -> list[Country]:
    """Countries whose set of facts is not among those of the training flags.

    Args:
        count: how many.
        seed: of the world.
    """
    known = {
        flag.facts()
        for flags, stream, charged, small in TRAINED_ON
        for flag in islice(training_flags(stream, charged, small), flags)
    }
    fresh = (c for c in atlas.countries(seed) if c.flag.facts() not in known)
    return list(islice(fresh, count))


class Examiner:
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
    scorer: Examiner, countries: Sequence[Country], width: int, photo: bool
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
    scorer: Examiner, countries: Sequence[Country], width: int, photo: bool, shown: bool
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
        scorer = Examiner(model, Path(folder), batch_size)
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
    described = result["descriptions"]
    means = ("precision", "recall", "f1")
    pictures = [
        [name, *(f"{table['all'][mean]:.3f}" for mean in means), f"{table['exact']:.3f}"]
        for name, table in described.items()
    ]
    chosen = [described[name] for name in ("flat 192", "photo 256")]
    facts = [
        [kind, *(f"{table[kind][mean]:.3f}" for table in chosen for mean in means),
         chosen[0][kind]["wanted"]]
        for kind in (*FACT_TYPES, "all")
    ]  # fmt: skip
    rewrites = [
        [name, f"{row['right']:.3f}",
         ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "right")]
        for name, row in result["rewrites"].items()
    ]  # fmt: skip
    head = ["picture, width", "precision", "recall", "F1", "all facts right"]
    kinds = ["flat 192: P", "R", "F1", "photo 256: P", "R", "F1", "facts"]
    return "\n\n".join(
        [
            markdown(head, pictures),
            markdown(["fact", *kinds], facts),
            markdown(["rewrite", "right", "detail"], rewrites),
        ]
    )


def main(
    model: str = "flagland-vlm",
    countries: int = 300,
    seed: int = WORLD_SEED,
    batch_size: int = 64,
    out: Path | None = None,
) -> None:
    """Score and print.

    Args:
        model: a packaged one, a folder, or any other engine.
        countries: that are scored.
        seed: of their world.
        batch_size: pictures answered together.
        out: JSON file to write the result to, too.
    """
    result = score(model, unseen(countries, seed=seed), batch_size)
    say(tables(result))
    if out:
        write_json(out, result)


if __name__ == "__main__":
    prog = "python -m benchmarks.flagland.score_vlm"
    jsonargparse.auto_cli(main, args=homes(sys.argv[1:]), as_positional=False, prog=prog)
