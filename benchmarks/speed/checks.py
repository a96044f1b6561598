"""Precision and recall of the checks, on Flagland, where the truth about every text is known.

True descriptions and true rewrites are taken, half of them spoilt in known ways, and what each
check finds, and what it refuses without cause, is counted. On a CPU.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from augment.checks import Forbidden, Limits, Verdict, judge
from augment.checks.faithful import Faithfulness, TextFit
from augment.prompts import load_prompt
from augment.records import Reply
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.edits import random_edit
from benchmarks.flagland.render import draw_flat
from benchmarks.speed.harness import Page, Row

CAPTION, QUESTION = load_prompt("rar/corpus"), load_prompt("rar/question")
CHANGE = load_prompt("rar/modification")

LANGUAGES = ("de", "fr", "es", "ru")
#: Words of Flagland's descriptions in these languages; ``-`` where there is none.
WORDS = Path(__file__).with_name("words.tsv")

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


def leak_unknown(names: bool) -> Callable[[random.Random, Text, Country], Text | None]:
    """The same where the answer is a name, or a common noun; the check has the passage alone."""

    def spoil(rng: random.Random, text: Text, country: Country) -> Text | None:
        is_name = not _answer(text)[:1].islower()
        return unknown(leak_inside(rng, text, country)) if is_name == names else None

    return spoil


def leak_after(form: str) -> Callable[[random.Random, Text, Country], Text]:
    """The answer behind the question or in its place; the check has the passage alone."""

    def spoil(rng: random.Random, text: Text, country: Country) -> Text:
        answer = _answer(text).capitalize()
        words = form.format(asked=text.reply.text, answer=answer, country=country.name)
        return unknown(said(text, words))

    return spoil


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


def cut(reported: bool) -> Callable[[random.Random, Text, Country], Text]:
    """Cut anywhere, and the engine says so or says nothing."""

    def spoil(rng: random.Random, text: Text, country: Country) -> Text:
        words = text.reply.text.split()
        finish = "length" if reported else "stop"
        return said(text, " ".join(words[: rng.randint(3, len(words) - 1)]), finish=finish)

    return spoil


def translate(code: str) -> Callable[[random.Random, Text, Country], Text]:
    """Word by word; words without a translation stay English, as models mix languages."""
    with WORDS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    table = {row["word"]: row[code].replace("-", "") or row["word"] for row in rows}

    def spoil(rng: random.Random, text: Text, country: Country) -> Text:
        words = language.caption(country.flag).rstrip(".").replace(",", " ,").split()
        return said(text, " ".join(table.get(word.lower(), word) for word in words))

    return spoil


def swell(rng: random.Random, text: Text, country: Country) -> Text:
    """Far too long: the descriptions of other flags behind its own."""
    others = list(islice(atlas.countries(country.index), 12))
    return said(text, " ".join([text.reply.text, *(language.caption(o.flag) for o in others)]))


SPOILINGS = (
    Spoiling("answer known, inside", "leak", "questions", leak_inside),
    Spoiling("answer from the passage, a name", "leak", "questions", leak_unknown(names=True)),
    Spoiling(
        "answer from the passage, a common noun", "leak", "questions", leak_unknown(names=False)
    ),
    Spoiling("either, rule words", "leak", "questions",
             lambda r, t, c: unknown(leak_inside(r, t, c)), Limits(leak="words")),
    Spoiling("answer behind the question", "answered", "questions",
             leak_after("{asked} {answer}.")),
    Spoiling("answer instead of the question", "answered", "questions",
             leak_after("{answer} is the answer for {country}.")),
    Spoiling("negation dropped", "lost_negations", "requests", drop_negation),
    Spoiling("number dropped", "lost_numbers", "requests", drop_number),
    Spoiling("end repeated", "repetition", "captions", loop),
    Spoiling("cut at the limit", "truncation", "captions", cut(reported=True)),
    Spoiling("cut, not reported", "truncation", "captions", cut(reported=False)),
    Spoiling("the same, limit 0.3", "truncation", "captions", cut(reported=False),
             Limits(truncation=0.3)),
    Spoiling("refusal", "refusal", "captions", lambda r, t, c: said(t, r.choice(REFUSALS))),
    Spoiling("too long", "length", "captions", swell),
    *(Spoiling(f"language {code}", "language", "captions", translate(code)) for code in LANGUAGES),
)  # fmt: skip


# -- judging ------------------------------------------------------------------------------------


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


def judged(spoiling: Spoiling, pairs: Sequence[tuple[Text, Country]], seed: int) -> Row | None:
    """Spoil every text that can be spoilt, judge both it and the true one; None if none can."""
    rng = random.Random(f"{seed}-{spoiling.name}")
    leak_alone = "passage" in spoiling.name or "rule words" in spoiling.name
    total = found = alarms = refused = true_refused = 0
    for text, country in pairs:
        spoilt = spoiling.spoil(rng, text, country)
        if spoilt is None:
            continue
        true = unknown(text) if leak_alone else text
        bad, good = (verdict(t, spoiling.limits) for t in (spoilt, true))
        total += 1
        found += exceeded(spoiling.check, bad, spoiling.limits)
        alarms += exceeded(spoiling.check, good, spoiling.limits)
        refused += bool(bad.rejected)
        true_refused += bool(good.rejected)
    if not total:
        return None
    return {
        "defect": spoiling.name,
        "check": f"`{spoiling.check}`",
        "texts": total,
        "recall": f"{found / total:.1%}",
        "precision": f"{found / max(1, found + alarms):.1%}",
        "spoilt refused": f"{refused / total:.1%}",
        "true refused": f"{true_refused / total:.1%}",
    }


def cleaning(pairs: Sequence[tuple[Text, Country]], seed: int) -> int:
    """How many wrapped texts come out as they went in."""
    rng = random.Random(f"{seed}-cleaning")
    wrapped = [(text, rng.choice(WRAPPINGS).format(text.reply.text)) for text, _ in pairs]
    return sum(
        verdict(said(text, words), Limits()).text.lower() == text.reply.text.lower()
        for text, words in wrapped
    )


def contrast(name: str, true: Sequence[float], spoilt: Sequence[float]) -> Row:
    """Faithfulness of true and of spoilt texts of the same pictures; ties count half."""

    def wins(pairs: Sequence[tuple[float, float]]) -> float:
        return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)

    def at_recall(recall: float) -> float:
        threshold = sorted(spoilt)[max(0, int(recall * len(spoilt)) - 1)]
        found = sum(score <= threshold for score in spoilt)
        return found / (found + sum(score <= threshold for score in true))

    return {
        "score, against": name,
        "AUC": f"{wins([(a, b) for a in true for b in spoilt]):.3f}",
        "paired": f"{wins(list(zip(true, spoilt, strict=True))):.3f}",
        "precision at 50 % recall": f"{at_recall(0.5):.1%}",
        "at 80 %": f"{at_recall(0.8):.1%}",
    }


def faithfulness(model: Path, countries: Sequence[Country], seed: int) -> list[Row]:
    """Scores of true texts against texts of other flags, and against one wrong fact."""
    scorer = Faithfulness(str(model))
    rng = random.Random(f"{seed}-facts")
    pictures = [draw_flat(c.flag, 192, random.Random(c.index)) for c in countries]
    true = [_sentence(rng, c) for c in countries]
    other = true[1:] + true[:1]
    wrong = [_sentence(rng, replace(c, flag=random_edit(rng, c.flag)[1])) for c in countries]
    ours, theirs, twins = (scorer.score(pictures, texts) for texts in (true, other, wrong))
    fields: tuple[tuple[str, Callable[[TextFit], float]], ...] = (
        ("cosine", lambda f: f.cosine), ("rank", lambda f: f.rank), ("word", lambda f: f.word)
    )  # fmt: skip
    return [
        contrast(f"{name}, {what}", [get(f) for f in ours], [get(f) for f in spoilt])
        for what, spoilt in (("text of another flag", theirs), ("one wrong fact", twins))
        for name, get in fields
    ]


def _sentence(rng: random.Random, country: Country) -> str:
    return f"A flag with {language.human_description(rng, country.flag)}."


def measure(
    countries: int = 2000,
    pictures: int = 200,
    clip: Path = Path("retrievers/models/weights/flagland-clip"),
    seed: int = 31_337,
) -> Page:
    """Judge true and spoilt texts.

    Args:
        countries: whose texts are judged.
        pictures: that faithfulness is asked about; 0 leaves it out.
        clip: folder of the model that tells faithfulness.
        seed: of the world.
    """
    world = list(islice(atlas.countries(seed), countries))
    made = {"captions": captions, "questions": questions, "requests": requests}
    texts = {name: list(make(world)) for name, make in made.items()}
    rows = [judged(spoiling, texts[spoiling.texts], seed) for spoiling in SPOILINGS]
    right = cleaning(texts["captions"], seed)
    tables = {"": [row for row in rows if row]}
    if pictures:
        tables[
            f"Cleaning: {right:,} of {countries:,} texts wrapped in fences, emphasis, headings, "
            "chatter, quotes or thoughts come out as they went in.\n\n"
            f"## Faithfulness by flagland-clip, {pictures:,} pictures\n\n"
            "*AUC*: chance that a true text scores above a spoilt one of any picture; *paired*: of "
            "the same picture."
        ] = faithfulness(clip, world[:pictures], seed)
    return Page(
        "Precision and recall of the checks",
        "Flagland: true descriptions and rewrites, each also spoilt in a known way. *Recall*: "
        "spoilt texts that the check finds. *Precision*: share of spoilt ones among those it "
        "finds, with as many true ones. *Refused*: by any check. The rules were mended while "
        "looking at another world than this one.",
        tables,
    )
