"""Steps that make texts: by a model, by the oracle, or by changing other texts.

========= =====================================================================================
vlm       the describing model, or the store that was given; ``modification_prompt`` replaces the
          prompt of requests to change a picture (rar/modification withholds the picture),
          ``text_prompt`` gives one to queries without a picture (rar/recall), ``question_prompt``
          that of questions about one to chains
oracle    read off Flagland's scene graphs
chains    what the describing model makes of the queries that combine picture and words: written
          before a vector, so that of the kinds below filler takes as many words as they have
leaky     the same with what only the target tells behind it, country and answer of a Flagland, as
          somebody writes who sees the target
clauses   the same words with a sentence for every part, so that lengths and samples of sentences
          mean something for texts of one sentence
filler    as many words as the enrichment adds, none of them about the picture; for appending
permuted  every item gets the text of another one; drawn with ``seed``
prefixed  the words of ``prefix`` in front of each text, as summaries stand in front of details
joined    each text with that of the text ``then`` behind it
replaced  what the regular expression ``pattern`` finds has other ``words`` in its place
confirmed of training queries alone: those are refused whose facts the descriptions of the text
          ``then`` do not bear out (``python -m augment confirm``, by
          :mod:`benchmarks.trace.judge`)
kept      texts that do not say what that of the text ``then`` says, word for word, are refused
noise     facts exchanged at the rate ``hallucination``, left out at the rate ``omission``
reasoned  a thought, which has a sentence for every part, and behind it the text with facts left out
          at the rate ``omission``, its length ``final``
select    only a ``share`` of the items keeps its text, those that ``router`` takes first (see
          :mod:`benchmarks.experiments.noise`)
========= =====================================================================================

The folder of such a step holds ``texts.json``: where the store is, the recipe of each side, tokens
and, on Flagland, how true the texts are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, final

from filelock import FileLock

from augment import corpus, queries
from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.enrichment.account import Summary
from augment.enrichment.pipeline import Options
from augment.enrichment.routing import confirm_by
from augment.errors import DataError
from augment.files import digest, read_json, say, write_json
from augment.prompts import load_prompt
from augment.prompts.route import CORPUS_PROMPT, QUERY_PROMPTS, Kind
from augment.records import Enrichment, Item, Side
from augment.store import Scope, Store
from augment.store.keys import Recipe
from augment.store.runs import load_runs
from augment.store.upkeep import merge
from augment.views import open_texts
from benchmarks.experiments import noise
from benchmarks.experiments.graph import CachedStep
from benchmarks.experiments.noise import Changed
from benchmarks.experiments.spec import SIDES, TextKind, TextSpec
from benchmarks.flagland.oracle import has_truth, oracle_engine, score_facts, told_by_targets
from benchmarks.trace.judge import comparing

#: Item, its text, source of randomness -> the new text and counts; None leaves the item without.
Change = Callable[[Item, Enrichment, Random], Changed | None]


class TextSource(NamedTuple):
    """Where the texts of a step are."""

    store: Path
    recipes: Mapping[Side, str]


def read_source(folder: Path) -> TextSource:
    """What ``texts.json`` in a step's folder says."""
    value = read_json(folder / "texts.json")
    return TextSource(Path(os.path.normpath(folder / value["store"])), value["recipes"])


@final
@dataclass(frozen=True)
class Enriching:
    """What texts are made of, and with what.

    Attributes:
        root: M-BEIR root.
        store: folder of texts that exist; None makes them.
        model: the describing model.
        threads: of the CPU.
        tolerate: go on when single items could not be enriched (they keep their published text).
    """

    root: Path
    store: Path | None = None
    model: str = "flagland-vlm"
    threads: int = 2
    tolerate: bool = False

    @cached_property
    def root_digest(self) -> str:
        """SHA-256 over names and contents of the root's lists; pictures count by name only.

        Raises:
            DataError: if it is no data root.
        """
        data, digest = DataRoot(self.root), hashlib.sha256()
        for folder in ("query", "cand_pool", "qrels", "instructions"):
            for path in sorted((data.path / folder).rglob("*")):
                if path.is_file() and path.suffix in (".jsonl", ".txt", ".tsv"):
                    digest.update(str(path.relative_to(data.path)).encode())
                    with path.open("rb") as stream:
                        while block := stream.read(1 << 20):
                            digest.update(block)
        return digest.hexdigest()


def made_anew(text: TextSpec, using: Enriching) -> CachedStep:
    """The step of a text that is made of the data alone (vlm, oracle).

    Raises:
        DataError: if the oracle is asked for where no truth is known.
    """
    if text.kind == "oracle":
        if not has_truth(using.root):
            raise DataError("the oracle needs truth/scene_graphs.jsonl", str(using.root))
        about = {"kind": "oracle", "root": using.root_digest, **text.settings}
        work = partial(_oracle, using, text.text_prompt or None)
        return CachedStep("texts", "texts of the oracle", about, (), work)
    if text.model and using.store is None:
        raise DataError("are of a model's texts in a store: name the store", f"{text.model}")
    if using.store is not None and not text.settings.keys() - {"model"}:
        sides: Sequence[Side] = ("query",) if text.kind == "chains" else SIDES
        recipes = {side: _recipe_of(Store(using.store), side, text.model) for side in sides}
        about = {"kind": "given", "keys": _keys(using.store, recipes), **text.settings}
        return CachedStep(
            "texts", f"texts of {using.store}", about, (), partial(_given, using, recipes)
        )
    told: dict[Kind, str | None] = {"question": text.question_prompt,
            "modification": text.modification_prompt, "text": text.text_prompt}  # fmt: skip
    prompts = {**QUERY_PROMPTS, **{kind: prompt for kind, prompt in told.items() if prompt}}
    changed = " and ".join(dict.fromkeys(prompt for prompt in told.values() if prompt))
    if text.kind == "chains":
        prompts["image"] = None
    sent = [name for name in prompts.values() if name]
    sent = sent if text.kind == "chains" else [CORPUS_PROMPT, *sent]
    settings = {
        "kind": text.kind,
        "root": using.root_digest,
        "model": using.model,
        "prompts": [load_prompt(name).id for name in sent],
    }
    title = f"texts of {using.model}" + (f" with {changed}" if changed else "")
    title = title.replace("texts", "chains", 1) if text.kind == "chains" else title
    return CachedStep("texts", title, settings, (), partial(_vlm, using, prompts, text.kind))


def _keys(store: Path, recipes: Mapping[Side, str]) -> str:
    """Digest of which text each item has under a recipe, or under several (``A+B``)."""
    opened = Store(store)
    rows = {side: sorted((row["item"], row["key"]) for part in recipe.split("+")
                         for row in opened.rows("link", part).scan("item", "key"))
            for side, recipe in recipes.items()}  # fmt: skip
    return digest(rows)


def _recipe_of(store: Store, side: Side, models: str) -> str:
    """The id of a model's recipe in a store, of several models ``A+B``; empty: the one meant."""
    if not models:
        return store.recipe(side).id
    made = {recipe.model: recipe.id for recipe in store.recipes(side)}
    if unknown := set(models.split("+")) - set(made):
        raise DataError(f"has no {side} texts of {', '.join(unknown)}", str(store.folder))
    return "+".join(made[model] for model in models.split("+"))


def _given(using: Enriching, recipes: Mapping[Side, str], folder: Path, _: Sequence[Path]) -> None:
    _record(folder, using.root, TextSource(using.store or Path(), recipes))


def _settled(summary: Summary, tolerate: bool) -> None:
    say(summary)
    if summary.incomplete or (summary.exit_code and not tolerate):
        raise SystemExit(summary.exit_code)


def _vlm(
    using: Enriching,
    prompts: Mapping[Kind, str | None],
    kind: TextKind,
    folder: Path,
    _: Sequence[Path],
) -> None:
    options = Options(model=using.model, batch_size=64, threads=using.threads)
    # One store for all recipes of one root: what they share is generated once.
    store = folder.parent / f"store-{using.root_digest[:12]}"
    with FileLock(store.with_name(f".{store.name}.lock")):  # whose latest run is asked for
        if using.store is not None:  # of another recipe, but texts of the same request are shared
            merge(store, [using.store])
        engine = options.engine(using.root)
        given: dict[str, Any] = {f"{asked}_prompt": name for asked, name in prompts.items()}
        if kind != "chains":
            _settled(corpus.run(using.root, store, options=options, engine=engine), using.tolerate)
        summary = queries.run(using.root, store, options=options, engine=engine, **given)
        _settled(summary, using.tolerate)
        recipes = _latest(store)
    recipes = {"query": recipes["query"]} if kind == "chains" else recipes
    _record(folder, using.root, TextSource(store, recipes))


def _oracle(using: Enriching, text_prompt: str | None, folder: Path, _: Sequence[Path]) -> None:
    store, asked = folder / "store", partial(queries.run, text_prompt=text_prompt)
    for side, enrich in (("corpus", corpus.run), ("query", asked)):
        _settled(enrich(using.root, store, engine=oracle_engine(using.root, side)), False)
    _record(folder, using.root, TextSource(store, _latest(store)))


def _latest(store: Path) -> dict[Side, str]:
    """Recipes of the latest run of each side."""
    return {run.side: run.recipe for run in load_runs(store)}


# -- texts made of texts ----------------------------------------------------------------------


def derived(
    text: TextSpec, of: CachedStep, using: Enriching, other: CachedStep | None = None
) -> CachedStep:
    """The step of a text that is made of another one, and of a third or a retriever's runs."""
    settings = {"kind": text.kind, "root": using.root_digest, **text.settings}
    needs = (of,) if other is None else (of, other)
    told = ", ".join(f"{key} {value}" for key, value in text.settings.items())
    title = f"{text.kind} of ({of.title})" + (f": {told}" if told else "")
    return CachedStep("derived", title, settings, needs, partial(_derive, text, using))


def _derive(text: TextSpec, using: Enriching, folder: Path, needs: Sequence[Path]) -> None:
    source = read_source(needs[0])
    recipes: dict[Side, str] = {}
    counts: dict[str, Any] = {}
    for side in source.recipes:
        made_by, given = _accepted(source, side)
        groups = [{item.id: item for item in members if item.id in given}
                  for members in _groups(using.root, side)]  # fmt: skip
        # Whoever is confirmed has its target looked at: never a query of a test.
        groups = groups[:1] if text.kind == "confirmed" else groups
        other = needs[1] if len(needs) > 1 else None
        change = _change(text, side, groups, given, using.root, other)
        if text.kind == "filler" and len(source.recipes) == 1:  # chains replace nothing
            change = partial(_filler, "corpus")
        recipe = _recipe(made_by, text)
        recipes[side] = recipe.id
        items = {name: item for group in groups for name, item in group.items()}
        counts[side] = _write(folder / "store", recipe, items, given, change, text)
    if text.kind == "confirmed":
        seen = read_source(needs[1])
        judge = comparing(using.root, seen.store, seen.recipes["corpus"])
        if code := confirm_by(judge, using.root, folder / "store", recipes["query"]):
            raise SystemExit(code)  # cut short: to be gone on with, not kept
    _record(folder, using.root, TextSource(folder / "store", recipes), counts)


def _accepted(source: TextSource, side: Side) -> tuple[Recipe, dict[str, Enrichment]]:
    texts = Store(source.store).texts(side, source.recipes[side])
    return texts.recipe, {item_id: one for item_id, one in texts.items() if not one.rejected}


def _groups(root: Path, side: Side) -> Iterator[Iterable[Item]]:
    """Items of a side; queries by split, so that a share is a share of each split."""
    data = DataRoot(root)
    if side == "corpus":
        yield (item for file in data.pools() for item in open_candidates(file.path))
        return
    for split in queries.SPLITS:
        files = data.query_files(split)
        yield (query.item for file in files for query in open_queries(file.path))


def _recipe(of: Recipe, text: TextSpec) -> Recipe:
    settings = {**of.settings, "changed": {"kind": text.kind, "of": of.id, **text.settings}}
    return replace(of, settings=settings, target_seen=of.target_seen or text.kind == "leaky")


def _change(
    text: TextSpec,
    side: Side,
    groups: Sequence[Mapping[str, Item]],
    given: Mapping[str, Enrichment],
    root: Path,
    other: Path | None,
) -> Change:
    alone: Mapping[TextKind, Callable[[str, Random], Changed]] = {
        "clauses": lambda old, _: Changed(noise.clauses(old)),
        "confirmed": lambda old, _: Changed(old),
        "prefixed": lambda old, _: Changed(f"{text.prefix} {old}"),
        "replaced": lambda old, _: Changed(re.sub(text.pattern, text.words, old)),
        "voiced": lambda old, random: noise.voiced(old, random, text.omission, text.misspelt),
    }
    if text.kind in alone:
        return lambda item, one, random: alone[text.kind](one.text, random)
    if text.kind == "filler":
        return partial(_filler, side)
    if text.kind == "joined" and other is not None:
        _, behind = _accepted(read_source(other), side)
        return lambda item, one, random: (
            Changed(f"{one.text} {behind[item.id].text}") if item.id in behind else None
        )
    if text.kind == "kept" and other is not None:
        _, right = _accepted(read_source(other), side)
        return lambda item, one, random: (
            Changed(one.text) if item.id in right and one.text == right[item.id].text else None
        )
    if text.kind == "leaky":
        told = told_by_targets(root) if side == "query" else {}
        return lambda item, one, random: Changed(f"{one.text} {told.get(item.id, '')}".strip())
    if text.kind == "permuted":
        order = sorted(given)
        Random(text.seed).shuffle(order)  # one cycle, so that no text stays where it was
        others = dict(zip(order, [*order[1:], *order[:1]], strict=True))
        return lambda item, one, random: Changed(given[others[item.id]].text)
    if text.kind in ("noise", "reasoned"):
        rivals = noise.FLAGLAND if has_truth(root) else noise.GENERAL
        return lambda item, one, random: _noisy(text, one.text, random, rivals)
    taken = [noise.chosen(group, side, text.share, text.router, text.seed, other)
             for group in groups]  # fmt: skip
    kept = frozenset().union(*taken)
    return lambda item, one, random: Changed(one.text) if item.id in kept else None


def _filler(side: Side, item: Item, text: Enrichment, random: Random) -> Changed:
    words = len(text.text.split())
    if side == "query":  # an enriched query replaces the published one
        words -= len((item.text or "").split())
    return Changed(noise.filler(words, random.randrange(len(noise.FILLER))))


def _noisy(text: TextSpec, old: str, random: Random, rivals: noise.Groups) -> Changed:
    changed = noise.corrupt(old, random, text.hallucination, text.omission, rivals)
    thought = f"{noise.clauses(old)}\n" if text.kind == "reasoned" else ""
    return changed._replace(text=thought + changed.text)


def _write(
    folder: Path,
    recipe: Recipe,
    items: Mapping[str, Item],
    given: Mapping[str, Enrichment],
    change: Change,
    text: TextSpec,
) -> dict[str, int]:
    counts = {"items": len(items), "kept": 0, "facts": 0, "wrong": 0, "gone": 0}
    with Store(folder) as store:
        run = store.begin(recipe, Scope())
        for item in items.values():
            changed = change(item, given[item.id], Random(f"{text.seed}-{recipe.side}-{item.id}"))
            refused = ""
            if changed is None and text.kind == "kept":
                changed, refused = Changed(given[item.id].text), f"wrong: {text.then} says else"
            if changed is None:
                continue
            counts["kept"] += 1
            for name, number in zip(("facts", "wrong", "gone"), changed[1:], strict=True):
                counts[name] += number
            key = digest([recipe.id, item.id, given[item.id].key])
            final = {"final": changed.text.rpartition("\n")[2]} if text.kind == "reasoned" else {}
            one = replace(
                given[item.id], key=key, item_id=item.id, text=changed.text, raw="", retry_of="",
                lengths=final, checks={}, rejected=refused,
            )  # fmt: skip
            store.append(one)
            store.link(recipe.id, item.id, key, text.kind)
        store.finish(run, counts)
    return counts


def _record(
    folder: Path, root: Path, source: TextSource, changed: Mapping[str, Any] | None = None
) -> None:
    store = Store(source.store)
    about: dict[str, Any] = {}
    for side in source.recipes:
        _, texts = open_texts(store, side, source.recipes[side])
        about[side] = _tally(texts)
        if has_truth(root):
            about[side]["facts"] = score_facts(root, side, texts)
        if changed:
            about[side]["changed"] = changed[side]
    value = {
        "store": os.path.relpath(source.store, folder),
        "recipes": dict(source.recipes),
        "sides": about,
    }
    write_json(folder / "texts.json", value)


def _tally(texts: Mapping[str, Enrichment]) -> dict[str, Any]:
    """Items, texts generated for them, and tokens; a text that items share is paid for once."""
    items = words = refused = 0
    spent: dict[str, tuple[int, int]] = {}
    for text in texts.values():
        spent[text.key] = (text.prompt_tokens, text.output_tokens)
        items += 1
        words += len(text.text.split())
        refused += bool(text.rejected)
    return {
        "items": items,
        "refused": refused,
        "generations": len(spent),
        "prompt_tokens": sum(read for read, _ in spent.values()),
        "output_tokens": sum(written for _, written in spent.values()),
        "mean_words": words / items if items else 0.0,
    }


def names_of(used: Collection[str], texts: Mapping[str, TextSpec]) -> list[str]:
    """The texts in use and those they are made of, sources first."""
    of = {name: [one for one in (texts[name].of, texts[name].then) if one] for name in used}
    return list(dict.fromkeys(one for name in used for one in (*names_of(of[name], texts), name)))
