"""``python -m augment VERB``: what is done with data roots and stores beside enriching them.

Each verb loads what it needs when it is called, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import islice
from json import dumps
from pathlib import Path
from typing import Literal

from augment.enrichment.command import call, entry
from augment.errors import printable
from augment.files import say
from augment.records import Side

Length = Literal["short", "dense", "sentences"]


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

    from augment.store import Store, runs, upkeep

    runs.check_folder(store, needed=True)
    opened = Store(store)
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


def export(
    root: Path,
    out: Path,
    store: Path | None = None,
    to: Literal["mbeir", "beir", "datasets", "webdataset"] = "mbeir",
    datasets: Sequence[str] = (),
    tasks: Sequence[int] = (),
    corpus_view: str | None = None,
    corpus_recipe: str | None = None,
    corpus_length: Length = "dense",
    query_view: str | None = None,
    query_recipe: str | None = None,
    query_length: Length = "dense",
    images: Literal["link", "copy", "symlink", "none"] = "link",
    traces: Path | None = None,
    traces_recipe: str | None = None,
    only: Path | None = None,
) -> int:
    """Write a root, or views of it, for other tools.

    As a root of M-BEIR's layout, in BEIR's files, as a data set of Hugging Face's Parquet with
    pictures in it (mteb's fields), or as tars with pictures and JSON.

    Args:
        root: Folder in M-BEIR's layout.
        out: Folder to make.
        store: Generated texts.
        to: The format.
        datasets: Only these data sets of the root.
        tasks: Only these task codes.
        corpus_view: What the candidates show; null: append with a store, raw without.
        corpus_recipe: Id; null: the one meant.
        corpus_length: Of the generated text.
        query_view: What the queries show; null: replace with a store, raw without.
        query_recipe: Id; null: the one meant.
        query_length: Of the generated text.
        images: Hard links (or copies on another disk), copies, symbolic links, or none.
        traces: Generated texts that queries are to write before their vectors (TRACE): tables in
            OUT/trace, which fit reads with data.written.store=OUT.
        traces_recipe: Id; null: the one meant.
        only: File of ids, one a line: of the queries that are to write; null: all with a text.
    """
    from augment.enrichment.export import export as write
    from augment.files import read_ids
    from augment.views import open_view

    views = (corpus_view or ("append" if store else "raw"),
             query_view or ("replace" if store else "raw"))  # fmt: skip
    corpus = open_view("corpus", views[0], store, corpus_recipe, corpus_length)
    queries = open_view("query", views[1], store, query_recipe, query_length)
    written = None if traces is None else open_view("query", "replace", traces, traces_recipe)
    asked = None if only is None else read_ids(only)
    say(write(root, out, corpus, queries, images, to, datasets, tasks, written, asked))
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


def import_(arguments: Sequence[str]) -> int:
    """Make a data root of other data: ``import KIND SOURCE --out ROOT``."""
    from inspect import getdoc

    from augment.data.sources import READERS, Bounds, import_data
    from augment.enrichment.command import add_options, parser, values

    kind = arguments[0] if arguments else ""
    if kind not in READERS:
        lines = [
            f"  {name:11}{(getdoc(READERS[name]) or '').split(chr(10))[0]}" for name in READERS
        ]
        usage = "usage: python -m augment import KIND SOURCE --out ROOT [--help] ..."
        say("\n".join([usage, "", *lines]), None if kind in ("-h", "--help") else sys.stderr)
        return 0 if kind in ("-h", "--help") else 2
    reader, skip = READERS[kind], ("kind", "bounds", "options")
    about = (getdoc(reader) or "").partition("\n\nArgs:")[0]
    made = parser(f"python -m augment import {kind}", about)
    add_options(made, import_data, positional=("source",), skip=skip)
    add_options(made, reader, skip=("source",))
    add_options(made, Bounds)
    parsed = made.parse_args(list(arguments[1:]))
    bounds = Bounds(**values(parsed, Bounds))
    given = values(parsed, import_data, skip) | values(parsed, reader, ("source",))
    done = import_data(kind, bounds=bounds, **given)
    say(f"{done}\nnext: python -m augment validate {given['out']}")
    return 0


#: Verb -> the module whose function it is, and what is named without a name.
VERBS: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "import": ("__main__", "make a data root of a table, a folder, BEIR, COCO, ...", ()),
    "validate": ("data.validate", "check a data root", ("root",)),
    "status": ("__main__", "what a store holds, what ran, what failed", ()),
    "verify": ("store.upkeep", "check a store from end to end", ()),
    "merge": ("__main__", "join stores that were made elsewhere", ("others",)),
    "diff": ("__main__", "texts that differ, by recipe or by store", ()),
    "report": ("store.report", "write one page about the texts of a store", ("store",)),
    "scores": ("store.scores", "every check's score of every text, as a table", ()),
    "export": ("__main__", "write a root, or views of it, as M-BEIR, BEIR, datasets, tars", ()),
    "route": ("enrichment.routing", "say which queries are to be reasoned about", ()),
    "confirm": ("enrichment.routing", "refuse chains that their targets do not bear out", ()),
    "retry": ("__main__", "ask again what failed or was refused, by reason", ()),
}


#: Task -> its verbs, and the modules that are commands of their own.
TASKS: Mapping[str, Sequence[str]] = {
    "data": ("import", "validate", "export"),
    "enrich": ("augment.corpus", "augment.queries", "route", "confirm", "retry"),
    "judge texts": ("status", "report", "scores", "verify", "diff", "merge"),
}
_MODULES = {
    "augment.corpus": "describe the pictures of candidates, or read the text in them",
    "augment.queries": "resolve and rewrite queries that have a picture",
}


def by_task() -> dict[str, list[tuple[str, str]]]:
    """Task -> its commands, as they stand behind ``python -m``, and what each does."""
    said = {verb: (f"augment {verb}", what) for verb, (_, what, _) in VERBS.items()}
    said |= {name: (name, what) for name, what in _MODULES.items()}
    return {task: [said[name] for name in of] for task, of in TASKS.items()}


def listed(tasks: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Commands by task, a line each."""
    lines = [
        f"{task}\n" + "\n".join(f"  {name:22}{what}" for name, what in of)
        for task, of in tasks.items()
    ]
    return "\n".join([*lines, "\npython -m COMMAND --help lists its options.\n"])


#: Verb -> what usually comes next.
NEXT = {
    "validate": "augment.corpus --root ROOT --store STORE --model MODEL --preview 20",
    "merge": "augment status --store INTO",
    "report": "retrievers search --root ROOT --store STORE --checkpoint bm25 WORDS",
    "route": "augment.queries --root ROOT --store STORE --model MODEL --only OUT",
}


@entry
def main(arguments: Sequence[str]) -> int:
    """Run a verb; the exit status."""
    name, *rest = [*arguments, ""]
    usage = f"usage: python -m COMMAND ...\n\n{listed(by_task())}"
    usage += "Training, search and its evaluation: python -m retrievers --help\n"
    if name in ("", "-h", "--help"):
        sys.stdout.write(usage)
        return 0 if name else 2
    if name not in VERBS:
        sys.stderr.write(f"error: no verb {name!r}\n{usage}")
        return 2
    module, _, positional = VERBS[name]
    if name in ("retry", "import"):
        return (retry if name == "retry" else import_)(rest[:-1])
    verb = getattr(import_module(f"augment.{module}"), name)
    code = call(verb, rest[:-1], f"python -m augment {name}", positional)
    if code == 0 and name in NEXT and "--json" not in rest:
        say(f"next: python -m {NEXT[name]}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
