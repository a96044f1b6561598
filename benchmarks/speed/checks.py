"""Precision and recall of the checks, on Flagland, where the truth about every text is known.

True descriptions and true rewrites are taken, half of them spoilt in known ways, and what each
check finds, and what it refuses without cause, is counted. On a CPU.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from augment.checks import Forbidden, Limits, Verdict, check, judge
from augment.checks.judge import RULES
from augment.checks.tags import Chain, parse_chain
from augment.files import read_json, write_json
from augment.prompts import load_prompt
from augment.prompts.prompt import Prompt
from augment.records import Finish, Reply
from benchmarks.flagland import atlas, language
from benchmarks.flagland.atlas import Country
from benchmarks.flagland.edits import random_edit
from benchmarks.speed.harness import RESULTS, Page, Row

CAPTION, QUESTION = load_prompt("rar/corpus"), load_prompt("rar/question")
CHANGE, COMPOSED = load_prompt("rar/modification"), load_prompt("trace/composed")

LANGUAGES = ("de", "fr", "es", "ru")
#: Words of Flagland's descriptions in these languages; ``-`` where there is none.
WORDS = Path(__file__).with_name("words.tsv")
#: Texts written by hand: part -> check -> bad and good ones.
TEXTS = Path(__file__).with_name("texts.yaml")

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
    """A true text with everything that it is judged by, and the country that it is about."""

    words: str
    country: Country
    prompt: Prompt
    original: str | None = None
    forbidden: Forbidden | None = None


class Spoiling(NamedTuple):
    """A known defect.

    Attributes:
        name: of the defect.
        check: that should find it.
        texts: kind of true texts.
        spoil: the words of a spoilt one; None where a text cannot be spoilt.
        limits: of the checks.
        finish: how the model is said to have ended.
        blind: the check has the passage alone, not the answer.
    """

    name: str
    check: str
    texts: str
    spoil: Callable[[random.Random, Text], str | None]
    limits: Limits = Limits()
    finish: Finish = "stop"
    blind: bool = False


def captions(countries: Sequence[Country]) -> Iterator[Text]:
    """True descriptions: the canonical one and one in human words, in turn."""
    for country in countries:
        rng = random.Random(f"caption-{country.index}")
        human = f"A flag, {language.human_description(rng, country.flag)}."
        words = language.caption(country.flag) if country.index % 2 else human
        yield Text(words, country, CAPTION)


def questions(countries: Sequence[Country]) -> Iterator[Text]:
    """True rewrites of questions; the passage with the answer is what they must not say."""
    for country in countries:
        rng = random.Random(f"question-{country.index}")
        fact = rng.choice(list(language.QUESTIONS))
        asked, frame = language.question(rng, fact, rng.choice(language.REFERENCES))
        seen = language.human_description(rng, country.flag)
        passage = f"The flag of {country.name} shows {seen}. {atlas.HALVES[fact](country)}"
        if country.index % 2:
            true = language.resolved(frame, country.flag)
        else:  # as RAR allows: a unique entity is named
            true = frame.format(ref=country.name)
        source = Forbidden((passage,), (country.facts[fact],))
        yield Text(true, country, QUESTION, asked, source)


def requests(countries: Sequence[Country]) -> Iterator[Text]:
    """True rewrites of requests to change a picture, with negations and numbers in them."""
    for country in countries:
        rng = random.Random(f"request-{country.index}")
        edit, _ = random_edit(rng, country.flag)
        asked = language.modification_request(rng, country.flag, edit)
        yield Text(language.constraint(country.flag, edit), country, CHANGE, asked)


def chains(countries: Sequence[Country]) -> Iterator[Text]:
    """True chains in tags (TRACE) for requests to change a picture."""
    for country in countries:
        rng = random.Random(f"chain-{country.index}")
        edit, after = random_edit(rng, country.flag)
        asked = language.modification_request(rng, country.flag, edit)
        thought = (f"The picture shows a flag with {language.describe(country.flag)}. The wanted "
                   f"flag is to have {language.constraint(country.flag, edit)}. All else stays as "
                   "it is.")  # fmt: skip
        words = f"<reasoning>{thought}</reasoning>\n<answer>{language.caption(after)}</answer>"
        yield Text(words, country, COMPOSED, asked)


def _answer(text: Text) -> str:
    return text.forbidden.answers[0] if text.forbidden else ""


def leak(rng: random.Random, text: Text) -> str:
    """The answer as an aside in the question."""
    return f"{text.words.rstrip('?')}, {_answer(text)}?"


def leak_of(names: bool) -> Callable[[random.Random, Text], str | None]:
    """The same where the answer is a name, or where it is a common noun."""
    return lambda r, t: leak(r, t) if _answer(t)[:1].islower() != names else None


def drop_negation(rng: random.Random, text: Text) -> str | None:
    """The thing that is not wanted, wanted."""
    return f"a {text.words[3:]}" if text.words.startswith("no ") else None


def drop_number(rng: random.Random, text: Text) -> str | None:
    """Without the first number above one."""
    said = (n for n in ("two", "three", "four", "five") if f"{n} " in text.words)
    return next((text.words.replace(f"{number} ", "") for number in said), None)


def loop(rng: random.Random, text: Text) -> str:
    """The end of the text over and over."""
    words = text.words.split()
    tail = words[-rng.randint(2, min(12, len(words))) :]
    return " ".join(words + tail * rng.randint(4, 6))


def retold(
    change: Callable[[random.Random, Text, Chain], tuple[str, str]],
) -> Callable[[random.Random, Text], str]:
    """A chain with another reasoning or another answer in the same tags."""

    def spoil(rng: random.Random, text: Text) -> str:
        thought, answer = change(rng, text, parse_chain(text.words))
        return f"<reasoning>{thought}</reasoning>\n<answer>{answer}</answer>"

    return spoil


def swapped(rng: random.Random, text: Text) -> str:
    """The answer first."""
    thought, answer = text.words.split("\n")
    return f"{answer}\n{thought}"


def cut(rng: random.Random, text: Text) -> str:
    """Cut anywhere."""
    words = text.words.split()
    return " ".join(words[: rng.randint(3, len(words) - 1)])


def translate(code: str) -> Callable[[random.Random, Text], str]:
    """Word by word; words without a translation stay English, as models mix languages."""
    with WORDS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    table = {row["word"]: row[code].replace("-", "") or row["word"] for row in rows}

    def spoil(rng: random.Random, text: Text) -> str:
        words = language.caption(text.country.flag).rstrip(".").replace(",", " ,").split()
        return " ".join(table.get(word.lower(), word) for word in words)

    return spoil


def swell(rng: random.Random, text: Text) -> str:
    """Far too long: the descriptions of other flags behind its own."""
    others = islice(atlas.countries(text.country.index), 12)
    return " ".join([text.words, *(language.caption(other.flag) for other in others)])


SPOILINGS = (
    Spoiling("answer known, inside", "leak", "questions", leak),
    Spoiling("answer from the passage, a name", "leak", "questions", leak_of(True), blind=True),
    Spoiling("answer from the passage, a common noun", "leak", "questions", leak_of(False),
             blind=True),
    Spoiling("either, rule words", "leak", "questions", leak, Limits(leak="words"), blind=True),
    Spoiling("answer behind the question", "answered", "questions",
             lambda r, t: f"{t.words} {_answer(t).capitalize()}."),
    Spoiling("answer instead of the question", "answered", "questions",
             lambda r, t: f"{_answer(t).capitalize()} is the answer for {t.country.name}."),
    Spoiling("negation dropped", "lost_negations", "requests", drop_negation),
    Spoiling("number dropped", "lost_numbers", "requests", drop_number),
    Spoiling("end repeated", "repetition", "captions", loop),
    Spoiling("cut at the limit", "truncation", "captions", cut, finish="length"),
    Spoiling("cut, not reported", "truncation", "captions", cut),
    Spoiling("the same, limit 0.3", "truncation", "captions", cut, Limits(truncation=0.3)),
    Spoiling("refusal", "refusal", "captions", lambda r, t: r.choice(REFUSALS)),
    Spoiling("too long", "length", "captions", swell),
    *(Spoiling(f"language {code}", "language", "captions", translate(code)) for code in LANGUAGES),
    Spoiling("chain: a tag left open", "tags", "chains",
             lambda r, t: t.words.removesuffix("</answer>")),
    Spoiling("chain: the answer first", "tags", "chains", swapped),
    Spoiling("chain: words outside the tags", "tags", "chains", lambda r, t: f"Sure.\n{t.words}"),
    Spoiling("chain: hardly a thought", "reasoning_tokens", "chains",
             retold(lambda r, t, c: ("A flag is shown.", c.answer))),
    Spoiling("chain: thoughts about other flags, too", "reasoning_tokens", "chains",
             retold(lambda r, t, c: (swell(r, t._replace(words=c.reasoning)), c.answer))),
    Spoiling("chain: one word for an answer", "answer_tokens", "chains",
             retold(lambda r, t, c: (c.reasoning, "Flag"))),
    Spoiling("chain: other flags in the answer, too", "answer_tokens", "chains",
             retold(lambda r, t, c: (c.reasoning, swell(r, t._replace(words=c.answer))))),
    Spoiling("chain: an answer about something else", "unrelated", "chains",
             retold(lambda r, t, c: (c.reasoning, "Two dogs run along a beach at dawn."))),
    Spoiling("chain: the request for an answer", "repeated_request", "chains",
             retold(lambda r, t, c: (c.reasoning, t.original or ""))),
    Spoiling("chain: the source for an answer", "unchanged", "chains",
             retold(lambda r, t, c: (c.reasoning, language.caption(t.country.flag)))),
    Spoiling("chain: the end of a thought repeated", "repetition", "chains",
             retold(lambda r, t, c: (loop(r, t._replace(words=c.reasoning)), c.answer))),
    Spoiling("chain: a refusal for an answer", "refusal", "chains",
             retold(lambda r, t, c: (c.reasoning, r.choice(REFUSALS)))),
)  # fmt: skip


#: Checks whose score is a number of tokens, which is bad on both sides.
_COUNTED = ("reasoning_tokens", "answer_tokens")

# -- judging ------------------------------------------------------------------------------------


def verdict(text: Text, words: str, how: Spoiling | None = None, spoilt: bool = False) -> Verdict:
    """What the checks say of words in the place of a text's, as enrichment asks them."""
    forbidden, limits = text.forbidden, how.limits if how else Limits()
    if how and how.blind and forbidden:
        forbidden = Forbidden(forbidden.texts)
    reply = Reply(words, finish=how.finish if how and spoilt else "stop")
    return judge(reply, text.prompt, text.original, forbidden, limits)


def exceeded(check: str, found: Verdict, limits: Limits) -> bool:
    """Whether one check alone refuses."""
    if check in (*_COUNTED, "unchanged"):
        return found.rejected.partition(":")[0] == check
    score = found.scores.get(check, 0.0)
    most = {"repetition": limits.repetition, "truncation": limits.truncation,
            "language": limits.foreign, "length": limits.slack, "refusal": 0.5}  # fmt: skip
    return score > most.get(check, 0.0)


def judged(how: Spoiling, texts: Sequence[Text], seed: int) -> list[Row]:
    """Spoil every text that can be spoilt, judge both it and the true one; no row if none can."""
    rng = random.Random(f"{seed}-{how.name}")
    found = [
        (verdict(text, words, how, spoilt=True), verdict(text, text.words, how))
        for text in texts
        if (words := how.spoil(rng, text)) is not None
    ]
    if not found:
        return []
    bad, good = (
        [exceeded(how.check, one, how.limits) for one in side] for side in zip(*found, strict=True)
    )
    refused, true_refused = (
        sum(bool(one.rejected) for one in side) for side in zip(*found, strict=True)
    )
    return [
        {
            "defect": how.name,
            "check": f"`{how.check}`",
            "texts": len(found),
            "recall": f"{sum(bad) / len(found):.1%}",
            "precision": f"{sum(bad) / max(1, sum(bad) + sum(good)):.1%}",
            "spoilt refused": f"{refused / len(found):.1%}",
            "true refused": f"{true_refused / len(found):.1%}",
        }
    ]


def cleaning(texts: Sequence[Text], seed: int) -> int:
    """How many wrapped texts come out as they went in."""
    rng = random.Random(f"{seed}-cleaning")
    return sum(
        verdict(text, rng.choice(WRAPPINGS).format(text.words)).text.lower() == text.words.lower()
        for text in texts
    )


_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def spelled(line: str) -> list[str]:
    """Five draws of a line with ``{a|b}`` in it, each once; of any other the line alone."""
    rng = random.Random(line)
    drawn = (_CHOICE.sub(lambda some: rng.choice(some[1].split("|")), line) for _ in range(5))
    return list(dict.fromkeys(drawn))


def count_texts() -> dict[str, dict[str, dict[str, int]]]:
    """Part of :data:`TEXTS` -> check -> texts it should and should not refuse, and refuses."""
    counted: dict[str, dict[str, dict[str, int]]] = {}
    for part, checks in yaml.safe_load(TEXTS.read_text(encoding="utf-8")).items():
        for name, texts in checks.items():
            every = {kind: [one for line in texts[kind] for one in spelled(line)] for kind in texts}
            refused = {kind: sum(bool(check(one)) for one in every[kind]) for kind in every}
            row = {"bad": len(every["bad"]), "found": refused["bad"],
                   "good": len(every["good"]), "wrong": refused["good"]}  # fmt: skip
            counted.setdefault(part, {})[name] = row
    return counted


def measure_texts() -> Page:
    """Judge the texts written by hand; counts of earlier rules stay beside those of these."""
    path = RESULTS / "check_texts.json"
    kept = {**(read_json(path) if path.is_file() else {}), f"rules {RULES}": count_texts()}
    write_json(path, kept)
    rows: list[Row] = []
    for part, checks in count_texts().items():
        for name, own in checks.items():
            row: dict[str, object] = {
                "texts": part,
                "check": name,
                "bad": own["bad"],
                "good": own["good"],
            }
            for rules, counted in kept.items():
                if part not in counted:  # these texts came after those rules
                    row[f"recall, {rules}"] = row[f"precision, {rules}"] = "-"
                    continue
                found, wrong = (counted[part][name][key] for key in ("found", "wrong"))
                row[f"recall, {rules}"] = f"{found / own['bad']:.1%}"
                row[f"precision, {rules}"] = f"{found / max(found + wrong, 1):.1%}"
            rows.append(row)
    return Page(
        "Texts written by hand",
        "Texts as models write them in several styles, and texts that look alike and are fine "
        "(`benchmarks/speed/texts.yaml`). *Recall*: bad texts that are refused, by any check. "
        "*Precision*: share of bad ones among those it refuses. The rules were written in sight of "
        "the texts called seen; those called unseen came after them and changed nothing. Those "
        "called later came after rules 4 and before rules 5; the same hand wrote both, and had "
        "printed them to count rules 4, so that they are half seen; those called last came when "
        "rules 5 were done, in search of words that they do not know.",
        {"": rows},
    )


def measure(countries: int = 2000, seed: int = 31_337) -> Page:
    """Judge true and spoilt texts.

    Args:
        countries: whose texts are judged.
        seed: of the world.
    """
    world = list(islice(atlas.countries(seed), countries))
    texts = {make.__name__: list(make(world)) for make in (captions, questions, requests, chains)}
    rows = [row for how in SPOILINGS for row in judged(how, texts[how.texts], seed)]
    right = cleaning(texts["captions"], seed)
    return Page(
        "Precision and recall of the checks",
        "Flagland: true descriptions and rewrites, each also spoilt in a known way. *Recall*: "
        "spoilt texts that the check finds. *Precision*: share of spoilt ones among those it "
        "finds, with as many true ones. *Refused*: by any check. The rules were mended while "
        f"looking at another world than this one. Cleaning: {right:,} of {countries:,} texts "
        "wrapped in fences, emphasis, headings, chatter, quotes or thoughts come out as they went "
        "in. Which texts are seen, unseen, later and last: [check_texts.md](check_texts.md).",
        {"": rows, "Texts written by hand, before and after": measure_texts().tables[""]},
    )
