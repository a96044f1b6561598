"""Where a number comes from: the commit of the source and the versions of the libraries."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "lightning", "open_clip_torch", "transformers", "numpy", "bm25s")


def versions() -> dict[str, str]:
    """Python and the libraries that move scores."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # noqa: PERF203 - six of them
            found[package] = "absent"
    return found


@cache
def source_commit() -> str | None:
    """Commit of this package's source, with ``-dirty`` if its files have changed.

    None where the package is installed rather than run from a checkout.
    """
    git, folder = shutil.which("git"), Path(__file__).parents[1]
    if git is None or not (folder.parent / ".git").exists():
        return None
    try:
        told = subprocess.run(  # noqa: S603 - a fixed command on our own folder
            [git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None
