"""Under what a table was measured: command, seed, machine, versions."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import psutil

from retrievers.evaluation.versions import source_commit

_PACKAGES = ("numpy", "torch", "pyarrow", "faiss-cpu")


def machine(name: str, seed: int, *notes: str) -> str:
    """One paragraph for the end of a table.

    Args:
        name: of the benchmark, as in ``python -m benchmarks.NAME``.
        seed: of what was generated.
        notes: what else matters.
    """
    command = " ".join(["python", "-m", f"benchmarks.{name}", *map(shlex.quote, sys.argv[1:])])
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {metadata.version(package)}" for package in _PACKAGES]
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    parts = [
        f"Command: `{command}`; seed {seed}; commit {source_commit() or 'unknown'}",
        f"{_processor()}, {cores} of {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}",
        ", ".join(versions),
        *notes,
    ]
    return ". ".join(parts) + "."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())
