"""How soon commands answer that compute little.

``--help`` of every command, ``--print_config``, and ``status``, ``evaluate`` and ``compare`` on a
small world: each in a fresh interpreter, in turns. The aim is 2 s on an idle core.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from augment.__main__ import VERBS as augment_verbs
from augment.data import write_qrels
from augment.files import digest
from augment.records import Enrichment, Qrel, Sampling
from augment.store import Scope, Store
from augment.store.keys import Recipe
from benchmarks.speed import metrics
from benchmarks.speed.harness import Page, take_turns
from retrievers.cli import VERBS as retrievers_verbs
from retrievers.evaluation.run import RunTable
from retrievers.evaluation.run_files import write_run

#: Modules and their verbs.
COMMANDS: dict[str, tuple[str, ...]] = {
    "augment": tuple(augment_verbs),
    "retrievers": tuple(retrievers_verbs),
    "augment.corpus": (),
    "augment.queries": (),
    "benchmarks.flagland": (),
    "benchmarks.experiments": (),
    "benchmarks.report": (),
    "benchmarks.mbeir": (),
}
#: What is judged: queries, hits of each.
QUERIES, HITS = 1_000, 50


def write_world(folder: Path) -> None:
    """A store with a few texts, two run files, judgements."""
    recipe = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})
    with Store(folder / "store") as store:
        store.finish(store.begin(recipe, Scope()), {})
        for number in range(100):
            store.append(Enrichment(digest(number), f"1:{number}", "a text", "p@1", "m", "r"))
            store.link(recipe.id, f"1:{number}", digest(number), "picture")
    world = metrics.make(QUERIES, HITS, 10_000)
    table = RunTable.from_search(world.qids, world.column, world.rows, world.scores)
    for name in "ab":
        write_run(folder / f"{name}.trec", table, name)
    judged = [Qrel(qid, did) for qid, dids in world.grades.items() for did in dids]
    write_qrels(folder / "qrels.txt", judged, columns=4)


def commands(folder: Path) -> list[list[str]]:
    """Words behind ``python -m``."""
    found = [
        [module, *verb, "--help"]
        for module, verbs in COMMANDS.items()
        for verb in ([[name] for name in verbs] or [[]])
    ]
    qrels = f"--qrels={folder / 'qrels.txt'}"
    return [
        *found,
        ["retrievers", "fit", "--config=flagland", "--print_config"],
        ["augment", "status", f"--store={folder / 'store'}"],
        ["retrievers", "evaluate", str(folder / "a.trec"), qrels],
        ["retrievers", "compare", str(folder / "a.trec"), str(folder / "b.trec"), qrels],
    ]


def _run(words: list[str]) -> None:
    command = [sys.executable, "-m", *words]
    subprocess.run(command, capture_output=True, check=True)  # noqa: S603 - of this package


def measure(rounds: int = 3) -> Page:
    """Time every command.

    Args:
        rounds: of which the median is shown; one that is not counted goes before.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder)
        ways = {" ".join(words): partial(_run, words) for words in commands(folder)}
        turns = take_turns(ways, rounds)
    table = [
        {
            "command": f"`python -m {command.replace(name + '/', '')}`",
            "seconds": own.seconds,
            "CPU s": own.cpu,
        }
        for command, own in turns.items()
    ]
    slowest = max(own.seconds for own in turns.values())
    most = max(own.cpu for own in turns.values())
    return Page(
        "How soon commands answer",
        f"Each in a fresh interpreter, files cached; median of {rounds} rounds in turns. `status` "
        f"reads a store of 100 texts, `evaluate` and `compare` runs of {QUERIES:,} queries with "
        f"{HITS} hits each. The aim is 2 s on an idle core; the slowest took {slowest:.1f} s, "
        f"{most:.1f} s of CPU, which is what counts where other work runs beside it.",
        {"": table},
    )
