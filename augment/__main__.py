"""``python -m augment VERB``: what is done with data roots and stores beside enriching them.

Each verb loads what it needs when it is called, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from json import dumps
from pathlib import Path
from typing import Literal

from augment.enrichment.command import call, entry
from augment.errors import DataError, printable
from augment.files import say, write_json
from augment.records import Side

Extent = Literal["sample", "all", "none"]
Length = Literal["short", "dense", "sentences"]


def validate(
    root: Path,
    json: Path | None = None,
    images: Extent = "sample",
    texts: Extent = "sample",
    context: int = 77,
) -> int:
    """Check a data root. Exit code 1 if errors are found, 0 if at most warnings.

    Counts per task and modality, duplicate ids, dangling positives, missing or broken pictures,
    lengths of texts.

    Args:
        root: Folder in M-BEIR's layout.
        json: Also write the report as JSON.
        images: Look every picture up and decode 500 of them (sample), decode every one, or touch
            none.
        texts: Measure the lengths of at most 5,000 texts a file (sample), of all, or of none; needs
            open_clip.
        context: Tokens the text encoder reads, start and end marks included; CLIP: 77.
    """
    from augment.data.validate import render_report, validate_root

    found = validate_root(root, images, texts, context)
    sys.stdout.write(render_report(found))
    if json:
        write_json(json, found.to_json(), DataError)
    return 1 if found.total("error") else 0


def status(
    store: Path, failures: bool = False, json: bool = False, choose: str | None = None
) -> int:
    """What a store holds, what ran, what failed.

    Args:
        store: The store.
        failures: Name every failed item.
        json: For programs.
        choose: Make this recipe the one that views show when none is named.
    """
    from dataclasses import asdict

    from augment.store import runs, upkeep

    opened = upkeep.open_store(store)
    if choose:
        runs.choose(store, choose)
    found = upkeep.status(opened)
    rows = dumps([asdict(one) for one in found], indent=2) if json else "\n".join(map(str, found))
    say(rows)
    for one in found if failures else ():
        for failure in opened.failures(one.side, one.recipe).values():
            place = f" ({failure.image})" if failure.image else ""
            line = printable(f"{failure.item_id}{place}: {failure.reason}")
            say(line)
    return 0


def verify(store: Path) -> int:
    """Check a store from end to end. Exit code 3 if something is damaged.

    Args:
        store: What to check.
    """
    from augment.store import upkeep

    found = upkeep.verify(store)
    say(found)
    return 3 if found.problems else 0


def merge(into: Path, others: Sequence[Path]) -> int:
    """Join stores that were made elsewhere; merging twice adds nothing.

    Args:
        into: Store to add to; made if absent.
        others: Stores to read.
    """
    from augment.store import upkeep

    done = upkeep.merge(into, others)
    say(f"added {', '.join(f'{number:,} {kind}' for kind, number in done.items())}")
    return 0


def diff(
    store: Path,
    other_store: Path | None = None,
    side: Side = "corpus",
    recipe: str | None = None,
    other_recipe: str | None = None,
    show: int | None = 20,
    json: bool = False,
) -> int:
    """Texts that differ, by recipe or by store. Exit code 0 if none does, 1 if some do.

    Args:
        store: Store of the first recipe.
        other_store: Store of the second; null: the same.
        side: Whose texts.
        recipe: Id of the first recipe; null: the one meant.
        other_recipe: Id of the second; null: the one meant.
        show: How many to show; null: all of them.
        json: One JSON object a line.
    """
    from augment.store import Store
    from augment.store.upkeep import differences

    first = Store(store).texts(side, recipe)
    second = Store(other_store or store).texts(side, other_recipe)
    found = differences(first, second)
    number = 0
    for one in islice(found, show):
        number += 1
        pair = (("before", one.before), ("after", one.after))
        texts = {n: t and {"text": t.text, "rejected": t.rejected} for n, t in pair}
        row = dumps({"item": one.item, **texts}, ensure_ascii=False) if json else str(one)
        say(row)
    number += sum(1 for _ in found)
    say(f"{number:,} of {len(first):,} and {len(second):,} items differ", sys.stderr)
    return 1 if number else 0


def report(
    store: Path,
    root: Path,
    out: Path,
    samples: int = 24,
    seed: int = 0,
    corpus_recipe: str | None = None,
    query_recipe: str | None = None,
    price_read: float | None = None,
    price_written: float | None = None,
    price_gpu_hour: float | None = None,
) -> int:
    """Write one static HTML page about the texts of a store.

    Args:
        store: Generated texts.
        root: Folder in M-BEIR's layout.
        out: Folder of report.html.
        samples: Random and worst texts to show of each side, at most 200.
        seed: Of the random choice.
        corpus_recipe: Id; null: the recipe that the store means.
        query_recipe: Id; null: the recipe that the store means.
        price_read: Of a million tokens read, for the costs.
        price_written: Of a million tokens written, for the costs.
        price_gpu_hour: Of one device for an hour, for the costs.
    """
    from augment.store.report import report as write
    from augment.store.runs import Prices

    page = write(
        store,
        root,
        out,
        recipes={"corpus": corpus_recipe, "query": query_recipe},
        samples=samples,
        seed=seed,
        prices=Prices(price_read, price_written, price_gpu_hour),
    )
    say(f"{page}  {page.stat().st_size / 1e6:.1f} MB")
    return 0


def scores(
    store: Path,
    side: Side = "corpus",
    recipe: str | None = None,
    out: Path | None = None,
    root: Path | None = None,
    clip: str | None = None,
    pretrained: str | None = None,
) -> int:
    """Every check's score of every text, as a table; with a CLIP model, its doubts, too.

    Args:
        store: Generated texts.
        side: Whose texts.
        recipe: Id of the recipe; null: the one meant.
        out: Table to write, .parquet or .csv; null: in the store, for the report.
        root: Folder in M-BEIR's layout; needed with --clip.
        clip: open_clip model (folder, hf-hub:NAME or name) that judges faithfulness.
        pretrained: Tag of the weights, where --clip is a name.
    """
    from augment.store.scores import scores as write

    path, table = write(
        store, side=side, recipe=recipe, out=out, root=root, clip=clip, pretrained=pretrained
    )
    say(f"{len(table):,} texts, {len(table.columns)} columns: {path}")
    return 0


def export(
    root: Path,
    out: Path,
    store: Path | None = None,
    corpus_view: str = "append",
    corpus_recipe: str | None = None,
    corpus_length: Length = "dense",
    query_view: str = "replace",
    query_recipe: str | None = None,
    query_length: Length = "dense",
    images: Literal["link", "copy", "symlink", "none"] = "link",
) -> int:
    """Write views of both sides as a plain M-BEIR root that other tools read.

    Args:
        root: Folder in M-BEIR's layout.
        out: Folder to make.
        store: Generated texts.
        corpus_view: What the candidates show.
        corpus_recipe: Id; null: the one meant.
        corpus_length: Of the generated text.
        query_view: What the queries show.
        query_recipe: Id; null: the one meant.
        query_length: Of the generated text.
        images: Hard links (or copies on another disk), copies, symbolic links, or none.
    """
    from augment.enrichment.export import export as write
    from augment.views import open_view

    corpus = open_view("corpus", corpus_view, store, corpus_recipe, corpus_length)
    queries = open_view("query", query_view, store, query_recipe, query_length)
    say(f"{write(root, out, corpus, queries, images)}")
    return 0


def retry(arguments: Sequence[str]) -> int:
    """Ask again what failed or was refused, by reason: ``retry corpus|queries --reason R ...``."""
    from augment import corpus, queries
    from augment.enrichment.pipeline import JobPlan, run_command

    plans: Mapping[str, Callable[..., JobPlan]] = {"corpus": corpus.plan, "queries": queries.plan}
    name = arguments[0] if arguments else ""
    if name not in plans:
        say("usage: python -m augment retry corpus|queries --reason R ... --help", sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    prog = f"python -m augment retry {name}"
    return run_command(prog, plans[name], arguments[1:], supervised=True, retry=True)


#: Verbs that take options, with what is named without a name.
VERBS: Mapping[Callable[..., int], Sequence[str]] = {
    validate: ("root",),
    status: (),
    verify: (),
    merge: ("others",),
    diff: (),
    report: ("store",),
    scores: (),
    export: (),
}


@entry
def main(given: Sequence[str]) -> int:
    """Run a verb; the exit status."""
    verbs = {verb.__name__: verb for verb in (*VERBS, retry)}
    lines = [f"  {name:9}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in verbs.items()]
    usage = "\n".join(["usage: python -m augment VERB [--help] ...", "", *lines, ""])
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0 if given else 2
    name, *rest = given
    if name not in verbs:
        sys.stderr.write(f"error: no verb {name!r}\n{usage}")
        return 2
    verb = verbs[name]
    if verb in VERBS:
        return call(verb, rest, f"python -m augment {name}", VERBS[verb])
    return verb(rest)


if __name__ == "__main__":
    raise SystemExit(main())
