"""True texts of Flagland, and known ways to spoil them, for :mod:`benchmarks.speed.checks`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from augment.checks import Forbidden, Limits
from augment.prompts import load_prompt
from augment.records import Reply
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.edits import random_edit

CAPTION, QUESTION = load_prompt("rar/corpus"), load_prompt("rar/question")
CHANGE = load_prompt("rar/modification")

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


def leak_a_name(rng: random.Random, text: Text, country: Country) -> Text | None:
    """The answer as an aside, where it is a name; the check has the passage alone."""
    return unknown(leak_inside(rng, text, country)) if _is_name(text) else None


def leak_a_noun(rng: random.Random, text: Text, country: Country) -> Text | None:
    """The answer as an aside, where it is a common noun; the check has the passage alone."""
    return None if _is_name(text) else unknown(leak_inside(rng, text, country))


def _is_name(text: Text) -> bool:
    return not _answer(text)[:1].islower()


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
    Spoiling("answer from the passage, a name", "leak", "questions", leak_a_name),
    Spoiling("answer from the passage, a common noun", "leak", "questions", leak_a_noun),
    Spoiling("either, rule words", "leak", "questions",
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
