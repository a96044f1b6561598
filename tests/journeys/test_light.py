"""Commands that need no model answer without loading what models need."""

import subprocess
import sys

import pytest

from augment.__main__ import main as _augment  # noqa: F401 - its import is light, too
from retrievers.cli import VERBS

HEAVY = {"torch", "transformers", "lightning", "open_clip", "faiss", "datasets"}

RUN = """
import runpy, sys
sys.argv = {argv}
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted({heavy} & set(sys.modules)))
"""

COMMANDS = [
    "augment --help", "augment status --help", "augment validate --help", "augment verify --help",
    "augment report --help", "augment.corpus --help", "augment.queries --help",
    "retrievers --help",
    *(f"retrievers {verb} --help" for verb in VERBS),
    "retrievers fit --config=flagland --print_config",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    module, *rest = command.split()
    code = RUN.format(argv=[module, *rest], module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout or "seed_everything" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"
