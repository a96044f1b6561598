"""Precision and recall of the checks, on Flagland, where the truth about every text is known.

``python -m benchmarks.checks`` takes true descriptions and true rewrites, spoils half of them in
known ways, and counts what each check finds and what it refuses without cause. On a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from augment.checks import Forbidden, Limits, Verdict, judge
from augment.faithfulness import Faithful, Faithfulness
from augment.flagland import atlas, language
from augment.flagland.atlas import Country
from augment.flagland.edits import random_edit
from augment.flagland.render import draw_flat
from augment.prompts import load_prompt
from augment.records import Reply

CLIP = Path("retrievers/models/flagland-clip")
CAPTION, QUESTION = load_prompt("rar_corpus"), load_prompt("rar_question")
CHANGE = load_prompt("rar_modification")

#: Words of Flagland's descriptions in other languages; ``-`` where there is none.
LANGUAGES = ("de", "fr", "es", "ru")
WORDS = """
a ein un una -
above - - - сверху
an eine un una -
and und et y и
at an à en у
bands Streifen bandes franjas полосы
below - - - снизу
black schwarz noir negra чёрный
blue blau bleu azul синий
border Rand bordure borde кайма
canton Oberecke canton - крыж
centre Mitte centre centro центр
crescent - - - полумесяц
cross - - - крест
diagonal - - - диагональ
diamond - - - ромб
disc - - - диск
discs - - - диски
field Feld champ campo поле
five fünf cinq cinco пять
flag Flagge drapeau bandera флаг
fly Ende flottant batiente край
four vier quatre cuatro четыре
green grün vert verde зелёный
hoist Mast mât asta древко
horizontal waagerechten horizontales horizontales горизонтальные
in in dans en в
large großer grande grande большая
light - - - светло
maroon dunkelrot bordeaux granate бордовый
middle - - - средняя
of aus de de из
on auf sur sobre на
one ein un una одна
orange orange - - оранжевый
plain einfarbigen uni liso одноцветное
purple lila violet morada фиолетовый
quarters - - - четверти
red rot rouge roja красный
ring - - - кольцо
rings - - - кольца
small kleiner petite pequeña малая
star Stern étoile estrella звезда
stars Sterne étoiles estrellas звёзды
sun - - - солнце
the der le el -
three drei trois tres три
triangle - - - треугольник
two zwei deux dos две
vertical senkrechten verticales verticales вертикальные
white weiß blanc blanca белый
wide - - - широкая
with mit avec con с
yellow gelb jaune amarilla жёлтый
"""  # noqa: RUF001
REFUSALS = (
    "I'm sorry, but I can't describe this picture.",
    "As an AI language model, I cannot see images.",
    "I am unable to help with that request.",
    "Please provide the image you would like me to describe.",
)
WRAPPINGS = (
    "```\n{}\n```", "**{}**", "Sure, here is the description:\n{}", "# Description\n\n{}",
    "In this image, there is {}", '"{}"', "- {}\nLet me know if you need more!",
    "<think>A flag, I think.</think>\n{}",
)  # fmt: skip


class Text(NamedTuple):
    """A reply with everything that it is judged by."""

    reply: Reply
    prompt: str
    original: str | None = None
    forbidden: Forbidden | None = None


class Spoiling(NamedTuple):
    """A known defect: the check that should find it, true texts, and how to spoil one."""

    name: str
    check: str
    texts: str
    spoil: Callable[[random.Random, Text, Country], Text | None]
    limits: Limits = Limits()


def said(text: Text, words: str, **changes: object) -> Text:
    """The same text with other words."""
    return text._replace(reply=replace(text.reply, text=words, **changes))  # type: ignore[arg-type]


def captions(countries: Sequence[Country]) -> Iterator[tuple[Text, Country]]:
    """True descriptions: the canonical one and one in human words, in turn."""
    for country in countries:
        rng = random.Random(f"caption-{country.index}")
        human = f"A flag, {language.human_description(rng, country.flag)}."
        words = language.caption(country.flag) if country.index % 2 else human
        yield Text(Reply(words), CAPTION.name), country


def questions(countries: Sequence[Country]) -> Iterator[tuple[Text, Country]]:
    """True rewrites of questions; the passage with the answer is what they must not say."""
    for country in countries:
        rng = random.Random(f"question-{country.index}")
        fact = rng.choice(list(language.QUESTIONS))
        asked, frame = language.question(rng, fact, rng.choice(language.REFERENCES))
        seen = language.human_description(rng, country.flag)
        half = atlas.HALVES[fact](country)
        passage = f"The flag of {country.name} shows {seen}. {half}"
        if country.index % 2:
            true = language.resolved(frame, country.flag)
        else:  # as RAR allows: a unique entity is named
            true = frame.format(ref=country.name)
        source = Forbidden((passage,), (country.facts[fact],))
        yield Text(Reply(true), QUESTION.name, asked, source), country


def requests(countries: Sequence[Country]) -> Iterator[tuple[Text, Country]]:
    """True rewrites of requests to change a picture, with negations and numbers in them."""
    for country in countries:
        rng = random.Random(f"request-{country.index}")
        edit, _ = random_edit(rng, country.flag)
        asked = language.modification_request(rng, country.flag, edit)
        true = language.constraint(country.flag, edit)
        yield Text(Reply(true), CHANGE.name, asked), country


def _answer(text: Text) -> str:
    return text.forbidden.answers[0] if text.forbidden else ""


def leak_inside(rng: random.Random, text: Text, country: Country) -> Text:
    """The answer as an aside in the question."""
    return said(text, text.reply.text.rstrip("?") + f", {_answer(text)}?")


def leak_behind(rng: random.Random, text: Text, country: Country) -> Text:
    """The answer behind the question."""
    return said(text, f"{text.reply.text} {_answer(text).capitalize()}.")


def leak_instead(rng: random.Random, text: Text, country: Country) -> Text:
    """The answer in place of the question."""
    return said(text, f"{_answer(text).capitalize()} is the answer for {country.name}.")


def unknown(text: Text) -> Text:
    """Without the known answer: the check has the passage alone."""
    return text._replace(forbidden=Forbidden(text.forbidden.texts if text.forbidden else ()))


def drop_negation(rng: random.Random, text: Text, country: Country) -> Text | None:
    """The thing that is not wanted, wanted."""
    words = text.reply.text
    return said(text, f"a {words[3:]}") if words.startswith("no ") else None


def drop_number(rng: random.Random, text: Text, country: Country) -> Text | None:
    """Without the first number above one."""
    for number in ("two", "three", "four", "five"):
        if f"{number} " in text.reply.text:
            return said(text, text.reply.text.replace(f"{number} ", ""))
    return None


def loop(rng: random.Random, text: Text, country: Country) -> Text:
    """The end of the text over and over."""
    words = text.reply.text.split()
    tail = words[-rng.randint(2, min(12, len(words))) :]
    return said(text, " ".join(words + tail * rng.randint(4, 6)))


def cut(rng: random.Random, text: Text, country: Country) -> Text:
    """Cut anywhere, and the engine says so."""
    words = text.reply.text.split()
    return said(text, " ".join(words[: rng.randint(3, len(words) - 1)]), finish="length")


def cut_silently(rng: random.Random, text: Text, country: Country) -> Text:
    """Cut anywhere, and nobody says so."""
    return replace_finish(cut(rng, text, country))


def replace_finish(text: Text) -> Text:
    """As if the model had stopped by itself."""
    return text._replace(reply=replace(text.reply, finish="stop"))


def translate(code: str) -> Callable[[random.Random, Text, Country], Text]:
    """Word by word; words without a translation stay English, as models mix languages."""
    column = 1 + LANGUAGES.index(code)
    rows = (line.split() for line in WORDS.strip().splitlines())
    table = {row[0]: row[column].replace("-", "") or row[0] for row in rows}

    def spoil(rng: random.Random, text: Text, country: Country) -> Text:
        words = language.caption(country.flag).rstrip(".").replace(",", " ,").split()
        return said(text, " ".join(table.get(word.lower(), word) for word in words))

    return spoil


def refuse(rng: random.Random, text: Text, country: Country) -> Text:
    """Declined."""
    return said(text, rng.choice(REFUSALS))


def swell(rng: random.Random, text: Text, country: Country) -> Text:
    """Far too long: the descriptions of other flags behind its own."""
    others = list(islice(atlas.countries(country.index), 12))
    return said(text, " ".join([text.reply.text, *(language.caption(o.flag) for o in others)]))


SPOILINGS = (
    Spoiling("answer known, inside", "leak", "questions", leak_inside),
    Spoiling("answer from the passage, inside", "leak", "questions",
             lambda r, t, c: unknown(leak_inside(r, t, c))),
    Spoiling("the same, rule words", "leak", "questions",
             lambda r, t, c: unknown(leak_inside(r, t, c)), Limits(leak="words")),
    Spoiling("answer behind the question", "answered", "questions",
             lambda r, t, c: unknown(leak_behind(r, t, c))),
    Spoiling("answer instead of the question", "answered", "questions",
             lambda r, t, c: unknown(leak_instead(r, t, c))),
    Spoiling("negation dropped", "lost_negations", "requests", drop_negation),
    Spoiling("number dropped", "lost_numbers", "requests", drop_number),
    Spoiling("end repeated", "repetition", "captions", loop),
    Spoiling("cut at the limit", "truncation", "captions", cut),
    Spoiling("cut, not reported", "truncation", "captions", cut_silently),
    Spoiling("the same, limit 0.3", "truncation", "captions", cut_silently, Limits(truncation=0.3)),
    Spoiling("refusal", "refusal", "captions", refuse),
    Spoiling("too long", "length", "captions", swell),
    *(Spoiling(f"language {code}", "language", "captions", translate(code)) for code in LANGUAGES),
)  # fmt: skip


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
    leak_alone = "passage" in spoiling.name or "rule" in spoiling.name
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
        " benchmarks.checks`). *Recall*: spoilt texts that the check finds. *Precision*: share of"
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
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
