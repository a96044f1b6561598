"""What the notebooks read: results that were measured, or a small run where there are none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.experiments import run as runs
from benchmarks.experiments import spec
from benchmarks.experiments.build import Setup, digest_root, make_world
from benchmarks.experiments.texts import Enriching
from benchmarks.flagland.world import WorldConfig, build_countries, draw

#: Where ``make results`` puts what the commands wrote; the environment may name another folder.
RESULTS = Path(__file__).parent.parent / "results" / "rar"
_VARIABLE = "RAR_RESULTS"


def load(name: str) -> dict[str, Any]:
    """Results of an experiment.

    Measured ones are read from ``$RAR_RESULTS`` or ``benchmarks/results/rar``. Where they are
    absent a small Flagland is run (200 countries, 20 steps, one seed, the oracle's texts in place
    of the model's), which takes minutes and shows the form of the answer, not the answer.
    """
    path = Path(os.environ.get(_VARIABLE, RESULTS)) / f"{name}.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    print(f"{path} is not there: a small run instead (200 countries, 20 steps, one seed)")
    return small(name, Path("runs/notebooks"))


def small(name: str, out: Path, steps: int = 20) -> dict[str, Any]:
    """Run an experiment at a small size with the oracle's texts."""
    root = out / "world-200-1"
    make_world(root, 200, 1, 2)
    found = spec.load(name)
    experiment = replace(found, texts={**found.texts, "vlm": spec.Text("vlm", "oracle")})
    setup = Setup(Enriching(root, digest_root(root)), steps=steps)
    return runs.run(runs.readers([experiment], setup, out, "success@1", "local"))[0]


def about(value: Mapping[str, Any]) -> str:
    """What was measured, in a sentence."""
    setup, seeds = value["setup"], value["seeds"]
    return (
        f"Data: {setup['root']}; texts: {setup['model']}; {setup['steps']} steps of training; "
        f"seeds {', '.join(map(str, seeds))}; {value['metric']}, {value['pool']} pools; source "
        f"{(value['commit'] or 'unknown')[:12]}."
    )


def picture(value: Mapping[str, Any], path: str, width: int = 160) -> Image.Image:
    """A picture of the Flagland that was measured, drawn again from its seed.

    Args:
        value: results.
        path: of the picture, relative to the root.
        width: in pixels.

    Raises:
        ValueError: if the data is no Flagland that ``benchmarks.experiments`` made.
    """
    world = re.fullmatch(r"world-(\d+)-(\d+)", value["setup"]["root"])
    place = re.fullmatch(r".*/(flat|photo)/\d+/(\d+)\.jpg", path)
    if world is None or place is None:
        raise ValueError(f"{path} of {value['setup']['root']} is no picture of a made Flagland")
    config = WorldConfig(int(world[1]), int(world[2]))
    country = next(islice(build_countries(config), int(place[2]), None))
    drawn = draw(config, country, place[1] == "photo")
    return drawn.resize((width, round(width * drawn.height / drawn.width)))
