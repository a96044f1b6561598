"""Teaches the small VLM to judge whether a description fits a picture, and tells how well it does.

``python -m benchmarks.trace.judge teach --pictures PICTURES --out FOLDER``: pictures that
``train_vlm draw`` wrote, each with a request and a description that is true in half of the cases
(prompt ``trace/verify_described``). The model says what it sees and then judges, so that it
compares two texts: easy ones first, two steps of three without the picture, its description given.
Killed, it goes on where it was saved.

``score`` has it confirm chains of a world whose truth is known (``python -m augment confirm``).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from augment import queries
from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.engines.base import PACKAGED
from augment.engines.inputs import chat, to_messages
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.routing import NO_VERDICT, REFUSED, confirm
from augment.files import say, write_json
from augment.prompts import load_prompt
from augment.records import Item
from augment.store import Store
from benchmarks.experiments.noise import corrupt
from benchmarks.flagland import language
from benchmarks.flagland.atlas import countries
from benchmarks.flagland.edits import random_edit
from benchmarks.flagland.grammar import WORDS, Flag
from benchmarks.flagland.oracle import true_texts

PROMPT = "trace/verify_described"
#: Share of the rows whose description of the picture is learnt, too.
_SEEN = 0.5


def wrong(rng: random.Random, text: str) -> str:
    """A text with at least one of its facts exchanged; most often one."""
    while (made := corrupt(text, rng, 0.15, 0.0)).wrong == 0:
        pass
    return made.text


def judged(
    rng: random.Random, flag: Flag, other: Flag, name: str, near: float = 0.6
) -> tuple[str, bool]:
    """What stands between the marks, and whether it is true of the flag.

    Args:
        rng: draws.
        flag: in the picture.
        other: flag that a wrong description may be of.
        name: of a country.
        near: share of wrong descriptions that are true but for a fact or two.
    """
    edit, twin = random_edit(rng, flag)
    true = rng.random() < 0.5
    shown = flag if true or rng.random() < near else rng.choice((twin, other, other))
    if rng.random() < 0.5:
        asked = rng.choice(WORDS["recall"][rng.choice(("onehop", "twohop"))])
        asked, said = asked.format(name=name, capital=name), language.recalled(name, shown)
    else:
        asked = language.modification_request(rng, flag, edit)
        said = language.caption(shown)
    if shown is flag and not true:
        said = wrong(rng, said)
    return f"{asked}\nDerived: {said}", true


class _Rows:
    """Draws batches; the same step gives the same one."""

    def __init__(self, pictures: Path, processor: Any, seed: int) -> None:
        from benchmarks.flagland.train_vlm import Pictures

        self.pictures, self.processor, self.seed = Pictures(pictures), processor, seed
        self.prompt, self.names = load_prompt(PROMPT), countries(9000 + seed)

    def draw(self, step: int, size: int, near: float = 0.6) -> dict[str, Any]:
        from benchmarks.flagland.train_vlm import ANY_PICTURE, packed, patches

        rng, blind = random.Random(f"judge-{self.seed}-{step}"), step % 3 > 0
        pixels, flags = self.pictures.draw(rng, size)
        tokens = pixels.shape[1] * pixels.shape[2] // 32**2
        chats, answers, given = [], [], []
        for n, flag in enumerate(flags):
            text, true = judged(rng, flag, flags[n - 1], next(self.names).name, near)
            request = self.prompt.render(Item("0:1", text, ("x",), "image,text"))
            shown = chat(self.processor, to_messages(request, None if blind else ANY_PICTURE))
            chats.append(shown.replace("<|image_pad|>", "<|image_pad|>" * tokens))
            said = f"{language.caption(flag)} Verdict:"
            answers.append(f"{said} {'yes' if true else 'no'} 1")
            learnt = not blind and rng.random() < _SEEN
            given.append(0 if learnt else len(self.processor.tokenizer(said)["input_ids"]))
        batch = packed(self.processor, chats, answers, given)
        if not blind:
            names = ("pixel_values", "image_grid_thw")
            batch["inputs"] |= dict(zip(names, patches(pixels), strict=True))
        return batch


def teach(
    pictures: Path,
    out: Path,
    model: str = "flagland-vlm",
    steps: int = 900,
    batch: int = 32,
    lr: float = 2e-3,
    decay: float = 0.4,
    seed: int = 0,
    threads: int = 1,
    every: int = 50,
) -> None:
    """Teach a model to judge.

    Args:
        pictures: folder that ``train_vlm draw`` wrote.
        out: the model; taken up where it stands.
        model: the one to begin with: packaged, or a folder.
        steps: up to which it is taught.
        batch: rows of a step.
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
    rows = _Rows(pictures, AutoProcessor.from_pretrained(out), seed)  # type: ignore[no-untyped-call]
    losses: deque[float] = deque(maxlen=25)
    begun, before = time.process_time(), training.seconds
    for step in range(training.done, steps):
        part = rows.draw(step, batch, 0.6 * min(1.0, step / (steps / 2)))
        losses.append(training.step([part], train_vlm.scale_of(step, steps, decay)))
        seconds = before + time.process_time() - begun
        if training.done % 25 == 0:
            say(f"step {training.done} loss {sum(losses) / len(losses):.4f} {seconds:.0f} CPU s")
        if training.done % every == 0 or training.done == steps:
            training.save(seconds)


def score(
    root: Path,
    model: Path,
    out: Path | None = None,
    tasks: tuple[int, ...] = (0, 7),
    split: str = "test",
    count: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Have a model confirm chains of which half have a wrong fact, and count what it refuses.

    Args:
        root: Flagland.
        model: folder of the judge.
        out: JSON file to write as well.
        tasks: M-BEIR codes of the queries; their targets have pictures.
        split: of the queries.
        count: of the queries, at most.
        seed: of which are wrong, and how.

    Returns:
        Per cent: ``precision`` and ``recall`` of the refusals, ``true_refused`` and
        ``no_verdict``; and the number of chains, ``chains``.
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
        confirm(root, store, str(model), image_prompt=PROMPT)
        told = {name: text.rejected for name, text in Store(store).texts("query").items()
                if name in kept}  # fmt: skip
    refused = Counter(name in false for name, reason in told.items() if reason)
    unsure = sum(reason == f"{REFUSED}: {NO_VERDICT}" for reason in told.values())
    wrong_ones = len(kept & false)
    found = {
        "chains": len(told),
        "wrong": wrong_ones,
        "precision": _share(refused[True], refused.total()),
        "recall": _share(refused[True], wrong_ones),
        "true_refused": _share(refused[False], len(told) - wrong_ones),
        "no_verdict": _share(unsure, len(told)),
    }
    say(json.dumps(found, indent=1))
    if out is not None:
        write_json(out, found)
    return found


def _share(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 1)


if __name__ == "__main__":
    import jsonargparse

    from augment.files import homes

    verbs: Any = {"teach": teach, "score": score}
    prog = "python -m benchmarks.trace.judge"
    jsonargparse.auto_cli(verbs, args=homes(sys.argv[1:]), as_positional=False, prog=prog)
