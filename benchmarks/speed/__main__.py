"""``python -m benchmarks.speed STAGE [options]``: measure one stage; without a stage, list them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from augment.enrichment.command import entry
from augment.files import say
from benchmarks.speed.harness import RESULTS, Page

#: Stage -> module and function that measures it, and the page it writes.
STAGES = {
    "training": ("training", "measure", "training_speed"),
    "gradcache": ("training", "measure_chunks", "gradcache"),
    "mllm": ("training", "measure_mllm", "mllm_speed"),
    "search": ("search", "measure", "search"),
    "full_size": ("full_size", "measure", "full_size"),
    "checks": ("checks", "measure", "checks"),
    "texts": ("checks", "measure_texts", "check_texts"),
    "doors": ("doors", "measure", "doors"),
}


@entry
def main(arguments: Sequence[str]) -> int:
    """Measure a stage, write its page, print it."""
    stage, *options = arguments or [""]
    if stage not in STAGES:
        say(f"{__doc__}\n\nStages: {', '.join(STAGES)}; --help after one tells its options.")
        return 0 if stage in ("", "-h", "--help") else 2
    module_name, function, page = STAGES[stage]
    module = importlib.import_module(f"benchmarks.speed.{module_name}")
    program = f"benchmarks.speed {stage}"
    parser = ArgumentParser(prog=f"python -m {program}", description=module.__doc__)
    parser.add_function_arguments(getattr(module, function), as_group=False)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{page}.md", help="page to write")
    given = parser.parse_args(options).as_dict()
    out = Path(str(given.pop("out")))
    report: Page = getattr(module, function)(**given)
    say(report.write(out, [*program.split(), *options]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
