"""Precision and recall of the checks, on Flagland, where the truth about every text is known.

``python -m benchmarks.speed.checks`` takes true descriptions and true rewrites, spoils half of them in
known ways (:mod:`benchmarks.speed.spoiling`), and counts what each check finds and what it refuses
without cause. On a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from augment.checks import Limits, Verdict, judge
from augment.checks.faithful import Faithful, Faithfulness
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.edits import random_edit
from benchmarks.flagland.render import draw_flat
from benchmarks.speed.spoiling import (
    CAPTION,
    CHANGE,
    QUESTION,
    SPOILINGS,
    WRAPPINGS,
    Spoiling,
    Text,
    captions,
    questions,
    requests,
    said,
    unknown,
)

CLIP = Path("retrievers/models/weights/flagland-clip")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    check: str
    spoilt: int
    found: int
    refused: int
    true: int
    false_alarms: int
    true_refused: int


def verdict(text: Text, limits: Limits) -> Verdict:
    """What the checks say, as enrichment asks them."""
    prompt = {p.name: p for p in (CAPTION, QUESTION, CHANGE)}[text.prompt]
    return judge(text.reply, prompt, text.original, text.forbidden, limits)


def exceeded(check: str, found: Verdict, limits: Limits) -> bool:
    """Whether one check alone refuses."""
    score = found.scores.get(check, 0.0)
    most = {"repetition": limits.repetition, "truncation": limits.truncation,
            "language": limits.foreign, "length": limits.slack, "refusal": 0.5}  # fmt: skip
    return score > most.get(check, 0.0)


def measure(spoiling: Spoiling, pairs: Sequence[tuple[Text, Country]], seed: int) -> Row:
    """Spoil every text that can be spoilt, and judge both it and the true one."""
    rng = random.Random(f"{seed}-{spoiling.name}")
    counts = [0] * 6
    leak_alone = "passage" in spoiling.name or "rule words" in spoiling.name
    for text, country in pairs:
        spoilt = spoiling.spoil(rng, text, country)
        if spoilt is None:
            continue
        true = unknown(text) if leak_alone else text
        bad, good = (verdict(t, spoiling.limits) for t in (spoilt, true))
        alarms = (exceeded(spoiling.check, v, spoiling.limits) for v in (bad, good))
        for place, one in enumerate((True, *alarms, bool(bad.rejected), bool(good.rejected))):
            counts[place] += one
    total, found, false, refused, true_refused, _ = counts
    return Row(spoiling.name, spoiling.check, total, found, refused, total, false, true_refused)


def cleaning(pairs: Sequence[tuple[Text, Country]], seed: int) -> tuple[int, int]:
    """How many wrapped texts come out as they went in."""
    rng = random.Random(f"{seed}-cleaning")
    right = 0
    for text, _ in pairs:
        wrapped = said(text, rng.choice(WRAPPINGS).format(text.reply.text))
        right += verdict(wrapped, Limits()).text.lower() == text.reply.text.lower()
    return right, len(pairs)


class Contrast(NamedTuple):
    """Faithfulness of true and of spoilt texts of the same pictures."""

    name: str
    true: Sequence[float]
    spoilt: Sequence[float]

    @property
    def auc(self) -> float:
        """Chance that a true text scores above a spoilt one; ties count half."""
        pairs = [(a > b) + (a == b) / 2 for a in self.true for b in self.spoilt]
        return sum(pairs) / len(pairs)

    @property
    def paired(self) -> float:
        """Share of pictures whose true text scores above its own spoilt one."""
        pairs = zip(self.true, self.spoilt, strict=True)
        return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(self.true)

    def at_recall(self, recall: float) -> float:
        """Precision at the threshold that finds this share of the spoilt ones."""
        threshold = sorted(self.spoilt)[max(0, int(recall * len(self.spoilt)) - 1)]
        found = sum(score <= threshold for score in self.spoilt)
        false = sum(score <= threshold for score in self.true)
        return found / (found + false)


def faithfulness(model: Path, countries: Sequence[Country], seed: int) -> list[Contrast]:
    """Scores of true texts against texts of other flags, and against one wrong fact."""
    judged = Faithfulness(str(model))
    rng = random.Random(f"{seed}-facts")
    pictures = [draw_flat(c.flag, 192, random.Random(c.index)) for c in countries]
    true = [_sentence(rng, c) for c in countries]
    other = true[1:] + true[:1]
    wrong = [_sentence(rng, replace(c, flag=random_edit(rng, c.flag)[1])) for c in countries]
    ours, theirs, twins = (judged.score(pictures, texts) for texts in (true, other, wrong))
    fields: tuple[tuple[str, Callable[[Faithful], float]], ...] = (
        ("cosine", lambda f: f.cosine), ("rank", lambda f: f.rank), ("word", lambda f: f.word)
    )  # fmt: skip
    return [
        Contrast(f"{name}, {what}", [get(f) for f in ours], [get(f) for f in spoilt])
        for what, spoilt in (("text of another flag", theirs), ("one wrong fact", twins))
        for name, get in fields
    ]


def _sentence(rng: random.Random, country: Country) -> str:
    return f"A flag with {language.human_description(rng, country.flag)}."


def table(rows: Sequence[Row], cleaned: tuple[int, int], contrasts: Sequence[Contrast]) -> str:
    """The results as Markdown."""
    lines = [
        "# Precision and recall of the checks",
        "",
        "Flagland: true descriptions and rewrites, each also spoilt in a known way (`python -m"
        " benchmarks.speed.checks`). *Recall*: spoilt texts that the check finds. *Precision*: share of"
        " spoilt ones among those it finds, with as many true ones. *Refused*: by any check. The"
        " rules were mended while looking at another world than this one.",
        "",
        "| defect | check | texts | recall | precision | spoilt refused | true refused |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        recall = row.found / row.spoilt
        precision = row.found / max(1, row.found + row.false_alarms)
        lines.append(
            f"| {row.name} | `{row.check}` | {row.spoilt:,} | {recall:.1%} | {precision:.1%} |"
            f" {row.refused / row.spoilt:.1%} | {row.true_refused / row.true:.1%} |"
        )
    right, total = cleaned
    lines += [
        "",
        f"Cleaning: {right:,} of {total:,} texts wrapped in fences, emphasis, headings, chatter,"
        " quotes or thoughts come out as they went in.",
    ]
    if contrasts:
        lines += [
            "",
            f"## Faithfulness by flagland-clip, {len(contrasts[0].true):,} pictures",
            "",
            "*AUC*: chance that a true text scores above a spoilt one of any picture; *paired*: of"
            " the same picture.",
            "",
            "| score, against | AUC | paired | precision at 50 % recall | at 80 % |",
            "|---|--:|--:|--:|--:|",
        ]
        lines += [
            f"| {c.name} | {c.auc:.3f} | {c.paired:.3f} | {c.at_recall(0.5):.1%} |"
            f" {c.at_recall(0.8):.1%} |"
            for c in contrasts
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.checks", description=__doc__)
    parser.add_argument("--countries", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--seed", type=int, default=31_337)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checks.md"))
    args = parser.parse_args()
    countries = list(islice(atlas.countries(args.seed), args.countries))
    made = {"captions": captions, "questions": questions, "requests": requests}
    texts = {name: list(make(countries)) for name, make in made.items()}
    rows = [measure(spoiling, texts[spoiling.texts], args.seed) for spoiling in SPOILINGS]
    some = countries[: args.pictures]
    contrasts = faithfulness(args.clip, some, args.seed) if some else []
    result = table(
        [row for row in rows if row.spoilt], cleaning(texts["captions"], args.seed), contrasts
    )
    args.out.write_text(result, encoding="utf-8")
    print(result)
    missed = {row.name: row.spoilt - row.found for row in rows}
    print(json.dumps({"missed": missed}))


if __name__ == "__main__":
    main()
