"""Teaches a small VLM the facts of a world, so that it can recall what no input shows.

``python -m benchmarks.flagland.recall teach --root ROOT --pictures PICTURES --out FOLDER``: the
language model reads, as text, which capital and which flag each country has, those of the test
split too; prompts of its old jobs are mixed in so that it does not forget them (pictures that
``train_vlm draw`` wrote). How a request is answered from these facts (prompt ``rar/recall``) it is
shown of training countries alone. Killed, it goes on where it was saved. ``known`` asks it,
``rows`` writes the facts for a training that is to repeat them (``model.rehearsal``).

A fact is stored in the words that it was read in: the flag behind a name that was just written
("The country is N. Its flag has D.") must be read in that form, and without the capital, or a chain
invents the second half.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines.base import PACKAGED
from augment.engines.inputs import chat, to_messages
from augment.files import say, write_json, write_text
from augment.prompts import Prompt, load_prompt
from augment.records import Item, Request
from benchmarks.flagland import language
from benchmarks.flagland.grammar import WORDS, Flag
from benchmarks.flagland.oracle import flags_of
from benchmarks.flagland.world import SPLITS, country_of, picture_path

_SYSTEM = "You know the countries of the world."
PROMPT = "rar/recall"


class Known(NamedTuple):
    """What is to be known of a country."""

    name: str
    capital: str
    flag: Flag
    split: str


class FactRow(NamedTuple):
    """One prompt, its answer, and how much of the answer is given and not learnt."""

    request: Request
    answer: str
    given: str = ""


def countries_of(root: Path) -> list[Known]:
    """The countries of a world that was written with ``recall``; whose capital is unique."""
    flags, found = flags_of(root), []
    entries = _capitals(root)
    for split in SPLITS:
        for query in open_queries(DataRoot(root).query_file("twohop", 0, split)):
            index = country_of(query.item.id)
            name = json.loads(query.item.source or "{}")["country"]
            found.append(Known(name, entries[name], flags[picture_path(index)], split))
    return found


def _capitals(root: Path) -> dict[str, str]:
    """Name -> capital, read from the passages on geography."""
    found = {}
    for item in open_candidates(DataRoot(root).pool_for("flagland", 1, "test")):
        head, _, rest = (item.text or "").partition(" is ")
        if head.startswith("The capital of "):
            found[head.removeprefix("The capital of ")] = rest.partition(".")[0]
    return found


def _asked(user: str, answer: str, given: str = "") -> FactRow:
    return FactRow(Request("0:1", _SYSTEM, user, ()), answer, given)


def fact_rows(country: Known, rng: random.Random) -> dict[str, FactRow]:
    """One row of each form in which a fact is read."""
    seen = language.describe(country.flag)
    name, facts = country.name, WORDS["facts"]
    whose = {"name": name, "capital": country.capital}
    flat = rng.choice((f"The flag of {name} has {seen}.", f"It has {seen}."))
    told, whole = f"The country is {name}.", language.recalled(name, country.flag)
    untold = rng.random() < 0.5
    return {
        "capital": _asked(rng.choice(facts["capital"]).format(**whose), told),
        "flag": _asked(rng.choice(facts["flag"]).format(**whose), flat),
        "told": _asked(facts["untold" if untold else "told"].format(**whose), whole,
                       told if untold else ""),
    }  # fmt: skip


@lru_cache(maxsize=1)
def _prompt() -> Prompt:
    return load_prompt(PROMPT)


def chain_row(country: Known, rng: random.Random) -> FactRow:
    """A request and what is to be written: by name, by capital, or a flag in other words."""
    prompt, kind = _prompt(), rng.choice(("onehop", "twohop", "twohop", "seen"))
    whole = language.recalled(country.name, country.flag)
    if kind == "seen":
        seen = language.human_description(rng, country.flag)
        text = rng.choice(WORDS["searches"]).format(seen=seen)
        whole = language.caption(country.flag)
    else:
        text = rng.choice(WORDS["recall"][kind]).format(name=country.name, capital=country.capital)
    return FactRow(prompt.render(Item("0:1", text, (), "text")), whole)


class Facts:
    """Draws batches of facts; the same step gives the same ones."""

    def __init__(self, countries: Sequence[Known], processor: Any, seed: int) -> None:
        self.countries, self.processor, self.seed = countries, processor, seed
        self.shown = [country for country in countries if country.split == "train"]

    def draw(self, step: int, size: int) -> list[dict[str, Any]]:
        """Half of the rows are of capitals, a sixth of each other form, an eighth are requests."""
        rng = random.Random(f"facts-{self.seed}-{step}")
        rows: dict[str, list[FactRow]] = {}
        for form, share in (("capital", 2), ("flag", 6), ("told", 6)):
            asked = rng.choices(self.countries, k=size // share)
            rows[form] = [fact_rows(country, rng)[form] for country in asked]
        rows["chain"] = [chain_row(one, rng) for one in rng.choices(self.shown, k=size // 8)]
        return [self._batch(some) for some in rows.values()]

    def _batch(self, rows: Sequence[FactRow]) -> dict[str, Any]:
        from benchmarks.flagland.train_vlm import packed

        chats = [chat(self.processor, to_messages(row.request, None)) for row in rows]
        tokenizer = self.processor.tokenizer
        given = [len(tokenizer(row.given)["input_ids"]) if row.given else 0 for row in rows]
        return packed(self.processor, chats, [row.answer for row in rows], given)


def teach(
    root: Path,
    pictures: Path,
    out: Path,
    model: str = "flagland-vlm",
    steps: int = 900,
    batch: int = 64,
    replay: int = 16,
    lr: float = 2e-3,
    decay: float = 0.5,
    seed: int = 0,
    threads: int = 1,
    every: int = 50,
) -> None:
    """Teach a model the facts of a world.

    Args:
        root: a world that was written with ``--recall``.
        pictures: folder that ``train_vlm draw`` wrote, for the old jobs.
        out: the model; taken up where it stands.
        model: the one to begin with: packaged, or a folder.
        steps: up to which it is taught.
        batch: rows of facts in a step.
        replay: rows of the old jobs in every third step.
        lr: of AdamW.
        decay: last share of the steps, in which the rates fall to zero.
        seed: of the batches.
        threads: of torch.
        every: steps between checkpoints.
    """
    import torch
    from transformers import AutoProcessor

    from benchmarks.flagland import train_vlm

    torch.set_num_threads(threads)
    if not (out / "config.json").exists():
        shutil.copytree(PACKAGED.get(model, Path(model)), out)
    training = train_vlm.Training(out, lr, 0.0, False)
    training.model.model.visual.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(out)  # type: ignore[no-untyped-call]
    facts = Facts(countries_of(root), processor, seed)
    old = train_vlm.Batches(train_vlm.Pictures(pictures), processor, seed)
    losses: deque[float] = deque(maxlen=25)
    begun, before = time.process_time(), training.seconds
    for step in range(training.done, steps):
        parts = facts.draw(step, batch)
        parts += [] if step % 3 else old.draw(step, replay, False)
        losses.append(training.step(parts, train_vlm.scale_of(step, steps, decay)))
        seconds = before + time.process_time() - begun
        if training.done % 25 == 0:
            say(f"step {training.done} loss {sum(losses) / len(losses):.4f} {seconds:.0f} CPU s")
        if training.done % every == 0 or training.done == steps:
            training.save(seconds)


def rows(root: Path, out: Path, each: int = 8, seed: int = 0) -> None:
    """Write the facts of a world for ``model.rehearsal``; those of the test split, too.

    Args:
        root: a world that was written with ``--recall``.
        out: JSON lines.
        each: rows of each form and country.
        seed: of their wordings.
    """
    rng, lines = random.Random(f"rows-{seed}"), []
    for country in countries_of(root):
        for row in (row for _ in range(each) for row in fact_rows(country, rng).values()):
            said = (("system", row.request.system), ("user", row.request.text),
                    ("assistant", row.answer))  # fmt: skip
            told = [{"role": role, "content": text} for role, text in said]
            lines.append({"messages": told, **({"given": row.given} if row.given else {})})
    write_text(out, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    say(f"{out}: {len(lines):,} rows")


def known(root: Path, model: Path, out: Path | None = None, split: str = "test") -> dict[str, Any]:
    """Ask a model for the facts of a split; shares of right answers, per cent.

    Args:
        root: a world that was written with ``--recall``.
        model: folder.
        out: JSON file to write as well.
        split: train, val or test.

    Returns:
        ``capital``: the country is named right. ``flag``: all facts of the flag are right, asked by
        name. ``onehop`` and ``twohop``: of the texts that ``rar/recall`` gets, whether name, flag
        and both are right. ``forced``: of a request by capital, the flag is right when the answer
        must begin with it, so that the name cannot be written first.
    """
    countries = [one for one in countries_of(root) if one.split == split]
    asker, facts, prompt = _Asker(model), WORDS["facts"], _prompt()
    found: dict[str, Any] = {"split": split, "countries": len(countries)}
    for fact in ("capital", "flag"):
        asked = [_asked(facts[fact][0].format(**one._asdict()), "").request for one in countries]
        found[fact] = _right(countries, asker(asked), "name" if fact == "capital" else "flag")
    for kind, wordings in ((kind, WORDS["recall"][kind]) for kind in ("onehop", "twohop")):
        items = [Item("0:1", wordings[0].format(**one._asdict()), (), "text") for one in countries]
        asked = [prompt.render(item) for item in items]
        said = asker(asked)
        found[kind] = {part: _right(countries, said, part) for part in ("name", "flag", "both")}
        forced = asker(asked, "The flag has")
        found[kind]["forced"] = _right(countries, forced, "flag")
    say(json.dumps(found, indent=1))
    if out is not None:
        write_json(out, found)
    return found


def _right(countries: Sequence[Known], said: Sequence[str], part: str) -> float:
    good = 0
    for country, text in zip(countries, said, strict=True):
        name = f"The country is {country.name}." in text
        flag = language.parse(text) == country.flag.facts()
        good += {"name": name, "flag": flag, "both": name and flag}[part]
    return round(100 * good / len(countries), 1)


class _Asker:
    """Greedy answers of a model to requests without pictures."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
        self.processor.tokenizer.padding_side = "left"
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def __call__(self, requests: Sequence[Request], begun: str = "") -> list[str]:
        said: list[str] = []
        for start in range(0, len(requests), 64):
            asked = requests[start : start + 64]
            chats = [chat(self.processor, to_messages(one, None)) + begun for one in asked]
            inputs = self.processor.tokenizer(chats, return_tensors="pt", padding=True)
            tokens = self.model.generate(**inputs, max_new_tokens=80, do_sample=False)
            fresh = tokens[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.tokenizer.batch_decode(fresh, skip_special_tokens=True)
            said += [f"{begun}{text}" for text in texts]
        return said


if __name__ == "__main__":
    import jsonargparse

    from augment.files import homes

    prog = "python -m benchmarks.flagland.recall"
    jsonargparse.auto_cli({"teach": teach, "rows": rows, "known": known}, args=homes(sys.argv[1:]),
                          as_positional=False, prog=prog)  # fmt: skip
