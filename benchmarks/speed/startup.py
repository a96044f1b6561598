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
from random import Random

from augment.__main__ import VERBS as augment_verbs
from augment.records import Enrichment, Sampling
from augment.store import Scope, Store
from augment.store.keys import Recipe
from benchmarks.speed.harness import Page, take_turns
from retrievers.cli import VERBS as retrievers_verbs

#: Modules and their verbs.
COMMANDS: dict[str, tuple[str, ...]] = {
    "augment": ("validate", "retry", *(verb.__name__ for verb in augment_verbs)),
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
        run = store.begin(recipe, Scope())
        for n in range(100):
            store.append(Enrichment(f"key{n}", f"1:{n}", f"text {n}", "p@1", "m", "r"))
            store.link(recipe.id, f"1:{n}", f"key{n}", "picture")
        store.finish(run, {"generated": 100})
    random = Random(0)
    judged = [f"5:{n} 0 1:{random.randrange(10_000)} 1 0\n" for n in range(QUERIES)]
    (folder / "qrels.txt").write_text("".join(judged), encoding="utf-8")
    for name in "ab":
        lines = [
            f"5:{n} Q0 1:{did} {rank} {1 / rank:.6f} {name}\n"
            for n in range(QUERIES)
            for rank, did in enumerate(random.sample(range(10_000), HITS), start=1)
        ]
        (folder / f"{name}.trec").write_text("".join(lines), encoding="utf-8")


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
    done = subprocess.run(  # noqa: S603 - commands of this package
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


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
            "least": own.least,
            "CPU s": own.cpu,
        }
        for command, own in turns.items()
    ]
    slowest = max(turns.values(), key=lambda own: own.seconds).seconds
    return Page(
        "How soon commands answer",
        f"Each in a fresh interpreter, files cached; median of {rounds} rounds in turns. `status` "
        f"reads a store of 100 texts, `evaluate` and `compare` runs of {QUERIES:,} queries with "
        f"{HITS} hits each. The aim is 2 s on an idle core; the slowest took {slowest:.1f} s.",
        {"": table},
    )
