"""TRACE's model filter on Flagland: a judge of chains, and what it refuses.

The packaged VLM was not taught to judge: after 200 steps of learning to say whether a description
fits a picture it was right in 79 of 144 cases. It can describe. So the judge holds a chain's facts
against what the VLM wrote of the target's picture, and answers ``python -m augment confirm`` as a
model would; it is wrong where the VLM is.

``python -m benchmarks.trace.judge --root ROOT --descriptions STORE``: chains of which half have a
wrong fact are confirmed; counts what is refused.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from augment import queries
from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.routing import REFUSED, confirm_by
from augment.files import digest, say, write_json
from augment.records import Request
from augment.store import Store
from benchmarks.experiments.noise import corrupt
from benchmarks.flagland import language
from benchmarks.flagland.oracle import true_texts


def comparing(root: Path, store: Path, recipe: str | None = None) -> ScriptedEngine:
    """The judge.

    Args:
        root: Flagland.
        store: of descriptions of its candidates.
        recipe: of these; None takes the one meant.
    """
    texts = Store(store).texts("corpus", recipe)
    seen = {item.image: texts[item.id].text for file in DataRoot(root).pools()
            for item in open_candidates(file.path) if item.image and item.id in texts}  # fmt: skip

    def answer(request: Request) -> str:
        return compared(request.text.rpartition("Derived:")[2], seen.get(request.image or "", ""))

    return ScriptedEngine(answer, root=root, model="compares-descriptions", batch_size=256,
                          revision=digest(seen)[:12])  # fmt: skip


def compared(said: str, seen: str) -> str:
    """No, the surer the more facts were not seen; else yes, by the share of what was seen."""
    facts, true = language.parse(said), language.parse(seen)
    if wrong := len(facts - true):
        return f"no {min(1.0, 0.7 + 0.1 * wrong):.1f}"
    return f"yes {len(facts) / max(1, len(true)):.2f}"


def wrong(rng: random.Random, text: str) -> str:
    """A text with at least one of its facts exchanged; most often one."""
    while (made := corrupt(text, rng, 0.15, 0.0)).wrong == 0:
        pass
    return made.text


def score(
    root: Path,
    descriptions: Path,
    tasks: tuple[int, ...] = (0, 7),
    split: str = "train",
    count: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Have chains confirmed of which half have a wrong fact, and count what is refused.

    Args:
        root: Flagland.
        descriptions: store of texts of its candidates, by any model.
        tasks: M-BEIR codes of the queries; their targets have pictures.
        split: of the queries.
        count: of the queries, at most.
        seed: of which are wrong, and how.

    Returns:
        Per cent: ``precision`` and ``recall`` of the refusals and ``true_refused``; and the numbers
        of ``chains`` and of ``wrong`` ones.
    """
    rng, true = random.Random(f"score-{seed}"), true_texts(root, "query")
    asked = [one.item.id for file in DataRoot(root).query_files(split)
             for one in open_queries(file.path) if one.task in tasks]  # fmt: skip
    taken = sorted(rng.sample(asked, min(count, len(asked))))
    false = {name for name in taken if rng.random() < 0.5}
    said = {name: wrong(rng, true[name]) if name in false else true[name] for name in taken}
    with tempfile.TemporaryDirectory() as folder:
        only, store = Path(folder, "only"), Path(folder, "chains")
        only.write_text("".join(f"{name}\n" for name in taken), encoding="utf-8")
        engine = ScriptedEngine(said, root=root, model="flagland-oracle", batch_size=256)
        queries.run(root, store, engine=engine, only=only, text_prompt="rar/recall")
        kept = {name for name, text in Store(store).texts("query").items() if not text.rejected}
        confirm_by(comparing(root, descriptions), root, store)
        after = Store(store).texts("query")
        refused = Counter(
            name in false for name in kept if after[name].rejected.startswith(REFUSED)
        )
    return {
        "chains": len(kept),
        "wrong": len(kept & false),
        "precision": _share(refused[True], refused.total()),
        "recall": _share(refused[True], len(kept & false)),
        "true_refused": _share(refused[False], len(kept - false)),
    }


def _share(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 1)


def main(
    root: Path, descriptions: Path, out: Path | None = None, seeds: tuple[int, ...] = (0, 1, 2)
) -> None:
    """Have chains confirmed of which half have a wrong fact, and count what is refused.

    Args:
        root: Flagland.
        descriptions: store of texts of its candidates, by any model.
        out: JSON file to write as well.
        seeds: of which chains are wrong, and how.
    """
    rows = [{"seed": seed, **score(root, descriptions, seed=seed)} for seed in seeds]
    say(json.dumps(rows, indent=1))
    if out is not None:
        told = Store(descriptions).recipe("corpus")
        write_json(out, {"root": root.name, "described by": told.model, "recipe": told.id,
                         "rows": rows})  # fmt: skip


if __name__ == "__main__":
    import jsonargparse

    from augment.files import homes

    jsonargparse.auto_cli(main, args=homes(sys.argv[1:]), as_positional=False,
                          prog="python -m benchmarks.trace.judge")  # fmt: skip
